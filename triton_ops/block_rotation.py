"""Rows times a block-diagonal matrix, the gradient of its blocks, and the product fused with a projection.

    y_j = x_j q_j                       y = x diag(q_1, …, q_k), x_j the j-th run of b columns
    dq_j = Σ_rows x_jᵀ dy_j
    xr = x diag(q),  p = xr downᵀ       one pass over x

The first two also for one level of a butterfly, y = x P diag(q) Pᵀ, whose permutation P is in the addresses alone: x_j
is then two half-blocks of b/2 columns, 2^level half-blocks apart.

Shapes: x, y, dy, xr (M, k·b); q, dq (k, b, b); down (R, k·b); p (M, R); 1 ≤ R ≤ 256, any b ≥ 1, M = 0 included.
Any strides, so q.mT does for the transposed blocks. float32, float16 or bfloat16; q and down may be of another of
these dtypes than x and are rounded to x's in registers. Sums are float32.

Columns are taken in groups of whole blocks: as many blocks as fit a tile's width, or one that is larger. A tile of
columns lies in one group, and only that group's rows of diag(q) meet it. So a tile of small blocks is one product with
a block-diagonal matrix, most of it zeros, which costs less than the loads it makes wide; a tile of a large block is a
sum over the block in chunks.
"""

import torch
import triton
import triton.language as tl

from triton_ops import common, low_rank, skinny


