"""The apply stage of several linear layers that read the same input, such as q, k, v or gate, up.

    p = x [down_1; …; down_g]ᵀ = [p_1 … p_g]        y_i = x W_iᵀ + b_i + p_i up_iᵀ
    q_i = dy_i up_i        q = [q_1 … q_g]          dx = Σ dy_i W_i + q [down_1; …; down_g]
    d_up_i = dy_iᵀ p_i     [d_down_1; …] = qᵀ x

x (..., K), W_i (N_i, K), b_i (N_i,), down_i (R_i, K), up_i (N_i, R_i), p and q (M, ΣR_i), y_i (..., N_i), M the number
of rows of x, g ≥ 1. Against g layers apart, x is read once for p and once for the d_down, and the gradients of x are
summed as the products are stored. Of the activations only x and p are saved. The weights stay where they are; of the
factors the down_i alone are copied together. Layers whose y_i has no gradient take no part in the backward.

All tensors share a device, and all but the factors a dtype; those as in `ops.low_rank`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator, current_variant, gpu_wins
from hybrid_kernels.ops.low_rank import base_gradients, row_count, rows
from hybrid_kernels.ops.registration import operator, operator_of_lists

Tensors = Sequence[Tensor]


def _joined(downs: Tensors, dtype: torch.dtype | None = None) -> Tensor:
    return torch.cat([down if dtype is None else down.to(dtype) for down in downs])


def _split(p: Tensor, ups: Tensors) -> Sequence[Tensor]:
    """The columns of p that belong to each layer."""
    return p.split([up.shape[1] for up in ups], dim=1)


def _gradient_dtype(downs: Tensors) -> torch.dtype:
    """Of all the d_down together."""
    return functools.reduce(torch.promote_types, (down.dtype for down in downs))


def _eager(x: Tensor, weights: Tensors, biases: Tensors, downs: Tensors, ups: Tensors) -> list[Tensor]:
    p = x @ _joined(downs, x.dtype).t()
    ys = []
    for index, (weight, up, own) in enumerate(zip(weights, ups, _split(p, ups), strict=True)):
        y = torch.addmm(biases[index], x, weight.t()) if biases else x @ weight.t()
        ys.append(y.addmm_(own, up.t().to(x.dtype)))
    return [*ys, p]


def _eager_backward(
    dys: Tensors, x: Tensor, weights: Tensors, downs: Tensors, ups: Tensors, p: Tensor, needs: list[bool]
) -> list[Tensor]:
    need_x, need_down, need_up = needs
    dx, d_down, d_ups = None, None, []
    if need_x or need_down:
        q = torch.empty_like(p)
        for dy, up, own in zip(dys, ups, _split(q, ups), strict=True):
            torch.mm(dy, up.to(dy.dtype), out=own)
        if need_down:
            d_down = (q.t() @ x).to(_gradient_dtype(downs))
        if need_x:
            dx = dys[0] @ weights[0]
            for dy, weight in zip(dys[1:], weights[1:], strict=True):
                dx.addmm_(dy, weight)
            dx.addmm_(q, _joined(downs, dx.dtype))
    if need_up:
        for dy, up, own in zip(dys, ups, _split(p, ups), strict=True):
            # Faster in BLAS than dyᵀ p by more than the small copy costs.
            d_ups.append((own.t() @ dy).t().to(up.dtype).contiguous())
    return [gradient for gradient in (dx, d_down, *d_ups) if gradient is not None]


# Triton is imported when a kernel is first asked for: it costs more than importing this whole package.
def _triton_unsupported(x: Tensor, weights: Tensors, downs: Tensors, ups: Tensors) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import low_rank

    for weight, down, up in zip(weights, downs, ups, strict=True):
        reason = low_rank.unsupported(x, weight, down, up)
        if reason is not None:
            return reason
    return None


def _triton_wins(operator: str, x: Tensor, ups: Tensors) -> bool:
    """Where the same kernels win for each layer by itself."""
    return x.is_cuda and all(gpu_wins(operator, x, *x.shape, *up.shape) for up in ups)


def _triton(x: Tensor, weights: Tensors, biases: Tensors, downs: Tensors, ups: Tensors) -> list[Tensor]:
    from triton_ops import low_rank

    p = low_rank.project(x, _joined(downs), max(up.shape[0] for up in ups))
    ys = []
    for index, (weight, down, up, own) in enumerate(zip(weights, downs, ups, _split(p, ups), strict=True)):
        bias = biases[index] if biases else None
        ys.append(low_rank.forward(x, weight, bias, down, up, variant=current_variant(), p=own)[0])
    return [*ys, p]


def _triton_backward(
    dys: Tensors, x: Tensor, weights: Tensors, downs: Tensors, ups: Tensors, p: Tensor, needs: list[bool]
) -> list[Tensor]:
    from triton_ops import low_rank, skinny

    need_x, need_down, need_up = needs
    (m, k), variant = x.shape, current_variant()
    dx, d_down, d_ups, qs = None, None, [], []
    for dy, up, own in zip(dys, ups, _split(p, ups), strict=True):
        if need_up and (need_x or need_down):
            own_q, d_up = low_rank.output_gradient(dy, up, own, k, variant)
            qs.append(own_q)
            d_ups.append(d_up)
        elif need_up:
            d_ups.append(skinny.matmul(dy.mT, own, dtype=up.dtype))
        else:
            qs.append(low_rank.project(dy, up.mT, k))
    if qs:
        q = torch.cat(qs, dim=1)
        shape = m, k, weights[0].shape[0], q.shape[1]
        if need_down:
            d_down = low_rank.down_gradient(x, q, _gradient_dtype(downs), None, shape, variant)
        if need_x:
            dx = low_rank.input_gradient(dys[0], weights[0], q, _joined(downs), None, shape, variant)
            for dy, weight in zip(dys[1:], weights[1:], strict=True):
                dx.addmm_(dy, weight)
    return [gradient for gradient in (dx, d_down, *d_ups) if gradient is not None]


def _cpp_unsupported(x: Tensor, downs: Tensors, ups: Tensors) -> str | None:
    for factor in (*downs, *ups):
        if factor.dtype != x.dtype:
            return f"x has dtype {x.dtype}, a factor {factor.dtype}; the C++ kernel takes one"
    return _extension.unsupported_floating(x)


def _cpp_preferred(x: Tensor, downs: Tensors, ups: Tensors) -> bool:
    """Where it is for each layer by itself: three ranks of 128 or of 256 together cost no more than apart."""
    return all(_extension.skinny_preferred(x.shape[0], down.shape[0], x) for down in downs) and all(
        factor.dtype == x.dtype for factor in (*downs, *ups)
    )


_linear = Operator(
    "low_rank_linear_many",
    Implementation(
        "triton",
        _triton,
        lambda x, weights, biases, downs, ups: _triton_unsupported(x, weights, downs, ups),
        automatic=lambda x, weights, biases, downs, ups: _triton_wins("low_rank_linear", x, ups),
    ),
    Implementation(
        "cpp",
        lambda *args: torch.ops.hybrid_kernels_cpp.low_rank_linear_many.default(*args),
        lambda x, weights, biases, downs, ups: _cpp_unsupported(x, downs, ups),
        automatic=lambda x, weights, biases, downs, ups: _cpp_preferred(x, downs, ups),
    ),
    Implementation("eager", _eager),
)
_backward = Operator(
    "low_rank_linear_many_backward",
    Implementation(
        "triton",
        _triton_backward,
        lambda dys, x, weights, downs, ups, *_: _triton_unsupported(x, weights, downs, ups),
        automatic=lambda dys, x, weights, downs, ups, *_: _triton_wins("low_rank_backward", x, ups),
    ),
    Implementation(
        "cpp",
        lambda *args: torch.ops.hybrid_kernels_cpp.low_rank_linear_many_backward.default(
            *args[:-1], *args[-1]
        ),
        lambda dys, x, weights, downs, ups, *_: _cpp_unsupported(x, downs, ups),
        automatic=lambda dys, x, weights, downs, ups, *_: _cpp_preferred(x, downs, ups),
    ),
    Implementation("eager", _eager_backward),
)


def _linear_forward(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], downs: list[Tensor], ups: list[Tensor]
) -> list[Tensor]:
    """[y_1, …, y_g, p]; ``biases`` are of all layers, or empty. See the module's docstring."""
    *ys, p = _linear(rows(x), weights, biases, downs, ups)
    if x.ndim != 2:
        ys = [y.view(*x.shape[:-1], y.shape[1]) for y in ys]
    return [*ys, p]


