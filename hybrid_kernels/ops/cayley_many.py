"""The Cayley transform of many layers together: one call for all of a kind, a gradient together or for each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid_kernels.ops.cayley_transform import cayley_backward
from hybrid_kernels.ops.registration import without_autocast

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


class _WithValue(torch.autograd.Function):
    """The transform of ``skew`` whose value is known: what `cayley` and `cayley_packed` save, and their gradient."""

    @staticmethod
    def forward(ctx: Any, skew: Tensor, q: Tensor) -> Tensor:
        ctx.packed = skew.ndim < q.ndim
        ctx.save_for_backward(q)
        return q.view_as(q)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return cayley_backward(*gradients, *ctx.saved_tensors, ctx.packed), None


def cayley_with_value(skew: Tensor, q: Tensor) -> Tensor:
    """Q (k, b, b) of ``skew``, full (k, b, b) or packed (k, b(b−1)/2), where q is that already; differentiable.

    It saves as much as the transform itself does, so that a checkpointed layer may compute it anew in the backward.
    """
    if q.requires_grad or not (skew.requires_grad and torch.is_grad_enabled()):
        return q
    return _WithValue.apply(skew.to(q.dtype), q)
