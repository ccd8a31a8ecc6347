"""Writing an adapter as an ordinary LoRA: W' − W = up·down has rank R, whatever made it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners import hra, lora
from peft.tuners.lora.layer import MultiheadAttention
from safetensors.torch import save_file
from torch import Tensor, nn

from hybrid_kernels.adapters.acceleration.base import Update, plain_of, projection, whole
from hybrid_kernels.adapters.acceleration.hra import hra_plain, hra_update
from hybrid_kernels.adapters.acceleration.lora import lora_update
from hybrid_kernels.adapters.files import check_folder, files_into
from hybrid_kernels.adapters.layer import HybridLayer

MERGE = "merge it instead: merge_and_unload and save the model, or `hybrid-kernels export --merged`"
# What a LoRA's configuration has in common with the one it is made from, where that has it.
CARRIED = (
    "base_model_name_or_path",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "revision",
    "task_type",
    "trainable_token_indices",
)
# Initialisations of PEFT's LoRA that subtract the adapter's start from the base weight.
CHANGES_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")


def export_lora(model: nn.Module, folder: str | os.PathLike[str], adapter_name: str = "default") -> Path:
    """Write the adapter as a PEFT LoRA checkpoint of scaling 1, in float32 or the adapter's dtype if wider.

        hybrid      down = [A; A₀; vᵀ], up = [λ s B, −λ s B₀, −(1 − λ) W v t]      λ as it is now; A₀, B₀ if it has them
        PEFT's HRA  down = vᵀ, up = −W v t, with H₁ … Hᵣ = I − v t vᵀ
        PEFT's LoRA down = A, up = s B

    The result loads with stock `peft.PeftModel.from_pretrained` on the same base model, without this package, and
    gives the same outputs. Trained biases and modules_to_save come along. Layers may differ in rank. A base weight that
    cannot be read (quantised) is multiplied by calling its layer; PEFT's own HRA misreads such weights.

    Args:
        model: a PEFT model, accelerated or not, not merged. The adapter need not be the active one.
        folder: created if needed; its checkpoint files are replaced, each atomically.

    Returns the folder. Raises, before anything is written, TypeError for what is no PeftModel, NotADirectoryError where
    ``folder`` is a file, and ValueError for an unknown name, a merged model, and every adapter that is no low-rank
    update of the base model's linear layers (a unitary rotation, OFT, BOFT, DoRA, ...): merge those.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"model is a {type(model).__name__}; export_lora takes a PeftModel")
    if adapter_name not in model.peft_config:
        raise ValueError(f"adapter_name is {adapter_name!r}; the model has {sorted(model.peft_config)}")
    target = Path(folder)
    check_folder("folder", target)
    check_exportable(adapter_name, model.peft_config[adapter_name])
    layers = _exportable_layers(model, adapter_name)
    updates = {name: _update(layer, adapter_name) for name, layer in layers.items()}

    # "auto", as PEFT saves: embeddings come along where the vocabulary has been resized.
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    own = tuple(f"{name}.{model.base_model.prefix}" for name in layers)
    tensors = {key: value for key, value in state.items() if not key.startswith(own)}
    for name, update in updates.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = update.down, update.up
        if update.bias is not None:
            tensors[f"{name}.lora_B.bias"] = update.bias
    config = _lora_config(model, adapter_name, {name: u.down.shape[0] for name, u in updates.items()})
    base: Any = model.get_base_model()
    loader = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    with files_into(target) as temporary:
        # Copies, for tied modules share their memory and a checkpoint takes no tensor twice.
        save_file(
            {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()},
            temporary / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config.save_pretrained(str(temporary), auto_mapping_dict=loader if config.task_type is None else None)
    return target


def check_exportable(adapter_name: str, config: Any) -> None:
    """Raise ValueError for the configuration of an adapter that is no low-rank update of the base model."""
    adapter, method = f"adapter {adapter_name!r}", getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning:
        raise ValueError(f"{adapter} is {method}, which changes no layer; serve its own checkpoint")
    if method in ("OFT", "BOFT"):
        raise ValueError(f"{adapter} is {method}; a rotation is no low-rank update: {MERGE}")
    if method not in ("HYBRID", "HRA", "LORA"):
        raise ValueError(f"{adapter} is {method}; export_lora takes the hybrid, HRA and LoRA: {MERGE}")
    rotating = getattr(config, "unitary_modules", None)
    if rotating is not None:
        raise ValueError(
            f"{adapter} has unitary rotations (unitary_modules={rotating!r}); a rotation is no low-rank update: {MERGE}"
        )
    if getattr(config, "use_dora", False):
        raise ValueError(f"{adapter} is DoRA, whose scale of whole rows is no low-rank update: {MERGE}")
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise ValueError(
            f"{adapter} has init_lora_weights={start!r}, which changed the base model's weights under it: "
            f"save_pretrained with path_initial_model_for_weight_conversion makes a plain LoRA of it, or {MERGE}"
        )


def _exportable_layers(model: PeftModel, adapter_name: str) -> dict[str, Any]:
    """The adapter's layers by their names in ``model``; ValueError where they cannot be written as a LoRA."""
    tuner: Any = model.base_model
    layers: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, tuner.tuner_layer_cls)
        and any(adapter_name in getattr(module, container) for container in module.adapter_layer_names)
    }
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(
            f"the model is merged in {len(merged)} layers, first {merged[0]}; call unmerge_adapter() before export_lora"
        )
    for name, layer in layers.items():
        if not isinstance(layer, HybridLayer):
            reason = _unexportable(layer, adapter_name)
            if reason is not None:
                raise ValueError(f"adapter {adapter_name!r} at {name}: {reason}")
    return layers


