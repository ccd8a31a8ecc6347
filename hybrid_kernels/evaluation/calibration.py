"""Calibration of a classifier: reliability bins, expected calibration error, temperature scaling.

Arrays are as in `hybrid_kernels.evaluation.metrics`; the confidence of a row is its top class's probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hybrid_kernels.evaluation.predictions import (
    check_predictions,
    check_rows,
    check_scores,
    reject_row,
    to_numpy,
)

if TYPE_CHECKING:
    import torch

Binning = Literal["equal_width", "equal_mass"]
BINS = 15
# scikit-learn's clip in log_loss for float64: a label given probability 0 costs −ln(2.2e-16) = 36.04 nats.
NLL_CLIP = float(np.finfo(np.float64).eps)
#: what `fit_temperature` searches
TEMPERATURES = (0.01, 100.0)


def reliability_bins(
    probabilities: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray | torch.Tensor,
    bins: int = BINS,
    binning: Binning = "equal_width",
) -> list[dict[str, Any]]:
    """Accuracy against confidence in `bins` bins.

    `equal_width`: edges evenly on [0, 1]; a bin holds lower ≤ confidence < upper, the last one also 1. This is
    torchmetrics' side of the edges, except that it gives confidences of exactly 1 a bin of their own.

    `equal_mass`: edge k is the ⌊(n − 1) k / bins⌋-th smallest confidence, counted from 0; a bin holds
    lower < confidence ≤ upper, the first one also its lower edge. That makes the bins of scikit-learn's
    `calibration_curve(strategy="quantile")`. Equal confidences always share a bin: without ties the counts differ by
    at most 1, with many ties bins are larger than others, and some empty.

    Returns:
        `bins` dicts with `lower`, `upper`, `count`, and the bin's mean `confidence` and `accuracy` (None where
        count = 0).
    """
    p, y = check_predictions(probabilities, labels)
    confidence = p.max(axis=1)
    edges, index = bin_rows(confidence, bins, binning)
    count = np.bincount(index, minlength=bins)
    confidence_sum = np.bincount(index, weights=confidence, minlength=bins)
    correct_sum = np.bincount(index, weights=p.argmax(axis=1) == y, minlength=bins)
    return [
        {
            "lower": float(edges[b]),
            "upper": float(edges[b + 1]),
            "confidence": float(confidence_sum[b] / count[b]) if count[b] else None,
            "accuracy": float(correct_sum[b] / count[b]) if count[b] else None,
            "count": int(count[b]),
        }
        for b in range(bins)
    ]


def expected_calibration_error(
    probabilities: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray | torch.Tensor,
    bins: int = BINS,
    binning: Binning = "equal_width",
) -> float:
    """Σ_b n_b/n · |accuracy_b − confidence_b| over the `reliability_bins`, in [0, 1].

    Guo et al. 2017 (arXiv 1706.04599), eq. 3, where bins have equal width; Nguyen and O'Connor 2015 (arXiv
    1508.05154) for equal mass. Chance makes it larger than 0, the more so the fewer rows a bin has.
    """
    filled = [b for b in reliability_bins(probabilities, labels, bins, binning) if b["count"]]
    n = sum(b["count"] for b in filled)
    return float(sum(b["count"] / n * abs(b["accuracy"] - b["confidence"]) for b in filled))


def bin_rows(confidence: np.ndarray, bins: int, binning: Binning) -> tuple[np.ndarray, np.ndarray]:
    """Edges (bins + 1,) and the bin of each row (n,), as `reliability_bins` says."""
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be an integer of at least 1, got {bins!r}")
    if binning == "equal_width":
        edges = np.linspace(0, 1, bins + 1)
        # A row may sum to a little more than 1, and its confidence be so.
        return edges, np.minimum(np.searchsorted(edges, confidence, side="right") - 1, bins - 1)
    if binning == "equal_mass":
        edges = np.sort(confidence)[(len(confidence) - 1) * np.arange(bins + 1) // bins]
        return edges, np.searchsorted(edges[1:-1], confidence, side="left")
    raise ValueError(f"binning must be 'equal_width' or 'equal_mass', got {binning!r}")


def fit_temperature(
    scores: np.ndarray | torch.Tensor, labels: Sequence[int] | np.ndarray | torch.Tensor
) -> float:
    """The T > 0 that minimises the mean of −ln softmax(scores / T)[label] (Guo et al. 2017, section 4.2).

    To be fitted on other rows than those that are reported on. The objective is convex in 1/T; its root is found
    to 12 digits. Probabilities below `NLL_CLIP` count as that, as in the metric `nll`: one row whose label has
    probability 0 does not make every temperature infinitely bad.

    Args:
        scores: (n, classes) logits or log-probabilities; −inf is probability 0.
        labels: (n,) integers in [0, classes).

    Returns:
        T; an end of `TEMPERATURES` where the optimum is at or beyond it, as it is 0 where every row is right, and
        infinite where the scores are worse than none; 1 where T changes nothing: the classes of every row are alike.

    Raises:
        ValueError: malformed arguments; NaN, +inf, or a row of −inf alone; scores that are probabilities.
    """
    from scipy.optimize import brentq

    s, y = check_scores("scores", scores, labels)
    reject_row(np.isnan(s).any(axis=1) | (s == np.inf).any(axis=1), s, "scores must be finite or −inf")
    reject_row((s == -np.inf).all(axis=1), s, "a row of scores must not be −inf alone")
    if s.shape[1] > 1 and (s >= 0).all() and np.allclose(s.sum(axis=1), 1, atol=1e-6):
        raise ValueError(
            "scores must be logits or log-probabilities, these are probabilities; pass their logarithm"
        )
    s = s - s.max(axis=1, keepdims=True)
    s = np.maximum(s - np.log(np.exp(s).sum(axis=1, keepdims=True)), np.log(NLL_CLIP))
    of_label = s[np.arange(len(y)), y].mean()

    def slope(inverse: float) -> float:
        """Derivative of the objective by 1/T: the mean of Σ_c p_c s_c − s_label."""
        weights = np.exp(inverse * (s - s.max(axis=1, keepdims=True)))
        return float(((weights * s).sum(axis=1) / weights.sum(axis=1)).mean() - of_label)

    if np.ptp(s, axis=1).max() < 1e-12:
        return 1.0
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if slope(low) >= 0:
        return TEMPERATURES[1]
    if slope(high) <= 0:
        return TEMPERATURES[0]
    return float(1 / brentq(slope, low, high, xtol=1e-14, rtol=1e-12))


def apply_temperature(probabilities: np.ndarray | torch.Tensor, temperature: float) -> np.ndarray:
    """softmax(ln p / T) for each row: p^(1/T), normalised; (n, classes) float64.

    The same as softmax(logits / T) for p = softmax(logits), with p clipped to at least `NLL_CLIP` as in
    `fit_temperature`. The order of the classes stays, so do accuracy and F1.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature!r}")
    p, _ = check_scores("probabilities", probabilities, np.zeros(len(to_numpy(probabilities)), np.int64))
    check_rows(p)
    s = np.log(np.maximum(p, NLL_CLIP)) / temperature
    s = np.exp(s - s.max(axis=1, keepdims=True))
    scaled: np.ndarray = s / s.sum(axis=1, keepdims=True)
    return scaled
