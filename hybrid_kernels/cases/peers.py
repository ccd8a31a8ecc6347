"""What adapters are measured against: PEFT's methods, stock and accelerated, plain PyTorch, Unsloth and Liger."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import hybrid_kernels as hk

from .peft_butterflies import allow_butterflies_in_peft

RANK, REFLECTIONS, ALPHA = 16, 16, 16.0
#: PEFT's methods by name: the class of its configuration, and the options.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA r=32": ("LoraConfig", {"r": 32, "lora_alpha": ALPHA}),
    "DoRA r=32": ("LoraConfig", {"r": 32, "lora_alpha": ALPHA, "use_dora": True}),
    "LoRA r=16": ("LoraConfig", {"r": 16, "lora_alpha": ALPHA}),
    "DoRA r=16": ("LoraConfig", {"r": 16, "lora_alpha": ALPHA, "use_dora": True}),
    "HRA r=16": ("HRAConfig", {"r": 16}),
    "OFT b=32": ("OFTConfig", {"r": 0, "oft_block_size": 32}),
    "OFT b=32 exact": ("OFTConfig", {"r": 0, "oft_block_size": 32, "use_cayley_neumann": False}),
    "BOFT b=32 m=2": ("BOFTConfig", {"boft_block_size": 32, "boft_n_butterfly_factor": 2}),
    "BOFT b=8 m=2": ("BOFTConfig", {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
}
#: Those beside the hybrid 16 + 16: an update of the same rank, the same reflections, or (BOFT, on a square layer) as
#: many parameters as LoRA r=32; and those of which `hybrid_kernels.accelerate` is measured.
BESIDE_HYBRID = ("LoRA r=32", "DoRA r=32", "HRA r=16", "OFT b=32", "OFT b=32 exact", "BOFT b=32 m=2")
ACCELERATED = ("LoRA r=16", "DoRA r=16", "HRA r=16", "OFT b=32", "OFT b=32 exact", "BOFT b=8 m=2")


def stock(method: str) -> str:
    """The name of the side that is PEFT as it comes."""
    return f"PEFT {method}"


def accelerated(method: str) -> str:
    """The name of the side that is the same PEFT layers after `hybrid_kernels.accelerate`."""
    return f"accelerated {method}"


def notes(methods: tuple[str, ...], device: torch.device) -> tuple[str, ...]:
    """What a reader of records of these methods has to know."""
    if device.type == "cuda" or not any(method.startswith("BOFT") for method in methods):
        return ()
    return ("PEFT BOFT: plain PyTorch in the place of the CUDA extension with which PEFT makes its matrices",)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A block in which modules draw their parameters from ``seed``, and torch's own random numbers are left alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def shared_copy(module: nn.Module) -> Any:
    """A copy of the modules over the same parameters and buffers."""
    weights = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(weight): weight for weight in weights})


@torch.no_grad()
def moved(module: nn.Module) -> Any:
    """The module with its adapter off its start, where some of it is zero or the identity."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01 * torch.randn_like(parameter))
    return module


def trained(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"PEFT's methods need the package {error.name!r}: pip install 'hybrid-kernels[peft]'",
            name=error.name,
        ) from error
    return peft


def under_peft(
    model: nn.Module, method: str, target_modules: Any, changed: dict[str, Any] | None = None
) -> Any:
    """``model`` with a stock PEFT adapter on ``target_modules``, off its start, in the dtype of the model's weights.

    ``method`` is one of `METHODS`; options of its configuration may be ``changed``.
    Raises RuntimeError where PEFT would quietly make another adapter than the one that ``method`` names.
    """
    peft = _peft()
    name, options = METHODS[method]
    options = {**options, **(changed or {})}
    config = getattr(peft, name)(target_modules=target_modules, **options)
    if name == "BOFTConfig" and next(model.parameters()).device.type == "cpu":
        allow_butterflies_in_peft()
    result = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for path, module in result.named_modules():
        blocks = getattr(module, "oft_block_size", None)
        if isinstance(blocks, dict) and set(blocks.values()) - {options["oft_block_size"]}:
            raise RuntimeError(
                f"in_features of {path} is not divisible by {options['oft_block_size']}: PEFT would make blocks of "
                f"{', '.join(map(str, blocks.values()))}"
            )
        if not getattr(module, "fbd_cuda_available", True):
            raise RuntimeError(
                "PEFT could not build its CUDA extension, and would make one butterfly factor only"
            )
    return moved(result)


