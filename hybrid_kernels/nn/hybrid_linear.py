"""A linear layer under hybrid adapters: the apply stage over any base layer, and the drop-in module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from hybrid_kernels import functional
from hybrid_kernels.nn.adapter import HybridAdapter
from hybrid_kernels.nn.cache import FactorCache

READABLE_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)  # products of 8 bits need scales
# No quantised or sharded tensors; the last is what torch.export traces with.
READABLE_TYPES = (nn.Parameter, Tensor, FakeTensor)


def has_plain_weight(base_layer: nn.Module) -> bool:
    """Whether ``base_layer`` is just x Wᵀ + b, so that its product may be fused with the update.

    Subclasses (quantised layers among them), hooks and replaced forwards (offloading) must be called, not read.
    """
    return type(base_layer) is nn.Linear and is_readable(base_layer)


def is_readable(module: nn.Module) -> bool:
    """Whether a module with a ``weight`` can be read instead of called: nothing else happens when it is called."""
    weight = module.weight
    return (
        type(weight) in READABLE_TYPES
        and weight.dtype in READABLE_DTYPES
        and not weight.is_meta
        and "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


def project(base_layer: nn.Module, z: Tensor) -> Tensor:
    """W z (out_features, n) for z (in_features, n), through the base layer's own forward.

    The columns of z go through as rows; a zero row along with them gives whatever bias is to be taken off.
    """
    weight = getattr(base_layer, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        z = z.to(weight.dtype)
    rows = base_layer(torch.cat([z.mT, z.new_zeros(1, z.shape[0])]))
    return (rows[:-1] - rows[-1:]).mT


def adapter_factors(
    base_layer: nn.Module, adapters: Sequence[HybridAdapter], plain: bool
) -> tuple[Tensor, Tensor]:
    """The factors down (R, in_features) and up (out_features, R) of several adapters together: their updates add up.

    ``plain`` is `has_plain_weight(base_layer)`.
    """
    weight: Any = base_layer.weight if plain else lambda z: project(base_layer, z)
    pairs = [adapter.factors(weight) for adapter in adapters]
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], dim=1)


def hybrid_forward(
    base_layer: nn.Module, x: Tensor, adapters: Sequence[HybridAdapter], cache: FactorCache, training: bool
) -> Tensor:
    """y = (x Q) W'ᵀ + b for the adapters that are active; x (..., in_features), y (..., out_features)."""

    def sources() -> Iterator[Tensor]:
        for adapter in adapters:
            yield from adapter.parameters()
            yield from adapter.buffers()
        yield from base_layer.parameters()

    plain = has_plain_weight(base_layer)
    drops = training and any(adapter.dropout for adapter in adapters)
    weight: Any = base_layer.weight if plain else None
    bias: Any = base_layer.bias if plain else None
    q = None
    if any(adapter.has_rotation for adapter in adapters):
        (adapter,) = adapters  # the callers see to it that a rotation stands alone
        q = cache.get("rotation", sources, adapter.rotation, training)
        if drops or not plain:  # else one operator takes both
            x, q = functional.block_rotate(x, q), None
    if drops:
        cache.clear()  # as every training step does
        return _dropping_forward(base_layer, x, adapters, plain)
    down, up = cache.get("factors", sources, lambda: adapter_factors(base_layer, adapters, plain), training)
    if not plain:
        return functional.low_rank_add(base_layer(x), x, down, up)
    if q is not None:
        return functional.rotated_low_rank_linear(x, q, weight, bias, down, up)
    return functional.low_rank_linear(x, weight, bias, down, up)


def _dropping_forward(
    base_layer: nn.Module, x: Tensor, adapters: Sequence[HybridAdapter], plain: bool
) -> Tensor:
    """y where adapters drop elements of x: each with a mask of its own, so one after another."""
    y = None if plain else base_layer(x)
    for adapter in adapters:
        down, up = adapter_factors(base_layer, [adapter], plain)
        seed = functional.dropout_seed(x.device) if adapter.dropout else None
        dropout = adapter.dropout, adapter.low_rank_size, seed
        if y is None:
            bias: Any = base_layer.bias
            y = functional.low_rank_linear(x, base_layer.weight, bias, down, up, *dropout)  # type: ignore[arg-type]
        else:
            y = functional.low_rank_add(y, x, down, up, *dropout)
    assert y is not None
    return y


@torch.no_grad()
def merged_weight(weight: Tensor, down: Tensor, up: Tensor, q: Tensor | None) -> Tensor:
    """(W + up·down) Qᵀ in weight's dtype, computed in the factors': y = (x Q) W'ᵀ is x times that, transposed."""
    merged = weight.to(down.dtype) + up @ down
    if q is not None:
        merged = functional.block_rotate(merged, q.mT.contiguous().to(down.dtype))
    return merged.to(weight.dtype)


class HybridLinear(nn.Module):
    """Drop-in for a linear layer: the frozen ``base_layer`` under one hybrid adapter, equal to it at the start.

        y = (x Q) W'ᵀ + b,  W' = W + λ s (B A − B₀ A₀) + (1 − λ)(W H₁…Hₙ − W)

    Args:
        base_layer: an `nn.Linear`, or any module with ``in_features`` and ``out_features`` that computes an affine map
            of the last dimension (quantised layers: their weight is never read). Its parameters are frozen.
        **adapter: rank, reflections, alpha, mixing, mixing_value, dropout, unitary_block_size, unitary_complex as
            `HybridAdapter` takes them. dtype and device follow the base layer.

    x is (..., in_features), y (..., out_features) in the base layer's dtype.
    """

    def __init__(self, base_layer: nn.Module, **adapter: Any) -> None:
        super().__init__()
        for attribute in ("in_features", "out_features"):
            if not isinstance(getattr(base_layer, attribute, None), int):
                raise TypeError(
                    f"base_layer is a {type(base_layer).__name__} without an integer {attribute}; "
                    "it may be nn.Linear or a layer like it"
                )
        self.in_features: int = base_layer.in_features  # type: ignore[assignment]
        self.out_features: int = base_layer.out_features  # type: ignore[assignment]
        self.base_layer = base_layer.requires_grad_(False)
        first = next(base_layer.parameters(), None)
        if first is not None:
            adapter.setdefault("device", first.device)
            if first.is_floating_point():
                adapter.setdefault("dtype", first.dtype)
        self.adapter = HybridAdapter(self.in_features, self.out_features, **adapter)
        self._cache = FactorCache()

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return hybrid_forward(self.base_layer, x, [self.adapter], self._cache, self.training)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """A plain `nn.Linear` that computes the same: the adapter merged into a copy of the weight."""
        if not has_plain_weight(self.base_layer):
            raise TypeError(
                f"cannot merge into a {type(self.base_layer).__name__}: its weight cannot be read as floats"
            )
        down, up = adapter_factors(self.base_layer, [self.adapter], plain=True)
        q = self.adapter.rotation() if self.adapter.has_rotation else None
        weight = merged_weight(self.weight, down, up, q)
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        linear.weight.copy_(weight)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear
