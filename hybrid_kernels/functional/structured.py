"""The structured unitary matrix of unitary recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor

from hybrid_kernels import reference
from hybrid_kernels._arguments import (
    COMPLEX_DTYPES,
    REAL_DTYPES,
    check_device,
    check_dtype,
    check_last,
    check_matrix,
    shape_of,
    widened,
)
from hybrid_kernels.ops.backend import current_backend


def _check_structured(x: Tensor, phases: Tensor, reflections: Tensor, permutation: Tensor) -> None:
    check_dtype("x", x, REAL_DTYPES + COMPLEX_DTYPES)
    check_matrix("phases", phases, 3, None, "(3, n)")
    n = phases.shape[1]
    if n < 1:
        raise ValueError("phases has shape (3, 0); its n must be at least 1")
    if shape_of(reflections) != (2, n, 2):
        raise ValueError(
            f"reflections has shape {shape_of(reflections)}; it must be (2, {n}, 2): two vectors, real and imaginary"
        )
    if shape_of(permutation) != (n,) or permutation.dtype != torch.int64:
        raise ValueError(
            f"permutation has dtype {permutation.dtype} and shape {shape_of(permutation)}; it must be a torch.int64 "
            f"tensor ({n},)"
        )
    check_last("x", x, n if x.is_complex() else 2 * n, "n of phases, or 2n where x is real")
    for name, tensor in (("phases", phases), ("reflections", reflections)):
        check_dtype(name, tensor, REAL_DTYPES)
        check_device(name, tensor, "x", x)
    check_device("permutation", permutation, "x", x)


def structured_unitary(x: Tensor, phases: Tensor, reflections: Tensor, permutation: Tensor) -> Tensor:
    """x Wᵀ for the unitary W = D₃ R₂ F⁻¹ D₂ Π R₁ F D₁ of 7n parameters: phases, reflections, Fourier transforms.

    x real (..., 2n), of neighbours taken as real and imaginary part, or complex (..., n); phases (3, n) in radians,
    reflections (2, n, 2), permutation (n,) int64, whose values are not checked: reading them would hold up a GPU.
    Returns the shape and dtype of x. Differentiable in x, phases and reflections; a zero vector means "no reflection".
    A row costs O(n log n).

    There is no kernel of ours in it: the transforms are the vendors' libraries', what lies between them is elementwise
    or a product with one vector. Half types are computed in float32: no transform on the CPU takes them, and those on
    a GPU only where n is a power of two.
    """
    _check_structured(x, phases, reflections, permutation)
    n = phases.shape[1]
    if current_backend() == "reference":
        wide = widened(x.real.dtype)
        z = x if x.is_complex() else x.to(wide)
        return reference.structured_unitary(z, phases.to(wide), reflections.to(wide), permutation).to(x.dtype)
    wide = torch.promote_types(torch.promote_types(phases.dtype, reflections.dtype), widened(x.real.dtype))
    phases, reflections = phases.to(wide), reflections.to(wide)
    if x.numel() == 0:  # MKL's transforms take no empty batch
        return x * (phases.sum() + reflections.sum()).to(x.dtype)
    compute = torch.promote_types(x.dtype, torch.complex64)  # autocast leaves complex numbers alone
    z = x if x.is_complex() else torch.complex(*x.to(widened(x.dtype)).unflatten(-1, (n, 2)).unbind(-1))
    d1, d2, d3 = torch.complex(phases.cos(), phases.sin()).to(compute).unbind()
    squared = reflections.square().sum((-2, -1), keepdim=True)
    unit = reflections * torch.where(squared > 0, squared, 1.0).rsqrt()
    v1, v2 = torch.complex(*unit.unbind(-1)).to(compute).unbind()
    z = _reflect(torch.fft.fft(z * d1, norm="ortho"), v1)
    z = _reflect(torch.fft.ifft(z[..., permutation] * d2, norm="ortho"), v2) * d3
    y = z if x.is_complex() else torch.view_as_real(z).flatten(-2)
    return y.to(x.dtype)


def _reflect(z: Tensor, v: Tensor) -> Tensor:
    """(I − 2 v vᴴ) h for each row h of z (..., n)."""
    return z - 2.0 * (z @ v.conj())[..., None] * v
