"""Compact WY factors of a chain of Householder reflections (the factorise stage).

    v = u / ‖u‖ column by column; a column stays zero (no reflection) where ‖u‖² is zero in float32
    G = vᵀ v,   S = ½ I + striu(G),   t = S⁻¹
    H₁ H₂ … Hₙ = I − v t vᵀ,   Hᵢ = I − 2 vᵢ vᵢᵀ

Shapes: u, v (…, K, n); t (…, n, n), upper triangular; 1 ≤ n ≤ 128. One program a layer.
u is float32, float16 or bfloat16 with any strides; v, t and everything between are float32, never TF32.

S⁻¹ is exact, by back substitution; a truncated series would not give H = I for equal pairs of columns.
The compact WY form is Schreiber and Van Loan's (1989), S as the inverse of its t is Puglisi's (1992).
"""

import torch
import triton
import triton.language as tl

from triton_ops import common

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_REFLECTIONS = 128


@triton.jit
def householder_factors_kernel(
    u_ptr, v_ptr, t_ptr,
    K, n,
    stride_ul, stride_uk, stride_un,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """v (layers, K, n) and t (layers, n, n), both contiguous, from u (layers, K, n); grid (layers,)."""
    layer = tl.program_id(0).to(tl.int64)
    u_ptr += layer * stride_ul
    v_ptr += layer * K * n
    t_ptr += layer * n * n
    i = tl.arange(0, BLOCK)
    row = i[:, None]
    col = i[None, :]

    # uᵀu in one pass over u: its diagonal is the squared norms, its rows and columns divided by them are G.
    gram = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = common.load_tile(u_ptr, i, k, n, K, stride_un, stride_uk).to(tl.float32)
        right = common.load_tile(u_ptr, k, i, K, n, stride_uk, stride_un).to(tl.float32)
        gram = common.dot(left, right, gram, "ieee")
    diagonal = tl.where(row == col, gram, 0.0)
    by_row = tl.sum(diagonal, axis=1)
    by_col = tl.sum(diagonal, axis=0)
    inverse_by_row = tl.where(by_row > 0, 1 / tl.sqrt_rn(tl.where(by_row > 0, by_row, 1.0)), 0.0)
    inverse_by_col = tl.where(by_col > 0, 1 / tl.sqrt_rn(tl.where(by_col > 0, by_col, 1.0)), 0.0)
    gram = gram * inverse_by_row[:, None] * inverse_by_col[None, :]

    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        u = common.load_tile(u_ptr, k, i, K, n, stride_uk, stride_un).to(tl.float32)
        common.store_tile(v_ptr, u * inverse_by_col[None, :], k, i, K, n, n, 1)

    # S t = I row by row from the last: t[i] = 2 (e[i] − Σ_{j>i} G[i, j] t[j]). G is symmetric, so its lower
    # triangle gives row i of striu(G) as a column, the shape in which it weights the rows of t.
    lower = tl.where(row > col, gram, 0.0)
    t = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range(n):
        pivot = n - 1 - step
        weights = tl.sum(tl.where(col == pivot, lower, 0.0), axis=1)
        solved = 2 * (tl.where(i == pivot, 1.0, 0.0) - tl.sum(weights[:, None] * t, axis=0))
        t = tl.where(row == pivot, solved[None, :], t)
    common.store_tile(t_ptr, t, i, i, n, n, n, 1)


def unsupported(u: torch.Tensor) -> str | None:
    """Why `factors(u)` cannot run here, or None when it can."""
    if not 1 <= u.shape[-1] <= MAX_REFLECTIONS:
        return f"n = {u.shape[-1]} reflections, the kernel takes 1 to {MAX_REFLECTIONS}"
    return common.unsupported_tensors(DTYPES, u=u)


def factors(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(v, t) with H = I − v t vᵀ, float32 and contiguous, from u (…, K, n). Leading dimensions are layers."""
    *layers, k, n = u.shape
    flat = u.reshape(-1, k, n)
    v = torch.empty(flat.shape, device=u.device, dtype=torch.float32)
    t = torch.empty((len(flat), n, n), device=u.device, dtype=torch.float32)
    block = max(triton.next_power_of_2(n), 16)
    if len(flat):
        common.launch(
            householder_factors_kernel,
            (len(flat),),
            flat, v, t,
            k, n,
            *flat.stride(),
            BLOCK_K=32, BLOCK=block,
            num_warps={16: 4, 32: 4, 64: 8, 128: 16}[block], num_stages=2,
        )  # fmt: skip
    return v.reshape(u.shape), t.reshape(*layers, n, n)
