"""Every operation of the package in plain PyTorch, written to be read beside the formula it computes.

This module is the truth that every fast path is tested against. It depends on torch alone, is differentiable by
autograd, works in the dtype it is given (use float64 to check something), and on purpose shares no formula with the
fast paths: reflections are applied one at a time, the mixed weight is formed, the Cayley transform is a linear solve,
a block rotation is a dense product and so is a Fourier transform.

Shapes: ``x`` is (..., in_features); ``weight`` is (out_features, in_features); factors are ``down`` (R, in_features)
and ``up`` (out_features, R); reflections are the columns of ``u`` (in_features, reflections).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "block_rotate",
    "butterfly_rotate",
    "cayley",
    "cayley_neumann_packed",
    "cayley_packed",
    "householder_factors",
    "householder_rotate",
    "hybrid_linear",
    "low_rank_add",
    "low_rank_linear",
    "low_rank_linear_many",
    "rotated_low_rank_linear",
    "scale_features",
    "seeded_dropout",
    "structured_unitary",
]


def _philox(counter: list[Tensor], key: list[Tensor], rounds: int) -> list[Tensor]:
    """Four 32-bit words (in int64) of Philox4x32 for a counter of four words and a key of two.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011. A product of two 32-bit words
    may wrap in int64, but its 64 bits are right.
    """
    low = 0xFFFFFFFF
    for _ in range(rounds):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            ((second >> 32) & low) ^ counter[1] ^ key[0],
            second & low,
            ((first >> 32) & low) ^ counter[3] ^ key[1],
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return counter


def dropout_threshold(probability: float) -> int:
    """The probability in units of 2⁻¹⁶, in which it takes effect: below 2¹⁶, so that something can be kept."""
    return min(round(probability * 2**16), 2**16 - 1)


def seeded_dropout(x: Tensor, probability: float, seed: Tensor) -> Tensor:
    """x (..., features) with elements dropped and the others scaled up, which ones depending on ``seed`` alone.

    With t = `dropout_threshold` of the probability, x[i, j] of the rows laid out one below the other is kept, times
    2¹⁶/(2¹⁶ − t), where bits[i, j] ≥ t. bits[i, j] is half j mod 2, the low one first, of word (j div 2) mod 4 of
    Philox4x32-7(counter = (i mod 2³², i div 2³², j div 8, 0), key = seed), ``seed`` a 0-dim int64 tensor.
    """
    threshold = dropout_threshold(probability)
    flat = x.reshape(-1, x.shape[-1])
    row = torch.arange(flat.shape[0], device=x.device)[:, None]
    octet = torch.arange((flat.shape[1] + 7) // 8, device=x.device)[None, :]
    zero = torch.zeros_like(row + octet)
    words = _philox(
        [row % 2**32 + zero, row // 2**32 + zero, octet + zero, zero],
        [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF],
        rounds=7,
    )
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    bits = torch.stack(halves, dim=-1).reshape(flat.shape[0], 8 * octet.numel())[:, : flat.shape[1]]
    kept = (bits >= threshold).reshape(x.shape)
    return torch.where(kept, x * (2**16 / (2**16 - threshold)), torch.zeros_like(x))


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    dropout: float = 0.0,
    dropped_rank: int = 0,
    seed: Tensor | None = None,
) -> Tensor:
    """y = x (W + up·down)ᵀ + b: a linear layer whose weight carries a rank-R update. Returns (..., out_features).

    With ``dropout``, the first ``dropped_rank`` rows of down see `seeded_dropout` of x, the others x.
    """
    y = x @ weight.mT if dropout else x @ (weight + up @ down).mT
    y = y if bias is None else y + bias
    return low_rank_add(y, x, down, up, dropout, dropped_rank, seed) if dropout else y


def low_rank_add(
    base: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    dropout: float = 0.0,
    dropped_rank: int = 0,
    seed: Tensor | None = None,
) -> Tensor:
    """y = base + x (up·down)ᵀ: the same update where only the base layer's output (..., out_features) is known."""
    if not dropout:
        return base + x @ (up @ down).mT
    assert seed is not None
    seen = seeded_dropout(x, dropout, seed)
    low = seen @ (up[:, :dropped_rank] @ down[:dropped_rank]).mT
    return base + low + x @ (up[:, dropped_rank:] @ down[dropped_rank:]).mT


