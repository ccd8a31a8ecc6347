"""The apply stage: a linear layer, or any base output, plus a rank-R update.

    p = x downᵀ            y = x Wᵀ + b + p upᵀ
    q = dy up              dx = dy W + q down        d_up = dyᵀ p        d_down = qᵀ x

x (..., K), W (N, K), b (N,), down (R, K), up (N, R), p (M, R), y (..., N), M the number of rows of x. Of the
activations only x and p are saved. With no W the update is added to a given base output: y = base + p upᵀ, dx = q down.
With dropout, the first `dropped_rank` columns of p and rows of d_down see x with elements dropped, and dx passes the
same mask (`ops.dropout`); the seed is saved, not the mask.

All tensors share a device, and all but the factors a dtype; down and up may have another: they are rounded to x's for
the products, and their gradients come in their own. `hybrid_kernels.functional` checks that, and shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops import dropout as seeded
from hybrid_kernels.ops.backend import Implementation, Operator, current_variant, gpu_wins
from hybrid_kernels.ops.registration import operator
from triton_ops import Dropout

Pair = tuple[Tensor, Tensor]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _eager_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Pair:
    if not down.dtype == up.dtype == x.dtype:
        down, up = down.to(x.dtype), up.to(x.dtype)
    p = x @ down.t()
    y = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    return y.addmm_(p, up.t()), p


def _eager_add(base: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Pair:
    p = x @ down.t().to(x.dtype)
    return torch.addmm(base, p, up.t().to(x.dtype)), p


def _eager_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, down: Tensor, up: Tensor, p: Tensor, needs: list[bool]
) -> Gradients:
    need_x, need_down, need_up = needs
    dx = d_down = d_up = None
    if need_up:
        # Faster in BLAS than dyᵀ p by more than the small copy costs.
        d_up = (p.t() @ dy).t().to(up.dtype).contiguous()
    if need_x or need_down:
        q = dy @ up.to(dy.dtype)
        if need_down:
            d_down = (q.t() @ x).to(down.dtype)
        if need_x:
            narrow = down.to(dy.dtype)
            dx = q @ narrow if weight is None else (dy @ weight).addmm_(q, narrow)
    return dx, d_down, d_up


# Dropout for implementations that know none: the rows of down that see the dropped x go apart from the others.


def _dropping_linear(linear: Callable[..., Pair], add: Callable[..., Pair]) -> Callable[..., Pair]:
    def run(
        x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, dropout: Dropout | None
    ) -> Pair:
        if dropout is None:
            return linear(x, weight, bias, down, up)
        r = dropout.dropped_rank
        if r == down.shape[0]:
            return add(torch.nn.functional.linear(x, weight, bias), seeded.compute(x, dropout), down, up)
        y, p = linear(x, weight, bias, down[r:], up[:, r:])
        y, low = add(y, seeded.compute(x, dropout), down[:r], up[:, :r])
        return y, torch.cat([low, p], dim=1)

    return run


def _dropping_add(add: Callable[..., Pair]) -> Callable[..., Pair]:
    def run(base: Tensor, x: Tensor, down: Tensor, up: Tensor, dropout: Dropout | None) -> Pair:
        if dropout is None:
            return add(base, x, down, up)
        r = dropout.dropped_rank
        y, low = add(base, seeded.compute(x, dropout), down[:r], up[:, :r])
        if r == down.shape[0]:
            return y, low
        y, p = add(y, x, down[r:], up[:, r:])
        return y, torch.cat([low, p], dim=1)

    return run


def _dropping_backward(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    def run(
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        down: Tensor,
        up: Tensor,
        p: Tensor,
        needs: list[bool],
        dropout: Dropout | None,
    ) -> Gradients:
        if dropout is None:
            return backward(dy, x, weight, down, up, p, needs)
        r = dropout.dropped_rank
        seen = seeded.compute(x, dropout) if needs[1] else x
        low = backward(dy, seen, None, down[:r], up[:, :r], p[:, :r], needs)
        dx = None if low[0] is None else seeded.compute(low[0], dropout)
        if r == down.shape[0]:
            return dx if dx is None or weight is None else dx.addmm_(dy, weight), low[1], low[2]
        rest = backward(dy, x, weight, down[r:], up[:, r:], p[:, r:], needs)
        return (
            dx if dx is None or rest[0] is None else dx.add_(rest[0]),
            None if low[1] is None or rest[1] is None else torch.cat([low[1], rest[1]]),
            None if low[2] is None or rest[2] is None else torch.cat([low[2], rest[2]], dim=1),
        )

    return run


# Triton is imported when a kernel is first asked for: it costs more than importing this whole package.
def _triton_unsupported(
    x: Tensor, weight: Tensor | None, down: Tensor, up: Tensor, variant: str | None = None
) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import low_rank

    return low_rank.unsupported(x, weight, down, up, variant)


def _triton_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, dropout: Dropout | None
) -> Pair:
    from triton_ops import low_rank

    return low_rank.forward(x, weight, bias, down, up, dropout, current_variant())


def _triton_add(base: Tensor, x: Tensor, down: Tensor, up: Tensor, dropout: Dropout | None) -> Pair:
    from triton_ops import low_rank

    return low_rank.add_forward(base, x, down, up, dropout)


def _triton_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    down: Tensor,
    up: Tensor,
    p: Tensor,
    needs: list[bool],
    dropout: Dropout | None,
) -> Gradients:
    from triton_ops import low_rank

    need_x, need_down, need_up = needs
    return low_rank.backward(
        dy, x, weight, down, up, p, need_x, need_down, need_up, dropout, current_variant()
    )


def _cpp_preferred(x: Tensor, down: Tensor, up: Tensor) -> bool:
    return _extension.skinny_preferred(x.shape[0], down.shape[0], x) and x.dtype == down.dtype == up.dtype


def _cpp_unsupported(x: Tensor, down: Tensor, up: Tensor) -> str | None:
    if not x.dtype == down.dtype == up.dtype:
        return f"x has dtype {x.dtype}, down {down.dtype}, up {up.dtype}; the C++ kernel takes one"
    return _extension.unsupported_floating(x)


def _cpp_linear(*args: Any) -> Pair:
    return torch.ops.hybrid_kernels_cpp.low_rank_linear.default(*args)


def _cpp_add(*args: Any) -> Pair:
    return torch.ops.hybrid_kernels_cpp.low_rank_add.default(*args)


def _cpp_backward(*args: Any) -> Gradients:
    return torch.ops.hybrid_kernels_cpp.low_rank_backward.default(*args[:-1], *args[-1])


_linear = Operator(
    "low_rank_linear",
    Implementation(
        "triton",
        _triton_linear,
        lambda x, weight, bias, down, up, _: _triton_unsupported(x, weight, down, up, current_variant()),
        automatic=lambda x, weight, bias, down, up, _: gpu_wins("low_rank_linear", x, *x.shape, *up.shape),
    ),
    Implementation(
        "cpp",
        _dropping_linear(_cpp_linear, _cpp_add),
        lambda x, weight, bias, down, up, _: _cpp_unsupported(x, down, up),
        automatic=lambda x, weight, bias, down, up, _: _cpp_preferred(x, down, up),
    ),
    Implementation("eager", _dropping_linear(_eager_linear, _eager_add)),
)
_add = Operator(
    "low_rank_add",
    Implementation(
        "triton",
        _triton_add,
        lambda base, x, down, up, _: _triton_unsupported(x, None, down, up),
        automatic=lambda base, x, down, up, _: gpu_wins("low_rank_add", x, *x.shape, *up.shape),
    ),
    Implementation(
        "cpp",
        _dropping_add(_cpp_add),
        lambda base, x, down, up, _: _cpp_unsupported(x, down, up),
        automatic=lambda base, x, down, up, _: _cpp_preferred(x, down, up),
    ),
    Implementation("eager", _dropping_add(_eager_add)),
)
_backward = Operator(
    "low_rank_backward",
    Implementation(
        "triton",
        _triton_backward,
        lambda dy, x, weight, down, up, *_: _triton_unsupported(x, weight, down, up),
        automatic=lambda dy, x, weight, down, up, *_: gpu_wins("low_rank_backward", x, *x.shape, *up.shape),
    ),
    Implementation(
        "cpp",
        _dropping_backward(_cpp_backward),
        lambda dy, x, weight, down, up, *_: _cpp_unsupported(x, down, up),
        automatic=lambda dy, x, weight, down, up, *_: _cpp_preferred(x, down, up),
    ),
    Implementation("eager", _dropping_backward(_eager_backward)),
)


def compute(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Pair:
    """(y, p) for the rows x (M, K), without dropout, not differentiable; see the module's docstring."""
    return _linear(x, weight, bias, down, up, None)


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def row_count(x: Tensor) -> int:
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
    dropout: float = 0.0,
    dropped_rank: int = 0,
    seed: Optional[Tensor] = None,  # noqa: UP045
) -> tuple[Tensor, Tensor]:
    """(y, p) for y = x Wᵀ + b + p upᵀ; see the module's docstring."""
    y, p = _linear(rows(x), weight, bias, down, up, seeded.active(dropout, dropped_rank, seed))
    return y.view(*x.shape[:-1], weight.shape[0]), p


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, *_: Any) -> Pair:
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(row_count(x), down.shape[0])


