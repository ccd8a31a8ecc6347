"""The compact WY factors of a chain of Householder reflections.

    v_i = u_i / ‖u_i‖ (0 where u_i = 0)    G = vᵀv    S = ½ I + striu(G)    t = S⁻¹    H₁…Hₙ = I − v t vᵀ

u, v (K, n), t (n, n) upper triangular. S is the exact inverse of the WY triangle (Puglisi, "Modification of the
Householder method based on the compact WY representation", 1992; Joffrain et al., "Accumulating Householder
transformations, revisited", 2006). Backward:

    dS = −tᵀ dt tᵀ    dG = striu(dS)    dv += v (dG + dGᵀ)    du_i = (dv_i − v_i (v_i·dv_i)) / ‖u_i‖

and zero where u_i = 0. The results are float32, or float64 for float64 input, and never computed in TF32.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator, gpu_wins
from hybrid_kernels.ops.precision import without_tf32
from hybrid_kernels.ops.registration import once_differentiable, operator


def _inverse_norm(u: Tensor) -> Tensor:
    """1/‖u_i‖ per column, and 0 for a zero column."""
    # Summed in cascade; on a CPU vector_norm adds row after row, and loses digits.
    norm = u.square().sum(0).sqrt()
    return torch.where(norm > 0, 1.0 / norm, 0.0)


@without_tf32
def _eager(u: Tensor) -> tuple[Tensor, Tensor]:
    v = (u * _inverse_norm(u)).contiguous()
    identity = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    s = torch.triu(v.t() @ v, diagonal=1) + 0.5 * identity
    return v, torch.linalg.solve_triangular(s, identity, upper=True).contiguous()


@without_tf32
def _eager_backward(u: Tensor, v: Tensor, t: Tensor, dv: Tensor | None, dt: Tensor | None) -> Tensor:
    total = torch.zeros_like(v) if dv is None else dv
    if dt is not None:
        d_gram = torch.triu(-t.mT @ dt @ t.mT, diagonal=1)
        total = total + v @ (d_gram + d_gram.mT)
    return ((total - v * (v * total).sum(0)) * _inverse_norm(u)).contiguous()


def _cpp_preferred(u: Tensor, *_: Any) -> bool:
    return u.device.type == "cpu" and u.shape[0] * u.shape[1] ** 2 <= _extension.HOUSEHOLDER_CPU_MAX_WORK


def _triton_unsupported(u: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import householder

    return householder.unsupported(u)


def _triton_wins(u: Tensor, *_: Any) -> bool:
    return gpu_wins("householder_factors", u, 1, u.shape[0], 1, u.shape[1], exact=True)


def _triton(u: Tensor) -> tuple[Tensor, Tensor]:
    from triton_ops import householder

    return householder.factors(u)


def _triton_backward(u: Tensor, v: Tensor, t: Tensor, dv: Tensor | None, dt: Tensor | None) -> Tensor:
    from triton_ops import householder

    return householder.backward(u, v, t, dv, dt)


_factors = Operator(
    "householder_factors",
    Implementation("triton", _triton, _triton_unsupported, automatic=_triton_wins),
    Implementation(
        "cpp",
        lambda u: torch.ops.hybrid_kernels_cpp.householder_forward.default(u),
        lambda u, *_: _extension.unsupported_floating(u),
        automatic=_cpp_preferred,
    ),
    Implementation("eager", _eager),
)
_factors_backward = Operator(
    "householder_backward",
    Implementation("triton", _triton_backward, lambda u, *_: _triton_unsupported(u), automatic=_triton_wins),
    Implementation(
        "cpp",
        lambda *args: torch.ops.hybrid_kernels_cpp.householder_backward.default(*args),
        lambda u, *_: _extension.unsupported_floating(u),
        automatic=_cpp_preferred,
    ),
    Implementation("eager", _eager_backward),
)


def compute(u: Tensor) -> tuple[Tensor, Tensor]:
    """(v, t), not differentiable; see the module's docstring."""
    return _factors(u)


def _fake(u: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(u.shape[1], u.shape[1])


def _backward_forward(
    u: Tensor,
    v: Tensor,
    t: Tensor,
    dv: Optional[Tensor],  # noqa: UP045 (torch.library reads the schema from the annotations)
    dt: Optional[Tensor],  # noqa: UP045
) -> Tensor:
    """du; None stands for a gradient of zero. See the module's docstring."""
    return _factors_backward(u, v, t, dv, dt)


def _backward_fake(u: Tensor, v: Tensor, t: Tensor, dv: Tensor | None, dt: Tensor | None) -> Tensor:
    return u.new_empty(u.shape)


householder_backward = operator("householder_backward", _backward_forward, _backward_fake)


def _setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], *output)


def _backward(ctx: Any, dv: Tensor | None, dt: Tensor | None) -> Tensor | None:
    if dv is None and dt is None:
        return None
    return householder_backward(*ctx.saved_tensors, dv, dt)


householder_factors = operator("householder_factors", compute, _fake, _setup, _backward)


class _FactorsMany(torch.autograd.Function):
    """The factors of many layers by Triton: v and t of each, flat, since autograd tracks no tensors inside a list."""

    @staticmethod
    def forward(ctx: Any, *us: Tensor) -> tuple[Tensor, ...]:
        from triton_ops import householder_many

        outputs = tuple(
            factor for v, t, _ in householder_many.factors_many(us, product=False) for factor in (v, t)
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*us, *outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from triton_ops import householder_many

        count = len(ctx.needs_input_grad)
        us, factors = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        needed = [index for index in range(count) if ctx.needs_input_grad[index]]
        computed = householder_many.backward_many(
            [us[index] for index in needed],
            [factors[2 * index] for index in needed],
            [factors[2 * index + 1] for index in needed],
            [gradients[2 * index] for index in needed],
            [gradients[2 * index + 1] for index in needed],
        )
        dus: list[Tensor | None] = [None] * count
        for index, du in zip(needed, computed, strict=True):
            dus[index] = du
        return tuple(dus)


def prepares(u: Tensor) -> bool:
    """Whether a layer like this one, by itself, would be factorised by Triton: a quick look before `prepare`."""
    return u.ndim == 2 and _factors.select(u).backend == "triton"


def _one_launch(us: list[Tensor]) -> bool:
    """Whether Triton takes all of us together: plain tensors of one dtype and device for which it is the choice."""
    return (
        len(us) > 1
        and not torch.compiler.is_compiling()
        and prepares(us[0])
        # What a CUDA graph replays must not read a table that only this process keeps.
        and not (us[0].is_cuda and torch.cuda.is_current_stream_capturing())
        and all(type(u) in (Tensor, nn.Parameter) for u in us)
        and all(u.dtype == us[0].dtype and u.device == us[0].device for u in us)
        and all(_factors.select(u).backend == "triton" for u in us)
    )


def householder_factors_many(us: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """`householder_factors` of each u, on the Triton backend in one launch forward and one backward."""
    if not _one_launch(us):
        return [householder_factors(u) for u in us]
    outputs = _FactorsMany.apply(*us)
    return list(zip(outputs[::2], outputs[1::2], strict=True))


def prepare(us: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]] | None:
    """(v, t, z = v t) of each u in one launch, not differentiable, for `hybrid_factors` to take; or None.

    None wherever a layer by itself would not run on Triton, or us are not plain tensors of one dtype and device.
    """
    if not _one_launch(us):
        return None
    from triton_ops import householder_many

    return [(v, t, z) for v, t, z in householder_many.factors_many(us) if z is not None]
