"""Rows times a block butterfly: a product of permuted block-diagonal matrices, as in BOFT.

    y = x M_{m−1} ⋯ M₁ M₀        M_i = P_i diag(q_i1, …, q_ik) P_iᵀ
    x_i = x M_{m−1} ⋯ M_{i+1}    g_i = dy M₀ᵀ ⋯ M_{i−1}ᵀ    dq_ij = Σ_rows (x_i P_i)_jᵀ (g_i P_i)_j    dx = g_m

x, y, dy (..., k·b), q, dq (m, k, b, b), m > 1, b even, k divisible by 2^(m−1). At level i the features are groups of
(2, 2^i, b/2), and block j of a group is [:, j, :]: two half-blocks 2^i apart. So a permutation is a transposition, and
from one level to the next there is one. The backward saves x and q and makes the x_i again. q may have another dtype
than x: it is rounded to x's, and its gradient has its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator, gpu_wins
from hybrid_kernels.ops.registration import operator


def _to_blocks(x: Tensor, level: int, b: int) -> Tensor:
    """x (rows, k·b) as the blocks (k, rows, b) of a level, contiguous."""
    rows, features = x.shape
    halves = x.view(rows, features // (b << level), 2, 1 << level, b // 2)
    return halves.permute(1, 3, 0, 2, 4).reshape(features // b, rows, b)


def _from_blocks(blocks: Tensor, level: int) -> Tensor:
    """x (rows, k·b) of its blocks (k, rows, b) at a level, contiguous."""
    k, rows, b = blocks.shape
    halves = blocks.view(k >> level, 1 << level, rows, 2, b // 2)
    return halves.permute(2, 0, 3, 1, 4).reshape(rows, k * b)


def _next_down(blocks: Tensor, level: int) -> Tensor:
    """The blocks (k, rows, b) of ``level`` as those of the level below."""
    k, rows, b = blocks.shape
    # Half t of block (u, j) of a group lies at u 2^(level−1) + j of half t of the group, which is a group below.
    halves = blocks.view(k >> level, 2, 1 << (level - 1), rows, 2, b // 2)
    return halves.transpose(1, 4).reshape(k, rows, b)


def _next_up(blocks: Tensor, level: int) -> Tensor:
    """The blocks (k, rows, b) of ``level`` as those of the level above: `_next_down` is its own inverse."""
    return _next_down(blocks, level + 1)


def _eager(x: Tensor, q: Tensor) -> Tensor:
    top = q.shape[0] - 1
    q = q.to(x.dtype)
    blocks = _to_blocks(x, top, q.shape[-1])
    for level in range(top, 0, -1):
        blocks = _next_down(torch.bmm(blocks, q[level]), level)
    return _from_blocks(torch.bmm(blocks, q[0]), 0)


def _eager_backward(dy: Tensor, x: Tensor, q: Tensor, need_x: bool, need_q: bool) -> list[Tensor]:
    top = q.shape[0] - 1
    rounded = q.to(x.dtype)
    inputs = []  # of each level, the highest first
    if need_q:
        inputs.append(_to_blocks(x, top, q.shape[-1]))
        for level in range(top, 0, -1):
            inputs.append(_next_down(torch.bmm(inputs[-1], rounded[level]), level))
    d_q = []
    gradient = _to_blocks(dy, 0, q.shape[-1])
    for level in range(top + 1):
        if need_q:
            d_q.append(torch.bmm(inputs.pop().mT, gradient))
        if need_x or level < top:
            gradient = torch.bmm(gradient, rounded[level].mT)
        if level < top:
            gradient = _next_up(gradient, level)
    results = [_from_blocks(gradient, top)] if need_x else []
    return [*results, torch.stack(d_q).to(q.dtype)] if need_q else results


def _triton_unsupported(x: Tensor, q: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import block_rotation

    return block_rotation.unsupported(x, q)


def _triton_wins(x: Tensor, q: Tensor) -> bool:
    """As of the block rotation that each level is: butterflies have no measurement of their own."""
    return gpu_wins("block_rotate", x, x.shape[0], x.shape[1], 1, q.shape[-1])


def _triton(x: Tensor, q: Tensor) -> Tensor:
    from triton_ops import block_rotation

    for level in range(q.shape[0] - 1, -1, -1):
        x = block_rotation.rotate(x, q[level], level)
    return x


def _triton_backward(dy: Tensor, x: Tensor, q: Tensor, need_x: bool, need_q: bool) -> list[Tensor]:
    from triton_ops import block_rotation

    top = q.shape[0] - 1
    inputs = [x]  # of each level, the highest first
    for level in range(top, 0, -1) if need_q else ():
        inputs.append(block_rotation.rotate(inputs[-1], q[level], level))
    d_q = []
    for level in range(top + 1):
        if need_q:
            d_q.append(block_rotation.weight_gradient(inputs.pop(), dy, q[level], level))
        if need_x or level < top:
            dy = block_rotation.rotate(dy, q[level].mT, level)
    results = [dy] if need_x else []
    return [*results, torch.stack(d_q)] if need_q else results


def _cpp(x: Tensor, q: Tensor) -> Tensor:
    return torch.ops.hybrid_kernels_cpp.butterfly_rotate.default(x, q.to(x.dtype))


def _cpp_backward(dy: Tensor, x: Tensor, q: Tensor, need_x: bool, need_q: bool) -> list[Tensor]:
    backward = torch.ops.hybrid_kernels_cpp.butterfly_backward.default
    dx, d_q = backward(dy, x, q.to(x.dtype), need_x, need_q)
    results = [dx] if need_x else []
    return [*results, d_q.to(q.dtype)] if need_q else results


_rotate = Operator(
    "butterfly_rotate",
    Implementation("triton", _triton, _triton_unsupported, automatic=_triton_wins),
    Implementation(
        "cpp",
        _cpp,
        lambda x, q: _extension.unsupported_floating(x),
        automatic=lambda x, q: _extension.block_rotation_preferred(x, q.shape[-1]),
    ),
    Implementation("eager", _eager),
)
_gradients = Operator(
    "butterfly_rotate_backward",
    Implementation(
        "triton",
        _triton_backward,
        lambda dy, x, q, *_: _triton_unsupported(x, q),
        automatic=lambda dy, x, q, *_: _triton_wins(x, q),
    ),
    Implementation(
        "cpp",
        _cpp_backward,
        lambda dy, x, *_: _extension.unsupported_floating(x),
        automatic=lambda dy, x, q, *_: _extension.block_rotation_preferred(x, q.shape[-1]),
    ),
    Implementation("eager", _eager_backward),
)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _forward(x: Tensor, q: Tensor) -> Tensor:
    """y (..., k·b); see the module's docstring."""
    return _rotate(_rows(x), q).view(x.shape)


def _backward_forward(dy: Tensor, x: Tensor, q: Tensor, need_x: bool, need_q: bool) -> list[Tensor]:
    """dx (..., k·b) and dq (m, k, b, b), those of them that are needed."""
    gradients = _gradients(_rows(dy), _rows(x), q, need_x, need_q)
    return [gradients[0].view(x.shape), *gradients[1:]] if need_x else gradients


def _backward_fake(dy: Tensor, x: Tensor, q: Tensor, need_x: bool, need_q: bool) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor, need in ((x, need_x), (q, need_q)) if need]


butterfly_rotate_backward = operator("butterfly_rotate_backward", _backward_forward, _backward_fake)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    need_x, need_q = ctx.needs_input_grad
    gradients = iter(butterfly_rotate_backward(dy, *ctx.saved_tensors, need_x, need_q))
    return next(gradients) if need_x else None, next(gradients) if need_q else None


butterfly_rotate = operator(
    "butterfly_rotate", _forward, lambda x, q: x.new_empty(x.shape), _setup, _backward
)
