"""The PEFT layer: a linear base layer under any number of named hybrid adapters."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from hybrid_kernels.nn.adapter import HybridAdapter
from hybrid_kernels.nn.cache import FactorCache
from hybrid_kernels.nn.hybrid_linear import adapter_factors, has_plain_weight, hybrid_forward, merged_weight


class HybridLayer(nn.Module, BaseTunerLayer):
    """Base layer and its adapters. The updates of several active adapters add up; one with a rotation stands alone."""

    adapter_layer_names = ("hybrid_adapters",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hybrid_adapters = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._merged_factors: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._cache = FactorCache()
        innermost: Any = self.get_base_layer()
        self.in_features: int = innermost.in_features
        self.out_features: int = innermost.out_features

    def add_adapter(self, adapter_name: str, adapter: HybridAdapter, inference_mode: bool) -> None:
        """Attach ``adapter`` under a name; it becomes trainable only if it is among the active ones."""
        self.hybrid_adapters[adapter_name] = adapter
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def adapter(self, name: str) -> HybridAdapter:
        return self.hybrid_adapters[name]  # type: ignore[return-value]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_together(names)
        super().set_adapter(names, inference_mode=inference_mode)

    def _check_together(self, names: list[str]) -> None:
        present = [name for name in names if name in self.hybrid_adapters]
        rotating = [name for name in present if self.adapter(name).has_rotation]
        if rotating and len(present) > 1:
            raise ValueError(
                f"adapters {present} cannot be active or merged together: {rotating} carry a unitary rotation, "
                "which stands alone"
            )

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # Device only: PEFT's version would also round the mixing state to the base layer's dtype.
        target = device or next((p.device for p in self.get_base_layer().parameters()), None)
        if adapter_name not in self.hybrid_adapters or target is None:
            return
        adapter = self.adapter(adapter_name)
        if not any(p.is_meta for p in adapter.parameters()):
            adapter.to(target)

    def applied(self) -> list[HybridAdapter]:
        """The adapters that a forward applies: the active ones, unless they are disabled or merged."""
        if self.disable_adapters or self.merged:
            return []
        return [self.adapter(name) for name in self.active_adapters if name in self.hybrid_adapters]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = self.applied()
        if not adapters:
            return self.base_layer(x, *args, **kwargs)
        return hybrid_forward(self.base_layer, x, adapters, self._cache, self.training)

    @torch.no_grad()
    def _factors(self, names: list[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        adapters = [self.adapter(name) for name in names]
        for adapter in adapters:
            adapter.drop_prepared()  # by a forward that KeyboardInterrupt ended
        base = self.get_base_layer()
        down, up = adapter_factors(base, adapters, has_plain_weight(base))
        return down, up, adapters[0].rotation() if adapters[0].has_rotation else None

    def _mergeable_weight(self) -> nn.Parameter:
        base = self.get_base_layer()
        if not has_plain_weight(base):
            raise TypeError(
                f"cannot merge a hybrid adapter into a {type(base).__name__}: its weight cannot be read as floats; "
                "keep the adapter, or load the base model unquantised"
            )
        return base.weight  # type: ignore[return-value]

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the adapters into the base weight. ``safe_merge`` checks for NaN and Inf before anything changes."""
        names = [
            name for name in check_adapters_to_merge(self, adapter_names) if name in self.hybrid_adapters
        ]
        if not names:
            return
        weight = self._mergeable_weight()
        names = [*self.merged_adapters, *names]
        self._check_together(names)
        if self.merged:
            self.unmerge()  # every adapter's update is made from the pristine weight
        factors = self._factors(names)
        merged = merged_weight(weight, *factors)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights. The adapter {names} seems to be broken")
        weight.data = merged
        self._merged_factors = factors
        self.merged_adapters = names
        self._cache.clear()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged adapters out of the base weight again, to rounding in its dtype."""
        if self._merged_factors is None:
            return
        down, up, q = self._merged_factors
        weight = self._mergeable_weight()
        # W_merged = (W + up·down) Qᵀ, so W = W_merged Q − up·down.
        rotated = weight if q is None else merged_weight(weight.to(down.dtype), down, 0 * up, q.mT)
        weight.data = (rotated.to(down.dtype) - up @ down).to(weight.dtype)
        self._merged_factors = None
        self.merged_adapters = []
        self._cache.clear()

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """W_merged − W (out_features, in_features) of one adapter, in float32 or wider."""
        down, up, q = self._factors([adapter_name])
        if q is None:
            return up @ down
        weight = self._mergeable_weight().to(down.dtype)
        return merged_weight(weight, down, up, q) - weight

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return not self.adapter(adapter_name).has_rotation

    def __repr__(self) -> str:
        return "hybrid." + super().__repr__()
