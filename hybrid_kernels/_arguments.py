"""Checks of tensors given by users, and what autocast makes of them: for `hybrid_kernels.functional`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

REAL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX_DTYPES = (torch.complex64, torch.complex128)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        raise TypeError(f"{name} has dtype {tensor.dtype}; it may be {', '.join(str(d) for d in allowed)}")


def check_matrix(name: str, tensor: Tensor, rows: int | None, columns: int | None, meaning: str) -> None:
    if tensor.ndim != 2 or rows not in (None, tensor.shape[0]) or columns not in (None, tensor.shape[1]):
        raise ValueError(f"{name} has shape {shape_of(tensor)}; it must be {meaning}")


def check_last(name: str, tensor: Tensor, features: int, meaning: str) -> None:
    if tensor.ndim < 1 or tensor.shape[-1] != features:
        raise ValueError(
            f"{name} has shape {shape_of(tensor)}; its last dimension must be {features}, {meaning}"
        )


def check_together(**tensors: Tensor | None) -> None:
    """All tensors on one device and of one real floating dtype; the first one named is the measure."""
    first_name, first = next(iter(tensors.items()))
    assert first is not None
    dtype, device = first.dtype, first.device
    check_dtype(first_name, first, REAL_DTYPES)
    for name, tensor in tensors.items():
        if tensor is None or (tensor.dtype == dtype and tensor.device == device):
            continue
        if tensor.dtype != dtype:
            raise TypeError(
                f"{name} has dtype {tensor.dtype} but {first_name} has {first.dtype}; they must agree (or use autocast)"
            )
        check_device(name, tensor, first_name, first)


def check_device(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    if tensor.device != first.device:
        raise TypeError(
            f"{name} is on {tensor.device} but {first_name} is on {first.device}; they must agree"
        )


def widened(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype autocast wants for products on x's device, or None where autocast is off (or x is float64)."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, at no cost where it is off already."""
    if torch.is_autocast_enabled(tensor.device.type):
        return torch.autocast(tensor.device.type, enabled=False)
    return nullcontext()
