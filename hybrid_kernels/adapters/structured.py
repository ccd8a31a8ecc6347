"""The structured unitary transform of unitary recurrent networks (uRNN, arXiv 1511.06464) as a PEFT method.

    y = (x Q) Wᵀ + b,  Q the real form of D₃ R₂ F⁻¹ D₂ Π R₁ F D₁ on pairs of features, the identity at the start

(`nn.StructuredUnitary`): 3.5 parameters per input feature and nothing to choose but the layers. Of several active
adapters the last transforms first. Merging writes W Qᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import aenum
import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    PeftType,
    register_peft_method,
)
from torch import Tensor, nn

from hybrid_kernels.nn import StructuredUnitary
from hybrid_kernels.nn.hybrid_linear import has_plain_weight

if "URNN" not in PeftType.__members__:
    aenum.extend_enum(PeftType, "URNN", "URNN")


@dataclass
class StructuredUnitaryConfig(PeftConfig):
    """Configuration of structured unitary adapters on the inputs of linear layers.

    Args:
        target_modules: list of module names or endings, a regular expression for the whole name, or "all-linear".
            None: the default for known model types. Their in_features must be even.
        exclude_modules: likewise, names that are left alone.
        modules_to_save: other modules that are trained and saved, such as a classification head.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names, endings of names, a regular expression, or 'all-linear'."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names, endings of names or a regular expression to leave alone."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train and save, such as a classification head."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.URNN  # type: ignore[attr-defined]
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list):
                setattr(self, name, set(value))


class StructuredUnitaryLayer(nn.Module, BaseTunerLayer):
    """A linear base layer and the transforms of its input, by adapter name."""

    adapter_layer_names = ("urnn_unitary",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.urnn_unitary = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        innermost: Any = self.get_base_layer()
        self.in_features: int = innermost.in_features
        self.out_features: int = innermost.out_features

    def add_adapter(self, adapter_name: str, inference_mode: bool) -> None:
        weight = next(self.get_base_layer().parameters())
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        self.urnn_unitary[adapter_name] = StructuredUnitary(
            self.in_features, identity_start=True, device=weight.device, dtype=dtype
        )
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def unitary(self, name: str) -> StructuredUnitary:
        return self.urnn_unitary[name]  # type: ignore[return-value]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if not self.disable_adapters and not self.merged:
            for name in reversed(self.active_adapters):
                if name in self.urnn_unitary:
                    x = self.unitary(name)(x)
        return self.base_layer(x, *args, **kwargs)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the adapters into the base weight. ``safe_merge`` checks for NaN and Inf before anything changes."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.urnn_unitary:
                continue
            q = self.unitary(name).matrix()
            weight = self._mergeable_weight()
            merged = weight.to(q.dtype) @ q.mT
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            weight.data = merged.to(weight.dtype)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged adapters out of the base weight again, to rounding in its dtype."""
        while self.merged_adapters:
            q = self.unitary(self.merged_adapters.pop()).matrix()
            weight = self._mergeable_weight()
            weight.data = (weight.to(q.dtype) @ q).to(weight.dtype)

    def _mergeable_weight(self) -> nn.Parameter:
        base: Any = self.get_base_layer()
        if not has_plain_weight(base):
            raise TypeError(
                f"cannot merge a structured unitary adapter into a {type(base).__name__}: its weight cannot be read as "
                "floats; keep the adapter, or load the base model unquantised"
            )
        return base.weight

    def __repr__(self) -> str:
        return "urnn." + super().__repr__()


class StructuredUnitaryLinear(StructuredUnitaryLayer):
    """`StructuredUnitaryLayer` under a name in which PEFT's "all-linear" recognises an adapted linear layer."""


class StructuredUnitaryModel(BaseTuner):
    """Made by `peft.get_peft_model(model, StructuredUnitaryConfig(...))`."""

    prefix = "urnn_"
    tuner_layer_cls = StructuredUnitaryLayer
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(  # type: ignore[override]
        self,
        config: StructuredUnitaryConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        base: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        features = getattr(base, "in_features", None)
        if not isinstance(features, int) or not isinstance(getattr(base, "out_features", None), int):
            raise TypeError(
                f"target module {current_key} is a {type(base).__name__}; a structured unitary adapter goes on "
                "nn.Linear or a layer with in_features and out_features: name such modules in target_modules"
            )
        if features % 2:
            raise ValueError(f"target module {current_key}: in_features is {features}; it must be even")
        layer = target if isinstance(target, StructuredUnitaryLayer) else StructuredUnitaryLinear(target)
        if layer is not target:
            layer._active_adapter = [adapter_name]
        layer.add_adapter(adapter_name, config.inference_mode)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)  # a further adapter does not become trainable by being added
            self._replace_module(parent, target_name, layer, target)


register_peft_method(name="urnn", config_cls=StructuredUnitaryConfig, model_cls=StructuredUnitaryModel)