def _linear_fake(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], downs: list[Tensor], ups: list[Tensor]
) -> list[Tensor]:
    ys = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    return [*ys, x.new_empty(row_count(x), sum(down.shape[0] for down in downs))]


def _backward_forward(
    dys: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    downs: list[Tensor],
    ups: list[Tensor],
    p: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Those of dx, [d_down_1; …] and d_up_1, … that the three ``needs`` ask for, in that order."""
    gradients = _backward([rows(dy) for dy in dys], rows(x), weights, downs, ups, p, needs)
    if needs[0]:
        gradients[0] = gradients[0].view(x.shape)
    return gradients


def _backward_fake(
    dys: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    downs: list[Tensor],
    ups: list[Tensor],
    p: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    need_x, need_down, need_up = needs
    d_down = p.new_empty((p.shape[1], x.shape[-1]), dtype=_gradient_dtype(downs))
    return [
        *([x.new_empty(x.shape)] if need_x else []),
        *([d_down] if need_down else []),
        *([up.new_empty(up.shape) for up in ups] if need_up else []),
    ]


low_rank_linear_many_backward = operator("low_rank_linear_many_backward", _backward_forward, _backward_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, _, downs, ups = inputs
    p = output[-1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(p)
    ctx.save_for_backward(x, p, *weights, *downs, *ups)


def _many_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    need_x, need_weights, need_biases, need_downs, need_ups = ctx.needs_input_grad
    x, p, *tensors = ctx.saved_tensors
    g = len(need_weights)
    none: list[Tensor | None] = [None] * g
    d_weights, d_biases, d_downs, d_ups = (list(none) for _ in range(4))
    used = [index for index in range(g) if gradients[index] is not None]
    dys = [dy for dy in gradients[:g] if dy is not None]
    weights, downs, ups = ([tensors[part * g + index] for index in used] for part in range(3))
    if len(used) < g:
        columns = _split(p, tensors[2 * g :])
        p = torch.cat([columns[index] for index in used], dim=1) if used else p
    for index, dy in zip(used, dys, strict=True):
        need_bias = bool(need_biases) and need_biases[index]
        d_weights[index], d_biases[index] = base_gradients(dy, x, need_weights[index], need_bias)
    dx = None
    needs = [need_x, any(need_downs[index] for index in used), any(need_ups[index] for index in used)]
    if used and any(needs):
        computed = iter(low_rank_linear_many_backward(dys, x, weights, downs, ups, p, needs))
        dx = next(computed) if need_x else None
        if needs[1]:
            # Autograd brings each to the dtype of its factor.
            parts = next(computed).split([down.shape[0] for down in downs])
            for index, part in zip(used, parts, strict=True):
                d_downs[index] = part
        if needs[2]:
            for index, d_up in zip(used, computed, strict=True):
                d_ups[index] = d_up
    return dx, d_weights, d_biases if need_biases else [], d_downs, d_ups


low_rank_linear_many = operator_of_lists(
    "low_rank_linear_many", _linear_forward, _linear_fake, _setup, _many_backward
)
