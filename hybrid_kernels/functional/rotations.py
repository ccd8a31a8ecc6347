"""Cayley transforms of skew matrices, and rotations by block-diagonal and butterfly matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from hybrid_kernels import ops, reference
from hybrid_kernels._arguments import (
    COMPLEX_DTYPES,
    REAL_DTYPES,
    check_device,
    check_dtype,
    check_last,
    no_autocast,
    shape_of,
    widened,
)
from hybrid_kernels.ops.backend import current_backend
from hybrid_kernels.ops.cayley_many import by_kind


def _check_packed(
    packed: Tensor, block_size: int, name: str = "packed", block_size_name: str = "block_size"
) -> None:
    if block_size < 1:
        raise ValueError(f"{block_size_name} is {block_size}; it must be at least 1")
    expected = block_size * (block_size - 1) // 2
    check_last(name, packed, expected, f"b(b−1)/2 for block_size {block_size}")
    check_dtype(name, packed, REAL_DTYPES + COMPLEX_DTYPES)


def cayley(skew: Tensor, refine: bool = False) -> Tensor:
    """Q = (I − A)(I + A)⁻¹, A = (X − Xᴴ)/2 the skew-Hermitian part of ``skew`` X (..., b, b): exact, for every A.

    Q (..., b, b) is orthogonal, unitary for complex input. Half types are computed and returned in float32. Backward
    is closed-form, saves Q only, and yields the gradient projected on the skew-Hermitian matrices. ``refine`` adds one
    step of iterative refinement with a residual in float64: the last digits of float32 where ‖A‖ is large, at the
    price of two products in float64.
    """
    if skew.ndim < 2 or skew.shape[-1] != skew.shape[-2] or skew.shape[-1] < 1:
        raise ValueError(f"skew has shape {shape_of(skew)}; it must be (..., b, b) with b ≥ 1")
    check_dtype("skew", skew, REAL_DTYPES + COMPLEX_DTYPES)
    skew = skew.to(widened(skew.dtype))
    if current_backend() == "reference":
        return reference.cayley(skew)
    with no_autocast(skew):
        return ops.cayley(skew, refine)


def cayley_packed(packed: Tensor, block_size: int, refine: bool = False) -> Tensor:
    """`cayley` of A given by its strict upper triangle, row by row: A[i, j] = p, A[j, i] = −conj(p) for i < j.

    packed (..., b(b−1)/2) for block_size b ≥ 1; the diagonal of A is zero. Returns Q (..., b, b).
    """
    _check_packed(packed, block_size)
    packed = packed.to(widened(packed.dtype))
    if current_backend() == "reference":
        return reference.cayley_packed(packed, block_size)
    with no_autocast(packed):
        return ops.cayley_packed(packed, block_size, refine)


def cayley_neumann_packed(packed: Tensor, block_size: int, terms: int) -> Tensor:
    """The truncated Neumann series I + 2A + 2A² + … of PEFT's OFT with ``num_cayley_neumann_terms`` = ``terms`` ≥ 1.

    A as in `cayley_packed`, real: packed (..., b(b−1)/2), returns (..., b, b) in float32 or packed's dtype if wider.
    The last power, A^(terms−1), has the coefficient 1 from A³ on; three terms are what four are, two are I + 2A and one
    is I. It approximates `cayley_packed` of −A for ‖A‖ well below 1 and diverges from 1 on. Backward is closed-form and
    saves packed alone.
    """
    _check_packed(packed, block_size)
    check_dtype("packed", packed, REAL_DTYPES)
    if not isinstance(terms, int) or terms < 1:
        raise ValueError(f"terms is {terms}; it must be an integer of at least 1")
    packed = packed.to(widened(packed.dtype))
    if current_backend() == "reference":
        return reference.cayley_neumann_packed(packed, block_size, terms)
    with no_autocast(packed):
        return ops.cayley_neumann_packed(packed, block_size, terms)


def cayley_packed_many(packed: Sequence[Tensor], block_sizes: Sequence[int]) -> list[Tensor]:
    """`cayley_packed` of each of many layers, which may differ in batch shape, block size, dtype and device.

    Those of one block size, dtype and device take one call forward and one backward, so that the gradient of one takes
    the time of all; their results are views of one tensor.
    """
    if len(packed) != len(block_sizes):
        raise ValueError(
            f"block_sizes has {len(block_sizes)} elements; it must have one for each of packed, {len(packed)}"
        )
    for index, (tensor, block_size) in enumerate(zip(packed, block_sizes, strict=True)):
        _check_packed(tensor, block_size, f"packed[{index}]", f"block_sizes[{index}]")
    if current_backend() == "reference":
        return [
            cayley_packed(tensor, block_size) for tensor, block_size in zip(packed, block_sizes, strict=True)
        ]
    rows = [tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1]) for tensor in packed]
    results = by_kind(cayley_packed, rows, block_sizes)
    return [q.view(*tensor.shape[:-1], *q.shape[1:]) for tensor, q in zip(packed, results, strict=True)]


def check_blocks(q: Tensor, x: Tensor) -> None:
    if q.ndim != 3 or q.shape[1] != q.shape[2]:
        raise ValueError(f"q has shape {shape_of(q)}; it must be (k, b, b)")
    check_last("x", x, q.shape[0] * q.shape[1], "k·b of q")
    check_dtype("q", q, COMPLEX_DTYPES if x.is_complex() else REAL_DTYPES)
    check_device("q", q, "x", x)


def block_rotate(x: Tensor, q: Tensor) -> Tensor:
    """x · diag(q₁, …, q_k): rows of x times a block-diagonal matrix.

    x (..., k·b), q (k, b, b), both real or both complex; q is rounded to x's dtype, and its gradient has its own, from
    float32 sums where the backend has them. Returns the shape and dtype of x.
    """
    check_dtype("x", x, REAL_DTYPES + COMPLEX_DTYPES)
    check_blocks(q, x)
    if current_backend() == "reference":
        return reference.block_rotate(x, q.to(x.dtype))
    with no_autocast(x):
        return ops.block_rotate(x, q)


def butterfly_rotate(x: Tensor, q: Tensor) -> Tensor:
    """x · (M_{m−1} ⋯ M₁ M₀), M_i = P_i diag(q_i1, …, q_ik) P_iᵀ: rows of x times a block butterfly, as in PEFT's BOFT.

    x (..., k·b), q (m, k, b, b), both real. P₀ = I and, of levels i ≥ 1, block j of a group of b·2^i features joins its
    half-blocks (b/2 features each) j and j + 2^i: so with m > 1, b must be even and k·b divisible by b·2^(m−1). q is
    rounded to x's dtype, and its gradient has its own. Returns the shape and dtype of x. Of the activations x alone is
    saved. Formula: Liu et al., arXiv 2311.06243; `hybrid_kernels.reference.butterfly_rotate`.
    """
    check_dtype("x", x, REAL_DTYPES)
    if q.ndim != 4 or q.shape[2] != q.shape[3] or q.shape[0] < 1:
        raise ValueError(f"q has shape {shape_of(q)}; it must be (m, k, b, b) with m ≥ 1")
    levels, blocks, b, _ = q.shape
    check_last("x", x, blocks * b, "k·b of q")
    check_dtype("q", q, REAL_DTYPES)
    check_device("q", q, "x", x)
    if levels > 1 and (b % 2 != 0 or blocks % 2 ** (levels - 1) != 0):
        raise ValueError(
            f"q has shape {shape_of(q)}; with m = {levels} levels its b must be even and its k divisible by "
            f"2^(m−1) = {2 ** (levels - 1)}"
        )
    if current_backend() == "reference":
        return reference.butterfly_rotate(x, q.to(x.dtype))
    with no_autocast(x):
        return ops.block_rotate(x, q.squeeze(0)) if levels == 1 else ops.butterfly_rotate(x, q)
