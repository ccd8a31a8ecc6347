"""The apply stage: a linear layer, or any base output, plus a rank-R update.

    p = x downᵀ            y = x Wᵀ + b + p upᵀ
    q = dy up              dx = dy W + q down        d_up = dyᵀ p        d_down = qᵀ x

x (..., K), W (N, K), b (N,), down (R, K), up (N, R), p (M, R), y (..., N), M the number of rows of x. Of the
activations only x and p are saved. With no W the update is added to a given base output: y = base + p upᵀ, dx = q down.
All tensors of a call share one dtype and device; `hybrid_kernels.functional` sees to that and checks shapes.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator, never
from hybrid_kernels.ops.registration import operator


def _eager_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    p = x @ down.t()
    y = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    return y.addmm_(p, up.t()), p


def _eager_add(base: Tensor, x: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    p = x @ down.t()
    return torch.addmm(base, p, up.t()), p


def _eager_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, down: Tensor, up: Tensor, p: Tensor, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    need_x, need_down, need_up = needs
    dx = d_down = d_up = None
    if need_up:
        d_up = (p.t() @ dy).t().contiguous()  # faster in BLAS than dyᵀ p by more than the small copy costs
    if need_x or need_down:
        q = dy @ up
        if need_down:
            d_down = q.t() @ x
        if need_x:
            dx = q @ down if weight is None else (dy @ weight).addmm_(q, down)
    return dx, d_down, d_up


# Triton is imported when a kernel is first asked for: it costs more than importing this whole package.
def _triton_unsupported(x: Tensor, weight: Tensor | None, down: Tensor, up: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import low_rank

    return low_rank.unsupported(x, weight, down, up)


def _triton_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    from triton_ops import low_rank

    return low_rank.forward(x, weight, bias, down, up)


def _triton_add(base: Tensor, x: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    from triton_ops import low_rank

    return low_rank.add_forward(base, x, down, up)


def _triton_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, down: Tensor, up: Tensor, p: Tensor, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    from triton_ops import low_rank

    return low_rank.backward(dy, x, weight, down, up, p, *needs)


def _cpp_preferred(x: Tensor, down: Tensor) -> bool:
    return _extension.skinny_preferred(x.shape[0], down.shape[0], x)


_linear = Operator(
    "low_rank_linear",
    Implementation(
        "triton",
        _triton_linear,
        lambda x, weight, bias, down, up: _triton_unsupported(x, weight, down, up),
        automatic=never,
    ),
    Implementation(
        "cpp",
        lambda *args: torch.ops.hybrid_kernels_cpp.low_rank_linear.default(*args),
        lambda x, weight, bias, down, up: _extension.unsupported_floating(x),
        automatic=lambda x, weight, bias, down, up: _cpp_preferred(x, down),
    ),
    Implementation("eager", _eager_linear),
)
_add = Operator(
    "low_rank_add",
    Implementation(
        "triton",
        _triton_add,
        lambda base, x, down, up: _triton_unsupported(x, None, down, up),
        automatic=never,
    ),
    Implementation(
        "cpp",
        lambda *args: torch.ops.hybrid_kernels_cpp.low_rank_add.default(*args),
        lambda base, x, down, up: _extension.unsupported_floating(x),
        automatic=lambda base, x, down, up: _cpp_preferred(x, down),
    ),
    Implementation("eager", _eager_add),
)
_backward = Operator(
    "low_rank_backward",
    Implementation(
        "triton",
        _triton_backward,
        lambda dy, x, weight, down, up, p, needs: _triton_unsupported(x, weight, down, up),
        automatic=never,
    ),
    Implementation(
        "cpp",
        lambda *args: torch.ops.hybrid_kernels_cpp.low_rank_backward.default(*args[:-1], *args[-1]),
        lambda dy, x, weight, down, up, p, needs: _extension.unsupported_floating(x),
        automatic=lambda dy, x, weight, down, up, p, needs: _cpp_preferred(x, down),
    ),
    Implementation("eager", _eager_backward),
)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _row_count(x: Tensor) -> int:
    count = 1
    for size in x.shape[:-1]:
        count *= size
    return count


def _linear_forward(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045 (torch.library reads the schema from the annotations)
    down: Tensor,
    up: Tensor,
) -> tuple[Tensor, Tensor]:
    """(y, p) for y = x Wᵀ + b + p upᵀ; see the module's docstring."""
    y, p = _linear(_rows(x), weight, bias, down, up)
    return y.view(*x.shape[:-1], weight.shape[0]), p


def _linear_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(_row_count(x), down.shape[0])


def _add_forward(base: Tensor, x: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(y, p) for y = base + p upᵀ; see the module's docstring."""
    y, p = _add(_rows(base), _rows(x), down, up)
    return y.view(base.shape), p


def _add_fake(base: Tensor, x: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return base.new_empty(base.shape), x.new_empty(_row_count(x), down.shape[0])


def _backward_forward(
    dy: Tensor,
    x: Tensor,
    weight: Optional[Tensor],  # noqa: UP045
    down: Tensor,
    up: Tensor,
    p: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Those of dx, d_down, d_up that ``needs`` asks for, in that order."""
    dx, d_down, d_up = _backward(_rows(dy), _rows(x), weight, down, up, p, needs)
    gradients = (dx if dx is None else dx.view(x.shape), d_down, d_up)
    return [gradient for gradient in gradients if gradient is not None]


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor | None, down: Tensor, up: Tensor, p: Tensor, needs: list[bool]
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, needed in zip((x, down, up), needs, strict=True) if needed]


low_rank_backward = operator("low_rank_backward", _backward_forward, _backward_fake)


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, down: Tensor, up: Tensor, p: Tensor, needs: list[bool]
) -> list[Tensor | None]:
    computed = iter(low_rank_backward(dy, x, weight, down, up, p, needs) if any(needs) else [])
    return [next(computed) if needed else None for needed in needs]


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, down, up = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, down, up, output[1])


def _linear_backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None, None
    x, weight, down, up, p = ctx.saved_tensors
    need_x, need_weight, need_bias, need_down, need_up = ctx.needs_input_grad
    dx, d_down, d_up = _gradients(dy, x, weight, down, up, p, [need_x, need_down, need_up])
    # The base layer is frozen as a rule, so these two products belong to no kernel.
    d_weight = _rows(dy).mT @ _rows(x) if need_weight else None
    d_bias = _rows(dy).sum(0) if need_bias else None
    return dx, d_weight, d_bias, d_down, d_up


def _add_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, x, down, up = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, down, up, output[1])


def _add_backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None
    x, down, up, p = ctx.saved_tensors
    need_base, *needs = ctx.needs_input_grad
    dx, d_down, d_up = _gradients(dy, x, None, down, up, p, needs)
    return dy if need_base else None, dx, d_down, d_up


low_rank_linear = operator("low_rank_linear", _linear_forward, _linear_fake, _linear_setup, _linear_backward)
low_rank_add = operator("low_rank_add", _add_forward, _add_fake, _add_setup, _add_backward)
