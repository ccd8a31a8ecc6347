"""What accelerated PEFT layers have in common: the change of class and back, and the factor pair on the base layer.

An accelerated layer is the very same object under a subclass of its PEFT class: parameters, buffers, hooks, names and
everything PEFT does with them stay where they are, and only `forward` is another. Whatever a layer's state or call asks
for that has no fast form (merged, disabled, an unusual variant) goes to PEFT's own forward, at that call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hybrid_kernels import functional
from hybrid_kernels.nn.cache import FactorCache
from hybrid_kernels.nn.hybrid_linear import (
    READABLE_DTYPES,
    READABLE_TYPES,
    has_plain_weight,
    is_readable,
    project,
)

if TYPE_CHECKING:
    from hybrid_kernels.adapters.acceleration.groups import Group


class Plain(NamedTuple):
    """A base layer that is just x Wᵀ + b: weight (out_features, in_features), bias (out_features,) or None."""

    weight: Tensor
    bias: Tensor | None


class Update(NamedTuple):
    """y = (x Wᵀ + x downᵀ upᵀ) · scale + b + bias: what an adapter, or several together, make of a base layer.

    down (R, in_features), up (out_features, R), bias (out_features,) or None, scale (out_features,) or None.
    """

    down: Tensor
    up: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None


class State:
    """What acceleration keeps on a layer, outside its parameters, buffers and state dict."""

    def __init__(self, original: type[nn.Module]) -> None:
        self.original = original
        self.cache = FactorCache()
        self.group: Group | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of one layer alone leaves its group behind; a copy of the group takes in its members' copies.
        return {**vars(self), "group": None}


class AcceleratedLayer:
    """Mixin before a PEFT layer's class. Instances come from `convert` and are turned back by `revert`."""

    container: str
    """The attribute that holds the layer's adapters by name."""
    method: Any
    """The PEFT method's name, for reports."""

    if TYPE_CHECKING:
        _acceleration: State
        active_adapters: list[str]
        disable_adapters: bool
        merged: bool
        training: bool
        base_layer: Any

        def get_base_layer(self) -> Any: ...

    @classmethod
    def convert(cls, layer: nn.Module) -> None:
        state = State(type(layer))
        layer.__class__ = cls  # type: ignore[assignment]
        layer._acceleration = state  # type: ignore[assignment]

    def revert(self) -> None:
        original = self._acceleration.original
        del self._acceleration
        self.__class__ = original  # type: ignore[assignment]

    def shares(self) -> tuple[str, ...]:
        """The names, within the module that holds them, of the layers it shares a projection of its input with."""
        group = self._acceleration.group
        if group is None or group.dissolved is not None:
            return ()
        return tuple(name for name, layer in group.members.items() if layer is not self)

    def described(self) -> list[str]:
        """The adapters that reports speak of: the active ones, or all where none of them is in this layer."""
        held = getattr(self, self.container)
        return [name for name in self.active_adapters if name in held] or list(held)

    def unsupported(self, adapter_name: str) -> str | None:
        """None, or why this adapter has no fast form here and runs as PEFT has it."""
        raise NotImplementedError

    def operators(self) -> dict[str, tuple[Any, ...]]:
        """The large operators of a forward, with arguments like those they will get, for `Report`."""
        raise NotImplementedError

    def plain(self) -> Plain | None:
        """The base layer's weight and bias where they may be read; None where it has to be called."""
        return plain_of(self.base_layer)

    def cached(self, name: str, sources: Iterable[Tensor | float], compute: Callable[[], Any]) -> Any:
        return self._acceleration.cache.get(name, lambda: sources, compute, self.training)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        # What is written to weight.data, now and by unmerge, has no version; while merged, nothing is kept.
        self._acceleration.cache.clear()
        super().merge(*args, **kwargs)  # type: ignore[misc]

    def delete_adapter(self, adapter_name: str) -> None:
        self._acceleration.cache.clear()  # which holds the adapter's tensors
        super().delete_adapter(adapter_name)  # type: ignore[misc]


def plain_of(base_layer: Any) -> Plain | None:
    """A base layer's weight and bias where they may be read; None where it has to be called."""
    if type(base_layer) is Conv1D and is_readable(base_layer):
        return Plain(base_layer.weight.t(), base_layer.bias)
    return Plain(base_layer.weight, base_layer.bias) if has_plain_weight(base_layer) else None


def projection(base_layer: Any, plain: Plain | None) -> Callable[[Tensor], Tensor] | Tensor:
    """W, or the function z ↦ W z where W cannot be read: what `functional.hybrid_factors` takes."""
    return (lambda z: project(base_layer, z)) if plain is None else plain.weight


def fits(x: Tensor, plain: Plain | None) -> bool:
    """Whether x meets a layer's weight as the operators want it; what else PEFT makes of it is PEFT's."""
    if plain is None:
        return True
    weight = plain.weight
    return x.device == weight.device and (x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type))


def whole(*parameters: Tensor) -> bool:
    """Whether parameters are plain tensors that hold their values: no shards, no stand-ins of what is elsewhere."""
    return all(type(p) in READABLE_TYPES and not p.is_meta for p in parameters)


def apply_update(layer: AcceleratedLayer, x: Tensor, plain: Plain | None, update: Update) -> Tensor:
    """y (..., out_features) of `Update`'s formula."""
    down, up, bias, scale = update
    if plain is not None:
        if scale is None:
            return functional.low_rank_linear(x, plain.weight, added(plain.bias, bias), down, up)
        y = functional.low_rank_linear(x, plain.weight, None, down, up)
        return functional.scale_features(y, scale, added(plain.bias, bias))
    y = layer.base_layer(x)
    base_bias = getattr(layer.base_layer, "bias", None)
    if scale is None:
        y = functional.low_rank_add(y, x, down, up)
        return y if bias is None else y + bias.to(y.dtype)
    y = functional.low_rank_add(without_bias(y, base_bias), x, down, up)
    return functional.scale_features(y, scale, added(base_bias, bias))


def without_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y - bias.to(y.dtype)


def added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    return first + second.to(first.dtype)


SAMPLE_ROWS = 1024  # for which a report says what would run


def sample(layer: Any) -> Tensor:
    """An x (SAMPLE_ROWS, in_features) without memory of its own, of the dtype that the layer is likely to get."""
    weight = next(layer.base_layer.parameters(), None)
    floating = weight is not None and weight.dtype in READABLE_DTYPES
    dtype = weight.dtype if weight is not None and floating else torch.float32
    device = None if weight is None else weight.device
    return torch.zeros(1, dtype=dtype, device=device).expand(SAMPLE_ROWS, layer.in_features)


def low_rank_operators(layer: Any, rank: int) -> dict[str, tuple[Any, ...]]:
    """The apply stage of a factor pair, for `AcceleratedLayer.operators`."""
    x = sample(layer)
    down = x.new_zeros(1).expand(rank, layer.in_features)
    up = x.new_zeros(1).expand(layer.out_features, rank)
    plain = layer.plain()
    if plain is None:
        return {"low_rank_add": (x.new_zeros(1).expand(SAMPLE_ROWS, layer.out_features), x, down, up, None)}
    return {"low_rank_linear": (x, plain.weight, plain.bias, down, up, None)}
