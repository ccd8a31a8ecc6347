"""Every function of `hybrid_kernels.functional` that computes something, as an `OperatorCase`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hybrid_kernels as hk

from . import operator_inputs as inputs
from .base import Inputs, OperatorCase, Shape
from .operator_peers import FLOORS, PEERS
from .operator_shapes import MEASURED, VALIDATED
from .operator_work import work

REAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


def _fast(name: str) -> Callable[..., Any]:
    """The function of that name, found when it is called: an older package may have none."""
    return lambda **arguments: getattr(hk.functional, name)(**arguments)


def _reference(name: str) -> Callable[..., Any]:
    return lambda **arguments: getattr(hk.reference, name)(**arguments)


def _widened(tensor: Tensor) -> Tensor:
    """Half types as float32, in which the factorising functions compute and return."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _householder_factors(u: Tensor) -> tuple[Tensor, Tensor]:
    v, t = hk.reference.householder_factors(_widened(u))
    return v, t + 0.0 * v.sum()  # of one reflection t is a constant, and has a gradient like any other: zero


def _hybrid_factors(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, u: Tensor, mixing: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """[A; vᵀ] and [λ s B, −(1 − λ) W v t], the product with W in W's dtype."""
    lora_A, lora_B, mixing = map(_widened, (lora_A, lora_B, mixing))
    v, t = _householder_factors(u)
    rotated = _widened(weight @ (v @ t).to(weight.dtype))
    return torch.cat([lora_A, v.mT]), torch.cat([mixing * scaling * lora_B, (mixing - 1) * rotated], dim=1)


def _cayley_packed(packed: Tensor, block_size: int, refine: bool = False) -> Tensor:
    return hk.reference.cayley_packed(_widened(packed), block_size)


def _structured_unitary(x: Tensor, phases: Tensor, reflections: Tensor, permutation: Tensor) -> Tensor:
    wide = _widened(x), _widened(phases), _widened(reflections)
    return hk.reference.structured_unitary(*wide, permutation).to(x.dtype)


def _case(
    name: str,
    draw: Callable[[Shape, torch.dtype, torch.device, torch.Generator], Inputs],
    reference: Callable[..., Any],
    differentiable: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...] = REAL,
) -> OperatorCase:
    return OperatorCase(
        name=name,
        draw=draw,
        fast=_fast(name),
        reference=reference,
        differentiable=differentiable,
        shapes=VALIDATED[name],
        dtypes=dtypes,
        measured={device: shapes[name] for device, shapes in MEASURED.items()},
        floor=FLOORS.get(name),
        peers=PEERS[name],
        work=work(name),
    )


_CASES = (
    _case(
        "low_rank_linear",
        inputs.low_rank_linear,
        _reference("low_rank_linear"),
        ("x", "weight", "bias", "down", "up"),
    ),
    _case(
        "low_rank_linear_many",
        inputs.low_rank_linear_many,
        _reference("low_rank_linear_many"),
        ("x", "weights", "biases", "downs", "ups"),
    ),
    _case("low_rank_add", inputs.low_rank_add, _reference("low_rank_add"), ("base", "x", "down", "up")),
    _case(
        "rotated_low_rank_linear",
        inputs.rotated_low_rank_linear,
        _reference("rotated_low_rank_linear"),
        ("x", "q", "weight", "bias", "down", "up"),
    ),
    _case("scale_features", inputs.scale_features, _reference("scale_features"), ("y", "scale", "bias")),
    _case("householder_factors", inputs.householder_factors, _householder_factors, ("u",)),
    _case(
        "householder_factors_many",
        inputs.householder_factors_many,
        lambda us: [_householder_factors(u) for u in us],
        ("us",),
    ),
    _case("householder_rotate", inputs.householder_rotate, _reference("householder_rotate"), ("x", "u")),
    _case(
        "hybrid_factors",
        inputs.hybrid_factors,
        _hybrid_factors,
        ("weight", "lora_A", "lora_B", "u", "mixing"),
    ),
    _case(
        "hybrid_linear",
        inputs.hybrid_linear,
        _reference("hybrid_linear"),
        ("x", "weight", "bias", "lora_A", "lora_B", "u", "mixing"),
    ),
    _case(
        "cayley",
        inputs.cayley,
        lambda skew, refine: hk.reference.cayley(_widened(skew)),
        ("skew",),
        REAL + COMPLEX,
    ),
    _case("cayley_packed", inputs.cayley_packed, _cayley_packed, ("packed",), REAL + COMPLEX),
    _case(
        "cayley_packed_many",
        inputs.cayley_packed_many,
        lambda packed, block_sizes: [_cayley_packed(p, b) for p, b in zip(packed, block_sizes, strict=True)],
        ("packed",),
        REAL + COMPLEX,
    ),
    _case(
        "cayley_neumann_packed",
        inputs.cayley_neumann_packed,
        lambda packed, block_size, terms: hk.reference.cayley_neumann_packed(
            _widened(packed), block_size, terms
        ),
        ("packed",),
    ),
    _case("block_rotate", inputs.block_rotate, _reference("block_rotate"), ("x", "q"), REAL + COMPLEX),
    _case("butterfly_rotate", inputs.butterfly_rotate, _reference("butterfly_rotate"), ("x", "q")),
    _case(
        "structured_unitary",
        inputs.structured_unitary,
        _structured_unitary,
        ("x", "phases", "reflections"),
        REAL + COMPLEX,
    ),
)
#: Every function of `hybrid_kernels.functional` that computes something.
OPERATORS = {case.name: case for case in _CASES}
