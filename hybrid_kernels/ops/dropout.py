"""Dropout from a seed: the mask is regenerated in the backward, by every backend the same, and stored nowhere.

    y = x ⊙ kept · 2¹⁶ / (2¹⁶ − threshold)        threshold = round(2¹⁶ · probability)

x, y (M, K); `reference.seeded_dropout` defines kept. It is its own gradient, so the apply stage calls it both ways.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension, reference
from hybrid_kernels.ops.backend import Implementation, Operator


class Dropout(NamedTuple):
    """Low-rank dropout: the first ``dropped_rank`` rows of down see x with elements dropped."""

    dropped_rank: int
    probability: float
    seed: Tensor

    @property
    def threshold(self) -> int:
        return threshold(self.probability)


def threshold(probability: float) -> int:
    """The probability in units of 2⁻¹⁶, in which it takes effect."""
    return round(probability * 2**16)


def active(probability: float, dropped_rank: int, seed: Tensor | None) -> Dropout | None:
    """The dropout an operator's arguments ask for, or None where nothing would be dropped."""
    if seed is None or not dropped_rank or not threshold(probability):
        return None
    return Dropout(dropped_rank, probability, seed)


def _triton_unsupported(x: Tensor, probability: float, seed: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import dropout

    return dropout.unsupported(x)


def _triton(x: Tensor, probability: float, seed: Tensor) -> Tensor:
    from triton_ops import dropout

    return dropout.dropout(x, threshold(probability), seed)


def _cpp(x: Tensor, probability: float, seed: Tensor) -> Tensor:
    t = threshold(probability)
    kept = torch.ops.hybrid_kernels_cpp.dropout_kept.default(seed, *x.shape, t)
    return torch.where(kept, x * (2**16 / (2**16 - t)), 0.0)


def _cpp_unsupported(x: Tensor, probability: float, seed: Tensor) -> str | None:
    reason = _extension.load()
    if reason is None and x.device.type != "cpu":
        reason = f"the C++ kernels run on the CPU, the input is on {x.device}"
    return reason


_dropout = Operator(
    "seeded_dropout",
    # In plain PyTorch the mask takes some sixty passes over integers, so the kernels need no measurement to go first.
    Implementation("triton", _triton, _triton_unsupported, automatic=lambda x, *_: x.device.type == "cuda"),
    Implementation("cpp", _cpp, _cpp_unsupported, automatic=lambda x, *_: x.device.type == "cpu"),
    Implementation("eager", reference.seeded_dropout),
)


def compute(x: Tensor, dropout: Dropout) -> Tensor:
    """y (M, K) for x (M, K), not differentiable; see the module's docstring."""
    return _dropout(x, dropout.probability, dropout.seed)
