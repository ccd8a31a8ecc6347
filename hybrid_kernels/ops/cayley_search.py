"""Measures the CUDA kernels of the Cayley transform against plain PyTorch, for the rows that choose between them.

Forward and backward of packed parameters, float32 and complex64, (blocks, block size) a factor of four apart: a row
serves shapes within a factor of two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hybrid_kernels.ops import cayley_transform
from hybrid_kernels.ops.backend import use_backend
from triton_ops import search

SHAPES = tuple((blocks, size) for size in (8, 32, 128) for blocks in (32, 128, 512, 2048, 8192))
#: Blocks × size² above which a shape is left out: 128 MiB of Q in float32.
MOST_ELEMENTS = 2**25


def _step(packed: Tensor, grad_q: Tensor, size: int, backend: str) -> Callable[[], tuple[Tensor, Tensor]]:
    def run() -> tuple[Tensor, Tensor]:
        with use_backend(backend):
            q = cayley_transform.cayley_packed(packed, size)
            return q, cayley_transform.cayley_backward(grad_q, q, True)

    return run


def rows(
    device: torch.device,
    progress: Callable[[str], None] = lambda line: None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    backend: str = "cuda",
    limit: float = math.inf,
) -> list[dict[str, Any]]:
    """The rows of all shapes whose result agrees with float64 by the scale-free rule; the others are named.

    No new shape is begun after ``limit`` seconds.
    """
    found: list[dict[str, Any]] = []
    end = time.monotonic() + limit
    for dtype, operation in cayley_transform.MEASURED.items():
        for blocks, size in shapes:
            if blocks * size**2 > MOST_ELEMENTS:
                continue
            if time.monotonic() > end:
                progress(f"out of time: {blocks} blocks of {size}, {dtype}, and what follows are left out")
                return found
            packed = torch.randn(blocks, size * (size - 1) // 2, dtype=dtype, device=device) / (2 * size**0.5)
            grad_q = torch.randn(blocks, size, size, dtype=dtype, device=device)
            ours, plain = (_step(packed, grad_q, size, name) for name in (backend, "eager"))
            wide = torch.promote_types(dtype, torch.float64)
            try:
                exact = _step(packed.to(wide), grad_q.to(wide), size, "eager")()
                reason = search.why_not(ours(), exact, plain())
            except RuntimeError as error:  # too little memory, or kernels built for other GPUs
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if reason is not None:
                progress(f"{blocks} blocks of {size}, {dtype}: left out, {reason}")
                continue
            mine, simple = search.medians((ours, plain), device, search.ROUNDS)
            row = search.row_of(
                operation, (blocks, size, 1, 1), dtype, backend, None, mine / simple, exact=True
            )
            found.append(row)
            progress(search.line_of(row))
    return found
