"""The batched Cayley transform: many small skew-Hermitian matrices to unitary ones.

    Q = (I − A)(I + A)⁻¹ = 2 M − I,  M = (I + A)⁻¹        dA = −½ (I + Q)ᴴ dQ (I + Q)ᴴ, projected on the skew matrices

The backward needs no solve and saves only Q: M = ½ (I + Q), so dM = −M dA M (Absil, Mahony and Sepulchre,
"Optimization algorithms on matrix manifolds", 2008, for the transform). The input is a full matrix (..., b, b), of
which the skew-Hermitian part counts, or the packed strict upper triangle (..., b(b−1)/2).
float32, float64, complex64 and complex128.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybrid_kernels import _extension
from hybrid_kernels.ops.backend import Implementation, Operator, gpu_wins
from hybrid_kernels.ops.precision import without_tf32
from hybrid_kernels.ops.registration import operator

#: dtypes whose shapes `hybrid-kernels bench tune` measures, and their operation in its rows
MEASURED = {torch.float32: "cayley", torch.complex64: "cayley_complex"}


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


@without_tf32
def _refined(a: Tensor, q: Tensor) -> Tensor:
    """Q after one step of iterative refinement, of the skew-Hermitian A (..., b, b).

    Q + R M with the residual R = (I − A) − Q (I + A), computed in float64, and M = ½ (I + Q): Higham, "Accuracy and
    stability of numerical algorithms", 2002, ch. 12. It leaves float32 with about one rounding of the exact result.
    """
    dtype = torch.promote_types(q.dtype, torch.float64)
    a, wide = a.to(dtype), q.to(dtype)
    residual = torch.eye(a.shape[-1], dtype=dtype, device=a.device) - a - wide - wide @ a
    return (wide + (residual + residual @ wide) / 2).to(q.dtype)


def _device_is(kind: str, unavailable: Callable[[], str | None]) -> Callable[..., str | None]:
    """``unsupported`` of the kernels for the devices of a kind."""

    def unsupported(x: Tensor, *_: Any) -> str | None:
        reason = unavailable()
        if reason is None and x.device.type != kind:
            reason = f"these kernels run on {kind} tensors, the input is on {x.device}"
        return reason

    return unsupported


def _block_size(x: Tensor, *rest: Any) -> int:
    """b, from an operator's arguments: packed values and b, or full matrices."""
    return rest[0] if rest and isinstance(rest[0], int) else x.shape[-1]


def _cpp_preferred(x: Tensor, *_: Any) -> bool:
    """On every shape: forward and backward against `_eager` with MKL, one interleaved run on two cores of an AMD EPYC
    (Zen 5), torch 2.13, float32, batch × block: 2×512 3.1×, 1×512 1.6×, 2×1024 2.9×, 1×1024 2.1×, 1×2048 1.7×,
    4×2048 1.9×; the smallest lead over float64, complex64 and complex128 there: 1.0×, at 4×2048 in float64, 1.2× at
    1×1024 in complex128. Smaller blocks: benchmarks/results/cayley.cpu.float32.json.
    """
    return x.device.type == "cpu"


def _cuda_preferred(x: Tensor, *rest: Any) -> bool:
    b = _block_size(x, *rest)
    if not x.is_cuda or x.dtype not in MEASURED or b < 2:
        return False
    matrix = x.shape[-1] if rest and isinstance(rest[0], int) else b * b
    return gpu_wins(MEASURED[x.dtype], x, x.numel() // matrix, b, 1, 1, exact=True)


def _operator(name: str, eager: Any) -> Operator:
    def compiled(*args: Any) -> Tensor:
        return getattr(torch.ops.hybrid_kernels_cpp, name)(*args)

    return Operator(
        name,
        Implementation("cpp", compiled, _device_is("cpu", _extension.load), automatic=_cpp_preferred),
        Implementation(
            "cuda",
            without_tf32(compiled),  # the products of large blocks are torch's
            _device_is("cuda", _extension.cuda_unavailable),
            automatic=_cuda_preferred,
        ),
        Implementation("eager", eager),
    )


_forward = _operator("cayley_forward", _eager)
_packed_forward = _operator("cayley_packed_forward", _eager_packed)
_backward = _operator("cayley_backward", _eager_backward)
_packed_backward = _operator("cayley_packed_backward", _eager_packed_backward)


def _cayley(skew: Tensor, refine: bool = False) -> Tensor:
    """Q (..., b, b) of the skew-Hermitian part of ``skew`` (..., b, b), after a step of refinement if asked for."""
    q = _forward(skew)
    return _refined((skew - _adjoint(skew)) / 2, q) if refine else q


def _cayley_packed(packed: Tensor, block_size: int, refine: bool = False) -> Tensor:
    """Q (..., b, b) of the matrices packed in (..., b(b−1)/2), after a step of refinement if asked for."""
    q = _packed_forward(packed, block_size)
    return _refined(unpack(packed, block_size), q) if refine else q


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
    lambda skew, refine=False: skew.new_empty(skew.shape),
    _setup,
    lambda ctx, grad_q: (cayley_backward(grad_q, ctx.saved_tensors[0], False), None),
)
cayley_packed = operator(
    "cayley_packed",
    _cayley_packed,
    lambda packed, block_size, refine=False: packed.new_empty(*packed.shape[:-1], block_size, block_size),
    _setup,
    lambda ctx, grad_q: (cayley_backward(grad_q, ctx.saved_tensors[0], True), None, None),
)
