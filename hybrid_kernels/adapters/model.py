"""The PEFT tuner: puts hybrid layers into a model and checks what is loaded into them."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, register_peft_method
from torch import Tensor, nn

from hybrid_kernels.adapters.config import HybridConfig, matches
from hybrid_kernels.adapters.layer import HybridLayer
from hybrid_kernels.adapters.prepared import PreparedFactors
from hybrid_kernels.nn.adapter import HybridAdapter


class HybridLinearLayer(HybridLayer):
    """`HybridLayer` under a name in which PEFT's "all-linear" recognises an adapted linear layer."""


class HybridModel(BaseTuner):
    """A model with hybrid adapters in its linear layers; made by `peft.get_peft_model(model, HybridConfig(...))`."""

    prefix = "hybrid_"
    tuner_layer_cls = HybridLayer
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(  # type: ignore[override]
        self,
        config: HybridConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        base: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not (
            isinstance(getattr(base, "in_features", None), int)
            and isinstance(getattr(base, "out_features", None), int)
        ):
            raise TypeError(
                f"target module {current_key} is a {type(base).__name__}; a hybrid adapter goes on nn.Linear or a "
                "layer with in_features and out_features: name such modules in target_modules, or use exclude_modules"
            )
        unitary = config.unitary_modules is not None and matches(config.unitary_modules, current_key)
        device, dtype = _device_and_dtype(base)
        try:
            adapter = HybridAdapter(
                base.in_features,
                base.out_features,
                rank=config.r,
                reflections=config.reflections,
                alpha=config.lora_alpha,
                mixing=config.mixing,
                mixing_value=config.mixing_value,
                dropout=config.lora_dropout,
                unitary_block_size=config.unitary_block_size if unitary else None,
                unitary_complex=config.unitary_complex,
                device=device,
                dtype=dtype,
            )
        except ValueError as error:
            raise ValueError(f"target module {current_key}: {error}") from error
        if config.gradient_aligned:
            adapter.allocate_start()
        if isinstance(target, HybridLayer):
            target.add_adapter(adapter_name, adapter, config.inference_mode)
            return
        layer = HybridLinearLayer(target)
        layer._active_adapter = [adapter_name]
        layer.add_adapter(adapter_name, adapter, config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter does not become trainable by being added
        self._replace_module(parent, target_name, layer, target)

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self._prepared = PreparedFactors.of(model)
        self._prepared.layers = [layer for layer in model.modules() if isinstance(layer, HybridLayer)]
        if config.unitary_modules is not None and not any(
            adapter_name in layer.hybrid_adapters and layer.adapter(adapter_name).has_rotation
            for layer in model.modules()
            if isinstance(layer, HybridLayer)
        ):
            raise ValueError(
                f"unitary_modules is {config.unitary_modules!r} but matches none of the target modules "
                f"{sorted(self.targeted_module_names)}"
            )

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        self._prepared.remove()  # it would keep the adapters alive
        return model

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        _check_fits(model, adapter_name, remapped)
        return remapped


def _device_and_dtype(base: nn.Module) -> tuple[torch.device | None, torch.dtype]:
    weight = next(base.parameters(), None)
    if weight is None:
        return None, torch.float32
    dtype = getattr(base, "compute_dtype", None) or weight.dtype
    return weight.device, dtype if dtype.is_floating_point else torch.float32


def _check_fits(model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor]) -> None:
    """Raise ValueError where a checkpoint lacks a tensor of the adapter or holds one of another shape."""
    own = model.state_dict()
    adapter_keys = [key for key in own if f".hybrid_adapters.{adapter_name}." in key]
    missing = [key for key in adapter_keys if key not in state_dict]
    if missing:
        raise ValueError(
            f"the adapter checkpoint lacks {len(missing)} of {len(adapter_keys)} tensors, first {missing[0]}; "
            "was it made for another model, or with other target_modules?"
        )
    for key in adapter_keys:
        if own[key].shape != state_dict[key].shape:
            raise ValueError(
                f"the adapter checkpoint has {key} of shape {tuple(state_dict[key].shape)}, the model needs "
                f"{tuple(own[key].shape)}; was it made for another base model, rank or number of reflections?"
            )


register_peft_method(name="hybrid", config_cls=HybridConfig, model_cls=HybridModel)
