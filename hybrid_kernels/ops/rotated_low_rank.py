"""A rotation of the input before a linear layer and its low-rank update, the rotation fused with the projection.

    r = x diag(q₁, …, q_k)        p = r downᵀ        y = r Wᵀ + b + p upᵀ
    dr, d_down, d_up as in `ops.low_rank` with r for x        dx_j = dr_j q_jᵀ        dq_j = Σ_rows x_jᵀ dr_j

x, r (..., K), q (k, b, b) with k·b = K, all real; the rest as in `ops.low_rank`. x is read once for r and p together.
Of the activations x, r and p are saved.
"""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

import triton_ops
from hybrid_kernels.ops import block_rotation, low_rank
from hybrid_kernels.ops.backend import Implementation, Operator, current_variant, gpu_wins
from hybrid_kernels.ops.registration import operator

Outputs = tuple[Tensor, Tensor, Tensor]


def _triton_unsupported(x: Tensor, q: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import block_rotation as rotation_kernels
    from triton_ops import low_rank as kernels

    return rotation_kernels.unsupported_project(x, q, down) or kernels.unsupported(x, weight, down, up)


def _triton(x: Tensor, q: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Outputs:
    from triton_ops import block_rotation as rotation_kernels
    from triton_ops import low_rank as kernels

    rotated, p = rotation_kernels.rotate_project(x, q, down)
    y, p = kernels.forward(rotated, weight, bias, down, up, variant=current_variant(), p=p)
    return y, rotated, p


def _eager(x: Tensor, q: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Outputs:
    rotated = block_rotation.compute(x, q)
    y, p = low_rank.compute(rotated, weight, bias, down, up)
    return y, rotated, p


_linear = Operator(
    "rotated_low_rank_linear",
    Implementation(
        "triton",
        _triton,
        lambda x, q, weight, bias, down, up: _triton_unsupported(x, q, weight, down, up),
        automatic=lambda x, q, weight, bias, down, up: gpu_wins(
            "rotated_low_rank_linear", x, *x.shape, *up.shape
        ),
    ),
    Implementation("eager", _eager),  # of two operators, each with a choice of its own
)


def _forward(
    x: Tensor,
    q: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045 (torch.library reads the schema from the annotations)
    down: Tensor,
    up: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, r, p); see the module's docstring."""
    y, rotated, p = _linear(x.reshape(-1, x.shape[-1]), q, weight, bias, down, up)
    return y.view(*x.shape[:-1], weight.shape[0]), rotated.view(x.shape), p


def _fake(x: Tensor, q: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Outputs:
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    return y, x.new_empty(x.shape), x.new_empty(low_rank.row_count(x), down.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    x, q, weight, _, down, up = inputs
    _, rotated, p = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(rotated, p)
    ctx.save_for_backward(x, q, weight, down, up, rotated, p)


def _backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    x, q, weight, down, up, rotated, p = ctx.saved_tensors
    need_x, need_q, need_weight, need_bias, need_down, need_up = ctx.needs_input_grad
    needs = [need_x or need_q, need_down, need_up]
    computed = iter(low_rank.low_rank_backward(dy, rotated, weight, down, up, p, needs) if any(needs) else [])
    d_rotated, d_down, d_up = (next(computed) if needed else None for needed in needs)
    dx = dq = None
    if d_rotated is not None:
        dx = block_rotation.block_rotate(d_rotated, q.mT) if need_x else None
        dq = block_rotation.block_rotate_weight_gradient(x, d_rotated, q) if need_q else None
    d_weight, d_bias = low_rank.base_gradients(dy, rotated, need_weight, need_bias)
    return dx, dq, d_weight, d_bias, d_down, d_up


rotated_low_rank_linear = operator("rotated_low_rank_linear", _forward, _fake, _setup, _backward)
