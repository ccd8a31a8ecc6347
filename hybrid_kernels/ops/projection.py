"""The product W z of a weight and a few columns, by which a rotation of the input becomes a low-rank update.

    c = W z        dz = Wᵀ dc        dW = dc zᵀ

W (N, K), z (K, n), c (N, n), of one dtype and device, n small. The gradient dz is the same product with Wᵀ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator, gpu_wins
from hybrid_kernels.ops.precision import without_tf32
from hybrid_kernels.ops.registration import operator


@without_tf32
def _eager(weight: Tensor, z: Tensor) -> Tensor:
    # Written so that W and Wᵀ alike are multiplied from the side that BLAS reads along W's rows.
    return (z.mT @ weight.mT).mT.contiguous()


def _triton_unsupported(weight: Tensor, z: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import skinny

    return skinny.unsupported(weight, z)


def _triton(weight: Tensor, z: Tensor) -> Tensor:
    from triton_ops import skinny

    return skinny.matmul(weight, z, exact=True)


_product = Operator(
    "project",
    Implementation(
        "triton",
        _triton,
        _triton_unsupported,
        automatic=lambda weight, z: gpu_wins(
            "project", weight, 1, weight.shape[1], weight.shape[0], z.shape[1], exact=True
        ),
    ),
    Implementation(
        "cpp",
        lambda weight, z: torch.ops.hybrid_kernels_cpp.project.default(weight, z),
        lambda weight, z: _extension.unsupported_floating(weight),
        automatic=lambda weight, z: _extension.skinny_preferred(weight.shape[0], z.shape[1], weight),
    ),
    Implementation("eager", _eager),
)


def compute(weight: Tensor, z: Tensor) -> Tensor:
    """W z (N, n), not differentiable; see the module's docstring."""
    return _product(weight, z)


def _fake(weight: Tensor, z: Tensor) -> Tensor:
    return z.new_empty(weight.shape[0], z.shape[1])


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, Tensor | None]:
    weight, z = ctx.saved_tensors
    need_weight, need_z = ctx.needs_input_grad
    return compute(d, z.mT) if need_weight else None, project(weight.mT, d) if need_z else None


project = operator("project", compute, _fake, _setup, _backward)
