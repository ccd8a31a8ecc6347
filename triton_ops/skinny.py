"""Products with few columns, R of them, R the rank of an adapter: projections and the gradients of factors.

    out = a b                           a (M, L), b (L, R), out (M, R)
    q = dy up,  d_up = dyᵀ p            dy (M, N), up (N, R), p, q (M, R), d_up (N, R): dy is read once

Any strides, 1 ≤ R ≤ 256. b (up, p) may be wider than a (dy): it is rounded to a's dtype on its way into the product.
Sums are float32. They are long and the output tiles few, so a sum is split over programs, and the partial sums are
added afterwards in a fixed order: no atomics, the same bits every time.

Low-rank dropout: the first `dropped` columns of out see a with elements dropped (triton_ops.dropout), the others a.
"""

import torch
import triton
import triton.language as tl

from triton_ops import Dropout, common
from triton_ops.dropout import dropout_scale, kept_tile

# Which way round `a` is, to the mask: its rows are rows of x, or its columns are.
NO_DROPOUT, DROPOUT_BY_ROW, DROPOUT_BY_COLUMN = 0, 1, 2


@triton.jit
def skinny_matmul_kernel(
    a_ptr, b_ptr, out_ptr, seed_ptr,
    M, L, R,
    chunk,  # length of one program's part of the sum over L
    dropped, threshold,
    stride_am, stride_al,
    stride_bl, stride_br,
    stride_os, stride_om, stride_or,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr,
    EVEN_L: tl.constexpr,  # L is a multiple of BLOCK_L: no mask along the sum
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[s] = a[:, part s] b[part s, :] for out (splits, M, R); grid (tiles, splits)."""
    tiles_r = tl.cdiv(R, BLOCK_R)
    tile = tl.program_id(0)
    split = tl.program_id(1)
    first_row = tile // tiles_r * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = tile % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    begin = split * chunk
    end = tl.minimum(begin + chunk, L)
    inner = begin + tl.arange(0, BLOCK_L)
    a_ptrs = common.tile_pointers(a_ptr, rows, inner, stride_am, stride_al)
    b_ptrs = common.tile_pointers(b_ptr, inner, cols, stride_bl, stride_br)
    in_rows = (rows < M)[:, None]
    in_cols = (cols < R)[None, :]
    low_rank = (cols < dropped)[None, :]
    accumulator = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    if DROPOUT != 0:
        seed = tl.load(seed_ptr)
    for start in range(begin, end, BLOCK_L):
        left = end - start
        a_mask = in_rows if EVEN_L else in_rows & (tl.arange(0, BLOCK_L) < left)[None, :]
        b_mask = in_cols if EVEN_L else in_cols & (tl.arange(0, BLOCK_L) < left)[:, None]
        a = tl.load(a_ptrs, mask=a_mask, other=0.0)
        b = common.rounded(tl.load(b_ptrs, mask=b_mask, other=0.0), a.dtype)
        if DROPOUT == 0:
            accumulator = common.dot(a, b, accumulator, PRECISION)
        else:
            if DROPOUT == 1:
                kept = kept_tile(rows, start, seed, threshold, BLOCK_L)
            else:
                steps = start + tl.arange(0, BLOCK_L)
                kept = tl.trans(kept_tile(steps, first_row, seed, threshold, BLOCK_M))
            zero = tl.zeros_like(b)
            seen = tl.where(kept, a, tl.zeros_like(a))
            accumulator = common.dot(seen, tl.where(low_rank, b, zero), accumulator, PRECISION)
            accumulator = common.dot(a, tl.where(low_rank, zero, b), accumulator, PRECISION)
        a_ptrs += common.step(BLOCK_L, stride_al)
        b_ptrs += common.step(BLOCK_L, stride_bl)
    if DROPOUT != 0:
        accumulator = tl.where(low_rank, accumulator * dropout_scale(threshold), accumulator)
    out_ptr += split.to(tl.int64) * stride_os
    common.store_tile(out_ptr, accumulator, rows, cols, M, R, stride_om, stride_or)


@triton.jit
def output_gradient_kernel(
    dy_ptr, up_ptr, p_ptr, q_ptr, d_up_ptr,
    M, N, R,
    chunk,  # rows of one program
    stride_dm, stride_dn,
    stride_un, stride_ur,
    stride_pm, stride_pr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q[j] = dy[:, j] up[j] and d_up[i] = dy[i]ᵀ p[i], i a chunk of rows, j a tile of columns of dy.

    q (tiles of N, M, R) and d_up (chunks of M, N, R), partial sums, are contiguous; grid (tiles of N, chunks of M).
    """
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, BLOCK_R)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, M)
    rows = begin + tl.arange(0, BLOCK_M)
    dy_ptrs = common.tile_pointers(dy_ptr, rows, cols, stride_dm, stride_dn)
    p_ptrs = common.tile_pointers(p_ptr, rows, ranks, stride_pm, stride_pr)
    in_cols = (cols < N)[None, :]
    in_ranks = (ranks < R)[None, :]
    q_ptr += tl.program_id(0).to(tl.int64) * M * R
    d_up_ptr += tl.program_id(1).to(tl.int64) * N * R
    up = common.load_tile(up_ptr, cols, ranks, N, R, stride_un, stride_ur)
    up = common.rounded(up, dy_ptr.dtype.element_ty)
    d_up = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for start in range(begin, end, BLOCK_M):
        in_rows = (tl.arange(0, BLOCK_M) < end - start)[:, None]
        if EVEN_M and EVEN_N:
            dy = tl.load(dy_ptrs)
        else:
            dy = tl.load(dy_ptrs, mask=in_rows & in_cols, other=0.0)
        p = tl.load(p_ptrs, mask=in_rows & in_ranks, other=0.0)
        p = common.rounded(p, dy.dtype)
        q = common.dot(dy, up, tl.zeros((BLOCK_M, BLOCK_R), tl.float32), PRECISION)
        common.store_tile(q_ptr, q, start + tl.arange(0, BLOCK_M), ranks, end, R, R, 1)
        d_up = common.dot(tl.trans(dy), p, d_up, PRECISION)
        dy_ptrs += common.step(BLOCK_M, stride_dm)
        p_ptrs += common.step(BLOCK_M, stride_pm)
    common.store_tile(d_up_ptr, d_up, cols, ranks, N, R, R, 1)


