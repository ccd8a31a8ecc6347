"""The operations of `hybrid_kernels.reference`, fast: same names, same arguments, same results.

Each function checks its arguments, follows autocast, and runs the backend that `hybrid_kernels.ops.backend` chooses.
Activations (x, weight, bias) share one floating dtype and device. Factors and reflections may be wider, as PEFT keeps
them: they are factorised in float32, or in their own dtype if that is wider, and rounded to the activations' dtype for
the apply stage. Errors are ValueError for shapes and TypeError for dtypes and devices; they name the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hybrid_kernels import ops, reference
from hybrid_kernels._arguments import (
    COMPLEX_DTYPES,
    REAL_DTYPES,
    autocast_dtype,
    check_device,
    check_dtype,
    check_last,
    check_matrix,
    check_together,
    no_autocast,
    shape_of,
    widened,
)
from hybrid_kernels.ops.backend import current_backend
from hybrid_kernels.ops.cayley_many import by_kind

__all__ = [
    "block_rotate",
    "butterfly_rotate",
    "cayley",
    "cayley_neumann_packed",
    "cayley_packed",
    "cayley_packed_many",
    "dropout_seed",
    "householder_factors",
    "householder_factors_many",
    "householder_rotate",
    "hybrid_factors",
    "hybrid_linear",
    "low_rank_add",
    "low_rank_linear",
    "low_rank_linear_many",
    "rotated_low_rank_linear",
    "scale_features",
    "structured_unitary",
]


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
    seed = _check_dropout(dropout, dropped_rank, down.shape[0], seed, x) if dropout else None
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
    seed = _check_dropout(dropout, dropped_rank, down.shape[0], seed, x) if dropout else None
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
    _check_blocks(q, x)
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


def _check_dropout(dropout: float, dropped_rank: int, rank: int, seed: Tensor | None, x: Tensor) -> Tensor:
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
    lora_A (r, in_features), lora_B (out_features, r), u (in_features, n), mixing λ a number or a 0-dim tensor.
    ``reflections``: (v, t, v t) of u where they have been made already (`ops.householder.prepare`).
    Returns down (r + n, in_features) and up (out_features, r + n) in float32 or the parameters' dtype if wider.
    """
    _check_reflections(u)
    dtype = torch.promote_types(widened(u.dtype), lora_A.dtype)
    lora_A, lora_B, u = lora_A.to(dtype), lora_B.to(dtype), u.to(dtype)
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
        seed = _check_dropout(dropout, 0, 0, seed, x) if dropout else None
        return reference.hybrid_linear(x, weight, bias, *arguments, mixing, scaling, dropout, seed)
    down, up = hybrid_factors(weight, lora_A, lora_B, u, mixing, scaling)
    return low_rank_linear(x, weight, bias, down, up, dropout, lora_A.shape[0], seed)


def _check_packed(
    packed: Tensor, block_size: int, name: str = "packed", block_size_name: str = "block_size"
) -> None:
    if block_size < 1:
        raise ValueError(f"{block_size_name} is {block_size}; it must be at least 1")
    expected = block_size * (block_size - 1) // 2
    check_last(name, packed, expected, f"b(b−1)/2 for block_size {block_size}")
    check_dtype(name, packed, REAL_DTYPES + COMPLEX_DTYPES)


def cayley(skew: Tensor, refine: bool = False) -> Tensor:
    """Q = (I − A)(I + A)⁻¹, A = (X − Xᴴ)/2 the skew-Hermitian part of ``skew`` X (..., b, b): exact, for every A.

    Q (..., b, b) is orthogonal, unitary for complex input. Half types are computed and returned in float32. Backward
    is closed-form, saves Q only, and yields the gradient projected on the skew-Hermitian matrices. ``refine`` adds one
    step of iterative refinement with a residual in float64: the last digits of float32 where ‖A‖ is large, at the
    price of two products in float64.
    """
    if skew.ndim < 2 or skew.shape[-1] != skew.shape[-2] or skew.shape[-1] < 1:
        raise ValueError(f"skew has shape {shape_of(skew)}; it must be (..., b, b) with b ≥ 1")
    check_dtype("skew", skew, REAL_DTYPES + COMPLEX_DTYPES)
    skew = skew.to(widened(skew.dtype))
    if current_backend() == "reference":
        return reference.cayley(skew)
    with no_autocast(skew):
        return ops.cayley(skew, refine)


