"""What an operator has to do at least: floating-point operations, and bytes read and written, for the roofline.

Operations are those of the products (two for each multiply-add) and of eliminations, in the factor form, with the
gradients of what is trained and none of a frozen weight; those of a complex number count as the four or two real ones
that they are. Elementwise work counts only where there is nothing else. What a backend computes twice to save memory
counts once. Bytes: each argument read and each result written once; in the backward, the gradients of the results and
what was saved read, the gradients of what is trained written. Factors of reflections and rotations of half types are
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from .base import Shape


class Work(NamedTuple):
    """Operations, and numbers moved, of the forward and of the backward."""

    forward: float
    backward: float
    forward_moved: float
    backward_moved: float


def _products(m: float, k: float, n: float) -> float:
    return 2.0 * m * k * n


def _low_rank_linear(s: Shape) -> Work:
    """y = x Wᵀ + (x downᵀ) upᵀ; dx = dy W + q down, q = dy up, d_up = dyᵀ p, d_down = qᵀ x."""
    m, k, n, r, layers = s["m"], s["k"], s["n"], s["r"], s.get("layers", 1)
    base, down, up = _products(m, k, n), _products(m, k, r), _products(m, n, r)
    weights = layers * (n * k + n * r + r * k)
    bias = layers * n if s.get("bias") else 0
    return Work(
        layers * (base + down + up),
        layers * (base + 2 * down + 2 * up),
        m * k + weights + bias + layers * m * n,
        layers * m * n + m * k + weights + m * k + layers * (n * r + r * k),
    )


def _low_rank_add(s: Shape) -> Work:
    """As `_low_rank_linear` without the base product; the gradient of the base is that of y."""
    m, k, n, r = (s[name] for name in "mknr")
    down, up, factors = _products(m, k, r), _products(m, n, r), n * r + r * k
    return Work(
        down + up,
        2 * (down + up),
        m * n + m * k + factors + m * n,
        m * n + m * k + factors + m * k + factors,
    )


def _rotated_low_rank_linear(s: Shape) -> Work:
    """The rotation's two gradients are a product each."""
    k = s["blocks"] * s["b"]
    linear, rotation, q = _low_rank_linear({**s, "k": k}), _products(s["m"], k, s["b"]), k * s["b"]
    return Work(
        linear.forward + rotation,
        linear.backward + 2 * rotation,
        linear.forward_moved + q,
        linear.backward_moved + 2 * q,
    )


def _scale_features(s: Shape) -> Work:
    """y ⊙ scale (+ bias); dy = dz ⊙ scale, d_scale = Σ dz ⊙ y. The bias is frozen."""
    m, n, bias = s["m"], s["n"], 1 if s.get("bias") else 0
    return Work((1.0 + bias) * m * n, 3.0 * m * n, 2.0 * m * n + (1 + bias) * n, 2.0 * m * n + n + m * n + n)


def _householder_factors(s: Shape) -> Work:
    """Norms, the upper half of vᵀv, the inverse of a triangle (n³/3); backward v (dS + dSᵀ), dS = −tᵀ dt tᵀ."""
    k, n, layers = s["k"], s["reflections"], s.get("layers", 1)
    return Work(
        layers * (3.0 * k * n + k * n * (n - 1) + n**3 / 3),
        layers * (6.0 * k * n + 2.0 * k * n * n + 2.0 * n**3),
        layers * (k * n + k * n + n * n),
        layers * (k * n + n * n + k * n + k * n + n * n + k * n),
    )


def _with_product(s: Shape) -> Work:
    """`_householder_factors` and z = v t, of a triangle; z and v serve, t is no result."""
    k, n = s["k"], s["reflections"]
    factors = _householder_factors({"k": k, "reflections": n})
    return Work(factors.forward + 1.0 * k * n * n, factors.backward + 2.0 * k * n * n, k * n, 2.0 * k * n)


def _householder_rotate(s: Shape) -> Work:
    """x − (x v) zᵀ; dx = dy − (dy z) vᵀ, dv = −xᵀ (dy z), dz = −dyᵀ (x v)."""
    m, k, factors = s["m"], s["k"], _with_product(s)
    product = _products(m, k, s["reflections"])
    return Work(
        factors.forward + 2 * product,
        factors.backward + 4 * product,
        factors.forward_moved + 2.0 * m * k,
        factors.backward_moved + 3.0 * m * k,
    )


def _hybrid_factors(s: Shape) -> Work:
    """W z, and in the backward Wᵀ times the gradient of that."""
    k, n, r, h, factors = s["k"], s["n"], s["r"], s["reflections"], _with_product(s)
    product, low_rank, results = _products(n, k, h), r * (k + n), (r + h) * (k + n)
    return Work(
        factors.forward + product,
        factors.backward + product,
        factors.forward_moved + n * k + low_rank + results,
        results + n * k + factors.backward_moved + n * r + low_rank,
    )


