"""Rows times a block-diagonal matrix.

    y_j = x_j q_j        dx_j = dy_j q_jᴴ        dq_j = Σ_rows x_jᴴ dy_j        (j = 1 … k)

x, y (..., k·b), q (k, b, b); x_j is the j-th run of b features. q may have another dtype than x: it is rounded to x's,
and its gradient has its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator, gpu_wins
from hybrid_kernels.ops.registration import operator


def _blocks(x: Tensor, q: Tensor) -> Tensor:
    """x (..., k·b) as (k, rows, b): a view wherever the rows of x can be viewed."""
    return x.reshape(-1, q.shape[0], q.shape[1]).transpose(0, 1)


def _eager(x: Tensor, q: Tensor) -> Tensor:
    return torch.bmm(_blocks(x, q), q.to(x.dtype)).transpose(0, 1).reshape(x.shape)


def _eager_weight_gradient(x: Tensor, dy: Tensor, q: Tensor) -> Tensor:
    return torch.bmm(_blocks(x, q).mT.conj_physical(), _blocks(dy, q)).to(q.dtype)


def _triton_unsupported(x: Tensor, q: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import block_rotation

    return block_rotation.unsupported(x, q)


def _triton_wins(x: Tensor, q: Tensor) -> bool:
    rows = x.numel() // max(x.shape[-1], 1)
    return gpu_wins("block_rotate", x, rows, x.shape[-1], 1, q.shape[-1])


def _triton(x: Tensor, q: Tensor) -> Tensor:
    from triton_ops import block_rotation

    return block_rotation.rotate(x.reshape(-1, x.shape[-1]), q).view(x.shape)


def _triton_weight_gradient(x: Tensor, dy: Tensor, q: Tensor) -> Tensor:
    from triton_ops import block_rotation

    return block_rotation.weight_gradient(x.reshape(-1, x.shape[-1]), dy.reshape(-1, x.shape[-1]), q)


def _cpp(x: Tensor, q: Tensor) -> Tensor:
    rotate = torch.ops.hybrid_kernels_cpp.butterfly_rotate.default
    return rotate(x.reshape(-1, x.shape[-1]), q.to(x.dtype)[None]).view(x.shape)


def _cpp_weight_gradient(x: Tensor, dy: Tensor, q: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    backward = torch.ops.hybrid_kernels_cpp.butterfly_backward.default
    return backward(dy.reshape(rows.shape), rows, q.to(x.dtype)[None], False, True)[1][0].to(q.dtype)


def _cpp_preferred(x: Tensor, q: Tensor) -> bool:
    return _extension.block_rotation_preferred(x, q.shape[-1])


_rotate = Operator(
    "block_rotate",
    Implementation("triton", _triton, _triton_unsupported, automatic=_triton_wins),
    Implementation("cpp", _cpp, lambda x, q: _extension.unsupported_floating(x), automatic=_cpp_preferred),
    Implementation("eager", _eager),
)
_weight_gradient = Operator(
    "block_rotate_weight_gradient",
    Implementation(
        "triton",
        _triton_weight_gradient,
        lambda x, dy, q: _triton_unsupported(x, q),
        automatic=lambda x, dy, q: _triton_wins(x, q),
    ),
    Implementation(
        "cpp",
        _cpp_weight_gradient,
        lambda x, dy, q: _extension.unsupported_floating(x),
        automatic=lambda x, dy, q: _cpp_preferred(x, q),
    ),
    Implementation("eager", _eager_weight_gradient),
)


def compute(x: Tensor, q: Tensor) -> Tensor:
    """y (..., k·b), not differentiable; see the module's docstring."""
    return _rotate(x, q)


def _weight_gradient_forward(x: Tensor, dy: Tensor, q: Tensor) -> Tensor:
    """dq (k, b, b); ``q`` gives the shape and dtype."""
    return _weight_gradient(x, dy, q)


block_rotate_weight_gradient = operator(
    "block_rotate_weight_gradient", _weight_gradient_forward, lambda x, dy, q: q.new_empty(q.shape)
)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, q = ctx.saved_tensors
    need_x, need_q = ctx.needs_input_grad
    dx = block_rotate(dy, q.mT.conj_physical()) if need_x else None  # a view where q is real
    return dx, block_rotate_weight_gradient(x, dy, q) if need_q else None


block_rotate = operator("block_rotate", compute, lambda x, q: x.new_empty(x.shape), _setup, _backward)