@triton.jit
def sum_partials_kernel(partial_ptr, out_ptr, size, splits, BLOCK: tl.constexpr):
    """out[i] = Σ_s partial[s, i], s in order, for contiguous partial (splits, size) and out (size,)."""
    zero = tl.arange(0, 1)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((1, BLOCK), tl.float32)
    for split in range(splits):
        total += common.load_tile(partial_ptr, zero + split, index, splits, size, size, 1)
    common.store_tile(out_ptr, total, zero, index, 1, size, size, 1)


# Columns come from the rank.
TILES = {
    "default": {
        "half": common.Tiles(64, 0, 32, 4, 3),
        "tf32": common.Tiles(64, 0, 32, 4, 3),
        "ieee": common.Tiles(64, 0, 16, 8, 2),
    },
    **{family: {"half": common.Tiles(64, 0, 64, 4, 3)} for family in ("sm80", "sm90", "sm100")},
    "gfx942": {"half": common.Tiles(64, 0, 64, 4, 2)},
    "interpreter": dict.fromkeys(("half", "tf32", "ieee"), common.Tiles(16, 0, 16, 1, 1)),
}
# Rows and columns are those of the tile of dy; few and wide, since each tile of columns writes a partial q.
OUTPUT_GRADIENT_TILES = {
    "default": {
        "half": common.Tiles(64, 128, 0, 4, 3),
        "tf32": common.Tiles(32, 64, 0, 4, 3),
        "ieee": common.Tiles(16, 64, 0, 8, 2),
    },
    "sm90": {"half": common.Tiles(64, 256, 0, 8, 3)},
    "sm100": {"half": common.Tiles(64, 256, 0, 8, 3)},
    "interpreter": dict.fromkeys(("half", "tf32", "ieee"), common.Tiles(16, 16, 0, 1, 1)),
}
# Above it the accumulators of q and d_up do not fit beside each other: two products instead.
OUTPUT_GRADIENT_MAX_RANK = 128


def unsupported(a: torch.Tensor, b: torch.Tensor) -> str | None:
    """Why `matmul(a, b)` cannot run here, or None when it can."""
    return common.unsupported_mixed(common.DTYPES, a=a, b=b)


