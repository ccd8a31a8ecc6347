"""LoRA and DoRA layers on the factor form.

    LoRA    y = x Wᵀ + b + Σᵢ sᵢ (dropout(x) Aᵢᵀ Bᵢᵀ + βᵢ)
    DoRA    y = (x Wᵀ + s x Aᵀ Bᵀ) · m / ‖W + s B A‖ + b       the norm of each row, held constant in the backward

Hu et al., "LoRA", arXiv 2106.09685; Liu et al., "DoRA", arXiv 2402.09353. Dropout is DoRA's x in all of its second
term: y = (x − x̃) Wᵀ + (x̃ Wᵀ + s x̃ Aᵀ Bᵀ) · m / ‖W + s B A‖ + b with x̃ = dropout(x), as PEFT has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora.torchao import TorchaoLoraLinear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hybrid_kernels import functional
from hybrid_kernels._arguments import no_autocast, widened
from hybrid_kernels.adapters.acceleration.base import (
    AcceleratedLayer,
    Plain,
    Update,
    added,
    apply_update,
    fits,
    low_rank_operators,
    without_bias,
)
from hybrid_kernels.nn.hybrid_linear import has_plain_weight, project
from hybrid_kernels.ops.precision import without_tf32

NORM_ELEMENTS = 2**20  # of W + s B A at a time, so that what the norm needs stays in the cache


class AcceleratedLora(AcceleratedLayer):
    container = "lora_A"

    @property
    def method(self) -> str:
        dora = any(self._is_dora(name) for name in self.described())
        return "DoRA" if dora else "LoRA"

    def unsupported(self, adapter_name: str) -> str | None:
        layer: Any = self
        variant = layer.lora_variant.get(adapter_name)
        if variant is not None and not isinstance(variant, DoraLinearVariant):
            return f"the LoRA variant {type(variant).__name__.removesuffix('LinearVariant')} has no fast form here"
        if variant is not None and layer.lora_bias.get(adapter_name, False):
            return "DoRA with lora_bias counts the bias in its norm in PEFT"
        factors = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        if not all(type(f) is nn.Linear and has_plain_weight(f) for f in factors):
            return "its lora_A and lora_B cannot be read (sharded, offloaded or with hooks)"
        return None

    def _is_dora(self, name: str) -> bool:
        return isinstance(self.lora_variant.get(name), DoraLinearVariant)  # type: ignore[attr-defined]

    def _dropout(self, name: str) -> float:
        """The probability, 0 where nothing is dropped now."""
        module: Any = self.lora_dropout[name]  # type: ignore[attr-defined]
        return float(module.p) if isinstance(module, nn.Dropout) and module.training else 0.0

    def _applied(self) -> list[str] | None:
        """The active adapters' names; None where PEFT's forward has to take them."""
        layer: Any = self
        names = [name for name in self.active_adapters if name in layer.lora_A]
        if any(self.unsupported(name) is not None or self._dropout(name) == 1.0 for name in names):
            return None
        if len(names) > 1 and any(self._is_dora(name) for name in names):
            return None  # PEFT scales each by the others' result
        return names

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(self, AcceleratedLayer):  # restored, but a wrapper kept this
            return type(self).forward(self, x, *args, **kwargs)
        stock: Any = super()
        if args or kwargs.keys() - {"adapter_names"} or self.disable_adapters or self.merged:
            return stock.forward(x, *args, **kwargs)
        plain = self.plain()
        mixed = kwargs.get("adapter_names")
        names = self._applied() if mixed is None else self._mixable(mixed)
        if names is None or not fits(x, plain):
            return stock.forward(x, **kwargs)
        if mixed is not None:
            self._check_forward_args(x, adapter_names=mixed)  # type: ignore[attr-defined]
            return self._mixed(x, names, mixed)
        if not names:
            return self.base_layer(x)
        if any(self._dropout(name) for name in names):
            return self._dropping(x, names, plain)
        if self._acceleration.group is not None and plain is not None:
            y = self._acceleration.group.forward(self, x)
            if y is not None:
                return y
        return apply_update(self, x, plain, self.update(plain, names))

    def _mixable(self, mixed: Sequence[str]) -> list[str] | None:
        """The adapters of a batch of which each row names its own; None where PEFT's forward has to take them."""
        layer: Any = self
        names = [name for name in dict.fromkeys(mixed) if name in layer.lora_A]
        fast = all(
            self.unsupported(name) is None and not self._is_dora(name) and not self._dropout(name)
            for name in names
        )
        return names if fast else None

    def _mixed(self, x: Tensor, names: Sequence[str], mixed: Sequence[str]) -> Tensor:
        y = self.base_layer(x)
        for name in names:
            down, up, bias, _ = self.update(None, [name])
            rows = torch.tensor([row for row, each in enumerate(mixed) if each == name], device=x.device)
            seen = functional.low_rank_add(y[rows], x[rows], down, up)
            y = y.index_copy(0, rows, seen if bias is None else seen + bias.to(seen.dtype))
        return y

    def shared_update(self, plain: Plain) -> Update | None:
        """The update of a forward that shares its projection of x with other layers; None where it cannot."""
        if self.disable_adapters or self.merged:
            return None
        names = self._applied()
        if not names or any(self._dropout(name) for name in names):
            return None
        return self.update(plain, names)

    def update(self, plain: Plain | None, names: Sequence[str]) -> Update:
        update = lora_update(self, names)
        return update._replace(scale=self._magnitude(plain, names[0])) if self._is_dora(names[0]) else update

    def _magnitude(self, plain: Plain | None, name: str) -> Tensor:
        """m / ‖W + s B A‖ (out_features,), the norm without gradient."""
        layer: Any = self
        down, up, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]

        def norms() -> Tensor:
            weight = _dequantized(self.get_base_layer(), down.device) if plain is None else plain.weight
            return _row_norms(weight.detach(), down.detach(), up.detach(), scaling)

        sources = down, up, scaling, *self.base_layer.parameters()
        return layer.lora_magnitude_vector[name].weight / self.cached(f"norms of {name}", sources, norms)

    def _dropping(self, x: Tensor, names: Sequence[str], plain: Plain | None) -> Tensor:
        """Each adapter with a mask of its own, so one after another."""
        layer: Any = self
        if self._is_dora(names[0]):
            seen = layer.lora_dropout[names[0]](x)  # PEFT's own mask: all of x is dropped by it
            rest = x - seen
            if plain is not None:
                unseen = nn.functional.linear(rest, plain.weight)
            else:
                unseen = without_bias(self.base_layer(rest), self.base_layer.bias)
            return unseen + apply_update(self, seen, plain, self.update(plain, names))
        y = None if plain is not None else self.base_layer(x)
        for name in names:
            down, up, bias, _ = self.update(plain, [name])
            probability = self._dropout(name)
            dropout: tuple[Any, ...] = ()
            if probability:
                dropout = probability, down.shape[0], functional.dropout_seed(x.device)
            if y is None:
                assert plain is not None
                b = added(plain.bias, bias)
                y = functional.low_rank_linear(x, plain.weight, b, down, up, *dropout)
            else:
                y = functional.low_rank_add(y, x, down, up, *dropout)
                y = y if bias is None else y + bias.to(y.dtype)
        assert y is not None
        return y

    def operators(self) -> dict[str, tuple[Any, ...]]:
        layer: Any = self
        rank = sum(layer.r[name] for name in self.described())
        return low_rank_operators(self, rank)