def _add_forward(
    base: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    dropout: float = 0.0,
    dropped_rank: int = 0,
    seed: Optional[Tensor] = None,  # noqa: UP045
) -> tuple[Tensor, Tensor]:
    """(y, p) for y = base + p upᵀ; see the module's docstring."""
    y, p = _add(rows(base), rows(x), down, up, seeded.active(dropout, dropped_rank, seed))
    return y.view(base.shape), p


def _add_fake(base: Tensor, x: Tensor, down: Tensor, up: Tensor, *_: Any) -> Pair:
    return base.new_empty(base.shape), x.new_empty(row_count(x), down.shape[0])


def _backward_forward(
    dy: Tensor,
    x: Tensor,
    weight: Optional[Tensor],  # noqa: UP045
    down: Tensor,
    up: Tensor,
    p: Tensor,
    needs: list[bool],
    dropout: float = 0.0,
    dropped_rank: int = 0,
    seed: Optional[Tensor] = None,  # noqa: UP045
) -> list[Tensor]:
    """Those of dx, d_down, d_up that ``needs`` asks for, in that order."""
    mask = seeded.active(dropout, dropped_rank, seed)
    dx, d_down, d_up = _backward(rows(dy), rows(x), weight, down, up, p, needs, mask)
    gradients = (dx if dx is None else dx.view(x.shape), d_down, d_up)
    return [gradient for gradient in gradients if gradient is not None]


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    down: Tensor,
    up: Tensor,
    p: Tensor,
    needs: list[bool],
    *_: Any,
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, needed in zip((x, down, up), needs, strict=True) if needed]


