"""The scale-free rule: a result may be off by what plain PyTorch is off by in the same dtype, and little more.

    ‖result − truth‖ ≤ factor · ‖plain − truth‖        (Frobenius norms; factor 2 for results, 3 for gradients)

``truth`` is `hybrid_kernels.reference` in float64 (complex128), ``plain`` the same function in the result's dtype. So
there is no tolerance that would have to be tuned to a scale, a size or a condition number.

* Plain PyTorch is exact by luck now and then (a single term, small integers): what rounding the truth to the dtype may
  cost is always granted, ε/2 · ‖truth‖. On a handful of numbers luck is common, so take several draws together.
* A user writes a function in one of two ways: by its formula, as the reference does, or in the products of its factors.
  In the thin products over thousands of terms MKL is off by up to seven times as much in one as in the other, so on the
  layers of a model, the only ones of that width, ``plain`` is the one that is off by more.
* In double precision plain and truth are one computation and differ by nothing. What plain makes there is taken from
  single precision, as rounding errors are proportional to ε: its error in float32 times ε₆₄/ε₃₂. But in which order
  terms are added depends on the dtype, and with it whether errors grow with √N, N terms one after another, or hardly at
  all (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019; MKL's product of 8192 terms is
  off by 2.5 ε in float32 and by 12.5 ε in float64). So √N is granted, N the largest dimension, and one factor more, as
  the truth is off by as much. A result that is accurate to float32 alone still fails by a factor of millions.
* NaN and infinity fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

FORWARD, GRADIENT = 2.0, 3.0
DOUBLE = (torch.float64, torch.complex128)


@dataclass(frozen=True)
class Judgement:
    """The figures of one comparison, all Frobenius norms but ``ratio``.

    ``ratio`` is the error in units of what plain PyTorch is taken to make, allowed / factor: at most the factor.
    """

    error: float
    plain_error: float
    allowed: float
    ratio: float

    @property
    def passed(self) -> bool:
        return math.isfinite(self.error) and self.error <= self.allowed


def widened(t: Tensor) -> Tensor:
    """In double precision, detached, if it is a floating-point or complex tensor."""
    if not (t.is_floating_point() or t.is_complex()):
        return t
    return t.detach().to(torch.complex128 if t.is_complex() else torch.float64)


def narrowed(t: Tensor) -> Tensor:
    """Detached, and in single precision if it is in double."""
    narrow = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    return t.detach().to(narrow.get(t.dtype, t.dtype))


def distance(result: Tensor, truth: Tensor) -> float:
    """‖result − truth‖ in double precision."""
    return torch.linalg.vector_norm(widened(result) - widened(truth)).item()


def plain_error(plain: Tensor, truth: Tensor, dtype: torch.dtype, terms: int) -> float:
    """What plain PyTorch is off by in ``dtype``, ``plain`` being of that dtype or, for double precision, of single.

    ``truth`` is of the very numbers that ``plain`` is of: for double precision, of the rounded ones. ``terms`` is the
    largest dimension of all tensors.
    """
    measured = distance(plain, truth)
    if plain.dtype == dtype:
        return measured
    return measured * (torch.finfo(dtype).eps / torch.finfo(plain.dtype).eps) * math.sqrt(max(terms, 1))


def largest_dimension(tensors: Iterable[Tensor]) -> int:
    return max((size for t in tensors for size in t.shape), default=1)


def judge(result: Tensor, truth: Tensor, plain_error: float, factor: float) -> Judgement:
    """The rule for a result, given its ``truth`` in double precision and the `plain_error` in its dtype."""
    if truth.dtype not in DOUBLE:
        raise TypeError(f"truth has dtype {truth.dtype}; it must be float64 or complex128")
    if result.shape != truth.shape:
        raise ValueError(f"the result has shape {tuple(result.shape)}; it must be {tuple(truth.shape)}")
    error = distance(result, truth)
    rounding = torch.finfo(result.dtype).eps / 2 * torch.linalg.vector_norm(truth).item()
    times = factor + 1 if result.dtype in DOUBLE else factor
    allowed = max(times * plain_error, rounding)
    if error == 0:
        ratio = 0.0
    elif math.isfinite(error):
        ratio = error / allowed * factor if allowed > 0 else math.inf
    else:
        ratio = math.inf
    return Judgement(error, plain_error, allowed, ratio)
