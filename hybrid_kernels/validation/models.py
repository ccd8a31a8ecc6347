"""The layers of a Transformers model as cases: the functions in its sizes, and whole modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import hybrid_kernels as hk
from hybrid_kernels.cases import operator_inputs, operator_plain
from hybrid_kernels.cases.base import Inputs, OperatorCase, Shape
from hybrid_kernels.cases.configs import LinearShape, linear_layers, load_config
from hybrid_kernels.cases.operators import OPERATORS

# What a model's sizes are tried with; the sizes themselves are what is at stake.
RANK, REFLECTIONS, BLOCK_SIZE = 8, 4, 32
ALPHA, MIXING = 16.0, 0.375
MODULE = "nn.HybridLinear"
# Those with products over all features of a layer.
PLAIN: dict[str, Callable[..., Tensor]] = {
    "low_rank_linear": operator_plain.low_rank_linear,
    "hybrid_linear": operator_plain.hybrid_linear,
    "householder_rotate": operator_plain.householder_rotate,
}


def _draw(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    drawn = operator_inputs.hybrid_linear(shape, dtype, device, generator)
    return {name: drawn[name] for name in ("x", "weight", "bias", "lora_A", "lora_B", "u")}


def _module(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, u: Tensor
) -> Tensor:
    """`hk.nn.HybridLinear` on a linear layer with that weight and bias, with those parameters."""
    base = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    base.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        base.bias = torch.nn.Parameter(bias, requires_grad=False)
    module = hk.nn.HybridLinear(
        base, rank=lora_A.shape[0], reflections=u.shape[1], alpha=ALPHA, mixing="fixed", mixing_value=MIXING
    )
    parameters = {"adapter.lora_A": lora_A, "adapter.lora_B": lora_B, "adapter.householder_u": u}
    return torch.func.functional_call(module, parameters, (x,))


def _module_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, u: Tensor
) -> Tensor:
    scaling = ALPHA / lora_A.shape[0] ** 0.5
    return hk.reference.hybrid_linear(x, weight, bias, lora_A, lora_B, u, MIXING, scaling)


def _module_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, u: Tensor
) -> Tensor:
    scaling = ALPHA / lora_A.shape[0] ** 0.5
    mixing = torch.tensor(MIXING, dtype=x.dtype, device=x.device)
    return operator_plain.hybrid_linear(x, weight, bias, lora_A, lora_B, u, mixing, scaling)


def _block_size(features: int) -> int:
    """The largest power of two, at most 32, that divides them."""
    return min(features & -features, BLOCK_SIZE)


def cases(model: str, rows: int) -> dict[str, OperatorCase]:
    """The functions that adapters of a model's linear layers run, in the distinct sizes of its layers, by name.

    ``model`` as `hybrid_kernels.cases.configs.load_config` takes it; ``rows`` of activations. Of the weights, which are
    frozen in an adapted model, no gradient is checked. Raises ValueError and OSError as `load_config` does, and
    ValueError for rows < 1.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; it must be at least 1")
    return of_layers(linear_layers(load_config(model)), rows)


def of_layers(layers: list[LinearShape], rows: int) -> dict[str, OperatorCase]:
    def linear(layer: LinearShape) -> dict[str, int]:
        r, h = min(RANK, layer.in_features, layer.out_features), min(REFLECTIONS, layer.in_features)
        sizes = {"m": rows, "k": layer.in_features, "n": layer.out_features, "r": r, "reflections": h}
        return sizes | {"bias": int(layer.bias)}

    linears = [linear(layer) for layer in layers]
    widths = sorted({(sizes["k"], sizes["reflections"]) for sizes in linears})
    blocks = [{"blocks": k // _block_size(k), "b": _block_size(k)} for k, _ in widths]
    shapes: dict[str, list[Any]] = {
        "low_rank_linear": linears,
        "hybrid_linear": linears,
        "householder_factors": [{"k": k, "reflections": h} for k, h in widths],
        "householder_rotate": [{"m": rows, "k": k, "reflections": h} for k, h in widths],
        "cayley_packed": blocks,
        "block_rotate": [{"m": rows, **sizes} for sizes in blocks],
    }
    found = {}
    for name, of_name in shapes.items():
        case = OPERATORS[name]
        trained = tuple(argument for argument in case.differentiable if argument not in ("weight", "bias"))
        plain = PLAIN.get(name)
        found[name] = replace(case, shapes=tuple(of_name), differentiable=trained, plain=plain)
    found[MODULE] = OperatorCase(
        name=MODULE,
        draw=_draw,
        fast=_module,
        reference=_module_reference,
        differentiable=("x", "lora_A", "lora_B", "u"),
        shapes=tuple(linears),
        dtypes=OPERATORS["hybrid_linear"].dtypes,
        plain=_module_plain,
    )
    return found


def reference_bytes(shape: Shape) -> int:
    """About what the float64 reference of a layer takes: the mixed weight is formed, one for each reflection."""
    if "n" not in shape:
        return 0
    return 8 * shape["k"] * shape["n"] * (8 + 3 * shape.get("reflections", 0))