low_rank_backward = operator("low_rank_backward", _backward_forward, _backward_fake)


def _gradients(
    ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None, factors: list[Tensor], needs: list[bool]
) -> list[Tensor | None]:
    down, up, p, *rest = factors
    dropout = (ctx.dropout, ctx.dropped_rank, rest[0] if rest else None)
    computed = iter(low_rank_backward(dy, x, weight, down, up, p, needs, *dropout) if any(needs) else [])
    return [next(computed) if needed else None for needed in needs]


def _save(
    ctx: Any, tensors: list[Tensor], dropout: float = 0.0, dropped_rank: int = 0, seed: Tensor | None = None
) -> None:
    ctx.set_materialize_grads(False)
    ctx.dropout, ctx.dropped_rank = dropout, dropped_rank
    ctx.save_for_backward(*tensors, *([] if seed is None else [seed]))


def base_gradients(
    dy: Tensor, x: Tensor, need_weight: bool, need_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dW and db. The base layer is frozen as a rule, so these two products belong to no kernel."""
    d_weight = rows(dy).mT @ rows(x) if need_weight else None
    return d_weight, rows(dy).sum(0) if need_bias else None


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, down, up, *dropout = inputs
    ctx.mark_non_differentiable(output[1])
    _save(ctx, [x, weight, down, up, output[1]], *dropout)


def _linear_backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    x, weight, *factors = ctx.saved_tensors
    need_x, need_weight, need_bias, need_down, need_up, *_rest = ctx.needs_input_grad
    dx, d_down, d_up = _gradients(ctx, dy, x, weight, factors, [need_x, need_down, need_up])
    return dx, *base_gradients(dy, x, need_weight, need_bias), d_down, d_up, None, None, None


def _add_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, x, down, up, *dropout = inputs
    ctx.mark_non_differentiable(output[1])
    _save(ctx, [x, down, up, output[1]], *dropout)


def _add_backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    x, *factors = ctx.saved_tensors
    need_base, need_x, need_down, need_up, *_rest = ctx.needs_input_grad
    dx, d_down, d_up = _gradients(ctx, dy, x, None, factors, [need_x, need_down, need_up])
    return dy if need_base else None, dx, d_down, d_up, None, None, None


low_rank_linear = operator("low_rank_linear", _linear_forward, _linear_fake, _linear_setup, _linear_backward)
low_rank_add = operator("low_rank_add", _add_forward, _add_fake, _add_setup, _add_backward)
