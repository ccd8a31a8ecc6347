"""Compact WY factors of chains of Householder reflections, and their gradient (the factorise stage).

    v = u / ‖u‖ column by column; a column stays zero (no reflection) where ‖u‖² is zero in float32
    G = vᵀ v,   S = ½ I + striu(G),   t = S⁻¹,   z = v t
    H₁ H₂ … Hₙ = I − v t vᵀ = I − z vᵀ,   Hᵢ = I − 2 vᵢ vᵢᵀ

    dS = −tᵀ dt tᵀ,   dG = striu(dS),   total = dv + v (dG + dGᵀ)
    duᵢ = (totalᵢ − vᵢ (vᵢ·totalᵢ)) / ‖uᵢ‖, and zero where uᵢ = 0

Shapes: u, v, z, dv, du (…, K, n); t, dt (…, n, n), t upper triangular; 1 ≤ n ≤ 128.
u is float32, float16 or bfloat16 with any strides; v, t, z and everything between are float32, never TF32; du is as u.

The sums over K are all in matrices of n columns: uᵀu forward, vᵀv and the column dots of v with dv and of u with itself
backward, since vᵢ·totalᵢ = vᵢ·dvᵢ + Σⱼ G[j, i] (dG + dGᵀ)[j, i]. So both directions are two kernels: one in which a
program sums one part of K, and one in which every program adds those partial sums, does the small work on n × n
redundantly, and writes its own rows. The parts depend on K and n alone and are added in order: no atomics, and a
layer's factors do not depend on what else is in the launch.

S⁻¹ is exact, by back substitution; a truncated series would not give H = I for equal pairs of columns.
The compact WY form is Schreiber and Van Loan's (1989), S as the inverse of its t is Puglisi's (1992).

Many layers of different shapes in one launch, through a table of addresses: triton_ops.householder_many.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from triton_ops import common

MAX_REFLECTIONS = 128
FACTORS_FIELDS = tl.constexpr(8)  # int64 values a layer takes in the table of the factors
BACKWARD_FIELDS = tl.constexpr(14)


@triton.jit
def part_length(K, BLOCK_K: tl.constexpr, PARTS: tl.constexpr):
    """Rows in each part of a sum over K: at most PARTS parts, each of at least four tiles but for the last."""
    return tl.maximum(tl.cdiv(tl.cdiv(K, PARTS), BLOCK_K), 4) * BLOCK_K


@triton.jit
def inverse_norm(squares):
    """1 / √squares, and 0 where it is 0."""
    nonzero = squares > 0
    return tl.where(nonzero, 1 / tl.sqrt_rn(tl.where(nonzero, squares, 1.0)), 0.0)


@triton.jit
def sum_of_parts(ptr, offsets, parts, stride, UNROLL: tl.constexpr):
    """Σ over the parts, in order, of the values at `offsets` of each."""
    total = tl.zeros(offsets.shape, tl.float32)
    for start in range(0, parts, UNROLL):
        for step in tl.static_range(UNROLL):  # loads that do not wait for each other
            total += tl.load(ptr + (start + step) * stride + offsets, mask=start + step < parts, other=0.0)
    return total


@triton.jit
def householder_gram_kernel(
    u_ptr, gram_ptr, table_ptr,
    K, n, parts,
    stride_ul, stride_uk, stride_un,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """gram[layer, part] = uᵀu over one part of K, padded with zeros to (BLOCK, BLOCK); grid (layers, parts).

    Without a table the layers are those of u (layers, K, n).
    """
    layer = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if table_ptr is None:
        u_ptr += layer * stride_ul
    else:
        table_ptr += layer * FACTORS_FIELDS
        u_ptr = tl.load(table_ptr).to(u_ptr.dtype)
        K = tl.load(table_ptr + 1).to(tl.int32)
        n = tl.load(table_ptr + 2).to(tl.int32)
        stride_uk = tl.load(table_ptr + 3)
        stride_un = tl.load(table_ptr + 4)
    length = part_length(K, BLOCK_K, PARTS)
    end = tl.minimum((part + 1) * length, K)
    if part * length < K:
        i = tl.arange(0, BLOCK)
        gram = tl.zeros((BLOCK, BLOCK), tl.float32)
        for start in range(part * length, end, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            u = common.load_tile(u_ptr, k, i, end, n, stride_uk, stride_un).to(tl.float32)
            gram = common.dot(tl.trans(u), u, gram, "ieee")
        gram_ptr += (layer * parts + part) * BLOCK * BLOCK
        common.store_tile(gram_ptr, gram, i, i, BLOCK, BLOCK, BLOCK, 1)


@triton.jit
def householder_factors_kernel(
    u_ptr, gram_ptr, v_ptr, t_ptr, z_ptr, table_ptr,
    K, n, parts, chunk,
    stride_ul, stride_uk, stride_un,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """v and z (layers, K, n), t (layers, n, n), contiguous; grid (layers, chunks of K, blocks of columns).

    A program writes `chunk` rows and BLOCK_C columns of v and of z, unless z_ptr is None, and those of the first chunk
    these columns of t. With a table v, t and z lie in one memory, at the offsets it gives.
    """
    layer = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * chunk
    if table_ptr is None:
        u_ptr += layer * stride_ul
        v_ptr += layer * K * n
        t_ptr += layer * n * n
        if z_ptr is not None:
            z_ptr += layer * K * n
    else:
        table_ptr += layer * FACTORS_FIELDS
        u_ptr = tl.load(table_ptr).to(u_ptr.dtype)
        K = tl.load(table_ptr + 1).to(tl.int32)
        n = tl.load(table_ptr + 2).to(tl.int32)
        stride_uk = tl.load(table_ptr + 3)
        stride_un = tl.load(table_ptr + 4)
        v_ptr += tl.load(table_ptr + 5)
        t_ptr += tl.load(table_ptr + 6)
        if z_ptr is not None:
            z_ptr += tl.load(table_ptr + 7)
    gram_ptr += layer * parts * BLOCK * BLOCK
    parts = tl.cdiv(K, part_length(K, BLOCK_K, PARTS))
    last = tl.minimum(first + chunk, K)
    i = tl.arange(0, BLOCK)
    cols = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)

    # The norms are on the diagonal of uᵀu.
    by_col = inverse_norm(sum_of_parts(gram_ptr, cols * (BLOCK + 1), parts, BLOCK * BLOCK, 4))
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        u = common.load_tile(u_ptr, k, cols, last, n, stride_uk, stride_un).to(tl.float32)
        common.store_tile(v_ptr, u * by_col[None, :], k, cols, last, n, n, 1)

    solves = first == 0
    if z_ptr is not None:
        solves = solves | (first < K)
    if solves:
        by_row = inverse_norm(sum_of_parts(gram_ptr, i * (BLOCK + 1), parts, BLOCK * BLOCK, 4))
        square = i[:, None] * BLOCK + i[None, :]
        gram = sum_of_parts(gram_ptr, square, parts, BLOCK * BLOCK, 128 // BLOCK)
        gram = gram * by_row[:, None] * by_row[None, :]
        # S t = I row by row from the last: t[i] = 2 (e[i] − Σ_{j>i} G[i, j] t[j]). G is symmetric, so its lower
        # triangle gives row i of striu(G) as a column, the shape in which it weights the rows of t. The columns of t
        # are independent of each other, and zero below the diagonal.
        t = tl.zeros((BLOCK, BLOCK_C), tl.float32)
        steps = tl.minimum((tl.program_id(2) + 1) * BLOCK_C, n)
        for step in range(steps):
            pivot = steps - 1 - step
            weights = tl.where(i > pivot, tl.sum(tl.where(i[None, :] == pivot, gram, 0.0), axis=1), 0.0)
            solved = 2 * (tl.where(cols == pivot, 1.0, 0.0) - tl.sum(weights[:, None] * t, axis=0))
            t = tl.where(i[:, None] == pivot, solved[None, :], t)
        if first == 0:
            common.store_tile(t_ptr, t, i, cols, n, n, n, 1)
        if z_ptr is not None:
            for start in range(first, last, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                u = common.load_tile(u_ptr, k, i, last, n, stride_uk, stride_un).to(tl.float32)
                z = common.dot(u * by_row[None, :], t, tl.zeros((BLOCK_K, BLOCK_C), tl.float32), "ieee")
                common.store_tile(z_ptr, z, k, cols, last, n, n, 1)


@triton.jit
def householder_backward_sums_kernel(
    u_ptr, v_ptr, t_ptr, dv_ptr, dt_ptr, gram_ptr, dots_ptr, dg_ptr, table_ptr,
    K, n, dv_rows, dt_rows, parts,
    stride_ul, stride_uk, stride_un,
    stride_dvl, stride_dvk, stride_dvn,
    stride_dtl, stride_dti, stride_dtj,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """What the gradient needs of all of K and of all of dt; grid (layers, 2 parts + blocks of BLOCK_D rows of dG).

    gram[layer, part] = vᵀv, padded to (BLOCK, BLOCK), and dots[layer, part] = the column dots of v with dv, then those
    of u with itself, over one part of K. dg[layer] = striu(−tᵀ dt tᵀ) in the first n rows and columns of (BLOCK,
    BLOCK). dv_rows and dt_rows are K and n, or 0 for a gradient of zero, which is not read. v and t are contiguous.
    """
    layer = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    if table_ptr is None:
        u_ptr += layer * stride_ul
        v_ptr += layer * K * n
        t_ptr += layer * n * n
        dv_ptr += layer * stride_dvl
        dt_ptr += layer * stride_dtl
    else:
        table_ptr += layer * BACKWARD_FIELDS
        u_ptr = tl.load(table_ptr).to(u_ptr.dtype)
        v_ptr = tl.load(table_ptr + 1).to(v_ptr.dtype)
        t_ptr = tl.load(table_ptr + 2).to(v_ptr.dtype)
        dv_address = tl.load(table_ptr + 3)
        dt_address = tl.load(table_ptr + 4)
        dv_ptr = dv_address.to(v_ptr.dtype)
        dt_ptr = dt_address.to(v_ptr.dtype)
        K = tl.load(table_ptr + 5).to(tl.int32)
        n = tl.load(table_ptr + 6).to(tl.int32)
        dv_rows = tl.where(dv_address == 0, 0, K)
        dt_rows = tl.where(dt_address == 0, 0, n)
        stride_uk = tl.load(table_ptr + 7)
        stride_un = tl.load(table_ptr + 8)
        stride_dvk = tl.load(table_ptr + 9)
        stride_dvn = tl.load(table_ptr + 10)
        stride_dti = tl.load(table_ptr + 11)
        stride_dtj = tl.load(table_ptr + 12)
    i = tl.arange(0, BLOCK)
    if program < 2 * parts:
        part = program // 2
        length = part_length(K, BLOCK_K, PARTS)
        end = tl.minimum((part + 1) * length, K)
        if part * length < K:
            if program % 2 == 0:
                along = tl.zeros((BLOCK,), tl.float32)
                squares = tl.zeros((BLOCK,), tl.float32)
                for start in range(part * length, end, BLOCK_K):
                    k = start + tl.arange(0, BLOCK_K)
                    v = common.load_tile(v_ptr, k, i, end, n, n, 1)
                    dv = common.load_tile(dv_ptr, k, i, tl.minimum(end, dv_rows), n, stride_dvk, stride_dvn)
                    u = common.load_tile(u_ptr, k, i, end, n, stride_uk, stride_un).to(tl.float32)
                    along += tl.sum(v * dv, axis=0)
                    squares += tl.sum(u * u, axis=0)
                dots_ptr += (layer * parts + part) * 2 * BLOCK
                tl.store(dots_ptr + i, along)
                tl.store(dots_ptr + BLOCK + i, squares)
            elif dt_rows > 0:
                gram = tl.zeros((BLOCK, BLOCK), tl.float32)
                for start in range(part * length, end, BLOCK_K):
                    k = start + tl.arange(0, BLOCK_K)
                    v = common.load_tile(v_ptr, k, i, end, n, n, 1)
                    gram = common.dot(tl.trans(v), v, gram, "ieee")
                gram_ptr += (layer * parts + part) * BLOCK * BLOCK
                common.store_tile(gram_ptr, gram, i, i, BLOCK, BLOCK, BLOCK, 1)
    else:
        first = (program - 2 * parts) * BLOCK_D
        rows = first + tl.arange(0, BLOCK_D)
        dg_ptr += layer * BLOCK * BLOCK
        if first < dt_rows:
            product = tl.zeros((BLOCK_D, BLOCK), tl.float32)  # rows of tᵀ dt
            for start in range(0, n, BLOCK_D):
                inner = start + tl.arange(0, BLOCK_D)
                left = common.load_tile(t_ptr, rows, inner, n, n, 1, n)
                right = common.load_tile(dt_ptr, inner, i, n, n, stride_dti, stride_dtj)
                product = common.dot(left, right, product, "ieee")
            for start in range(0, n, BLOCK_D):
                cols = start + tl.arange(0, BLOCK_D)
                right = common.load_tile(t_ptr, i, cols, n, n, 1, n)
                ds = -common.dot(product, right, tl.zeros((BLOCK_D, BLOCK_D), tl.float32), "ieee")
                dg = tl.where(rows[:, None] < cols[None, :], ds, 0.0)
                common.store_tile(dg_ptr, dg, rows, cols, BLOCK, BLOCK, BLOCK, 1)


@triton.jit
def symmetric_tile(dg_ptr, rows, cols, n, BLOCK: tl.constexpr):
    """The tile [rows, cols] of dG + dGᵀ (n, n), dG stored with BLOCK columns."""
    upper = common.load_tile(dg_ptr, rows, cols, n, n, BLOCK, 1)
    return upper + common.load_tile(dg_ptr, rows, cols, n, n, 1, BLOCK)


@triton.jit
def householder_backward_kernel(
    v_ptr, dv_ptr, gram_ptr, dots_ptr, dg_ptr, du_ptr, table_ptr,
    K, n, dv_rows, dt_rows, parts, chunk,
    stride_dvl, stride_dvk, stride_dvn,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """du (layers, K, n), contiguous, from the sums of the kernel above; grid (layers, chunks of K, blocks of columns).

    With a table du is at the offset that it gives.
    """
    layer = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * chunk
    if table_ptr is None:
        v_ptr += layer * K * n
        dv_ptr += layer * stride_dvl
        du_ptr += layer * K * n
    else:
        table_ptr += layer * BACKWARD_FIELDS
        v_ptr = tl.load(table_ptr + 1).to(v_ptr.dtype)
        dv_address = tl.load(table_ptr + 3)
        dv_ptr = dv_address.to(v_ptr.dtype)
        K = tl.load(table_ptr + 5).to(tl.int32)
        n = tl.load(table_ptr + 6).to(tl.int32)
        dv_rows = tl.where(dv_address == 0, 0, K)
        dt_rows = tl.where(tl.load(table_ptr + 4) == 0, 0, n)
        stride_dvk = tl.load(table_ptr + 9)
        stride_dvn = tl.load(table_ptr + 10)
        du_ptr += tl.load(table_ptr + 13)
    gram_ptr += layer * parts * BLOCK * BLOCK
    dots_ptr += layer * parts * 2 * BLOCK
    dg_ptr += layer * BLOCK * BLOCK
    parts = tl.cdiv(K, part_length(K, BLOCK_K, PARTS))
    last = tl.minimum(first + chunk, K)
    if first < K:
        cols = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
        along = sum_of_parts(dots_ptr, cols, parts, 2 * BLOCK, 4)
        inverse = inverse_norm(sum_of_parts(dots_ptr + BLOCK, cols, parts, 2 * BLOCK, 4))
        for block in range(0, dt_rows, BLOCK_I):
            i = block + tl.arange(0, BLOCK_I)
            gram_part = i[:, None] * BLOCK + cols[None, :]
            gram = sum_of_parts(gram_ptr, gram_part, parts, BLOCK * BLOCK, 2)
            along += tl.sum(gram * symmetric_tile(dg_ptr, i, cols, dt_rows, BLOCK), axis=0)
        for start in range(first, last, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            total = common.load_tile(dv_ptr, k, cols, tl.minimum(last, dv_rows), n, stride_dvk, stride_dvn)
            for block in range(0, dt_rows, BLOCK_I):
                i = block + tl.arange(0, BLOCK_I)
                v = common.load_tile(v_ptr, k, i, last, n, n, 1)
                total = common.dot(v, symmetric_tile(dg_ptr, i, cols, dt_rows, BLOCK), total, "ieee")
            v = common.load_tile(v_ptr, k, cols, last, n, n, 1)
            du = (total - v * along[None, :]) * inverse[None, :]
            common.store_tile(du_ptr, du, k, cols, last, n, n, 1)


class Blocks(NamedTuple):
    """How the kernels cut n reflections: rows of v in a tile, columns of v that a program writes, warps of the sums,
    warps of the rest, stages, and the most parts of a sum over K, which every program adds up again."""

    rows: int
    cols: int
    sums_warps: int
    rows_warps: int
    num_stages: int
    parts: int


# By padded n. Chosen by compiling (no spills, shared memory fits: triton_ops.aot), not yet by timing.
BLOCKS = {
    16: Blocks(64, 16, 4, 4, 2, 16),
    32: Blocks(32, 32, 4, 4, 2, 16),
    64: Blocks(32, 32, 8, 8, 2, 8),
    128: Blocks(16, 32, 8, 8, 3, 8),
}
BLOCK_D = 16  # rows of dG that a program computes, and the step of sums over n


class Group(NamedTuple):
    """Layers of one launch: how many, the K of the longest, Σ K, the largest n; where they are, if not one tensor."""

    layers: int
    longest: int
    rows: int
    n: int
    table: torch.Tensor | None

    @property
    def block(self) -> int:
        return padded(self.n)

    @property
    def parts(self) -> int:
        """At least the parts that `part_length` makes of any K up to the longest, which may make fewer of it."""
        blocks = BLOCKS[self.block]
        return min(triton.cdiv(triton.cdiv(self.longest, blocks.rows), 4), blocks.parts)

    def chunk(self, device: torch.device) -> int:
        """Rows a program writes: about two programs a processor, each with two tiles at least."""
        blocks = BLOCKS[self.block]
        tiles = triton.cdiv(self.rows, blocks.rows) * triton.cdiv(self.n, blocks.cols)
        return max(triton.cdiv(tiles, 2 * common.processors(device)), 2) * blocks.rows

    def sums(self, device: torch.device, *shape: int) -> torch.Tensor:
        return torch.empty((self.layers, *shape), device=device, dtype=torch.float32)


def padded(n: int) -> int:
    return max(triton.next_power_of_2(n), 16)


def unsupported(u: torch.Tensor) -> str | None:
    """Why `factors(u)` cannot run here, or None when it can."""
    if not 1 <= u.shape[-1] <= MAX_REFLECTIONS:
        return f"n = {u.shape[-1]} reflections, the kernel takes 1 to {MAX_REFLECTIONS}"
    return common.unsupported_tensors(common.DTYPES, u=u)


def launch_factors(
    group: Group,
    u: torch.Tensor,
    strides: tuple[int, ...],
    v: torch.Tensor,
    t: torch.Tensor,
    z: torch.Tensor | None,
) -> None:
    block, blocks, parts, chunk = group.block, BLOCKS[group.block], group.parts, group.chunk(u.device)
    gram = group.sums(u.device, parts, block, block)
    if parts:
        common.launch(
            householder_gram_kernel,
            (group.layers, parts),
            u, gram, group.table,
            group.longest, group.n, parts,
            *strides,
            BLOCK_K=blocks.rows, BLOCK=block, PARTS=blocks.parts,
            num_warps=blocks.sums_warps, num_stages=blocks.num_stages,
        )  # fmt: skip
    common.launch(
        householder_factors_kernel,
        (group.layers, max(triton.cdiv(group.longest, chunk), 1), triton.cdiv(group.n, blocks.cols)),
        u, gram, v, t, z, group.table,
        group.longest, group.n, parts, chunk,
        *strides,
        BLOCK_K=blocks.rows, BLOCK=block, BLOCK_C=blocks.cols, PARTS=blocks.parts,
        num_warps=blocks.rows_warps, num_stages=blocks.num_stages,
    )  # fmt: skip


def _factors(u: torch.Tensor, product: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    *layers, k, n = u.shape
    flat = u.reshape(math.prod(layers), k, n)
    v = torch.empty(flat.shape, device=u.device, dtype=torch.float32)
    t = torch.empty((len(flat), n, n), device=u.device, dtype=torch.float32)
    z = torch.empty(flat.shape, device=u.device, dtype=torch.float32) if product else None
    if len(flat):
        launch_factors(Group(len(flat), k, len(flat) * k, n, None), flat, flat.stride(), v, t, z)
    return v.reshape(u.shape), t.reshape(*layers, n, n), None if z is None else z.reshape(u.shape)


def factors(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(v, t) with H = I − v t vᵀ, float32 and contiguous, from u (…, K, n). Leading dimensions are layers."""
    return _factors(u, False)[:2]


