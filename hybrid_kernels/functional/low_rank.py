"""The apply stage: a linear layer with a low-rank update, its dropout, and the scaling of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybrid_kernels import ops, reference
from hybrid_kernels._arguments import (
    REAL_DTYPES,
    autocast_dtype,
    check_device,
    check_dtype,
    check_last,
    check_matrix,
    check_together,
    no_autocast,
    shape_of,
)
from hybrid_kernels.functional.rotations import check_blocks
from hybrid_kernels.ops.backend import current_backend


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    dropout: float = 0.0,
    dropped_rank: int = 0,
    seed: Tensor | None = None,
) -> Tensor:
    """y = x Wᵀ + b + (x downᵀ) upᵀ.

    x (..., in_features), weight (out_features, in_features), bias (out_features,) or None, down (R, in_features),
    up (out_features, R) with R ≥ 1, in x's dtype or another: they are rounded to x's for the products, and their
    gradients come in their own. Returns (..., out_features) in x's dtype. Differentiable in every argument.

    With ``dropout``, the probability of an element of x to be dropped, in [0, 1), the first ``dropped_rank`` rows of
    down see x with elements dropped and the others scaled up, by the mask that ``seed`` (`dropout_seed`) determines.
    """
    check_matrix("weight", weight, None, None, "(out_features, in_features)")
    n, k = weight.shape
    check_last("x", x, k, "the in_features of weight")
    if bias is not None and shape_of(bias) != (n,):
        raise ValueError(f"bias has shape {shape_of(bias)}; it must be ({n},), the out_features of weight")
    _check_factors(down, up, n, k, x)
    seed = check_dropout(dropout, dropped_rank, down.shape[0], seed, x) if dropout else None
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    check_together(x=x, weight=weight, bias=bias)
    with no_autocast(x):
        if current_backend() == "reference":
            factors = down.to(x.dtype), up.to(x.dtype)
            return reference.low_rank_linear(x, weight, bias, *factors, dropout, dropped_rank, seed)
        return ops.low_rank_linear(x, weight, bias, down, up, dropout, dropped_rank, seed)[0]


def low_rank_linear_many(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
) -> list[Tensor]:
    """y_i = x W_iᵀ + b_i + (x down_iᵀ) up_iᵀ for each of several layers that read the same x, such as q, k and v.

    x (..., in_features); weights, biases, downs and ups are as many, one or more, each as in `low_rank_linear`, and of
    out_features and ranks of their own. Returns a list of (..., out_features_i) in x's dtype. Differentiable in every
    tensor. It saves reading x once a layer, and adding up the layers' gradients of x; there is no dropout.
    """
    g = len(weights)
    if g < 1:
        raise ValueError("weights has 0 elements; it must have at least one")
    for name, given in (("biases", biases), ("downs", downs), ("ups", ups)):
        if len(given) != g:
            raise ValueError(f"{name} has {len(given)} elements; it must have as many as weights, {g}")
    check_matrix("weights[0]", weights[0], None, None, "(out_features, in_features)")
    k = weights[0].shape[1]
    check_last("x", x, k, "the in_features of weights[0]")
    for i, (weight, bias, down, up) in enumerate(zip(weights, biases, downs, ups, strict=True)):
        check_matrix(f"weights[{i}]", weight, None, k, f"(out_features, {k})")
        n = weight.shape[0]
        if bias is not None and shape_of(bias) != (n,):
            raise ValueError(
                f"biases[{i}] has shape {shape_of(bias)}; it must be ({n},), the out_features of weights[{i}]"
            )
        _check_factors(down, up, n, k, x, f"downs[{i}]", f"ups[{i}]")
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
        biases = [None if bias is None else bias.to(dtype) for bias in biases]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        check_together(x=x, **{f"weights[{i}]": weight, f"biases[{i}]": bias})
    with no_autocast(x):
        if current_backend() == "reference":
            factors = ([factor.to(x.dtype) for factor in each] for each in (downs, ups))
            return reference.low_rank_linear_many(x, weights, biases, *factors)
        present = [bias for bias in biases if bias is not None]
        if 0 < len(present) < g:  # autograd tracks no list with a None in it
            present = [
                x.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)
            ]
        *ys, _ = ops.low_rank_linear_many(x, list(weights), present, list(downs), list(ups))
        return ys


def low_rank_add(
    base: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    dropout: float = 0.0,
    dropped_rank: int = 0,
    seed: Tensor | None = None,
) -> Tensor:
    """y = base + (x downᵀ) upᵀ: the low-rank update of a layer of which only the output is known.

    base (..., out_features), x (..., in_features) with the same leading dimensions, down (R, in_features),
    up (out_features, R); the rest as in `low_rank_linear`. Returns the shape and dtype of base. Differentiable in every
    argument.
    """
    if base.ndim < 1 or base.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"base has shape {shape_of(base)}; its leading dimensions must be those of x, {shape_of(x)}"
        )
    _check_factors(down, up, base.shape[-1], x.shape[-1], x)
    seed = check_dropout(dropout, dropped_rank, down.shape[0], seed, x) if dropout else None
    # Under autocast, or where an opaque layer returns another dtype than it was given, its output decides.
    x = x.to(base.dtype)
    check_together(base=base, x=x)
    with no_autocast(x):
        if current_backend() == "reference":
            factors = down.to(x.dtype), up.to(x.dtype)
            return reference.low_rank_add(base, x, *factors, dropout, dropped_rank, seed)
        return ops.low_rank_add(base, x, down, up, dropout, dropped_rank, seed)[0]


def rotated_low_rank_linear(
    x: Tensor, q: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> Tensor:
    """y = r Wᵀ + b + (r downᵀ) upᵀ with r = x · diag(q₁, …, q_k): `low_rank_linear` of `block_rotate` in one operator.

    x (..., k·b), q (k, b, b) real, in x's dtype or another; the rest as in `low_rank_linear`. Differentiable in every
    argument.
    """
    check_matrix("weight", weight, None, None, "(out_features, in_features)")
    n, k = weight.shape
    check_last("x", x, k, "the in_features of weight")
    check_blocks(q, x)
    if bias is not None and shape_of(bias) != (n,):
        raise ValueError(f"bias has shape {shape_of(bias)}; it must be ({n},), the out_features of weight")
    _check_factors(down, up, n, k, x)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    check_together(x=x, weight=weight, bias=bias)
    with no_autocast(x):
        if current_backend() == "reference":
            narrow = (tensor.to(x.dtype) for tensor in (down, up))
            return reference.rotated_low_rank_linear(x, q.to(x.dtype), weight, bias, *narrow)
        return ops.rotated_low_rank_linear(x, q, weight, bias, down, up)[0]


def scale_features(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """y ⊙ scale + bias: each feature times its own number, as in DoRA (Liu et al., arXiv 2402.09353).

    y (..., out_features), scale (out_features,), bias (out_features,) or None, all real; scale and bias are rounded to
    y's dtype, and their gradients have their own, from float32 sums. Returns the shape and dtype of y.
    """
    check_dtype("y", y, REAL_DTYPES)
    if scale.ndim != 1:
        raise ValueError(f"scale has shape {shape_of(scale)}; it must be (out_features,)")
    check_last("y", y, scale.shape[0], "the out_features of scale")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.shape != scale.shape:
            raise ValueError(
                f"{name} has shape {shape_of(tensor)}; it must be that of scale, {shape_of(scale)}"
            )
        check_dtype(name, tensor, REAL_DTYPES)
        check_device(name, tensor, "y", y)
    if current_backend() == "reference":
        return reference.scale_features(y, scale.to(y.dtype), None if bias is None else bias.to(y.dtype))
    with no_autocast(y):
        return ops.scale_features(y, scale, bias)


def dropout_seed(device: torch.device | str) -> Tensor:
    """A seed for `low_rank_linear`'s dropout: a 0-dim int64 tensor drawn on ``device`` from torch's generator."""
    return torch.randint(-(2**63), 2**63 - 1, (), device=device)


def check_dropout(dropout: float, dropped_rank: int, rank: int, seed: Tensor | None, x: Tensor) -> Tensor:
    """The seed of a dropout that is not 0."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
    if not 0 <= dropped_rank <= rank:
        raise ValueError(
            f"dropped_rank is {dropped_rank}; it must lie between 0 and the rank of down, {rank}"
        )
    if seed is None:
        raise ValueError("seed is None; with dropout it must be a tensor, such as dropout_seed(x.device)")
    if seed.dtype != torch.int64 or seed.ndim != 0:
        raise ValueError(
            f"seed has dtype {seed.dtype} and shape {shape_of(seed)}; it must be a 0-dim torch.int64 tensor"
        )
    check_device("seed", seed, "x", x)
    return seed


def _check_factors(
    down: Tensor,
    up: Tensor,
    out_features: int,
    in_features: int,
    x: Tensor,
    down_name: str = "down",
    up_name: str = "up",
) -> None:
    check_matrix(down_name, down, None, in_features, f"(R, {in_features})")
    r = down.shape[0]
    if r < 1:
        raise ValueError(f"{down_name} has shape (0, in_features); its rank R must be at least 1")
    check_matrix(up_name, up, out_features, r, f"({out_features}, {r})")
    if down.dtype == up.dtype == x.dtype and down.device == up.device == x.device:
        return
    for name, factor in ((down_name, down), (up_name, up)):
        check_dtype(name, factor, REAL_DTYPES)
        check_device(name, factor, "x", x)