def lora_update(layer: Any, names: Sequence[str], dtype: torch.dtype | None = None) -> Update:
    """down = [A₁; …], up = [s₁ B₁, …], bias = Σᵢ sᵢ βᵢ of these adapters on PEFT's LoRA layer, without DoRA's scale;
    in ``dtype``, or in their own without it."""
    downs = [layer.lora_A[name].weight.to(dtype) for name in names]
    ups = [_scaled(layer.lora_B[name].weight.to(dtype), layer.scaling[name]) for name in names]
    down, up = (downs[0], ups[0]) if len(names) == 1 else (torch.cat(downs), torch.cat(ups, dim=1))
    bias = None
    for name in names:
        if layer.lora_B[name].bias is not None:
            bias = added(bias, _scaled(layer.lora_B[name].bias.to(dtype), layer.scaling[name]))
    return Update(down, up, bias)


def _scaled(tensor: Tensor, scaling: float) -> Tensor:
    return tensor if scaling == 1.0 else tensor * scaling


def _dequantized(layer: Any, device: torch.device) -> Tensor:
    if layer.weight.is_meta:  # elsewhere until the layer is called: so it is called
        return project(layer, torch.eye(layer.in_features, dtype=layer.weight.dtype, device=device))
    if type(layer.weight).__name__ in ("Int8Params", "Params4bit"):
        # What PEFT does around this on the CPU replaces an 8-bit parameter by one that has lost its scales.
        return dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    weight = dequantize_module_weight(layer)
    return weight.t() if isinstance(layer, Conv1D) else weight


@without_tf32
@torch.no_grad()
def _row_norms(weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """‖W + s up·down‖ of each row, in float32 or the factors' dtype if wider."""
    dtype = widened(down.dtype)
    rows = max(1, NORM_ELEMENTS // max(weight.shape[1], 1))
    down, up = down.to(dtype), up.to(dtype)
    with no_autocast(weight):
        parts = [
            torch.linalg.vector_norm(torch.addmm(w.to(dtype), u, down, alpha=scaling), dim=1)
            for w, u in zip(weight.split(rows), up.split(rows), strict=True)
        ]
    return torch.cat(parts)


class AcceleratedLoraLinear(AcceleratedLora, lora.Linear):
    """LoRA or DoRA on `nn.Linear` or Transformers' `Conv1D`."""


class AcceleratedTorchaoLinear(AcceleratedLora, TorchaoLoraLinear):
    """LoRA or DoRA on a torchao weight."""


LORA_CLASSES: dict[type[nn.Module], type[AcceleratedLayer]] = {
    lora.Linear: AcceleratedLoraLinear,
    TorchaoLoraLinear: AcceleratedTorchaoLinear,
}

if hasattr(lora, "Linear8bitLt"):  # where bitsandbytes is installed

    class AcceleratedLinear8bit(AcceleratedLora, lora.Linear8bitLt):
        """LoRA or DoRA on bitsandbytes' 8 bits."""

    LORA_CLASSES[lora.Linear8bitLt] = AcceleratedLinear8bit

if hasattr(lora, "Linear4bit"):

    class AcceleratedLinear4bit(AcceleratedLora, lora.Linear4bit):
        """LoRA or DoRA on bitsandbytes' 4 bits."""

    LORA_CLASSES[lora.Linear4bit] = AcceleratedLinear4bit
