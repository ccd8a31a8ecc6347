"""Products with few columns: a (M, L) times b (L, R), R the rank of an adapter.

    out = a b        a (M, L), b (L, R), out (M, R), any strides, 1 ≤ R ≤ 256

They have few output tiles and a long sum, so the sum is split over programs and the partial sums are added afterwards,
in a fixed order and without atomics.
"""

import torch
import triton
import triton.language as tl

from triton_ops import common


@triton.jit
def skinny_matmul_kernel(
    a_ptr, b_ptr, out_ptr,
    M, L, R,
    chunk,  # length of one program's part of the sum over L
    stride_am, stride_al,
    stride_bl, stride_br,
    stride_os, stride_om, stride_or,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out[s] = a[:, part s] b[part s, :] for a (M, L), b (L, R), out (splits, M, R); grid (tiles, splits)."""
    tiles_r = tl.cdiv(R, BLOCK_R)
    tile = tl.program_id(0)
    split = tl.program_id(1)
    rows = tile // tiles_r * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    end = tl.minimum((split + 1) * chunk, L)
    accumulator = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for start in range(split * chunk, end, BLOCK_L):
        inner = start + tl.arange(0, BLOCK_L)
        a = common.load_tile(a_ptr, rows, inner, M, end, stride_am, stride_al)
        b = common.load_tile(b_ptr, inner, cols, end, R, stride_bl, stride_br)
        accumulator = common.dot(a, b, accumulator, PRECISION)
    out_ptr += split.to(tl.int64) * stride_os
    common.store_tile(out_ptr, accumulator, rows, cols, M, R, stride_om, stride_or)


# Columns come from the rank.
SKINNY_TILES = {
    "default": {
        "half": common.Tiles(64, 0, 64, 4, 3),
        "tf32": common.Tiles(64, 0, 32, 4, 3),
        "ieee": common.Tiles(64, 0, 16, 8, 2),
    },
    "interpreter": dict.fromkeys(("half", "tf32", "ieee"), common.Tiles(16, 16, 16, 1, 1)),
}


def matmul(
    a: torch.Tensor, b: torch.Tensor, transposed: bool = False, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """a b for a (M, L), b (L, R), as a contiguous (M, R), or as a contiguous (R, M) holding its transpose.

    ``dtype`` is that of the result, a's if None; the sums are float32 in any case.
    """
    (m, length), r = a.shape, b.shape[1]
    dtype = dtype or a.dtype
    tiles = common.tiles(SKINNY_TILES, a.device, a.dtype)
    block_r = min(max(triton.next_power_of_2(r), 16), 128)
    grid_tiles = triton.cdiv(m, tiles.rows) * triton.cdiv(r, block_r)
    steps = max(triton.cdiv(length, tiles.inner), 1)
    steps_each = common.steps_each(steps, grid_tiles, a.device)
    splits = triton.cdiv(steps, steps_each)
    partial = torch.empty(
        (splits, r, m) if transposed else (splits, m, r),
        device=a.device,
        dtype=dtype if splits == 1 else torch.float32,
    )
    if partial.numel():
        out = partial.mT if transposed else partial
        common.launch(
            skinny_matmul_kernel,
            (grid_tiles, splits),
            a, b, out,
            m, length, r,
            steps_each * tiles.inner,
            *a.stride(), *b.stride(), *out.stride(),
            BLOCK_M=tiles.rows, BLOCK_L=tiles.inner, BLOCK_R=block_r,
            PRECISION=common.dot_precision(a.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return partial[0] if splits == 1 else partial.sum(0).to(dtype)
