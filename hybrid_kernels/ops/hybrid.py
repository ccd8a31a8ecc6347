"""The factor pair of the hybrid update of a layer whose weight can be read, made and differentiated in one step.

    v, t = WY factors of u            c = W (v t)
    down = [A; vᵀ]                    up = [λ s B, (λ − 1) c]

W (N, K), A (r, K), B (N, r), u (K, n), λ 0-dim, s a number; down (r + n, K), up (N, r + n). Backward, with the parts of
d_down and d_up named after what they are gradients of:

    dA = d_down[:r]    dB = λ s d_up[:, :r]    dc = (λ − 1) d_up[:, r:]    dλ = s ⟨d_up[:, :r], B⟩ + ⟨d_up[:, r:], c⟩
    dz = Wᵀ dc         dv = d_down[r:]ᵀ + dz tᵀ    dt = vᵀ dz    dW = dc (v t)ᵀ

It is what `functional.hybrid_factors` composes for an opaque layer, without a dozen small autograd nodes: on a CPU
those cost as much as the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybrid_kernels.ops import householder, projection
from hybrid_kernels.ops.registration import operator


def _forward(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, u: Tensor, mixing: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(down, up, v, t, c); A, B, u of one dtype, W of the same or a narrower one."""
    v, t = householder.compute(u)
    c = projection.compute(weight, (v @ t).to(weight.dtype)).to(u.dtype)
    down = torch.cat([lora_A, v.mT])
    up = torch.cat([lora_B * (mixing * scaling), c * (mixing - 1.0)], dim=1)
    return down, up, v, t, c


def _fake(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, u: Tensor, mixing: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (n, r), (k, h) = lora_B.shape, u.shape
    shapes = ((r + h, k), (n, r + h), (k, h), (h, h), (n, h))
    down, up, v, t, c = (u.new_empty(shape) for shape in shapes)
    return down, up, v, t, c


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weight, _, lora_B, u, mixing, ctx.scaling = inputs
    _, _, v, t, c = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(v, t, c)
    ctx.save_for_backward(weight, lora_B, u, mixing, v, t, c)


def _backward(ctx: Any, d_down: Tensor | None, d_up: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    weight, lora_B, u, mixing, v, t, c = ctx.saved_tensors
    r = lora_B.shape[1]
    if d_down is None:
        d_down = u.new_zeros(r + u.shape[1], u.shape[0])
    if d_up is None:
        d_up = u.new_zeros(lora_B.shape[0], r + u.shape[1])
    d_scaled, d_mixed = d_up[:, :r], d_up[:, r:]
    need_weight, _, need_B, need_u, need_mixing, _ = ctx.needs_input_grad
    d_weight = d_u = d_mixing = None
    if need_u or need_weight:
        dc = (d_mixed * (mixing - 1.0)).to(weight.dtype)
        if need_u:
            dz = projection.project(weight.mT, dc).to(u.dtype)
            d_u = householder.householder_backward(u, v, t, torch.addmm(d_down[r:].mT, dz, t.mT), v.mT @ dz)
        if need_weight:
            d_weight = dc @ (v @ t).mT.to(weight.dtype)
    if need_mixing:
        d_mixing = (ctx.scaling * (d_scaled * lora_B).sum() + (d_mixed * c).sum()).to(mixing.dtype)
    d_B = d_scaled * (mixing * ctx.scaling) if need_B else None
    return d_weight, d_down[:r].clone(), d_B, d_u, d_mixing, None


hybrid_factors = operator("hybrid_factors", _forward, _fake, _setup, _backward)
