"""`accelerate` and `restore`: every supported PEFT layer of a model onto the package's operators, and back."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer
from hybrid_kernels.adapters.acceleration.boft import BOFT_CLASSES
from hybrid_kernels.adapters.acceleration.groups import Group, find_groups, groups_on
from hybrid_kernels.adapters.acceleration.hra import HRA_CLASSES
from hybrid_kernels.adapters.acceleration.lora import LORA_CLASSES
from hybrid_kernels.adapters.acceleration.oft import OFT_CLASSES
from hybrid_kernels.adapters.acceleration.report import LayerReport, Report
from hybrid_kernels.adapters.layer import HybridLayer
from hybrid_kernels.ops.backend import OPERATORS, current_backend

SWITCH = "HYBRID_KERNELS_ACCELERATE"
CLASSES = {**LORA_CLASSES, **HRA_CLASSES, **OFT_CLASSES, **BOFT_CLASSES}


def switched() -> bool | None:
    """What the environment variable asks for: True for 1, False for 0, None where it is not set."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"environment variable {SWITCH} is {value!r}; it may be 0, 1 or not set")
    return None if value == "" else value == "1"


def accelerate(model: nn.Module, *, share_inputs: bool = True) -> Report:
    """Move every supported PEFT layer of ``model`` onto this package's operators; `restore` turns it back.

    LoRA, DoRA, HRA, OFT and BOFT layers on linear layers keep their parameters, state dict, optimizer, checkpoints and
    merging; only their forward and backward are others. Layers are changed one by one, in place, and PEFT itself is
    not touched. A second call does nothing to layers that are accelerated already, and takes up those that are new.

    Args:
        model: any module with PEFT layers in it, before or after ``torch.compile`` (which compiles again), DDP,
            ``fully_shard`` of the model or its blocks (give what was wrapped or sharded, and every process calls it),
            gradient checkpointing or offloading of base weights.
        share_inputs: whether q/k/v and gate/up under LoRA, DoRA or HRA share one projection of their input.

    Returns a `Report` of every PEFT layer; as a context manager it turns back what this call did. With the environment
    variable HYBRID_KERNELS_ACCELERATE=0 everything is left alone. Raises TypeError if ``model`` is no module,
    ValueError if it has no PEFT layer or the variable another value than 0 and 1, and RuntimeError if a backend that
    was asked for by name cannot run a layer; nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module with PEFT layers")
    layers: list[tuple[str, Any]] = [
        (name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    if not layers:
        raise ValueError(
            f"model (a {type(model).__name__}) has no PEFT layer; accelerate takes it after get_peft_model or "
            "PeftModel.from_pretrained"
        )
    off = f"environment variable {SWITCH} is 0" if switched() is False else None
    with as_gathered(model):
        return _accelerate(model, layers, off, share_inputs)


def _accelerate(
    model: nn.Module, layers: list[tuple[str, Any]], off: str | None, share_inputs: bool
) -> Report:
    reasons: dict[str, str | None] = {}
    report = Report([])
    try:
        for name, layer in layers:
            accelerated = isinstance(layer, AcceleratedLayer)
            reason = _without_fast_form(type(layer), layer) if accelerated else off or _unsupported(layer)
            reasons[name] = reason
            if reason is None and not accelerated:
                CLASSES[type(layer)].convert(layer)
                report._converted.append(weakref.ref(layer))
        found = list(find_groups(model)) if share_inputs and off is None else []
        report._groups += [weakref.ref(Group(parent, members)) for parent, members in found]
        report.layers += [_report(name, layer, reasons[name]) for name, layer in layers]
    except BaseException:
        report.__exit__(None, None, None)
        raise
    return report


def can_accelerate(model: nn.Module) -> bool:
    """Whether `accelerate` would take up a layer of ``model``."""
    return any(
        isinstance(module, BaseTunerLayer)
        and not isinstance(module, AcceleratedLayer)
        and _unsupported(module) is None
        for module in model.modules()
    )


@contextmanager
def as_gathered(model: nn.Module) -> Iterator[None]:
    """Parameters that `fully_shard` has sharded as a forward will see them: whole tensors, here without values."""
    shards: list[tuple[nn.Module, str, nn.Parameter]] = []
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule
        from torch.distributed.tensor import DTensor

        inside = {
            m: None for owner in model.modules() if isinstance(owner, FSDPModule) for m in owner.modules()
        }
        for module in inside:
            shards += [
                (module, name, p)
                for name, p in module.named_parameters(recurse=False)
                if isinstance(p, DTensor)
            ]
    for module, name, shard in shards:
        whole = torch.zeros(1, dtype=shard.dtype, device=shard.device).expand(shard.shape)
        module._parameters[name] = nn.Parameter(whole, shard.requires_grad)
    try:
        yield
    finally:
        for module, name, shard in shards:
            module._parameters[name] = shard


def restore(model: nn.Module) -> int:
    """Turn every accelerated layer of ``model`` back into what it was; returns how many there were."""
    for group in groups_on(model):
        group.remove()
    return revert(model.modules())


def revert(modules: Iterable[nn.Module]) -> int:
    """Turn these modules back, where they are accelerated; returns how many were."""
    count = 0
    for module in list(modules):
        if isinstance(module, AcceleratedLayer):
            if module._acceleration.group is not None:
                module._acceleration.group.remove()
            module.revert()
            count += 1
    return count


def _unsupported(layer: Any) -> str | None:
    """None, or why a PEFT layer is left alone."""
    if isinstance(layer, HybridLayer):
        return "it runs on this package's operators already"
    cls = CLASSES.get(type(layer))
    if cls is None:
        base = type(layer.get_base_layer()).__name__
        if "Embedding" in type(layer).__name__:
            return "an embedding looks rows up: there is no product to make faster"
        return f"{type(layer).__module__}.{type(layer).__name__} on {base} has no fast form here"
    if "forward" in layer.__dict__:
        return "its forward was replaced, by hooks of accelerate or by hand"
    return _without_fast_form(cls, layer)


def _without_fast_form(cls: type[AcceleratedLayer], layer: Any) -> str | None:
    """None, or why no adapter of a layer has a fast form."""
    adapters = list(getattr(layer, cls.container))
    if not adapters:
        return "it has no adapter"
    reasons = [cls.unsupported(layer, name) for name in adapters]
    # One adapter with a fast form is enough: the others run as PEFT has them.
    return reasons[0] if all(reasons) else None


def _report(name: str, layer: Any, reason: str | None) -> LayerReport:
    method = _method(layer)
    if reason is not None:
        return LayerReport(name, method, None, reason)
    reference = current_backend() == "reference"  # plain PyTorch, which no operator is asked for
    backends = {
        operator: "reference" if reference else OPERATORS[operator].select(*arguments).backend
        for operator, arguments in layer.operators().items()
    }
    return LayerReport(
        name,
        method,
        ", ".join(f"{operator} on {backend}" for operator, backend in backends.items()),
        None,
        layer.shares(),
    )


def _method(layer: Any) -> str:
    """The PEFT method of a layer, from the package that its class is from."""
    if isinstance(layer, AcceleratedLayer):
        return layer.method
    package = type(layer).__module__.split(".")
    tuner = package[2] if package[:2] == ["peft", "tuners"] else package[-1]
    return {"lora": "LoRA", "vblora": "VBLoRA", "adalora": "AdaLoRA", "layer": "hybrid"}.get(
        tuner, tuner.upper()
    )
