"""What the kernels share: strided tiles, products, launching; what a device, a dtype and a tensor allow."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from triton_ops.selection import Tiles, dot_precision

__all__ = ["Tiles", "dot_precision"]

#: What kernels take and give, but for those that say otherwise.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Fixed at import, like the decoration of the kernels themselves.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def rounded(tile, dtype: tl.constexpr):
    """The tile in a dtype, rounded to nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16 and tile.dtype != tl.bfloat16:
        # The interpreter truncates to bfloat16.
        bits = tile.to(tl.float32).to(tl.uint32, bitcast=True)
        tile = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).to(tl.float32, bitcast=True)
    return tile.to(dtype)


@triton.jit
def load_tile(ptr, rows, cols, row_count, col_count, stride_row, stride_col):
    """The tile [rows, cols] of a strided (row_count, col_count) matrix, zero outside it.

    Offsets are int64: row · stride passes 2³¹ with a few hundred thousand rows.
    """
    offsets = rows[:, None].to(tl.int64) * stride_row + cols[None, :].to(tl.int64) * stride_col
    inside = (rows < row_count)[:, None] & (cols < col_count)[None, :]
    return tl.load(ptr + offsets, mask=inside, other=0.0)


@triton.jit
def tile_pointers(ptr, rows, cols, stride_row, stride_col):
    """Pointers to the tile [rows, cols] of a strided matrix; offsets as in `load_tile`."""
    return ptr + (rows[:, None].to(tl.int64) * stride_row + cols[None, :].to(tl.int64) * stride_col)


@triton.jit
def step(count, stride):
    """count · stride in int64: by how much pointers move on."""
    return tl.full((), 1, tl.int64) * count * stride


@triton.jit
def store_tile(ptr, tile, rows, cols, row_count, col_count, stride_row, stride_col):
    """Store a tile at [rows, cols] of a strided (row_count, col_count) matrix, in the matrix's dtype."""
    offsets = rows[:, None].to(tl.int64) * stride_row + cols[None, :].to(tl.int64) * stride_col
    inside = (rows < row_count)[:, None] & (cols < col_count)[None, :]
    tl.store(ptr + offsets, rounded(tile, ptr.dtype.element_ty), mask=inside)


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a b, accumulated in float32."""
    if INTERPRETED:  # the interpreter multiplies the bit patterns of bfloat16, and sums float16 in float16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def grouped_tile(program, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(tile_m, tile_n) of a program: neighbours in time share GROUP_M rows of tiles, and so the L2 cache."""
    group = program // (GROUP_M * tiles_n)
    within = program % (GROUP_M * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    return group * GROUP_M + within % height, within // height


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Run a kernel on the device of its tensors, which need not be the current one."""
    with torch.cuda.device_of(next(arg for arg in args if isinstance(arg, torch.Tensor))):
        kernel[grid](*args, **meta)


@functools.cache
def family(device: torch.device) -> str:
    """The row of the tile tables for a device: "interpreter", "sm80", "sm90", "sm100", "gfx942" or "default".

    "default" is every other GPU. Compute capabilities 8.6, 8.9 and 12.0 are among them: they have little more
    than half the shared memory of their namesakes 8.0 and 10.0.
    """
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        architecture = properties.gcnArchName.split(":")[0]
        return architecture if architecture == "gfx942" else "default"
    return {(8, 0): "sm80", (9, 0): "sm90", (10, 0): "sm100", (10, 3): "sm100"}.get(
        (properties.major, properties.minor), "default"
    )


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors (compute units) of a GPU; a small number under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16


def tiles(
    table: dict[str, dict[str, Tiles]], device: torch.device, dtype: torch.dtype, precision: str | None = None
) -> Tiles:
    """The row of a table of tiles for a device family and a kind of product ("half", "tf32", "ieee").

    ``precision`` is that of float32 products, `dot_precision` if None.
    """
    kind = (precision or dot_precision(dtype)) if dtype == torch.float32 else "half"
    return table.get(family(device), {}).get(kind) or table["default"][kind]


def aligned(*matrices: torch.Tensor) -> bool:
    """Whether rows (or columns, where those are contiguous) all begin at multiples of 16 bytes, as far as strides tell.

    Elsewhere elements are fetched one by one, and the addresses of a large tile do not fit the registers.
    """
    return all(1 in m.stride() and max(m.stride()) * m.element_size() % 16 == 0 for m in matrices)


def narrowed(tiles: Tiles) -> Tiles:
    """Half as large in every direction and without a pipeline, for matrices that are not `aligned`."""
    rows, cols, inner = (max(size // 2, 16) for size in tiles[:3])
    return tiles._replace(rows=rows, cols=cols, inner=inner, num_stages=1)


def steps_each(steps: int, tiles: int, device: torch.device) -> int:
    """How many of a sum's steps one program takes, where each of `tiles` output tiles is a sum of so many.

    About two programs a processor, each with at least four steps: long sums are split, their parts added afterwards.
    """
    return max(triton.cdiv(steps * tiles, 2 * processors(device)), min(steps, 4), 1)


def unsupported_tensors(dtypes: Sequence[torch.dtype], **tensors: torch.Tensor) -> str | None:
    """Why kernels that take one of `dtypes` cannot take these tensors together, or None when they can."""
    reason = unsupported_mixed(dtypes, **tensors)
    if reason is not None:
        return reason
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            return f"{name} is {tensor.dtype} while {first_name} is {first.dtype}"
    return None


def unsupported_mixed(dtypes: Sequence[torch.dtype], **tensors: torch.Tensor) -> str | None:
    """Why kernels that take any of `dtypes` for each cannot take these tensors together, or None when they can."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.device != first.device:
            return f"{name} is on {tensor.device} while {first_name} is on {first.device}"
        if tensor.dtype not in dtypes:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            return f"{name} is {tensor.dtype}, the kernel takes {allowed}"
    if first.device.type == "cpu" and INTERPRETED.value:
        return None
    if first.device.type != "cuda":
        hint = (
            ", and TRITON_INTERPRET was not set before triton was imported"
            if first.device.type == "cpu"
            else ""
        )
        return f"tensors are on {first.device}{hint}"
    if not torch.version.hip and torch.cuda.get_device_capability(first.device) < (8, 0):
        return f"{torch.cuda.get_device_name(first.device)} has a compute capability below 8.0"
    return None