def cayley_packed(packed: Tensor, block_size: int, refine: bool = False) -> Tensor:
    """`cayley` of A given by its strict upper triangle, row by row: A[i, j] = p, A[j, i] = −conj(p) for i < j.

    packed (..., b(b−1)/2) for block_size b ≥ 1; the diagonal of A is zero. Returns Q (..., b, b).
    """
    _check_packed(packed, block_size)
    packed = packed.to(widened(packed.dtype))
    if current_backend() == "reference":
        return reference.cayley_packed(packed, block_size)
    with no_autocast(packed):
        return ops.cayley_packed(packed, block_size, refine)


def cayley_neumann_packed(packed: Tensor, block_size: int, terms: int) -> Tensor:
    """The truncated Neumann series I + 2A + 2A² + … of PEFT's OFT with ``num_cayley_neumann_terms`` = ``terms`` ≥ 1.

    A as in `cayley_packed`, real: packed (..., b(b−1)/2), returns (..., b, b) in float32 or packed's dtype if wider.
    The last power, A^(terms−1), has the coefficient 1 from A³ on; three terms are what four are, two are I + 2A and one
    is I. It approximates `cayley_packed` of −A for ‖A‖ well below 1 and diverges from 1 on. Backward is closed-form and
    saves packed alone.
    """
    _check_packed(packed, block_size)
    check_dtype("packed", packed, REAL_DTYPES)
    if not isinstance(terms, int) or terms < 1:
        raise ValueError(f"terms is {terms}; it must be an integer of at least 1")
    packed = packed.to(widened(packed.dtype))
    if current_backend() == "reference":
        return reference.cayley_neumann_packed(packed, block_size, terms)
    with no_autocast(packed):
        return ops.cayley_neumann_packed(packed, block_size, terms)


def cayley_packed_many(packed: Sequence[Tensor], block_sizes: Sequence[int]) -> list[Tensor]:
    """`cayley_packed` of each of many layers, which may differ in batch shape, block size, dtype and device.

    Those of one block size, dtype and device take one call forward and one backward, so that the gradient of one takes
    the time of all; their results are views of one tensor.
    """
    if len(packed) != len(block_sizes):
        raise ValueError(
            f"block_sizes has {len(block_sizes)} elements; it must have one for each of packed, {len(packed)}"
        )
    for index, (tensor, block_size) in enumerate(zip(packed, block_sizes, strict=True)):
        _check_packed(tensor, block_size, f"packed[{index}]", f"block_sizes[{index}]")
    if current_backend() == "reference":
        return [
            cayley_packed(tensor, block_size) for tensor, block_size in zip(packed, block_sizes, strict=True)
        ]
    rows = [tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1]) for tensor in packed]
    results = by_kind(cayley_packed, rows, block_sizes)
    return [q.view(*tensor.shape[:-1], *q.shape[1:]) for tensor, q in zip(packed, results, strict=True)]


def _check_blocks(q: Tensor, x: Tensor) -> None:
    if q.ndim != 3 or q.shape[1] != q.shape[2]:
        raise ValueError(f"q has shape {shape_of(q)}; it must be (k, b, b)")
    check_last("x", x, q.shape[0] * q.shape[1], "k·b of q")
    check_dtype("q", q, COMPLEX_DTYPES if x.is_complex() else REAL_DTYPES)
    check_device("q", q, "x", x)


def block_rotate(x: Tensor, q: Tensor) -> Tensor:
    """x · diag(q₁, …, q_k): rows of x times a block-diagonal matrix.

    x (..., k·b), q (k, b, b), both real or both complex; q is rounded to x's dtype, and its gradient has its own, from
    float32 sums where the backend has them. Returns the shape and dtype of x.
    """
    check_dtype("x", x, REAL_DTYPES + COMPLEX_DTYPES)
    _check_blocks(q, x)
    if current_backend() == "reference":
        return reference.block_rotate(x, q.to(x.dtype))
    with no_autocast(x):
        return ops.block_rotate(x, q)


def butterfly_rotate(x: Tensor, q: Tensor) -> Tensor:
    """x · (M_{m−1} ⋯ M₁ M₀), M_i = P_i diag(q_i1, …, q_ik) P_iᵀ: rows of x times a block butterfly, as in PEFT's BOFT.

    x (..., k·b), q (m, k, b, b), both real. P₀ = I and, of levels i ≥ 1, block j of a group of b·2^i features joins its
    half-blocks (b/2 features each) j and j + 2^i: so with m > 1, b must be even and k·b divisible by b·2^(m−1). q is
    rounded to x's dtype, and its gradient has its own. Returns the shape and dtype of x. Of the activations x alone is
    saved. Formula: Liu et al., arXiv 2311.06243; `hybrid_kernels.reference.butterfly_rotate`.
    """
    check_dtype("x", x, REAL_DTYPES)
    if q.ndim != 4 or q.shape[2] != q.shape[3] or q.shape[0] < 1:
        raise ValueError(f"q has shape {shape_of(q)}; it must be (m, k, b, b) with m ≥ 1")
    levels, blocks, b, _ = q.shape
    check_last("x", x, blocks * b, "k·b of q")
    check_dtype("q", q, REAL_DTYPES)
    check_device("q", q, "x", x)
    if levels > 1 and (b % 2 != 0 or blocks % 2 ** (levels - 1) != 0):
        raise ValueError(
            f"q has shape {shape_of(q)}; with m = {levels} levels its b must be even and its k divisible by "
            f"2^(m−1) = {2 ** (levels - 1)}"
        )
    if current_backend() == "reference":
        return reference.butterfly_rotate(x, q.to(x.dtype))
    with no_autocast(x):
        return ops.block_rotate(x, q.squeeze(0)) if levels == 1 else ops.butterfly_rotate(x, q)