def factors_with_product(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(v, t, z) as `factors`, with z = v t (…, K, n)."""
    v, t, z = _factors(u, True)
    assert z is not None
    return v, t, z


def backward(
    u: torch.Tensor,
    v: torch.Tensor,
    t: torch.Tensor,
    dv: torch.Tensor | None,
    dt: torch.Tensor | None,
) -> torch.Tensor:
    """du (…, K, n), contiguous, from u and what `factors(u)` gave. None stands for a gradient of zero."""
    *layers, k, n = u.shape
    count = math.prod(layers)
    flat = u.reshape(count, k, n)
    v, t = v.contiguous().view(count, k, n), t.contiguous().view(count, n, n)
    du = torch.empty(flat.shape, device=u.device, dtype=u.dtype)
    if du.numel():
        # Of a gradient of no rows the kernels read nothing, so v and t can stand for it.
        launch_backward(
            Group(count, k, count * k, n, None),
            flat,
            v,
            t,
            v if dv is None else dv.reshape(count, k, n),
            t if dt is None else dt.reshape(count, n, n),
            du,
            0 if dv is None else k,
            0 if dt is None else n,
        )
    return du.reshape(u.shape)


def launch_backward(
    group: Group,
    u: torch.Tensor,
    v: torch.Tensor,
    t: torch.Tensor,
    dv: torch.Tensor,
    dt: torch.Tensor,
    du: torch.Tensor,
    dv_rows: int,
    dt_rows: int,
) -> None:
    block, blocks, parts, chunk = group.block, BLOCKS[group.block], group.parts, group.chunk(u.device)
    gram = group.sums(u.device, parts, block, block)
    dots = group.sums(u.device, parts, 2, block)
    dg = group.sums(u.device, block, block)
    u_strides, dv_strides, dt_strides = (
        tensor.stride() if group.table is None else (0, 0, 0) for tensor in (u, dv, dt)
    )
    common.launch(
        householder_backward_sums_kernel,
        (group.layers, 2 * parts + triton.cdiv(group.n, BLOCK_D)),
        u, v, t, dv, dt, gram, dots, dg, group.table,
        group.longest, group.n, dv_rows, dt_rows, parts,
        *u_strides, *dv_strides, *dt_strides,
        BLOCK_K=blocks.rows, BLOCK=block, BLOCK_D=BLOCK_D, PARTS=blocks.parts,
        num_warps=blocks.sums_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    common.launch(
        householder_backward_kernel,
        (group.layers, triton.cdiv(group.longest, chunk), triton.cdiv(group.n, blocks.cols)),
        v, dv, gram, dots, dg, du, group.table,
        group.longest, group.n, dv_rows, dt_rows, parts, chunk,
        *dv_strides,
        BLOCK_K=blocks.rows, BLOCK=block, BLOCK_C=blocks.cols, BLOCK_I=BLOCK_D, PARTS=blocks.parts,
        num_warps=blocks.rows_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
