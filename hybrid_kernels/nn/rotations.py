"""Orthogonal transforms of the features of x as modules: a Householder chain and a block-diagonal Cayley rotation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels.ops.cayley_many import by_kind, cayley_with_value, skew_hermitian


def check_reflections(reflections: int, features: int) -> None:
    """Raise ValueError unless ``reflections`` vectors can be laid out in equal pairs in ``features`` dimensions."""
    if reflections < 2 or reflections % 2 or reflections > features:
        raise ValueError(
            f"reflections is {reflections}; it must be even, at least 2 and at most in_features = {features}: the "
            "chain starts as equal pairs, whose product is the identity"
        )


def paired_reflections(
    features: int, reflections: int, device: torch.device | str | None, dtype: torch.dtype
) -> Tensor:
    """u (features, reflections) of random columns, each twice in a row: H₁H₂ = I exactly, with non-zero gradient.

    The initialisation of Householder reflection adaptation (Yuan et al., arXiv 2405.17484).
    """
    half = torch.empty(reflections // 2, features, device=device, dtype=dtype)
    if reflections and half.device.type != "meta":
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
    return half.repeat_interleave(2, dim=0).T.contiguous()


class HouseholderRotation(nn.Module):
    """x ↦ x Hᵀ for a trainable product H = H₁…Hₙ of Householder reflections; the identity at the start.

    Args:
        features: size of the last dimension of x.
        reflections: n, even, 2 ≤ n ≤ features.

    x is (..., features); the output has its shape and dtype. The parameter ``u`` (features, reflections) holds the
    reflection vectors as columns, of any length; a zero column means "no reflection".
    """

    def __init__(
        self,
        features: int,
        reflections: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_reflections(reflections, features)
        self.features = features
        self.reflections = reflections
        self.u = nn.Parameter(
            paired_reflections(features, reflections, device, dtype or torch.get_default_dtype())
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.householder_rotate(x, self.u)

    def matrix(self) -> Tensor:
        """Q = Hᵀ (features, features), such that the module computes x Q."""
        return self(torch.eye(self.features, device=self.u.device, dtype=self.u.dtype))

    def extra_repr(self) -> str:
        return f"features={self.features}, reflections={self.reflections}"


class CayleyRotation(nn.Module):
    """x ↦ x Q for a trainable block-diagonal Q = diag(q₁, …, q_k) from the Cayley transform; the identity at the start.

    Args:
        features: size of the last dimension of x.
        block_size: b, the size of a block. It must divide ``features``; with ``complex_blocks``, 2b must.
        complex_blocks: unitary instead of orthogonal blocks, acting on pairs of neighbouring features taken as real
            and imaginary part, x₀ + i x₁, x₂ + i x₃, …

    x is (..., features); the output has its shape and dtype. The parameter ``skew`` is (k, b(b−1)/2), the packed
    strict upper triangles; or, complex, (k, b, b) real numbers R, of which the strict upper triangle is the real part
    of A's, the transposed strict lower triangle its imaginary part, and the diagonal the imaginary diagonal of A.
    """

    def __init__(
        self,
        features: int,
        block_size: int,
        complex_blocks: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = block_size * (2 if complex_blocks else 1)
        least = 1 if complex_blocks else 2
        if block_size < least or features % width:
            raise ValueError(
                f"block_size is {block_size}; it must be at least {least} and {'twice it' if complex_blocks else 'it'} "
                f"must divide features = {features}"
            )
        self.features = features
        self.block_size = block_size
        self.complex_blocks = complex_blocks
        shape = skew_shape(features, block_size, complex_blocks)
        self.skew = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def blocks(self) -> Tensor:
        """The real orthogonal blocks q (k, width, width), width = b, or 2b for complex blocks."""
        return rotation_blocks(self.skew, self.block_size, self.complex_blocks)

    def forward(self, x: Tensor) -> Tensor:
        return functional.block_rotate(x, self.blocks())

    def matrix(self) -> Tensor:
        """Q (features, features), such that the module computes x Q."""
        return torch.block_diag(*self.blocks())

    def extra_repr(self) -> str:
        return f"features={self.features}, block_size={self.block_size}, complex_blocks={self.complex_blocks}"


def skew_shape(features: int, block_size: int, complex_blocks: bool) -> tuple[int, ...]:
    """The shape of the ``skew`` of a `CayleyRotation`."""
    if complex_blocks:
        return features // (2 * block_size), block_size, block_size
    return features // block_size, block_size * (block_size - 1) // 2


def cayley_of(skew: Tensor, kind: tuple[int, bool]) -> Tensor:
    """Q (k, b, b), real or complex, of the ``skew`` of a `CayleyRotation` of this (block_size, complex_blocks)."""
    block_size, complex_blocks = kind
    if not complex_blocks:
        return functional.cayley_packed(skew, block_size)
    return functional.cayley(skew_hermitian(skew.to(torch.promote_types(skew.dtype, torch.float32))))


def cayley_of_many(skews: Sequence[Tensor], kinds: Sequence[tuple[int, bool]]) -> list[Tensor]:
    """`cayley_of` of each, in one launch for all of equal kind, dtype and device."""
    return by_kind(cayley_of, skews, kinds)


def rotation_blocks(
    skew: Tensor, block_size: int, complex_blocks: bool, transformed: Tensor | None = None
) -> Tensor:
    """The real orthogonal blocks of a `CayleyRotation` with this ``skew`` parameter.

    ``transformed``: `cayley_of` of skew where it has been made already.
    """
    kind = block_size, complex_blocks
    q = cayley_of(skew, kind) if transformed is None else cayley_with_value(skew, transformed)
    return blocks_on_pairs(q) if complex_blocks else q


def blocks_on_pairs(q: Tensor) -> Tensor:
    """The real blocks (k, 2b, 2b) that do to pairs of real features what the complex q (k, b, b) does to x₀ + i x₁, …

    A complex block C + iS takes the row (a + ib) to (aC − bS) + i(aS + bC); on interleaved pairs that is the real
    matrix of 2×2 cells [[C, S], [−S, C]], which costs as many multiplications and works in every real dtype.
    """
    k, b, _ = q.shape
    cells = torch.stack(
        [torch.stack([q.real, q.imag], dim=-1), torch.stack([-q.imag, q.real], dim=-1)], dim=-3
    )  # (k, b, 2, b, 2)
    return cells.reshape(k, 2 * b, 2 * b)
