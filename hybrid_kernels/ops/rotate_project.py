"""A rotation of the features and the projection that follows it, in one pass over x.

    xr = x diag(q₁, …, q_k)        p = xr downᵀ
    t = dxr + dp down              dx_j = t_j q_jᵀ        dq_j = Σ_rows x_jᵀ t_j        d_down = dpᵀ xr

x, xr (..., k·b), q (k, b, b), down (R, k·b), p (M, R), M the number of rows of x; all real. t is the whole gradient of
xr. q and down may have another dtype than x: they are rounded to x's, and their gradients have their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels.ops.backend import Implementation, Operator, never
from hybrid_kernels.ops.block_rotation import block_rotate, block_rotate_weight_gradient, eager_block_rotate
from hybrid_kernels.ops.registration import operator


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _eager(x: Tensor, q: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    xr = eager_block_rotate(x, q)
    return xr, xr @ down.to(x.dtype).t()


def _triton_unsupported(x: Tensor, q: Tensor, down: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import block_rotation

    return block_rotation.unsupported_project(x, q, down)


def _triton(x: Tensor, q: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    from triton_ops import block_rotation

    return block_rotation.rotate_project(x, q, down)


_rotate_project = Operator(
    "rotate_project",
    Implementation("triton", _triton, _triton_unsupported, automatic=never),
    Implementation("eager", _eager),
)


def _forward(x: Tensor, q: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """(xr, p); see the module's docstring."""
    xr, p = _rotate_project(_rows(x), q, down)
    return xr.view(x.shape), p


def _fake(x: Tensor, q: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    return x.new_empty(x.shape), x.new_empty(rows, down.shape[0])


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[0])


def _backward(ctx: Any, dxr: Tensor | None, dp: Tensor | None) -> tuple[Tensor | None, ...]:
    x, q, down, xr = ctx.saved_tensors
    need_x, need_q, need_down = ctx.needs_input_grad
    dx = dq = d_down = None
    # The two products with dp are plain ones, which belong to no kernel.
    if dp is not None and need_down:
        d_down = (dp.mT @ _rows(xr)).to(down.dtype)
    if need_x or need_q:
        if dp is None:
            total = dxr
        elif dxr is None:
            total = (dp @ down.to(dp.dtype)).view(x.shape)
        else:
            total = torch.addmm(_rows(dxr), dp, down.to(dp.dtype)).view(x.shape)
        if total is not None:
            dx = block_rotate(total, q.mT) if need_x else None
            dq = block_rotate_weight_gradient(x, total, q) if need_q else None
    return dx, dq, d_down


rotate_project = operator("rotate_project", _forward, _fake, _setup, _backward)