def _unexportable(layer: Any, adapter_name: str) -> str | None:
    """Why a layer of PEFT's LoRA or HRA is no low-rank update of a linear layer's weight; None where it is one."""
    variant = getattr(layer, "lora_variant", {}).get(adapter_name)
    if variant is not None:
        return (
            f"{type(variant).__name__} is no plain LoRA; serve its own checkpoint, or where PEFT can, {MERGE}"
        )
    linear, factors = isinstance(layer, hra.HRALinear), []
    if linear:
        factors = [layer.hra_u[adapter_name]]
    elif isinstance(layer, lora.LoraLayer) and adapter_name in layer.lora_A:
        modules: list[Any] = [layer.lora_A[adapter_name], layer.lora_B[adapter_name]]
        linear = all(type(module) is nn.Linear for module in modules) and not isinstance(
            layer, (MultiheadAttention, lora.ParamWrapper)
        )
        factors = [parameter for module in modules for parameter in module.parameters()]
    if not linear:
        kind = type(layer.get_base_layer()).__name__
        return f"it is on a {kind}; export_lora takes linear layers. A LoRA's own checkpoint is one, else {MERGE}"
    if not whole(*factors):
        return "its parameters cannot be read (sharded or offloaded); load the model on one device"
    return None


@torch.no_grad()
def _update(layer: Any, adapter_name: str) -> Update:
    """The adapter's factors, and W v t of reflections from W in float32 or wider where W can be read."""
    if isinstance(layer, lora.LoraLayer):
        factor: Any = layer.lora_A[adapter_name]
        return lora_update(layer, [adapter_name], _wide(factor.weight.dtype))
    base = layer.get_base_layer()
    weight = projection(base, hra_plain(layer) if isinstance(layer, hra.HRALinear) else plain_of(base))
    if isinstance(weight, Tensor):
        weight = weight.to(_wide(weight.dtype))
    if isinstance(layer, HybridLayer):
        adapter = layer.adapter(adapter_name)
        adapter.drop_prepared()  # by a forward that KeyboardInterrupt ended
        return Update(*adapter.factors(weight))
    return hra_update(layer, [adapter_name], weight)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _lora_config(model: PeftModel, adapter_name: str, ranks: dict[str, int]) -> LoraConfig:
    """A configuration that names each layer, with its rank and scaling 1."""
    adapter: Any = model.peft_config[adapter_name]
    ranks = {name.removeprefix("base_model.model."): rank for name, rank in ranks.items()}
    ((common, _),) = Counter(ranks.values()).most_common(1)
    # PEFT takes a target's name for an ending of names: "0" is "1.0" too.
    base: Any = model.get_base_model()
    namesakes = [name for name, _ in base.named_modules() if name not in ranks and _ends_in(name, ranks)]
    # and a key of a pattern for a regular expression.
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    bias: Any = getattr(adapter, "bias", "none")
    return LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=list(ranks),
        exclude_modules="|".join(map(re.escape, namesakes)) or None,
        bias=bias if bias in ("none", "all") else "lora_only",
        inference_mode=True,
        **{name: getattr(adapter, name) for name in CARRIED if hasattr(adapter, name)},
    )


def _ends_in(name: str, targets: Iterable[str]) -> bool:
    return any(name[dot + 1 :] in targets for dot, letter in enumerate(name) if letter == ".")
