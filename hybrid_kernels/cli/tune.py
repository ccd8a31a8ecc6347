"""bench tune: which variants, tiles and kernels are fastest on this GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from hybrid_kernels.cli import base as cli
from hybrid_kernels.cli import bench


@bench.group.command()
def tune(
    shapes: Annotated[
        str | None,
        typer.Option(help="MxKxN[,…]: rows, in_features, out_features; common shapes if left out."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the factor pair, 1 to 256.")] = 32,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="The device to measure on.")] = "cuda",
    limit: Annotated[float, typer.Option(help="Seconds after which no new shape is begun.")] = 600.0,
    output: Annotated[
        Path | None, typer.Option(help="Where the rows go; the user's cache folder if left out.")
    ] = None,
) -> None:
    """Find the fastest variant and tiles of the apply stage for each shape on this GPU, and where the CUDA kernels of
    the Cayley transform beat plain PyTorch.

    What it finds is used from then on by itself, on this GPU, for shapes within a factor of two.
    """
    import torch

    import triton_ops

    parsed = _shapes(shapes)
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if dtype not in dtypes:
        raise ValueError(f"--dtype is {dtype!r}; it may be one of {', '.join(map(repr, dtypes))}")
    if not 1 <= rank <= 256:
        raise ValueError(f"--rank is {rank}; it must lie between 1 and 256")
    reason = triton_ops.unavailable()
    if reason is None and device.startswith("cuda") and not torch.cuda.is_available():
        reason = f"--device is {device!r}, and torch sees no GPU"
    if reason is not None:
        raise ValueError(f"there is nothing to tune here: {reason}")
    from hybrid_kernels import _extension
    from hybrid_kernels.ops import cayley_search
    from triton_ops import search, selection

    path, begin = output or selection.cache_file(), time.monotonic()
    if not device.startswith("cuda") or _extension.cuda_unavailable() is not None:
        cli.console.print(
            f"the Cayley transform is left out: {_extension.cuda_unavailable() or 'not on a GPU'}"
        )
    else:
        # A folder that cannot be written to is found out before the work.
        search.write(path, torch.device(device), ())
        rows = cayley_search.rows(torch.device(device), cli.console.print, limit=limit)
        search.write(path, torch.device(device), rows)
    left = limit - (time.monotonic() - begin)
    search.search(
        parsed or search.SHAPES, rank, dtypes[dtype], torch.device(device), left, path, cli.console.print
    )
    cli.console.print(f"written to {path}", soft_wrap=True)


def _shapes(text: str | None) -> list[tuple[int, int, int]]:
    shapes = []
    for shape in cli.names(text or ""):
        sizes = shape.split("x")
        if len(sizes) != 3 or not all(size.isdecimal() and int(size) >= 1 for size in sizes):
            raise ValueError(f"--shapes has {shape!r}; each must be MxKxN of whole numbers from 1")
        m, k, n = map(int, sizes)
        shapes.append((m, k, n))
    return shapes
