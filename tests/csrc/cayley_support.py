"""What the tests of the Cayley transform's kernels share: inputs, and the definition in two precisions."""

import numpy as np
import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def random_packed(batch: tuple[int, ...], b: int, dtype: torch.dtype, norm: float = 1.0) -> Tensor:
    """Strict upper triangles of skew-Hermitian matrices whose spectral norm is about ``norm``."""
    generator = torch.Generator().manual_seed(b)
    packed = torch.randn(*batch, b * (b - 1) // 2, dtype=dtype, generator=generator)
    return packed * (norm / (2 * b**0.5))


def random_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(99))


def unpack(packed: Tensor, b: int) -> Tensor:
    """A[i,j] = p, A[j,i] = −conj(p), i < j, row by row."""
    row, column = torch.triu_indices(b, b, 1)
    upper = packed.new_zeros(*packed.shape[:-1], b, b)
    upper[..., row, column] = packed
    return upper - upper.mH


def definition(a: Tensor) -> Tensor:
    """(I − A)(I + A)⁻¹ in the dtype of A."""
    identity = torch.eye(a.shape[-1], dtype=a.dtype)
    return torch.linalg.solve(identity + a, identity - a, left=False).resolve_conj()


def exact(a: Tensor, grad_q: Tensor) -> tuple[Tensor, Tensor]:
    """Q and the gradient of a full skew-Hermitian input, from the definition with twice the digits of its dtype or,
    for double precision, what extended precision has.

    With M = (I + A)⁻¹: dQ = −(I + Q) dA M, so the gradient is −(I + Q)ᴴ G Mᴴ, projected.
    """
    x, g = _wide(a), _wide(grad_q)
    identity = np.eye(a.shape[-1])
    m = _inverse(identity + x)
    q = (identity - x) @ m
    d_a = -_adjoint(identity + q) @ g @ _adjoint(m)
    return _double(q), _double((d_a - _adjoint(d_a)) / 2)


def exact_shifted_inverse(c: Tensor) -> Tensor:
    """(I + C)⁻¹, likewise."""
    return _double(_inverse(np.eye(c.shape[-1]) + _wide(c)))


def _wide(x: Tensor) -> np.ndarray:
    single = x.dtype in (torch.float32, torch.complex64)
    double, extended = (np.complex128, np.clongdouble) if x.is_complex() else (np.float64, np.longdouble)
    return x.resolve_conj().numpy().astype(double if single else extended)


def _double(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x.astype(np.complex128 if np.iscomplexobj(x) else np.float64))


def _inverse(x: np.ndarray) -> np.ndarray:
    m = np.linalg.inv(_double(x).numpy()).astype(x.dtype)
    for _ in range(2):
        m = m + m @ (np.eye(x.shape[-1]) - x @ m)  # Newton's iteration
    return m


def _adjoint(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2).conj()


def orthogonality_defect(q: Tensor) -> float:
    """The root mean square of ‖QᴴQ − I‖ over the matrices (batch, b, b)."""
    wide = q.to(torch.complex128)
    return (torch.linalg.vector_norm(wide.mH @ wide - torch.eye(q.shape[-1])) / len(q) ** 0.5).item()