def scale_features(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """y ⊙ scale + bias: each feature of ``y`` (..., out_features) times its own number, as DoRA's magnitudes do it."""
    return y * scale if bias is None else y * scale + bias


def low_rank_linear_many(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
) -> list[Tensor]:
    """`low_rank_linear` of the same x for each weight, bias, down and up."""
    layers = zip(weights, biases, downs, ups, strict=True)
    return [low_rank_linear(x, weight, bias, down, up) for weight, bias, down, up in layers]


def _reflection_vector(column: Tensor) -> Tensor:
    """The unit vector u/‖u‖, or the zero vector, with zero gradient, for u = 0 ("no reflection")."""
    squared = (column * column.conj()).real.sum()
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


def rotated_low_rank_linear(
    x: Tensor, q: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> Tensor:
    """`low_rank_linear` of `block_rotate` of x: y = (x diag(q₁, …, q_k)) (W + up·down)ᵀ + b."""
    return low_rank_linear(block_rotate(x, q), weight, bias, down, up)


def hybrid_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor | float,
    scaling: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """y = x W'ᵀ + b with W' = W + λ s B A + (1 − λ)(W H − W), the weight formed.

    ``lora_A`` (r, in_features), ``lora_B`` (out_features, r), ``u`` (in_features, n), H = H₁…Hₙ; λ is ``mixing`` and
    s is ``scaling``. With ``dropout``, B A alone sees `seeded_dropout` of x.
    """
    rotated = householder_rotate(weight, u, transpose=True)  # the rows of W times H
    mixed = weight + (1.0 - mixing) * (rotated - weight)
    low_rank = mixing * scaling * (lora_B @ lora_A)
    if dropout:
        assert seed is not None
        y = x @ mixed.mT + seeded_dropout(x, dropout, seed) @ low_rank.mT
    else:
        y = x @ (mixed + low_rank).mT
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
    return cayley(_unpacked(packed, block_size))


def _unpacked(packed: Tensor, block_size: int) -> Tensor:
    a = packed.new_zeros(*packed.shape[:-1], block_size, block_size)
    index = 0
    for i in range(block_size):
        for j in range(i + 1, block_size):
            a[..., i, j] = packed[..., index]
            a[..., j, i] = -packed[..., index].conj()
            index += 1
    return a


def cayley_neumann_packed(packed: Tensor, block_size: int, terms: int) -> Tensor:
    """PEFT's truncation of the Neumann series of (I + A)(I − A)⁻¹ = I + 2A + 2A² + …, for A as in `cayley_packed`.

    The powers of A are added up as `peft.tuners.oft.layer` does it for ``terms`` Cayley–Neumann terms ≥ 1: the last
    with coefficient 1 from A³ on, and A³ for three terms as well as for four.
    """
    a = _unpacked(packed, block_size)
    r = torch.eye(block_size, dtype=a.dtype, device=a.device) + 0.0 * a  # of one term, the gradient is zero
    if terms > 1:
        r = r + 2.0 * a
    if terms > 2:
        power = a @ a
        r = r + 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ a
            r = r + 2.0 * power
        r = r + power @ a
    return r


def block_rotate(x: Tensor, q: Tensor) -> Tensor:
    """x · diag(q₁, …, q_k): rows of ``x`` (..., k·b) times the block-diagonal matrix of ``q`` (k, b, b)."""
    return x @ torch.block_diag(*q)


def _butterfly_permutation(features: int, block_size: int, level: int, like: Tensor) -> Tensor:
    """P of `butterfly_rotate` at a level: row l has its 1 where the half-block l lies after the evens-first order."""
    if level == 0:
        return torch.eye(features, dtype=like.dtype, device=like.device)
    halves = torch.arange(2 ** (level + 1))
    order = torch.cat([halves[0::2], halves[1::2]])
    half = block_size // 2
    in_group = (order[:, None] * half + torch.arange(half)).flatten()
    starts = torch.arange(0, features, block_size * 2**level)
    index = (starts[:, None] + in_group).flatten().to(like.device)
    return torch.eye(features, dtype=like.dtype, device=like.device)[index]


def butterfly_rotate(x: Tensor, q: Tensor) -> Tensor:
    """x · (M_{m−1} ⋯ M₁ M₀), M_i = P_i diag(q_i1, …, q_ik) P_iᵀ: rows of ``x`` (..., k·b) times a block butterfly.

    Liu et al., "Parameter-efficient orthogonal finetuning via butterfly factorization", arXiv 2311.06243, in the order
    and with the permutations of PEFT's BOFT layer: P_i takes the half-blocks of b/2 features, within each group of
    b·2^i, in the order 0, 2, 4, …, 1, 3, 5, …; P₀ = I. ``q`` is (m, k, b, b).
    """
    levels, blocks, b, _ = q.shape
    matrix = torch.eye(blocks * b, dtype=q.dtype, device=q.device)
    for level in range(levels):
        p = _butterfly_permutation(blocks * b, b, level, q)
        matrix = p @ torch.block_diag(*q[level]) @ p.mT @ matrix
    return x @ matrix


def structured_unitary(x: Tensor, phases: Tensor, reflections: Tensor, permutation: Tensor) -> Tensor:
    """x Wᵀ, that is W h for each row h of x, with W = D₃ R₂ F⁻¹ D₂ Π R₁ F D₁ formed.

    Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", arXiv 1511.06464. ``x`` is complex
    (..., n), or real (..., 2n): x₀ + i x₁, x₂ + i x₃, … ``phases`` (3, n) are the ω of D = diag(exp(iω)), in the order
    D₁, D₂, D₃; ``reflections`` (2, n, 2) the real and imaginary parts of the v of R = I − 2 v vᴴ/‖v‖², R₁ first (v = 0
    is R = I); F is the unitary Fourier transform; ``permutation`` (n,) is π of (Π h)ᵢ = h at π(i).
    """
    if not x.is_complex():
        z = torch.complex(x[..., 0::2], x[..., 1::2])
        y = structured_unitary(z, phases, reflections, permutation)
        return torch.stack([y.real, y.imag], dim=-1).reshape(x.shape)
    n = phases.shape[1]
    d1, d2, d3 = (torch.diag(torch.complex(torch.cos(omega), torch.sin(omega))) for omega in phases)
    identity = torch.eye(n, dtype=d1.dtype, device=d1.device)
    v1, v2 = (_reflection_vector(torch.complex(v[:, 0], v[:, 1])) for v in reflections)
    r1, r2 = (identity - 2.0 * torch.outer(v, v.conj()) for v in (v1, v2))
    index = torch.arange(n, device=x.device)
    angle = (-2.0 * math.pi / n) * (index[:, None] * index % n).to(phases.dtype)
    f = torch.complex(torch.cos(angle), torch.sin(angle)) / math.sqrt(n)
    pi = identity[permutation]
    w = d3 @ r2 @ f.mH @ d2 @ pi @ r1 @ f @ d1
    return x @ w.mT
