"""Rows of x times a chain of Householder reflections, given its factors: the apply stage of a rotation.

    p = x v                y = x − p zᵀ
    q = dy z               dx = dy − q vᵀ          dv = −xᵀ q          dz = −dyᵀ p

x, y (..., K); v, z (K, n); p (M, n), M the number of rows of x. With v, t of `householder_factors`, z = v t gives x Hᵀ
and z = v tᵀ gives x H. v and z may have another dtype than x, as float32 factors beside half-precision activations
have: they are rounded to x's for the products, and their gradients come back in their own. Of the activations only x
and p are saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator, gpu_wins
from hybrid_kernels.ops.low_rank import row_count, rows
from hybrid_kernels.ops.registration import operator

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _eager(x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    p = x @ v.to(x.dtype)
    return torch.addmm(x, p, z.to(x.dtype).t(), alpha=-1), p


def _eager_backward(dy: Tensor, x: Tensor, v: Tensor, z: Tensor, p: Tensor, needs: list[bool]) -> Gradients:
    need_x, need_v, need_z = needs
    dx = dv = dz = None
    if need_x or need_v:
        q = dy @ z.to(dy.dtype)
        if need_x:
            dx = torch.addmm(dy, q, v.to(dy.dtype).t(), alpha=-1)
        if need_v:
            dv = _negated_transpose(q.t() @ x, v)
    if need_z:
        dz = _negated_transpose(p.t() @ dy, z)
    return dx, dv, dz


def _negated_transpose(product: Tensor, like: Tensor) -> Tensor:
    """−productᵀ, contiguous: faster in BLAS than the product transposed by more than this small copy costs."""
    return product.t().to(like.dtype).contiguous().neg_()


# Triton is imported when a kernel is first asked for: it costs more than importing this whole package.
def _triton_unsupported(x: Tensor, v: Tensor, z: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import householder_rotation

    return householder_rotation.unsupported(x, v, z)


def _triton_wins(x: Tensor, v: Tensor) -> bool:
    return gpu_wins("householder_rotate", x, x.shape[0], x.shape[1], 1, v.shape[1])


def _triton(x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    from triton_ops import householder_rotation

    return householder_rotation.forward(x, v, z)


def _triton_backward(dy: Tensor, x: Tensor, v: Tensor, z: Tensor, p: Tensor, needs: list[bool]) -> Gradients:
    from triton_ops import householder_rotation

    return householder_rotation.backward(dy, x, v, z, p, *needs)


def _cpp(x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.hybrid_kernels_cpp.low_rank_add.default(x, x, v.mT, -z)


def _cpp_backward(dy: Tensor, x: Tensor, v: Tensor, z: Tensor, p: Tensor, needs: list[bool]) -> Gradients:
    need_x, need_v, need_z = needs
    dx = q = None
    if need_x:
        dx, q = _cpp(dy, z, v)
    elif need_v:
        q = dy @ z

    def minus_product(a: Tensor, b: Tensor) -> Tensor:
        """−aᵀ b, which is what the compiled backward computes for `up`, with a for dy and b for p."""
        product = torch.ops.hybrid_kernels_cpp.low_rank_backward.default
        return product(a, a, None, v.mT, z, b, False, False, True)[2].neg_()

    dv = minus_product(x, q) if need_v and q is not None else None
    return dx, dv, minus_product(dy, p) if need_z else None


def _cpp_unsupported(x: Tensor, v: Tensor, z: Tensor) -> str | None:
    for name, factor in (("v", v), ("z", z)):
        if factor.dtype != x.dtype:
            return f"{name} has dtype {factor.dtype}, x {x.dtype}; the C++ kernel takes one"
    return _extension.unsupported_floating(x)


def _cpp_preferred(x: Tensor, v: Tensor, z: Tensor) -> bool:
    return v.dtype == z.dtype == x.dtype and _extension.skinny_preferred(x.shape[0], v.shape[1], x)


_rotate = Operator(
    "householder_rotate",
    Implementation("triton", _triton, _triton_unsupported, automatic=lambda x, v, z: _triton_wins(x, v)),
    Implementation("cpp", _cpp, _cpp_unsupported, automatic=_cpp_preferred),
    Implementation("eager", _eager),
)
_backward_operator = Operator(
    "householder_rotate_backward",
    Implementation(
        "triton",
        _triton_backward,
        lambda dy, x, v, z, *_: _triton_unsupported(x, v, z),
        automatic=lambda dy, x, v, z, *_: _triton_wins(x, v),
    ),
    Implementation(
        "cpp",
        _cpp_backward,
        lambda dy, x, v, z, *_: _cpp_unsupported(x, v, z),
        automatic=lambda dy, x, v, z, *_: _cpp_preferred(x, v, z),
    ),
    Implementation("eager", _eager_backward),
)


def _forward(x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(y, p) for y = x − p zᵀ, p = x v; see the module's docstring."""
    y, p = _rotate(rows(x), v, z)
    return y.view(x.shape), p


def _fake(x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(row_count(x), v.shape[1])


def _backward_forward(
    dy: Tensor, x: Tensor, v: Tensor, z: Tensor, p: Tensor, needs: list[bool]
) -> list[Tensor]:
    """Those of dx, dv, dz that ``needs`` asks for, in that order."""
    dx, dv, dz = _backward_operator(rows(dy), rows(x), v, z, p, needs)
    gradients = (dx if dx is None else dx.view(x.shape), dv, dz)
    return [gradient for gradient in gradients if gradient is not None]


def _backward_fake(dy: Tensor, x: Tensor, v: Tensor, z: Tensor, p: Tensor, needs: list[bool]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, needed in zip((x, v, z), needs, strict=True) if needed]


householder_rotate_backward = operator("householder_rotate_backward", _backward_forward, _backward_fake)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad)
    if dy is None or not any(needs):
        return None, None, None
    computed = iter(householder_rotate_backward(dy, *ctx.saved_tensors, needs))
    return tuple(next(computed) if needed else None for needed in needs)


householder_rotate = operator("householder_rotate", _forward, _fake, _setup, _backward)
