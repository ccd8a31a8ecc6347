"""How near a computation comes to what the device can do: its least time by the machine's own measured rates."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch

from .timing import Step, seconds

MATMUL_SIZE = 8192


@dataclass(frozen=True)
class Rates:
    """Floating-point operations a second, and bytes a second, read and written together."""

    flop_rate: float
    copy_rate: float


def share(
    flops: float, bytes_moved: float, seconds: float, flop_rate: float, copy_rate: float
) -> dict[str, Any]:
    """{"share": least time / ``seconds``, "bound": "memory" or "compute", whichever takes that least time}."""
    compute, memory = flops / flop_rate, bytes_moved / copy_rate
    return {
        "share": max(compute, memory) / seconds,
        "bound": "memory" if memory > compute else "compute",
    }


def rates(device: torch.device, dtype: torch.dtype, size: int = MATMUL_SIZE) -> Rates:
    """Measured here: a copy within the device's memory, and a product of two square matrices of the dtype.

    ``size`` is that of the matrices; the copy is of four such, at the default far beyond the caches of a GPU.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    target = torch.empty_like(a)

    def median(step: Step) -> float:
        for _ in range(3):
            step()
        return statistics.median(seconds(step, device) for _ in range(10))

    product = median(lambda: torch.mm(a, b, out=target))
    source = torch.zeros(4 * size * size, dtype=dtype, device=device)
    copied = torch.empty_like(source)
    copy = median(lambda: copied.copy_(source))
    moved = 2 * source.numel() * dtype.itemsize
    return Rates(2 * size**3 / product, moved / copy)
