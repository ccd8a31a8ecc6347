"""Writing a hybrid adapter as an ordinary LoRA: W' − W = up·down has rank R, whatever made it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from hybrid_kernels.adapters.layer import HybridLayer


def export_lora(model: nn.Module, folder: str | os.PathLike[str], adapter_name: str = "default") -> Path:
    """Write the adapter as a PEFT LoRA checkpoint of rank R = r + n (2r + n if gradient-aligned) and scaling 1.

    The result loads with stock `peft.PeftModel.from_pretrained` on the same base model, without this package, and
    gives the same outputs; modules_to_save come along. λ is frozen at its present value.

    Args:
        model: a PEFT model with hybrid adapters, not merged.
        folder: created if needed; its checkpoint files are replaced, each atomically.

    Returns the folder. Raises ValueError for an adapter with a unitary rotation: x Q is no low-rank update of W; merge
    that one instead.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    if not isinstance(model, PeftModel):
        raise TypeError(f"model is a {type(model).__name__}; export_lora takes a PeftModel")
    if adapter_name not in model.peft_config:
        raise ValueError(f"adapter_name is {adapter_name!r}; the model has {sorted(model.peft_config)}")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, HybridLayer) and adapter_name in module.hybrid_adapters
    }
    if not layers:
        raise ValueError(f"adapter {adapter_name!r} is not a hybrid adapter")
    rotating = [name for name, layer in layers.items() if layer.adapter(adapter_name).has_rotation]
    if rotating:
        raise ValueError(
            f"adapter {adapter_name!r} has a unitary rotation in {len(rotating)} layers, first {rotating[0]}; a "
            "rotation is no low-rank update: use merge_and_unload and save the merged model instead"
        )
    if any(layer.merged for layer in layers.values()):
        raise ValueError("the model is merged; unmerge it before exporting")

    state = {
        key: value.detach().cpu().contiguous()
        for key, value in get_peft_model_state_dict(
            model, adapter_name=adapter_name, save_embedding_layers=False
        ).items()
        if ".hybrid_adapters." not in key
    }
    total_rank = 0
    for name, layer in layers.items():
        down, up, _ = layer._factors([adapter_name])
        state[f"{name}.lora_A.weight"] = down.float().cpu().contiguous()
        state[f"{name}.lora_B.weight"] = up.float().cpu().contiguous()
        total_rank = layer.adapter(adapter_name).total_rank
    hybrid: Any = model.peft_config[adapter_name]
    config = LoraConfig(
        r=total_rank,
        lora_alpha=total_rank,
        target_modules=[name.removeprefix("base_model.model.") for name in layers],
        modules_to_save=hybrid.modules_to_save,
        task_type=hybrid.task_type,
        base_model_name_or_path=hybrid.base_model_name_or_path,
        inference_mode=True,
    )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as temporary:
        save_file(state, Path(temporary) / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(temporary)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            (Path(temporary) / file).replace(target / file)
    return target