def _sum_partials(partial: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sum of partial (splits, rows, columns) over its first dimension, in `dtype`."""
    if partial.shape[0] == 1 and partial.dtype == dtype:
        return partial[0]
    out = torch.empty(partial.shape[1:], device=partial.device, dtype=dtype)
    size, block = out.numel(), 256
    if size:
        common.launch(
            sum_partials_kernel,
            (triton.cdiv(size, block),),
            partial, out,
            size, partial.shape[0],
            BLOCK=block,
            num_warps=4, num_stages=2,
        )  # fmt: skip
    return out


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    transposed: bool = False,
    dtype: torch.dtype | None = None,
    *,
    exact: bool = False,
    dropout: Dropout | None = None,
    tiles: common.Tiles | None = None,
) -> torch.Tensor:
    """a b for a (M, L), b (L, R), as a contiguous (M, R), or as a contiguous (R, M) holding its transpose.

    ``dtype`` is that of the result, a's if None. ``exact`` keeps TF32 out where torch allows it for its own products.
    ``dropout`` is applied to a, or, with ``transposed``, to the matrix whose transpose a is.
    """
    (m, length), r = a.shape, b.shape[1]
    dtype = dtype or a.dtype
    precision = "ieee" if exact else common.dot_precision(a.dtype)
    tiles = tiles or common.tiles(TILES, a.device, a.dtype, precision)
    if not common.aligned(a):
        tiles = common.narrowed(tiles)
    block_r = min(max(triton.next_power_of_2(r), 16), 128 if dropout is None else 32)
    grid_tiles = triton.cdiv(m, tiles.rows) * triton.cdiv(r, block_r)
    steps = max(triton.cdiv(length, tiles.inner), 1)
    steps_each = common.steps_each(steps, grid_tiles, a.device)
    splits = triton.cdiv(steps, steps_each)
    partial = torch.empty(
        (splits, r, m) if transposed else (splits, m, r),
        device=a.device,
        dtype=dtype if splits == 1 else torch.float32,
    )
    dropped, threshold, seed = dropout or (0, 0, None)
    mode = NO_DROPOUT if dropout is None else DROPOUT_BY_COLUMN if transposed else DROPOUT_BY_ROW
    if partial.numel():
        out = partial.mT if transposed else partial
        common.launch(
            skinny_matmul_kernel,
            (grid_tiles, splits),
            a, b, out, seed,
            m, length, r,
            steps_each * tiles.inner,
            dropped, threshold,
            *a.stride(), *b.stride(), *out.stride(),
            BLOCK_M=tiles.rows, BLOCK_L=tiles.inner, BLOCK_R=block_r,
            EVEN_L=length % tiles.inner == 0,
            DROPOUT=mode, PRECISION=precision,
            num_warps=8 if block_r == 128 else tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return _sum_partials(partial, dtype)


def output_gradient(
    dy: torch.Tensor, up: torch.Tensor, p: torch.Tensor, tiles: common.Tiles | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, d_up): q = dy up (M, R) in dy's dtype and d_up = dyᵀ p (N, R) in up's, from one pass over dy."""
    (m, n), r = dy.shape, up.shape[1]
    tiles = tiles or common.tiles(OUTPUT_GRADIENT_TILES, dy.device, dy.dtype)
    tiles_n = triton.cdiv(n, tiles.cols)
    # As in `matmul`: about two programs a processor, each with at least four blocks of rows.
    steps = triton.cdiv(m, tiles.rows)
    steps_each = max(triton.cdiv(steps * tiles_n, 2 * common.processors(dy.device)), min(steps, 4))
    chunks = triton.cdiv(steps, max(steps_each, 1))
    if not (m and n):
        return dy.new_zeros(m, r), up.new_zeros(n, r)
    q = torch.empty((tiles_n, m, r), device=dy.device, dtype=dy.dtype if tiles_n == 1 else torch.float32)
    d_up = torch.empty((chunks, n, r), device=dy.device, dtype=up.dtype if chunks == 1 else torch.float32)
    common.launch(
        output_gradient_kernel,
        (tiles_n, chunks),
        dy, up, p, q, d_up,
        m, n, r,
        steps_each * tiles.rows,
        *dy.stride(), *up.stride(), *p.stride(),
        BLOCK_M=tiles.rows, BLOCK_N=tiles.cols, BLOCK_R=max(triton.next_power_of_2(r), 16),
        EVEN_M=m % tiles.rows == 0, EVEN_N=n % tiles.cols == 0, PRECISION=common.dot_precision(dy.dtype),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return _sum_partials(q, dy.dtype), _sum_partials(d_up, up.dtype)
