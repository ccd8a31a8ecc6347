"""The batched Cayley transform: many small skew-Hermitian matrices to unitary ones.

    Q = (I − A)(I + A)⁻¹ = 2 M − I,  M = (I + A)⁻¹        dA = −½ (I + Q)ᴴ dQ (I + Q)ᴴ, projected on the skew matrices

The backward needs no solve and saves only Q: M = ½ (I + Q), so dM = −M dA M (Absil, Mahony and Sepulchre,
"Optimization algorithms on matrix manifolds", 2008, for the transform). The input is a full matrix (..., b, b), of
which the skew-Hermitian part counts, or the packed strict upper triangle (..., b(b−1)/2).
float32, float64, complex64 and complex128.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator
from hybrid_kernels.ops.precision import without_tf32
from hybrid_kernels.ops.registration import operator


def _adjoint(x: Tensor) -> Tensor:
    """xᴴ. The lazy conjugation of ``x.mH`` is lost inside an operator that runs under torch.compile."""
    return x.mT.conj_physical()


@without_tf32
def _eager(skew: Tensor) -> Tensor:
    a = (skew - _adjoint(skew)) / 2
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return (2.0 * torch.linalg.inv(identity + a) - identity).contiguous()  # LAPACK returns columns first


def unpack(packed: Tensor, block_size: int) -> Tensor:
    """The skew-Hermitian matrix (..., b, b) with strict upper triangle ``packed`` (..., b(b−1)/2) and zero diagonal."""
    row, column = torch.triu_indices(block_size, block_size, offset=1, device=packed.device)
    a = packed.new_zeros(*packed.shape[:-1], block_size, block_size)
    a[..., row, column] = packed
    return a - _adjoint(a)


@without_tf32
def _eager_packed(packed: Tensor, block_size: int) -> Tensor:
    return _eager(unpack(packed, block_size))


@without_tf32
def _eager_backward(grad_q: Tensor, q: Tensor) -> Tensor:
    m = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device) + _adjoint(q)
    d_a = -0.5 * (m @ grad_q @ m)
    return (d_a - _adjoint(d_a)) / 2


@without_tf32
def _eager_packed_backward(grad_q: Tensor, q: Tensor) -> Tensor:
    b = q.shape[-1]
    row, column = torch.triu_indices(b, b, offset=1, device=q.device)
    return 2.0 * _eager_backward(grad_q, q)[..., row, column]


def _cpp_unsupported(x: Tensor, *_: Any) -> str | None:
    reason = _extension.load()
    if reason is not None:
        return reason
    return None if x.device.type == "cpu" else f"the C++ kernels run on the CPU, the input is on {x.device}"


def _block_size(x: Tensor, *rest: Any) -> int:
    return rest[0] if rest and isinstance(rest[0], int) else x.shape[-1]


def _cpp_preferred(x: Tensor, *rest: Any) -> bool:
    return x.device.type == "cpu" and _block_size(x, *rest) <= _extension.CAYLEY_CPU_MAX_BLOCK


def _operator(name: str, eager: Any) -> Operator:
    return Operator(
        name,
        Implementation(
            "cpp",
            lambda *args: getattr(torch.ops.hybrid_kernels_cpp, name)(*args),
            _cpp_unsupported,
            automatic=_cpp_preferred,
        ),
        Implementation("eager", eager),
    )


_forward = _operator("cayley_forward", _eager)
_packed_forward = _operator("cayley_packed_forward", _eager_packed)
_backward = _operator("cayley_backward", _eager_backward)
_packed_backward = _operator("cayley_packed_backward", _eager_packed_backward)


def _cayley(skew: Tensor) -> Tensor:
    """Q (..., b, b) of the skew-Hermitian part of ``skew`` (..., b, b)."""
    return _forward(skew)


def _cayley_packed(packed: Tensor, block_size: int) -> Tensor:
    """Q (..., b, b) of the matrices packed in (..., b(b−1)/2)."""
    return _packed_forward(packed, block_size)


def _cayley_backward(grad_q: Tensor, q: Tensor, packed: bool) -> Tensor:
    """The gradient of the full (..., b, b) or packed (..., b(b−1)/2) input from that of Q (..., b, b)."""
    return _packed_backward(grad_q, q) if packed else _backward(grad_q, q)


def _cayley_backward_fake(grad_q: Tensor, q: Tensor, packed: bool) -> Tensor:
    b = q.shape[-1]
    return q.new_empty(*q.shape[:-2], b * (b - 1) // 2) if packed else q.new_empty(q.shape)


cayley_backward = operator("cayley_backward", _cayley_backward, _cayley_backward_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


cayley = operator(
    "cayley",
    _cayley,
    lambda skew: skew.new_empty(skew.shape),
    _setup,
    lambda ctx, grad_q: cayley_backward(grad_q, ctx.saved_tensors[0], False),
)
cayley_packed = operator(
    "cayley_packed",
    _cayley_packed,
    lambda packed, block_size: packed.new_empty(*packed.shape[:-1], block_size, block_size),
    _setup,
    lambda ctx, grad_q: (cayley_backward(grad_q, ctx.saved_tensors[0], True), None),
)
