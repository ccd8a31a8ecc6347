"""Dropout from a seed: the mask is regenerated in the backward, by every backend the same, and stored nowhere.

    y = x ⊙ kept · 2¹⁶ / (2¹⁶ − threshold)        threshold = round(2¹⁶ · probability), below 2¹⁶

x, y (M, K); `reference.seeded_dropout` defines kept. It is its own gradient, so the apply stage calls it both ways.
"""

from __future__ import annotations

import torch
from torch import Tensor

import triton_ops
from hybrid_kernels import _extension, reference
from hybrid_kernels.ops.backend import Implementation, Operator
from triton_ops import Dropout


def active(probability: float, dropped_rank: int, seed: Tensor | None) -> Dropout | None:
    """The dropout an operator's arguments ask for, or None where nothing would be dropped."""
    if seed is None:
        return None
    threshold = reference.dropout_threshold(probability)
    return Dropout(dropped_rank, threshold, seed) if dropped_rank and threshold else None


def _triton_unsupported(x: Tensor, threshold: int, seed: Tensor) -> str | None:
    reason = triton_ops.unavailable()
    if reason is not None:
        return reason
    from triton_ops import dropout

    return dropout.unsupported(x)


def _triton(x: Tensor, threshold: int, seed: Tensor) -> Tensor:
    from triton_ops import dropout

    return dropout.dropout(x, threshold, seed)


def _cpp(x: Tensor, threshold: int, seed: Tensor) -> Tensor:
    kept = torch.ops.hybrid_kernels_cpp.dropout_kept.default(seed, *x.shape, threshold)
    return torch.where(kept, x * (2**16 / (2**16 - threshold)), 0.0)


def _cpp_unsupported(x: Tensor, threshold: int, seed: Tensor) -> str | None:
    reason = _extension.load()
    if reason is None and x.device.type != "cpu":
        reason = f"the C++ kernels run on the CPU, the input is on {x.device}"
    return reason


_dropout = Operator(
    "seeded_dropout",
    # In plain PyTorch the mask takes some sixty passes over integers, so the kernels need no measurement to go first.
    Implementation("triton", _triton, _triton_unsupported, automatic=lambda x, *_: x.device.type == "cuda"),
    Implementation("cpp", _cpp, _cpp_unsupported, automatic=lambda x, *_: x.device.type == "cpu"),
    Implementation("eager", lambda x, threshold, seed: reference.seeded_dropout(x, threshold / 2**16, seed)),
)


def compute(x: Tensor, dropout: Dropout) -> Tensor:
    """y (M, K) for x (M, K), not differentiable; see the module's docstring."""
    return _dropout(x, dropout.threshold, dropout.seed)
