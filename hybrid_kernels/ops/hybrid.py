"""The factor pair of the hybrid update of a layer whose weight can be read, made and differentiated in one step.

    v, t = WY factors of u            c = W (v t)
    down = [A; vᵀ]                    up = [λ s B, (λ − 1) c]

W (N, K), A (r, K), B (N, r), u (K, n), λ 0-dim, s a number; down (r + n, K), up (N, r + n). Backward, with the parts of
d_down and d_up named after what they are gradients of:

    dA = d_down[:r]    dB = λ s d_up[:, :r]    dc = (λ − 1) d_up[:, r:]    dλ = s ⟨d_up[:, :r], B⟩ + ⟨d_up[:, r:], c⟩
    dz = Wᵀ dc         dv = d_down[r:]ᵀ + dz tᵀ    dt = vᵀ dz    dW = dc (v t)ᵀ

v, t and z = v t may be given where they have been made already, for many layers at once (`householder.prepare`).
It is what `functional.hybrid_factors` composes for an opaque layer, without a dozen small autograd nodes: on a CPU
those cost as much as the products.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops import householder, projection
from hybrid_kernels.ops.backend import Implementation, Operator, gpu_wins
from hybrid_kernels.ops.precision import without_tf32
from hybrid_kernels.ops.registration import operator

Factors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@without_tf32
def _eager(
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor,
    scaling: float,
    v: Tensor | None = None,
    t: Tensor | None = None,
    z: Tensor | None = None,
) -> Factors:
    if v is None or t is None or z is None:
        v, t = householder.compute(u)
        z = v @ t
    c = projection.compute(weight, z.to(weight.dtype)).to(u.dtype)
    down = torch.cat([lora_A, v.mT])
    up = torch.cat([lora_B * (mixing * scaling), c * (mixing - 1.0)], dim=1)
    return down, up, v, t, c


@without_tf32
def _eager_backward(
    d_down: Tensor,
    d_up: Tensor,
    weight: Tensor,
    lora_B: Tensor,
    u: Tensor,
    v: Tensor,
    t: Tensor,
    c: Tensor,
    mixing: Tensor,
    scaling: float,
    need_B: bool,
    need_u: bool,
    need_mixing: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    r = lora_B.shape[1]
    d_scaled, d_mixed = d_up[:, :r], d_up[:, r:]
    d_B = d_scaled * (mixing * scaling) if need_B else None
    d_u = d_mixing = None
    if need_u:
        dz = projection.compute(weight.mT, (d_mixed * (mixing - 1.0)).to(weight.dtype)).to(u.dtype)
        d_u = householder.householder_backward(u, v, t, torch.addmm(d_down[r:].mT, dz, t.mT), v.mT @ dz)
    if need_mixing:
        d_mixing = (scaling * (d_scaled * lora_B).sum() + (d_mixed * c).sum()).to(mixing.dtype)
    return d_B, d_u, d_mixing


def _triton_unsupported(weight: Tensor, u: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import hybrid

    return hybrid.unsupported(weight, u)


def _triton(
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor,
    scaling: float,
    v: Tensor | None = None,
    t: Tensor | None = None,
    z: Tensor | None = None,
) -> Factors:
    from triton_ops import householder as kernels
    from triton_ops import hybrid

    if v is None or t is None or z is None:
        v, t, z = kernels.factors_with_product(u)
    down, up, c = hybrid.factors(weight, lora_A, lora_B, mixing, scaling, v, z)
    return down, up, v, t, c


def _triton_backward(*args: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    from triton_ops import hybrid

    return hybrid.backward(*args)


def _triton_wins(weight: Tensor, u: Tensor) -> bool:
    return gpu_wins("hybrid_factors", weight, 1, u.shape[0], weight.shape[0], u.shape[1], exact=True)


def _cpp_unsupported(weight: Tensor, u: Tensor) -> str | None:
    if weight.dtype != u.dtype:
        return f"weight has dtype {weight.dtype}, u {u.dtype}; the C++ kernel takes one"
    return _extension.unsupported_floating(weight)


def _cpp_preferred(weight: Tensor, u: Tensor) -> bool:
    return _extension.skinny_preferred(weight.shape[0], u.shape[1], weight) and weight.dtype == u.dtype


_factors = Operator(
    "hybrid_factors",
    Implementation(
        "triton",
        _triton,
        lambda weight, lora_A, lora_B, u, *_: _triton_unsupported(weight, u),
        automatic=lambda weight, lora_A, lora_B, u, *_: _triton_wins(weight, u),
    ),
    Implementation(
        "cpp",
        lambda *args: torch.ops.hybrid_kernels_cpp.hybrid_factors.default(*args[:6]),
        lambda weight, lora_A, lora_B, u, *_: _cpp_unsupported(weight, u),
        automatic=lambda weight, lora_A, lora_B, u, *_: _cpp_preferred(weight, u),
    ),
    Implementation("eager", _eager),
)
_factors_backward = Operator(
    "hybrid_factors_backward",
    Implementation(
        "triton",
        _triton_backward,
        lambda d_down, d_up, weight, lora_B, u, *_: _triton_unsupported(weight, u),
        automatic=lambda d_down, d_up, weight, lora_B, u, *_: _triton_wins(weight, u),
    ),
    Implementation(
        "cpp",
        lambda *args: torch.ops.hybrid_kernels_cpp.hybrid_factors_backward.default(*args),
        lambda d_down, d_up, weight, lora_B, u, *_: _cpp_unsupported(weight, u),
        automatic=lambda d_down, d_up, weight, lora_B, u, *_: _cpp_preferred(weight, u),
    ),
    Implementation("eager", _eager_backward),
)


def _forward(
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor,
    scaling: float,
    v: Optional[Tensor] = None,  # noqa: UP045 (torch.library reads the schema from the annotations)
    t: Optional[Tensor] = None,  # noqa: UP045
    z: Optional[Tensor] = None,  # noqa: UP045
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(down, up, v, t, c); A, B, u of one dtype, W of the same or a narrower one. v and t are empty where given."""
    down, up, made_v, made_t, c = _factors(weight, lora_A, lora_B, u, mixing, scaling, v, t, z)
    if v is not None:  # an operator must not return its inputs
        made_v, made_t = u.new_empty(0), u.new_empty(0)
    return down, up, made_v, made_t, c