def _hybrid_linear(s: Shape) -> Work:
    """The factors, and `low_rank_linear` of rank r + reflections; W counts once a pass, the factors not at all."""
    r, h, k, n = s["r"], s["reflections"], s["k"], s["n"]
    factors = _hybrid_factors(s)
    linear = _low_rank_linear({**s, "r": r + h})
    inner = (r + h) * (k + n)
    return Work(
        factors.forward + linear.forward,
        factors.backward + linear.backward,
        linear.forward_moved - inner + r * (k + n) + k * h,
        linear.backward_moved - 2 * inner + 2 * (r * (k + n) + k * h),
    )


def _cayley(s: Shape) -> Work:
    """2 (I + A)⁻¹ − I: an inverse by elimination, 2 b³; −½ (I + Q)ᴴ G (I + Q)ᴴ: two products, of what Q saved."""
    return _of_matrices(s, s["b"] ** 2)


def _cayley_packed(s: Shape) -> Work:
    return _of_matrices(s, s["b"] * (s["b"] - 1) // 2)


def _of_matrices(s: Shape, parameters: int) -> Work:
    count, b = s["blocks"] * s.get("layers", 1), s["b"]
    moved = parameters + b * b
    return Work(2.0 * count * b**3, 4.0 * count * b**3, 1.0 * count * moved, count * (moved + 1.0 * b * b))


def _cayley_neumann_packed(s: Shape) -> Work:
    """One product for each power of A from the second on; in the backward two."""
    count, b, terms = s["blocks"], s["b"], s["terms"]
    powers = 0 if terms < 3 else max(terms, 4) - 2
    parameters = b * (b - 1) // 2
    return Work(
        2.0 * count * powers * b**3,
        4.0 * count * powers * b**3,
        count * (parameters + 1.0 * b * b),
        count * (2.0 * parameters + b * b),
    )


def _block_rotate(s: Shape) -> Work:
    """A product a level, and the gradients of x and of the blocks; between the levels nothing need be moved."""
    m, k, b, levels = s["m"], s["blocks"] * s["b"], s["b"], s.get("levels", 1)
    product, x, q = levels * _products(m, k, b), m * k, levels * k * b
    return Work(product, 2 * product, 2.0 * x + q, 3.0 * x + 2.0 * q)


def _structured_unitary(s: Shape) -> Work:
    """In real numbers: two transforms of 5 k log₂ k, two reflections of 16 k, three diagonals of 6 k, for each row.

    The permutation, of integers, is not counted.
    """
    m, k = s["m"], s["k"]
    forward = m * (10.0 * k * math.log2(max(k, 2)) + 50.0 * k)
    return Work(forward, 2 * forward, 4.0 * m * k + 7 * k, 6.0 * m * k + 14 * k)


_WORK: dict[str, Callable[[Shape], Work]] = {
    "low_rank_linear": _low_rank_linear,
    "low_rank_linear_many": _low_rank_linear,
    "low_rank_add": _low_rank_add,
    "rotated_low_rank_linear": _rotated_low_rank_linear,
    "scale_features": _scale_features,
    "householder_factors": _householder_factors,
    "householder_factors_many": _householder_factors,
    "householder_rotate": _householder_rotate,
    "hybrid_factors": _hybrid_factors,
    "hybrid_linear": _hybrid_linear,
    "cayley": _cayley,
    "cayley_packed": _cayley_packed,
    "cayley_packed_many": _cayley_packed,
    "cayley_neumann_packed": _cayley_neumann_packed,
    "block_rotate": _block_rotate,
    "butterfly_rotate": _block_rotate,
    "structured_unitary": _structured_unitary,
}
_FACTORISING = {
    name for name in _WORK if name.startswith(("householder_factors", "cayley", "hybrid_factors"))
}


def work(name: str) -> Callable[[Shape, torch.dtype, str], tuple[float, float]]:
    """(operations, bytes) of a pass of that operator: `OperatorCase.work`."""

    def of(shape: Shape, dtype: torch.dtype, part: str) -> tuple[float, float]:
        done = _WORK[name](shape)
        passes = {
            "forward": (done.forward, done.forward_moved),
            "backward": (done.backward, done.backward_moved),
            "both": (done.forward + done.backward, done.forward_moved + done.backward_moved),
        }
        operations, moved = passes[part]
        if name == "structured_unitary":  # counted in real numbers, two for each complex one
            return operations, moved * dtype.to_real().itemsize
        size = torch.promote_types(dtype, torch.float32) if name in _FACTORISING else dtype
        return operations * (4 if dtype.is_complex else 1), moved * size.itemsize

    return of
