"""Every function of `hybrid_kernels.functional` that computes something, as an `OperatorCase`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import hybrid_kernels as hk

from . import operator_inputs as inputs
from .base import OperatorCase, Shape

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
    wide = map(_widened, (x, phases, reflections))
    return hk.reference.structured_unitary(*wide, permutation).to(x.dtype)


def _sizes(names: str, *rows: Sequence[int], **constant: int) -> tuple[Shape, ...]:
    return tuple(dict(zip(names.split(), row, strict=True)) | constant for row in rows)


_LOW_RANK = "m k n r bias dropped"
_CASES = (
    OperatorCase(
        name="low_rank_linear",
        draw=inputs.low_rank_linear,
        fast=_fast("low_rank_linear"),
        reference=_reference("low_rank_linear"),
        differentiable=("x", "weight", "bias", "down", "up"),
        shapes=_sizes(
            _LOW_RANK,
            (67, 65, 33, 5, 1, 0),
            (33, 40, 72, 6, 0, 4),
            (1, 129, 70, 1, 0, 0),
            (90, 7, 1, 3, 1, 3),
            (130, 96, 80, 32, 1, 0),
            (16, 64, 66, 65, 0, 0),
            (300, 256, 200, 24, 1, 0),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="low_rank_linear_many",
        draw=inputs.low_rank_linear_many,
        fast=_fast("low_rank_linear_many"),
        reference=_reference("low_rank_linear_many"),
        differentiable=("x", "weights", "biases", "downs", "ups"),
        shapes=_sizes(
            "m k n r layers uneven bias",
            (67, 65, 33, 5, 3, 1, 1),
            (34, 48, 40, 8, 2, 0, 0),
            (1, 33, 70, 1, 3, 1, 0),
            (9, 20, 12, 3, 1, 0, 1),
            (130, 96, 64, 16, 3, 0, 1),
            (200, 160, 96, 12, 4, 1, 0),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="low_rank_add",
        draw=inputs.low_rank_add,
        fast=_fast("low_rank_add"),
        reference=_reference("low_rank_add"),
        differentiable=("base", "x", "down", "up"),
        shapes=_sizes(
            "m k n r dropped",
            (67, 65, 33, 5, 0),
            (33, 40, 72, 6, 4),
            (1, 129, 70, 1, 0),
            (90, 7, 1, 3, 3),
            (16, 64, 66, 65, 0),
            (300, 256, 200, 24, 0),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="rotated_low_rank_linear",
        draw=inputs.rotated_low_rank_linear,
        fast=_fast("rotated_low_rank_linear"),
        reference=_reference("rotated_low_rank_linear"),
        differentiable=("x", "q", "weight", "bias", "down", "up"),
        shapes=_sizes(
            "m blocks b n r bias",
            (67, 5, 6, 33, 5, 1),
            (70, 4, 16, 48, 8, 0),
            (1, 7, 9, 70, 1, 0),
            (9, 33, 2, 20, 3, 1),
            (130, 3, 32, 80, 24, 1),
            (33, 1, 65, 40, 4, 0),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="scale_features",
        draw=inputs.scale_features,
        fast=_fast("scale_features"),
        reference=_reference("scale_features"),
        differentiable=("y", "scale", "bias"),
        shapes=_sizes(
            "m n bias", (67, 33, 1), (130, 65, 0), (1, 129, 1), (5, 1, 0), (64, 96, 0), (500, 300, 1)
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="householder_factors",
        draw=inputs.householder_factors,
        fast=_fast("householder_factors"),
        reference=_householder_factors,
        differentiable=("u",),
        shapes=_sizes(
            "k reflections empty", (65, 7, 1), (129, 16, 0), (3, 1, 0), (6, 6, 2), (40, 33, 0), (512, 24, 0)
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="householder_factors_many",
        draw=inputs.householder_factors_many,
        fast=_fast("householder_factors_many"),
        reference=lambda us: [_householder_factors(u) for u in us],
        differentiable=("us",),
        shapes=_sizes(
            "k reflections layers uneven empty",
            (65, 6, 3, 1, 1),
            (96, 8, 2, 0, 0),
            (5, 1, 2, 1, 0),
            (33, 3, 1, 0, 0),
            (200, 15, 4, 1, 0),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="householder_rotate",
        draw=inputs.householder_rotate,
        fast=_fast("householder_rotate"),
        reference=_reference("householder_rotate"),
        differentiable=("x", "u"),
        shapes=_sizes(
            "m k reflections empty transpose",
            (67, 65, 7, 1, 0),
            (70, 96, 16, 0, 1),
            (1, 33, 3, 0, 0),
            (5, 6, 6, 2, 1),
            (130, 40, 33, 0, 0),
            (260, 256, 24, 0, 0),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="hybrid_factors",
        draw=inputs.hybrid_factors,
        fast=_fast("hybrid_factors"),
        reference=_hybrid_factors,
        differentiable=("weight", "lora_A", "lora_B", "u", "mixing"),
        shapes=_sizes(
            "k n r reflections empty",
            (65, 33, 5, 7, 1),
            (96, 80, 8, 16, 0),
            (7, 1, 1, 1, 0),
            (33, 40, 3, 33, 2),
            (256, 200, 24, 24, 0),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="hybrid_linear",
        draw=inputs.hybrid_linear,
        fast=_fast("hybrid_linear"),
        reference=_reference("hybrid_linear"),
        differentiable=("x", "weight", "bias", "lora_A", "lora_B", "u", "mixing"),
        shapes=_sizes(
            "m k n r reflections empty bias dropped",
            (67, 65, 33, 5, 7, 1, 1, 0),
            (33, 40, 72, 6, 4, 0, 0, 1),
            (1, 65, 70, 1, 2, 0, 0, 0),
            (5, 8, 6, 2, 8, 0, 1, 1),
            (130, 96, 80, 16, 16, 0, 1, 0),
            (260, 200, 160, 12, 20, 0, 0, 0),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="cayley",
        draw=inputs.cayley,
        fast=_fast("cayley"),
        reference=lambda skew, refine: hk.reference.cayley(_widened(skew)),
        differentiable=("skew",),
        shapes=_sizes(
            "blocks b norm refine",
            (5, 33, 1, 0),
            (3, 17, 300, 1),
            (7, 2, 1, 0),
            (4, 1, 1, 0),
            (9, 8, 100, 0),
            (2, 65, 10, 1),
            (2, 130, 1, 0),
        ),
        dtypes=REAL + COMPLEX,
    ),
    OperatorCase(
        name="cayley_packed",
        draw=inputs.cayley_packed,
        fast=_fast("cayley_packed"),
        reference=_cayley_packed,
        differentiable=("packed",),
        shapes=_sizes(
            "blocks b norm refine",
            (5, 17, 1, 0),
            (3, 8, 300, 1),
            (7, 2, 1, 0),
            (33, 4, 1, 0),
            (9, 8, 100, 0),
            (1, 33, 10, 0),
        ),
        dtypes=REAL + COMPLEX,
    ),
    OperatorCase(
        name="cayley_packed_many",
        draw=inputs.cayley_packed_many,
        fast=_fast("cayley_packed_many"),
        reference=lambda packed, block_sizes: [
            _cayley_packed(p, b) for p, b in zip(packed, block_sizes, strict=True)
        ],
        differentiable=("packed",),
        shapes=_sizes(
            "blocks b layers uneven", (3, 7, 3, 1), (5, 8, 2, 0), (1, 2, 2, 1), (2, 5, 1, 0), (4, 16, 4, 1)
        ),
        dtypes=REAL + COMPLEX,
    ),
    OperatorCase(
        name="cayley_neumann_packed",
        draw=inputs.cayley_neumann_packed,
        fast=_fast("cayley_neumann_packed"),
        reference=lambda packed, block_size, terms: hk.reference.cayley_neumann_packed(
            _widened(packed), block_size, terms
        ),
        differentiable=("packed",),
        shapes=_sizes(
            "blocks b terms", (5, 17, 5), (7, 8, 6), (3, 2, 4), (33, 4, 3), (2, 6, 2), (2, 5, 1), (2, 33, 5)
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="block_rotate",
        draw=inputs.block_rotate,
        fast=_fast("block_rotate"),
        reference=_reference("block_rotate"),
        differentiable=("x", "q"),
        shapes=_sizes(
            "m blocks b",
            (67, 5, 6),
            (70, 4, 16),
            (1, 3, 7),
            (5, 33, 1),
            (130, 9, 8),
            (65, 2, 33),
            (200, 8, 32),
        ),
        dtypes=REAL + COMPLEX,
    ),
    OperatorCase(
        name="butterfly_rotate",
        draw=inputs.butterfly_rotate,
        fast=_fast("butterfly_rotate"),
        reference=_reference("butterfly_rotate"),
        differentiable=("x", "q"),
        shapes=_sizes(
            "m levels blocks b",
            (67, 2, 6, 6),
            (70, 3, 8, 8),
            (1, 2, 4, 2),
            (33, 1, 3, 5),
            (130, 2, 10, 16),
            (80, 4, 8, 4),
            (100, 2, 6, 32),
        ),
        dtypes=REAL,
    ),
    OperatorCase(
        name="structured_unitary",
        draw=inputs.structured_unitary,
        fast=_fast("structured_unitary"),
        reference=_structured_unitary,
        differentiable=("x", "phases", "reflections"),
        shapes=_sizes("m k empty", (35, 45, 1), (20, 64, 0), (1, 7, 0), (3, 2, 0), (5, 12, 2), (70, 128, 0)),
        dtypes=REAL + COMPLEX,
    ),
)
OPERATORS = {case.name: case for case in _CASES}
