"""The Cayley transform's Neumann series, truncated as PEFT's OFT truncates it: many small skew-symmetric matrices.

    R = c₀ I + c₁ A + … + c_d Aᵈ = H₀,   H_k = P_k + B H_{k+1},   B = A²,   P_k = c_{2k} I + c_{2k+1} A
    G₀ = dR,   G_{k+1} = B G_k,   E = Σ_k G_k H_{k+1}ᵀ + H_{k+1} G_kᵀ,   W = Σ_k c_{2k+1} G_k − A E,   dp = W_ij − W_ji

R, A (..., b, b), p (..., b(b−1)/2) the strict upper triangle of A, real: Horner's scheme in B takes half the products
that the powers of A take. The backward is the adjoint of that, with Aᵀ = −A and Bᵀ = B: the gradient of B counts with
its symmetric part E alone, and E A = −(A E)ᵀ. It saves p and makes the H_k again. float32 and float64.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator
from hybrid_kernels.ops.precision import without_tf32
from hybrid_kernels.ops.registration import operator


def coefficients_of(terms: int) -> list[float]:
    """c₀, …, c_d for PEFT's ``num_cayley_neumann_terms``: 1, 2, 2, …, 2, 1, but the last is 2 where d is 1.

    PEFT adds A³ whether it was asked for three terms or four: d = 0, 1, 3, 3, 4, 5, … for 1, 2, 3, 4, 5, 6, … terms.
    """
    if terms <= 2:
        return [1.0, 2.0][:terms]
    degree = max(terms - 1, 3)
    return [1.0, *[2.0] * (degree - 1), 1.0]


@functools.lru_cache(maxsize=32)
def _positions(b: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each element of A (b·b) its place in p and its sign, 0 on the diagonal, and of each of p its place in A."""
    row, column = torch.triu_indices(b, b, offset=1, device=device)
    above = row * b + column
    place = torch.zeros(b, b, dtype=torch.int64, device=device)
    place.view(-1)[above] = torch.arange(above.numel(), device=device)
    sign = torch.ones(b, b, dtype=torch.int8, device=device).triu(1)
    return (place + place.mT).view(-1), (sign - sign.mT).view(-1), above


def _unpack(packed: Tensor, b: int) -> Tensor:
    """A (rows, b, b) of packed (..., b(b−1)/2)."""
    if b == 1:
        return packed.new_zeros(math.prod(packed.shape[:-1]), 1, 1)
    place, sign, _ = _positions(b, packed.device)
    return (packed.reshape(-1, packed.shape[-1])[:, place] * sign).view(-1, b, b)


def _horner(a: Tensor, square: Tensor, coefficients: list[float]) -> list[Tensor]:
    """H₀, …, H_K of the K + 1 pairs of coefficients that have a power of A in them: H_K takes no product."""
    degree = len(coefficients) - 1
    top = (degree - 1) // 2

    def add_pair(h: Tensor, k: int) -> Tensor:
        h.add_(a, alpha=coefficients[2 * k + 1]).diagonal(dim1=-2, dim2=-1).add_(coefficients[2 * k])
        return h

    first = coefficients[degree] * square if degree % 2 == 0 else torch.zeros_like(a)
    series = [add_pair(first, top)]
    for k in range(top - 1, -1, -1):
        # The large I last, not into the sums of the product: the rounding of small ones would be lost in it.
        series.append(add_pair(torch.bmm(square, series[-1]), k))
    return series[::-1]


@without_tf32
def _eager(packed: Tensor, block_size: int, terms: int) -> Tensor:
    coefficients = coefficients_of(terms)
    a = _unpack(packed, block_size)
    if len(coefficients) == 1:
        r = torch.eye(block_size, dtype=a.dtype, device=a.device).repeat(a.shape[0], 1, 1)
    else:
        square = torch.bmm(a, a) if len(coefficients) > 2 else a
        r = _horner(a, square, coefficients)[0]
    return r.view(*packed.shape[:-1], block_size, block_size)


@without_tf32
def _eager_backward(grad_r: Tensor, packed: Tensor, terms: int) -> Tensor:
    coefficients = coefficients_of(terms)
    degree = len(coefficients) - 1
    b = grad_r.shape[-1]
    if degree == 0 or b == 1:
        return torch.zeros_like(packed)
    gradient = grad_r.view(-1, b, b)
    w = coefficients[1] * gradient
    if degree > 1:
        a = _unpack(packed, b)
        square = torch.bmm(a, a)
        series = _horner(a, square, coefficients)
        e = torch.zeros_like(w)
        for k, following in enumerate(series[1:]):
            e.baddbmm_(gradient, following.mT)
            gradient = torch.bmm(square, gradient)
            w.add_(gradient, alpha=coefficients[2 * k + 3])
        if degree % 2 == 0:
            e.add_(gradient, alpha=coefficients[degree])
        w.baddbmm_(a, e + e.mT, alpha=-1)
    *_, above = _positions(b, w.device)
    return (w - w.mT).view(-1, b * b)[:, above].view(packed.shape)


def _cpp(packed: Tensor, block_size: int, terms: int) -> Tensor:
    forward = torch.ops.hybrid_kernels_cpp.neumann_forward.default
    return forward(packed, block_size, coefficients_of(terms))


def _cpp_backward(grad_r: Tensor, packed: Tensor, terms: int) -> Tensor:
    backward = torch.ops.hybrid_kernels_cpp.neumann_backward.default
    return backward(grad_r, packed, coefficients_of(terms))


_forward = Operator(
    "cayley_neumann_packed_forward",
    Implementation(
        "cpp",
        _cpp,
        lambda packed, *_: _extension.unsupported_floating(packed),
        automatic=lambda packed, block_size, terms: _extension.neumann_preferred(packed, block_size),
    ),
    Implementation("eager", _eager),
)
_backward = Operator(
    "cayley_neumann_packed_backward",
    Implementation(
        "cpp",
        _cpp_backward,
        lambda grad_r, *_: _extension.unsupported_floating(grad_r),
        automatic=lambda grad_r, packed, terms: _extension.neumann_preferred(packed, grad_r.shape[-1]),
    ),
    Implementation("eager", _eager_backward),
)


def _cayley_neumann_packed(packed: Tensor, block_size: int, terms: int) -> Tensor:
    """R (..., b, b) of the matrices packed in (..., b(b−1)/2); see the module's docstring."""
    return _forward(packed.contiguous(), block_size, terms)


def _cayley_neumann_packed_backward(grad_r: Tensor, packed: Tensor, terms: int) -> Tensor:
    """The gradient of ``packed`` (..., b(b−1)/2) from that of R (..., b, b)."""
    return _backward(grad_r.contiguous(), packed.contiguous(), terms)


cayley_neumann_packed_backward = operator(
    "cayley_neumann_packed_backward",
    _cayley_neumann_packed_backward,
    lambda grad_r, packed, terms: packed.new_empty(packed.shape),
)


def _setup(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    packed, _, ctx.terms = inputs
    ctx.save_for_backward(packed)


cayley_neumann_packed = operator(
    "cayley_neumann_packed",
    _cayley_neumann_packed,
    lambda packed, block_size, terms: packed.new_empty(*packed.shape[:-1], block_size, block_size),
    _setup,
    lambda ctx, grad_r: (cayley_neumann_packed_backward(grad_r, *ctx.saved_tensors, ctx.terms), None, None),
)