@triton.jit
def load_blocks(q_ptr, inner, cols, end, stride_qk, stride_qi, stride_qj, B: tl.constexpr):
    """The tile [inner, cols] of diag(q), zero outside the blocks and from row `end` on."""
    by_row = (inner // B).to(tl.int64) * stride_qk + (inner % B).to(tl.int64) * stride_qi
    offsets = by_row[:, None] + (cols % B).to(tl.int64)[None, :] * stride_qj
    inside = (inner // B)[:, None] == (cols // B)[None, :]
    return tl.load(q_ptr + offsets, mask=inside & (inner < end)[:, None], other=0.0)


@triton.jit
def permuted(cols, end, K, B: tl.constexpr, LEVEL: tl.constexpr):
    """Where the columns of the blocks lie at a level of a butterfly, K for those from `end` on.

    Block j of a group of 2^LEVEL has its halves at the half-blocks j and j + 2^LEVEL of the group.
    """
    half: tl.constexpr = B // 2
    block, within = cols // B, cols % B
    start = (block >> LEVEL) * (B << LEVEL) + (block % (1 << LEVEL)) * half
    return tl.where(cols < end, start + within // half * (half << LEVEL) + within % half, K)


@triton.jit
def tile_columns(tile, K, SPAN: tl.constexpr, BLOCK_N: tl.constexpr):
    """(cols, begin, end): the columns of a tile and those of its group, begin to end."""
    tiles: tl.constexpr = (SPAN + BLOCK_N - 1) // BLOCK_N
    begin = tile // tiles * SPAN
    cols = begin + tile % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    return cols, begin, tl.minimum(begin + SPAN, K)


@triton.jit
def rotated_tile(
    x_ptr, q_ptr,
    rows, cols, begin, end, M, K,
    stride_xm, stride_xk,
    stride_qk, stride_qi, stride_qj,
    B: tl.constexpr, SPAN: tl.constexpr, LEVEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The tile [rows, cols] of x P diag(q), float32, for columns of the group from begin to end."""
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # The constant bounds make it no loop at all where a chunk is a group, and leave pipelining to the caller's.
    for chunk in range(0, SPAN, BLOCK_K):
        inner = begin + chunk + tl.arange(0, BLOCK_K)
        if LEVEL == 0:
            x = common.load_tile(x_ptr, rows, inner, M, end, stride_xm, stride_xk)
        else:
            x = common.load_tile(x_ptr, rows, permuted(inner, end, K, B, LEVEL), M, K, stride_xm, stride_xk)
        q = load_blocks(q_ptr, inner, cols, end, stride_qk, stride_qi, stride_qj, B)
        accumulator = common.dot(x, common.rounded(q, x.dtype), accumulator, PRECISION)
    return accumulator


@triton.jit
def rotate_kernel(
    x_ptr, q_ptr, y_ptr,
    M, K,
    stride_xm, stride_xk,
    stride_qk, stride_qi, stride_qj,
    stride_ym, stride_yk,
    B: tl.constexpr, SPAN: tl.constexpr, LEVEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y = x P diag(q) Pᵀ for x, y (M, K); one program a tile of y, neighbours in time along the rows of x."""
    tiles_n = tl.cdiv(K, SPAN) * ((SPAN + BLOCK_N - 1) // BLOCK_N)
    rows = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    cols, begin, end = tile_columns(tl.program_id(0) % tiles_n, K, SPAN, BLOCK_N)
    y = rotated_tile(
        x_ptr, q_ptr, rows, cols, begin, end, M, K, stride_xm, stride_xk, stride_qk, stride_qi, stride_qj,
        B, SPAN, LEVEL, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    if LEVEL == 0:
        common.store_tile(y_ptr, y, rows, cols, M, end, stride_ym, stride_yk)
    else:
        common.store_tile(y_ptr, y, rows, permuted(cols, end, K, B, LEVEL), M, K, stride_ym, stride_yk)


@triton.jit
def rotate_project_kernel(
    x_ptr, q_ptr, down_ptr, xr_ptr, p_ptr,
    M, K, R,
    tiles_each,  # tiles of columns of one program
    stride_xm, stride_xk,
    stride_qk, stride_qi, stride_qj,
    stride_dr, stride_dk,
    stride_xrm, stride_xrk,
    stride_ps, stride_pm, stride_pr,
    B: tl.constexpr, SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """xr = x diag(q), p[s] = xr[:, part s] down[:, part s]ᵀ for x, xr (M, K), down (R, K), p (splits, M, R).

    Grid (tiles of rows, splits); BLOCK_R ≥ R. The projection takes xr as it is stored, rounded to its dtype.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ranks = tl.arange(0, BLOCK_R)
    split = tl.program_id(1)
    tiles_n = tl.cdiv(K, SPAN) * ((SPAN + BLOCK_N - 1) // BLOCK_N)
    p = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for tile in range(split * tiles_each, tl.minimum((split + 1) * tiles_each, tiles_n)):
        cols, begin, end = tile_columns(tile, K, SPAN, BLOCK_N)
        xr = rotated_tile(
            x_ptr, q_ptr, rows, cols, begin, end, M, K, stride_xm, stride_xk, stride_qk, stride_qi, stride_qj,
            B, SPAN, 0, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        xr = common.rounded(xr, x_ptr.dtype.element_ty)
        common.store_tile(xr_ptr, xr, rows, cols, M, end, stride_xrm, stride_xrk)
        down = common.load_tile(down_ptr, cols, ranks, end, R, stride_dk, stride_dr)
        p = common.dot(xr, common.rounded(down, xr.dtype), p, PRECISION)
    p_ptr += split.to(tl.int64) * stride_ps
    common.store_tile(p_ptr, p, rows, ranks, M, R, stride_pm, stride_pr)


@triton.jit
def block_gradient_kernel(
    x_ptr, dy_ptr, dq_ptr,
    M, K,
    chunk,  # rows of one program's part of the sum
    stride_xm, stride_xk,
    stride_dym, stride_dyk,
    B: tl.constexpr, SPAN: tl.constexpr, LEVEL: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq[s] = the diagonal blocks of (x[part s] P)ᵀ (dy[part s] P) for x, dy (M, K), dq (splits, k, b, b), contiguous.

    Grid (tiles, splits), a group of columns being tiles_i × tiles_j tiles.
    """
    tiles_i: tl.constexpr = (SPAN + BLOCK_I - 1) // BLOCK_I
    tiles_j: tl.constexpr = (SPAN + BLOCK_J - 1) // BLOCK_J
    tile = tl.program_id(0)
    split = tl.program_id(1)
    begin = tile // (tiles_i * tiles_j) * SPAN
    end = tl.minimum(begin + SPAN, K)
    i = begin + tile // tiles_j % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)
    j = begin + tile % tiles_j * BLOCK_J + tl.arange(0, BLOCK_J)
    last = tl.minimum((split + 1) * chunk, M)
    accumulator = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
    for start in range(split * chunk, last, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        if LEVEL == 0:
            x = common.load_tile(x_ptr, i, rows, end, last, stride_xk, stride_xm)
            dy = common.load_tile(dy_ptr, rows, j, last, end, stride_dym, stride_dyk)
        else:
            x = common.load_tile(x_ptr, permuted(i, end, K, B, LEVEL), rows, K, last, stride_xk, stride_xm)
            dy = common.load_tile(
                dy_ptr, rows, permuted(j, end, K, B, LEVEL), last, K, stride_dym, stride_dyk
            )
        accumulator = common.dot(x, dy, accumulator, PRECISION)
    # dq as (K, b): its row is i, its column that of j in the block.
    offsets = split.to(tl.int64) * K * B + i.to(tl.int64)[:, None] * B + (j % B)[None, :]
    inside = ((i // B)[:, None] == (j // B)[None, :]) & (i < end)[:, None]
    tl.store(dq_ptr + offsets, common.rounded(accumulator, dq_ptr.dtype.element_ty), mask=inside)


# Each for blocks no larger than a tile is wide, then for larger ones. Chosen by compiling (no spills, shared memory
# fits: triton_ops.aot), not yet by timing.
INTERPRETER_TILES = dict.fromkeys(("half", "tf32", "ieee"), common.Tiles(16, 16, 16, 1, 1))
ROTATE_TILES = {
    "default": {
        "half": common.Tiles(128, 64, 64, 4, 2),
        "tf32": common.Tiles(128, 32, 32, 8, 2),
        "ieee": common.Tiles(128, 32, 32, 4, 2),
    },
    "interpreter": INTERPRETER_TILES,
}
LARGE_ROTATE_TILES = {
    "default": {
        "half": common.Tiles(128, 128, 64, 8, 2),
        "tf32": common.Tiles(64, 64, 32, 4, 3),
        "ieee": common.Tiles(64, 32, 16, 4, 2),
    },
    "interpreter": INTERPRETER_TILES,
}
# Columns are those of xr; the columns of p come from the rank.
PROJECT_TILES = {
    "default": {
        "half": common.Tiles(128, 64, 64, 8, 2),
        "tf32": common.Tiles(128, 32, 32, 8, 2),
        "ieee": common.Tiles(32, 32, 32, 4, 2),
    },
    "gfx942": {"half": common.Tiles(64, 64, 64, 8, 2)},
    "interpreter": INTERPRETER_TILES,
}
LARGE_PROJECT_TILES = {
    "default": {
        "half": common.Tiles(128, 64, 64, 8, 2),
        "tf32": common.Tiles(128, 64, 32, 8, 2),
        "ieee": common.Tiles(32, 32, 16, 4, 2),
    },
    "interpreter": INTERPRETER_TILES,
}
# Rows and columns are those of dq, the summed elements the rows of x.
GRADIENT_TILES = {
    "default": {
        "half": common.Tiles(64, 64, 64, 8, 3),
        "tf32": common.Tiles(32, 32, 64, 4, 3),
        "ieee": common.Tiles(32, 32, 32, 4, 2),
    },
    "interpreter": INTERPRETER_TILES,
}
LARGE_GRADIENT_TILES = {
    "default": {
        "half": common.Tiles(128, 128, 32, 8, 3),
        "tf32": common.Tiles(64, 64, 32, 4, 3),
        "ieee": common.Tiles(64, 64, 16, 4, 2),
    },
    "interpreter": INTERPRETER_TILES,
}
# Every tile of rows reads the whole of down, so from some rank on that costs more than reading xr once more. By an
# estimate of the traffic, not yet by timing.
MAX_FUSED_RANK = 64

Table = dict[str, dict[str, common.Tiles]]


def _tiles(small: Table, large: Table, x: torch.Tensor, b: int, level: int = 0) -> tuple[common.Tiles, int]:
    """The tiles for blocks of size b at a level of a butterfly, and the columns of a group."""
    tiles = common.tiles(small, x.device, x.dtype)
    if b > tiles.cols:
        tiles = common.tiles(large, x.device, x.dtype)
    if (
        level > 0
    ):  # elements are fetched one by one, and the addresses of a larger tile do not fit the registers
        tiles = common.narrowed(tiles)
    return tiles, max(tiles.cols // b, 1) * b


def unsupported(x: torch.Tensor, q: torch.Tensor) -> str | None:
    """Why `rotate` or `weight_gradient` cannot run here for x and blocks q, or None when they can."""
    return common.unsupported_mixed(common.DTYPES, x=x, q=q)


def unsupported_project(x: torch.Tensor, q: torch.Tensor, down: torch.Tensor) -> str | None:
    """Why `rotate_project` cannot run here, or None when it can."""
    if not 1 <= down.shape[0] <= low_rank.MAX_RANK:
        return f"rank = {down.shape[0]}, the kernel takes 1 to {low_rank.MAX_RANK}"
    return common.unsupported_mixed(common.DTYPES, x=x, q=q, down=down)


def rotate(x: torch.Tensor, q: torch.Tensor, level: int = 0) -> torch.Tensor:
    """x P diag(q) Pᵀ (M, k·b), P of a level of a butterfly, contiguous, in x's dtype."""
    (m, features), b = x.shape, q.shape[1]
    tiles, span = _tiles(ROTATE_TILES, LARGE_ROTATE_TILES, x, b, level)
    y = torch.empty((m, features), device=x.device, dtype=x.dtype)
    if y.numel():
        tiles_n = triton.cdiv(features, span) * triton.cdiv(span, tiles.cols)
        common.launch(
            rotate_kernel,
            (triton.cdiv(m, tiles.rows) * tiles_n,),
            x, q, y,
            m, features,
            *x.stride(), *q.stride(), *y.stride(),
            B=b, SPAN=span, LEVEL=level, BLOCK_M=tiles.rows, BLOCK_N=tiles.cols, BLOCK_K=tiles.inner,
            PRECISION=common.dot_precision(x.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return y


def rotate_project(x: torch.Tensor, q: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(xr, p): xr = x diag(q) (M, k·b) and p = xr downᵀ (M, R), contiguous, both in x's dtype."""
    (m, features), b, r = x.shape, q.shape[1], down.shape[0]
    if r > MAX_FUSED_RANK:
        xr = rotate(x, q)
        return xr, skinny.matmul(xr, down.to(x.dtype).mT)
    tiles, span = _tiles(PROJECT_TILES, LARGE_PROJECT_TILES, x, b)
    tiles_m = triton.cdiv(m, tiles.rows)
    tiles_n = triton.cdiv(features, span) * triton.cdiv(span, tiles.cols)
    tiles_each = common.steps_each(tiles_n, tiles_m, x.device)
    splits = triton.cdiv(tiles_n, tiles_each)
    xr = torch.empty((m, features), device=x.device, dtype=x.dtype)
    p = torch.empty((splits, m, r), device=x.device, dtype=x.dtype if splits == 1 else torch.float32)
    if p.numel():
        common.launch(
            rotate_project_kernel,
            (tiles_m, splits),
            x, q, down, xr, p,
            m, features, r,
            tiles_each,
            *x.stride(), *q.stride(), *down.stride(), *xr.stride(), *p.stride(),
            B=b, SPAN=span, BLOCK_M=tiles.rows, BLOCK_N=tiles.cols, BLOCK_K=tiles.inner,
            BLOCK_R=max(triton.next_power_of_2(r), 16),
            PRECISION=common.dot_precision(x.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return xr, p[0] if splits == 1 else p.sum(0).to(x.dtype)


def weight_gradient(x: torch.Tensor, dy: torch.Tensor, q: torch.Tensor, level: int = 0) -> torch.Tensor:
    """dq_j = Σ_rows x_jᵀ dy_j (k, b, b), contiguous, in q's dtype, for the rotation `rotate` of x by q at a level."""
    (m, features), b = x.shape, q.shape[1]
    tiles, span = _tiles(GRADIENT_TILES, LARGE_GRADIENT_TILES, x, b, level)
    steps = max(triton.cdiv(m, tiles.inner), 1)
    grid_tiles = triton.cdiv(features, span) * triton.cdiv(span, tiles.rows) * triton.cdiv(span, tiles.cols)
    steps_each = common.steps_each(steps, grid_tiles, x.device)
    splits = triton.cdiv(steps, steps_each)
    dq = torch.empty((splits, *q.shape), device=x.device, dtype=q.dtype if splits == 1 else torch.float32)
    if dq.numel():
        common.launch(
            block_gradient_kernel,
            (grid_tiles, splits),
            x, dy, dq,
            m, features,
            steps_each * tiles.inner,
            *x.stride(), *dy.stride(),
            B=b, SPAN=span, LEVEL=level, BLOCK_I=tiles.rows, BLOCK_J=tiles.cols, BLOCK_M=tiles.inner,
            PRECISION=common.dot_precision(x.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return dq[0] if splits == 1 else dq.sum(0).to(q.dtype)
