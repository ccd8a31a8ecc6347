"""The Cayley transform of many layers together: one call for all of a kind, a gradient together or for each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hybrid_kernels.ops.cayley_transform import cayley_backward
from hybrid_kernels.ops.registration import once_differentiable, without_autocast

Kind = TypeVar("Kind", bound=Hashable)


def is_plain(tensor: Tensor) -> bool:
    """Whether it is no subclass, such as a shard of a parameter, that must be taken by itself."""
    return type(tensor) in (Tensor, nn.Parameter)


def by_kind(
    transform: Callable[[Tensor, Kind], Tensor], skews: Sequence[Tensor], kinds: Sequence[Kind]
) -> list[Tensor]:
    """``transform(skew, kind)`` of each, in one call for all of equal kind, dtype and device, joined along dimension 0.

    The results are views of what the call returned. The gradient comes the same way, in one call; what needs none
    has none. Plain copies and views, so that a CUDA graph captures it and torch.compile traces it.
    """
    groups: dict[Any, list[int]] = {}
    for index, (skew, kind) in enumerate(zip(skews, kinds, strict=True)):
        groups.setdefault((kind, skew.dtype, skew.device, None if is_plain(skew) else index), []).append(
            index
        )
    results: dict[int, Tensor] = {}
    for (kind, *_), members in groups.items():
        alone = len(members) == 1
        joined = skews[members[0]] if alone else torch.cat([skews[index] for index in members])
        q = transform(joined, kind)
        parts = [q] if alone else q.split([skews[index].shape[0] for index in members])
        for index, part in zip(members, parts, strict=True):
            results[index] = part if skews[index].requires_grad else part.detach()
    return [results[index] for index in range(len(skews))]


def _skew_hermitian(r: Tensor) -> Tensor:
    upper, lower = torch.triu(r, diagonal=1), torch.tril(r, diagonal=-1)
    real = upper - upper.mT
    imaginary = lower + lower.mT + torch.diag_embed(r.diagonal(dim1=-2, dim2=-1))
    return torch.complex(real, imaginary)


def _skew_hermitian_backward(grad_a: Tensor) -> Tensor:
    real, imaginary = grad_a.real, grad_a.imag
    return (
        torch.triu(real - real.mT, 1)
        + torch.tril(imaginary + imaginary.mT, -1)
        + torch.diag_embed(imaginary.diagonal(dim1=-2, dim2=-1))
    )


class _SkewHermitian(torch.autograd.Function):
    """Saves nothing, as `_WithValue` saves nothing for it: autograd's own gradient of torch.complex would."""

    @staticmethod
    def forward(ctx: Any, r: Tensor) -> Tensor:
        return _skew_hermitian(r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _skew_hermitian_backward(*gradients)


def skew_hermitian(r: Tensor) -> Tensor:
    """The complex A (k, b, b) that the real R (k, b, b) holds: see `hybrid_kernels.nn.CayleyRotation`."""
    return _skew_hermitian(r) if torch.compiler.is_compiling() else _SkewHermitian.apply(r)


class _WithValue(torch.autograd.Function):
    """The transform of ``skew`` whose value is known: what `cayley` and `cayley_packed` save, and their gradient."""

    @staticmethod
    def forward(ctx: Any, skew: Tensor, q: Tensor) -> Tensor:
        ctx.packed = skew.ndim < q.ndim
        ctx.real = not skew.is_complex()
        ctx.save_for_backward(q)
        return q.view_as(q)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = cayley_backward(*gradients, *ctx.saved_tensors, ctx.packed)
        return _skew_hermitian_backward(gradient) if ctx.real and gradient.is_complex() else gradient, None


def cayley_with_value(skew: Tensor, q: Tensor) -> Tensor:
    """Q (k, b, b) of ``skew`` where q is that already: nothing is computed, and it is differentiable.

    ``skew`` is full (k, b, b) or packed (k, b(b−1)/2) or, with a complex q, R (k, b, b) of `skew_hermitian`. As much is
    saved as by the transform itself, so that a checkpointed layer may compute it anew in the backward.
    """
    if q.requires_grad or not (skew.requires_grad and torch.is_grad_enabled()):
        return q
    return _WithValue.apply(skew.to(torch.promote_types(skew.dtype, torch.float32)), q)
