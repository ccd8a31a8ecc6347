"""Chains of Householder reflections, and the hybrid that mixes one with a low-rank update."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hybrid_kernels import ops, reference
from hybrid_kernels._arguments import (
    REAL_DTYPES,
    check_device,
    check_dtype,
    check_last,
    check_matrix,
    no_autocast,
    shape_of,
    widened,
)
from hybrid_kernels.functional.low_rank import check_dropout, low_rank_linear
from hybrid_kernels.ops.backend import current_backend


def _check_reflections(u: Tensor, features: int | None = None, name: str = "u") -> None:
    check_matrix(name, u, features, None, f"({features or 'in_features'}, reflections)")
    check_dtype(name, u, REAL_DTYPES)
    if not 1 <= u.shape[1] <= max(u.shape[0], 1):
        raise ValueError(
            f"{name} has shape {shape_of(u)}; the number of reflections (columns) must be between 1 and in_features"
        )


def householder_factors(u: Tensor) -> tuple[Tensor, Tensor]:
    """The compact WY form of H = H₁…Hₙ = I − v t vᵀ, Hᵢ = I − 2 vᵢvᵢᵀ, vᵢ the normalised columns of u.

    u (in_features, n), 1 ≤ n ≤ in_features; a zero column means "no reflection". Returns v (in_features, n) and the
    upper triangular t (n, n), both in float32 or u's dtype if wider.
    """
    _check_reflections(u)
    u = u.to(widened(u.dtype))
    if current_backend() == "reference":
        return reference.householder_factors(u)
    with no_autocast(u):
        return ops.householder_factors(u)


def householder_factors_many(us: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """`householder_factors` of each of many layers, whose u (in_features, n) may differ in shape.

    On the Triton backend, layers of one dtype and device take one launch forward and one backward for each power of two
    that their n round up to; their addresses go along in a small table, which is copied anew only when they change.
    Elsewhere, under torch.compile and in the capture of a CUDA graph, one layer after the other.
    """
    for index, u in enumerate(us):
        _check_reflections(u, name=f"us[{index}]")
    us = [u.to(widened(u.dtype)) for u in us]
    if current_backend() == "reference":
        return [reference.householder_factors(u) for u in us]
    if not us:
        return []
    with no_autocast(us[0]):
        return ops.householder_factors_many(us)


def householder_rotate(x: Tensor, u: Tensor, transpose: bool = False) -> Tensor:
    """x Hᵀ (x H with ``transpose``) for H = H₁…Hₙ, all n reflections in one pass over x.

    x (..., features), u (features, n). Returns the shape and dtype of x.
    """
    _check_reflections(u)
    check_last("x", x, u.shape[0], "the rows of u")
    check_dtype("x", x, REAL_DTYPES)
    check_device("u", u, "x", x)
    if current_backend() == "reference":
        return reference.householder_rotate(x, u.to(x.dtype), transpose)
    with no_autocast(x):
        v, t = householder_factors(u)
        # x Hᵀ = x − (x v) (v t)ᵀ
        return ops.householder_rotate(x, v, ops.project(v, t.mT if transpose else t))[0]


def hybrid_factors(
    weight: Tensor | Callable[[Tensor], Tensor],
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor | float,
    scaling: float,
    reflections: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The rank r + n factors of the hybrid update W' − W = λ s B A + (1 − λ)(W H − W) = up · down.

        down = [A; vᵀ]        up = [λ s B, −(1 − λ) W v t]

    ``weight`` is W (out_features, in_features) or, where W cannot be read, a function z ↦ W z for z (in_features, n).
    lora_A (r, in_features), lora_B (out_features, r), u (in_features, n), mixing λ a number or a 0-dim tensor; r or n
    may be 0. ``reflections``: (v, t, v t) of u where they have been made already (`ops.householder.prepare`).
    Returns down (r + n, in_features) and up (out_features, r + n) in float32 or the parameters' dtype if wider.
    """
    if u.shape[1]:
        _check_reflections(u)
    dtype = torch.promote_types(widened(u.dtype), lora_A.dtype)
    lora_A, lora_B, u = lora_A.to(dtype), lora_B.to(dtype), u.to(dtype)
    if not u.shape[1]:
        # Joined all the same: data parallelism waits for a gradient of every parameter, be it empty.
        return torch.cat([lora_A, u.mT]), lora_B * (mixing * scaling)
    with no_autocast(u):
        if isinstance(weight, Tensor) and current_backend() != "reference":
            coefficient = (
                mixing.reshape(()).to(dtype)
                if isinstance(mixing, Tensor)
                else torch.tensor(mixing, dtype=dtype, device=u.device)
            )
            ready = reflections or ()
            return ops.hybrid_factors(weight, lora_A, lora_B, u, coefficient, scaling, *ready)[:2]
        v, t = householder_factors(u)
        z = ops.project(v, t)
        rotated = weight @ z.to(weight.dtype) if isinstance(weight, Tensor) else weight(z)
        down = torch.cat([lora_A, v.mT])
        up = torch.cat([lora_B * (mixing * scaling), rotated.to(dtype) * (mixing - 1.0)], dim=1)
    return down, up


def hybrid_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor | float,
    scaling: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """y = x W'ᵀ + b with W' = W + λ s B A + (1 − λ)(W H₁…Hₙ − W).

    x (..., in_features), weight (out_features, in_features), bias (out_features,) or None, lora_A (r, in_features),
    lora_B (out_features, r), u (in_features, n); mixing λ in [0, 1], a number or a 0-dim tensor on x's device;
    scaling s a number; dropout and seed as in `low_rank_linear`, of the low-rank branch alone. Returns
    (..., out_features). It costs what a LoRA of rank r + n costs.
    """
    check_matrix("weight", weight, None, None, "(out_features, in_features)")
    n, k = weight.shape
    check_dtype("lora_A", lora_A, REAL_DTYPES)
    check_dtype("lora_B", lora_B, REAL_DTYPES)
    check_matrix("lora_A", lora_A, None, k, f"(r, {k})")
    check_matrix("lora_B", lora_B, n, lora_A.shape[0], f"({n}, {lora_A.shape[0]})")
    _check_reflections(u, k)
    if isinstance(mixing, Tensor):
        if mixing.numel() != 1:
            raise ValueError(
                f"mixing has shape {shape_of(mixing)}; it must be a number or a tensor of one element"
            )
        check_device("mixing", mixing, "weight", weight)
    elif not 0.0 <= mixing <= 1.0:
        raise ValueError(f"mixing is {mixing}; it must lie between 0 and 1")
    for name, tensor in (("lora_A", lora_A), ("lora_B", lora_B), ("u", u)):
        check_device(name, tensor, "weight", weight)
    if current_backend() == "reference":
        arguments = (lora_A.to(x.dtype), lora_B.to(x.dtype), u.to(x.dtype))
        seed = check_dropout(dropout, 0, 0, seed, x) if dropout else None
        return reference.hybrid_linear(x, weight, bias, *arguments, mixing, scaling, dropout, seed)
    down, up = hybrid_factors(weight, lora_A, lora_B, u, mixing, scaling)
    return low_rank_linear(x, weight, bias, down, up, dropout, lora_A.shape[0], seed)
