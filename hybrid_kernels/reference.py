"""Every operation of the package in plain PyTorch, written to be read beside the formula it computes.

This module is the truth that every fast path is tested against. It depends on torch alone, is differentiable by
autograd, works in the dtype it is given (use float64 to check something), and on purpose shares no formula with the
fast paths: reflections are applied one at a time, the mixed weight is formed, the Cayley transform is a linear solve
and a block rotation is a dense product.

Shapes: ``x`` is (..., in_features); ``weight`` is (out_features, in_features); factors are ``down`` (R, in_features)
and ``up`` (out_features, R); reflections are the columns of ``u`` (in_features, reflections).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "block_rotate",
    "cayley",
    "cayley_packed",
    "householder_factors",
    "householder_rotate",
    "hybrid_linear",
    "low_rank_add",
    "low_rank_linear",
]


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
    """y = x (W + up·down)ᵀ + b: a linear layer whose weight carries a rank-R update. Returns (..., out_features)."""
    y = x @ (weight + up @ down).mT
    return y if bias is None else y + bias


def low_rank_add(base: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """y = base + x (up·down)ᵀ: the same update where only the base layer's output (..., out_features) is known."""
    return base + x @ (up @ down).mT


def _reflection_vector(column: Tensor) -> Tensor:
    """The unit vector u/‖u‖, or the zero vector, with zero gradient, for u = 0 ("no reflection")."""
    squared = (column * column).sum()
    nonzero = squared > 0
    # The inner `where` keeps 0/0 out of the gradient as well as out of the value.
    return torch.where(nonzero, column / torch.where(nonzero, squared, 1.0).sqrt(), torch.zeros_like(column))


def householder_factors(u: Tensor) -> tuple[Tensor, Tensor]:
    """The compact WY form H₁H₂…Hₙ = I − v t vᵀ of a product of Householder reflections Hᵢ = I − 2 vᵢ vᵢᵀ.

    ``v`` (in_features, n) holds the normalised columns of ``u``; ``t`` (n, n) is upper triangular. Built by appending
    one reflection at a time (Schreiber and Van Loan, "A storage-efficient WY representation for products of
    Householder transformations", 1989): (I − V T Vᵀ)(I − 2 w wᵀ) = I − [V w] [[T, −2 T Vᵀ w], [0, 2]] [V w]ᵀ.
    """
    columns = [_reflection_vector(u[:, i]) for i in range(u.shape[1])]
    t = u.new_zeros(0, 0)
    for i, w in enumerate(columns):
        new_column = (
            u.new_zeros(0, 1) if i == 0 else -2.0 * t @ (torch.stack(columns[:i], dim=1).mT @ w)[:, None]
        )
        bottom = torch.cat([u.new_zeros(1, i), u.new_full((1, 1), 2.0)], dim=1)
        t = torch.cat([torch.cat([t, new_column], dim=1), bottom], dim=0)
    return torch.stack(columns, dim=1), t


def householder_rotate(x: Tensor, u: Tensor, transpose: bool = False) -> Tensor:
    """x Hᵀ (or x H with ``transpose``) for H = H₁H₂…Hₙ, Hᵢ = I − 2 vᵢ vᵢᵀ, one reflection after another.

    Each Hᵢ is symmetric, so x Hᵀ = x Hₙ … H₂ H₁ and x H = x H₁ H₂ … Hₙ.
    """
    order = range(u.shape[1]) if transpose else reversed(range(u.shape[1]))
    for i in order:
        v = _reflection_vector(u[:, i])
        x = x - 2.0 * (x @ v)[..., None] * v
    return x


def hybrid_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor | float,
    scaling: float,
) -> Tensor:
    """y = x W'ᵀ + b with W' = W + λ s B A + (1 − λ)(W H − W), the weight formed.

    ``lora_A`` (r, in_features), ``lora_B`` (out_features, r), ``u`` (in_features, n), H = H₁…Hₙ; λ is ``mixing`` and
    s is ``scaling``.
    """
    rotated = householder_rotate(weight, u, transpose=True)  # the rows of W times H
    mixed = weight + mixing * scaling * (lora_B @ lora_A) + (1.0 - mixing) * (rotated - weight)
    y = x @ mixed.mT
    return y if bias is None else y + bias


def cayley(skew: Tensor) -> Tensor:
    """Q = (I − A)(I + A)⁻¹, unitary, for the skew-Hermitian part A = (X − Xᴴ)/2 of ``skew`` X (..., b, b)."""
    a = (skew - skew.mH) / 2
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return torch.linalg.solve(identity + a, identity - a, left=False)


def cayley_packed(packed: Tensor, block_size: int) -> Tensor:
    """`cayley` of the matrix with strict upper triangle ``packed`` (..., b(b−1)/2), read row by row.

    A[i, j] = p and A[j, i] = −conj(p) for i < j; the diagonal is zero.
    """
    a = packed.new_zeros(*packed.shape[:-1], block_size, block_size)
    index = 0
    for i in range(block_size):
        for j in range(i + 1, block_size):
            a[..., i, j] = packed[..., index]
            a[..., j, i] = -packed[..., index].conj()
            index += 1
    return cayley(a)


def block_rotate(x: Tensor, q: Tensor) -> Tensor:
    """x · diag(q₁, …, q_k): rows of ``x`` (..., k·b) times the block-diagonal matrix of ``q`` (k, b, b)."""
    return x @ torch.block_diag(*q)