def _check_structured(x: Tensor, phases: Tensor, reflections: Tensor, permutation: Tensor) -> None:
    check_dtype("x", x, REAL_DTYPES + COMPLEX_DTYPES)
    check_matrix("phases", phases, 3, None, "(3, n)")
    n = phases.shape[1]
    if n < 1:
        raise ValueError("phases has shape (3, 0); its n must be at least 1")
    if shape_of(reflections) != (2, n, 2):
        raise ValueError(
            f"reflections has shape {shape_of(reflections)}; it must be (2, {n}, 2): two vectors, real and imaginary"
        )
    if shape_of(permutation) != (n,) or permutation.dtype != torch.int64:
        raise ValueError(
            f"permutation has dtype {permutation.dtype} and shape {shape_of(permutation)}; it must be a torch.int64 "
            f"tensor ({n},)"
        )
    check_last("x", x, n if x.is_complex() else 2 * n, "n of phases, or 2n where x is real")
    for name, tensor in (("phases", phases), ("reflections", reflections)):
        check_dtype(name, tensor, REAL_DTYPES)
        check_device(name, tensor, "x", x)
    check_device("permutation", permutation, "x", x)


def structured_unitary(x: Tensor, phases: Tensor, reflections: Tensor, permutation: Tensor) -> Tensor:
    """x Wᵀ for the unitary W = D₃ R₂ F⁻¹ D₂ Π R₁ F D₁ of 7n parameters: phases, reflections, Fourier transforms.

    x real (..., 2n), of neighbours taken as real and imaginary part, or complex (..., n); phases (3, n) in radians,
    reflections (2, n, 2), permutation (n,) int64, whose values are not checked: reading them would hold up a GPU.
    Returns the shape and dtype of x. Differentiable in x, phases and reflections; a zero vector means "no reflection".
    A row costs O(n log n).

    There is no kernel of ours in it: the transforms are the vendors' libraries', what lies between them is elementwise
    or a product with one vector. Half types are computed in float32: no transform on the CPU takes them, and those on
    a GPU only where n is a power of two.
    """
    _check_structured(x, phases, reflections, permutation)
    n = phases.shape[1]
    if current_backend() == "reference":
        wide = widened(x.real.dtype)
        z = x if x.is_complex() else x.to(wide)
        return reference.structured_unitary(z, phases.to(wide), reflections.to(wide), permutation).to(x.dtype)
    wide = torch.promote_types(torch.promote_types(phases.dtype, reflections.dtype), widened(x.real.dtype))
    phases, reflections = phases.to(wide), reflections.to(wide)
    if x.numel() == 0:  # MKL's transforms take no empty batch
        return x * (phases.sum() + reflections.sum()).to(x.dtype)
    compute = torch.promote_types(x.dtype, torch.complex64)  # autocast leaves complex numbers alone
    z = x if x.is_complex() else torch.complex(*x.to(widened(x.dtype)).unflatten(-1, (n, 2)).unbind(-1))
    d1, d2, d3 = torch.complex(phases.cos(), phases.sin()).to(compute).unbind()
    squared = reflections.square().sum((-2, -1), keepdim=True)
    unit = reflections * torch.where(squared > 0, squared, 1.0).rsqrt()
    v1, v2 = torch.complex(*unit.unbind(-1)).to(compute).unbind()
    z = _reflect(torch.fft.fft(z * d1, norm="ortho"), v1)
    z = _reflect(torch.fft.ifft(z[..., permutation] * d2, norm="ortho"), v2) * d3
    y = z if x.is_complex() else torch.view_as_real(z).flatten(-2)
    return y.to(x.dtype)


def _reflect(z: Tensor, v: Tensor) -> Tensor:
    """(I − 2 v vᴴ) h for each row h of z (..., n)."""
    return z - 2.0 * (z @ v.conj())[..., None] * v