def _fake(
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor,
    scaling: float,
    v: Tensor | None = None,
    *_: Any,
) -> Factors:
    (n, r), (k, h) = lora_B.shape, u.shape
    of_v, of_t = ((k, h), (h, h)) if v is None else ((0,), (0,))
    shapes = ((r + h, k), (n, r + h), of_v, of_t, (n, h))
    down, up, v, t, c = (u.new_empty(shape) for shape in shapes)
    return down, up, v, t, c


def _backward_forward(
    d_down: Tensor,
    d_up: Tensor,
    weight: Tensor,
    lora_B: Tensor,
    u: Tensor,
    v: Tensor,
    t: Tensor,
    c: Tensor,
    mixing: Tensor,
    scaling: float,
    needs: list[bool],
) -> list[Tensor]:
    """Those of dB, du, dλ that ``needs`` asks for, in that order."""
    computed = _factors_backward(d_down, d_up, weight, lora_B, u, v, t, c, mixing, scaling, *needs)
    return [gradient for gradient, needed in zip(computed, needs, strict=True) if needed]


def _backward_fake(
    d_down: Tensor,
    d_up: Tensor,
    weight: Tensor,
    lora_B: Tensor,
    u: Tensor,
    v: Tensor,
    t: Tensor,
    c: Tensor,
    mixing: Tensor,
    scaling: float,
    needs: list[bool],
) -> list[Tensor]:
    return [s.new_empty(s.shape) for s, needed in zip((lora_B, u, mixing), needs, strict=True) if needed]


hybrid_factors_backward = operator("hybrid_factors_backward", _backward_forward, _backward_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weight, _, lora_B, u, mixing, ctx.scaling, *ready = inputs
    _, _, v, t, c = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(v, t, c)
    if ready and ready[0] is not None:
        v, t = ready[:2]
    ctx.save_for_backward(weight, lora_B, u, v, t, c, mixing)


def _backward(ctx: Any, d_down: Tensor | None, d_up: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if d_down is None and d_up is None:
        return (None,) * 9
    saved = ctx.saved_tensors
    weight, lora_B, u, v, t, _, mixing = saved
    r = lora_B.shape[1]
    if d_down is None:
        d_down = u.new_zeros(r + u.shape[1], u.shape[0])
    if d_up is None:
        d_up = u.new_zeros(lora_B.shape[0], r + u.shape[1])
    need_weight, _, *needs = ctx.needs_input_grad[:5]
    computed = iter(hybrid_factors_backward(d_down, d_up, *saved, ctx.scaling, needs) if any(needs) else [])
    d_B, d_u, d_mixing = (next(computed) if needed else None for needed in needs)
    d_weight = None
    if need_weight:  # the base layer is frozen as a rule
        d_weight = ((d_up[:, r:] * (mixing - 1.0)) @ (v @ t).mT).to(weight.dtype)
    return d_weight, d_down[:r], d_B, d_u, d_mixing, None, None, None, None


hybrid_factors = operator("hybrid_factors", _forward, _fake, _setup, _backward)