def hybrid_model(model: nn.Module) -> Any:
    """``model`` with the hybrid adapter on all its linear layers but the head, off its start."""
    config = hk.adapters.HybridConfig(
        r=RANK, reflections=REFLECTIONS, lora_alpha=ALPHA, target_modules="all-linear"
    )
    return moved(_peft().get_peft_model(model, config, autocast_adapter_dtype=False))


def on_our_operators(model: nn.Module) -> Any:
    """An accelerated copy of a PEFT model or layer over the same parameters; RuntimeError if a layer is left alone."""
    model = shared_copy(model)
    report = hk.accelerate(model)
    if report.left_alone:
        raise RuntimeError(f"{report.left_alone[0].name} was left alone: {report.left_alone[0].reason}")
    return model


def plain_hybrid(
    x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, u: Tensor, mixing: Tensor, scaling: float
) -> Tensor:
    """The factor form as one would write it in plain PyTorch, left to autograd; the solve is in float32 or wider."""
    u = u.to(torch.promote_types(u.dtype, torch.float32))
    v = u / torch.linalg.vector_norm(u, dim=0)
    s = torch.triu(v.T @ v, diagonal=1) + 0.5 * torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    z = torch.linalg.solve_triangular(s, v, upper=True, left=False)
    down = torch.cat([a, v.T.to(a.dtype)])
    up = torch.cat([mixing * scaling * b, (mixing - 1) * (weight @ z.to(weight.dtype))], dim=1)
    return torch.nn.functional.linear(x, weight, bias) + (x @ down.T) @ up.T


def version(module: str, package: str | None = None) -> str | None:
    """The version of the package that a module is from, None where it is not installed; it is not imported."""
    return importlib.metadata.version(package or module) if importlib.util.find_spec(module) else None


def unsloth_lora(layer: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Unsloth's fused LoRA of x (m, in_features) over the parameters of PEFT's LoRA ``layer``, in its backward as well.

    Written after unsloth 2026.10.9, unsloth/kernels/fast_lora.py: `apply_lora_o`, which leaves the bias of the base
    layer out. RuntimeError without a GPU.
    """
    if device.type != "cuda":
        raise RuntimeError(f"Unsloth's kernels need a GPU; the device is {device.type!r}")
    from unsloth.kernels.fast_lora import LoRA_W
    from unsloth.kernels.utils import get_lora_parameters

    def forward(x: Tensor) -> Tensor:
        # It takes x of three dimensions alone.
        return LoRA_W.apply(x.unsqueeze(0), *get_lora_parameters(layer)).squeeze(0)

    return forward


def with_liger(model: Any) -> Any:
    """``model`` with Liger's norms, MLPs and fused head and loss, in place; its rotary embedding is left as it is.

    Written after liger-kernel 0.8.5, liger_kernel/transformers/monkey_patch.py. Beside the instance it patches the
    module that the model's class is from, which would change the models of other sides: that is taken back, and the
    rotary embedding, which can be patched there alone, left out. RuntimeError without a GPU or for another model type.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise RuntimeError(f"Liger's kernels need a GPU; the device is {device.type!r}")
    from liger_kernel.transformers.monkey_patch import (
        MODEL_TYPE_TO_APPLY_LIGER_FN,
        _apply_liger_kernel_to_instance,
    )

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RuntimeError(f"Liger has no kernels for models of type {model.config.model_type!r}")
    source = vars(sys.modules[type(model).__module__])
    before = dict(source)
    try:
        _apply_liger_kernel_to_instance(model, rope=False)
    finally:
        source.update(before)
    return model
