"""Quality, calibration and cross-language parity of a classifier, from its class probabilities.

Everywhere: `probabilities` (n, classes) floating point, numpy array or torch tensor on any device, each row
summing to 1 within 1e-3 (rows are used as given, not renormalised); `labels` (n,) integers in [0, classes).
Computation is in float64. Malformed input raises ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece")
ROW_SUM_TOLERANCE = 1e-3
# scikit-learn's clip in log_loss for float64: a label given probability 0 costs −ln(2.2e-16) = 36.04 nats.
NLL_CLIP = float(np.finfo(np.float64).eps)


def classification_metrics(
    probabilities: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray | torch.Tensor,
    bins: int = 15,
) -> dict[str, float]:
    """Metrics of one set of predictions; the prediction is the most probable class (the first one on a tie).

    Returns:
        accuracy: share of rows whose prediction is the label.
        macro_f1: mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur as label or prediction.
        nll: mean of −ln p(label), in nats; p is clipped to at least `NLL_CLIP`.
        brier: mean over rows of the squared error summed over classes, in [0, 2] (Brier 1950; not halved).
        ece: expected calibration error, Σ_b n_b/n · |accuracy_b − confidence_b| over the `reliability_bins`
            (Guo et al. 2017, arXiv 1706.04599, eq. 3).
        n: number of rows.
    """
    p, y = _validated(probabilities, labels)
    n, classes = p.shape
    predicted = p.argmax(axis=1)
    correct = predicted == y

    occurrences = np.bincount(predicted, minlength=classes) + np.bincount(y, minlength=classes)
    true_positives = np.bincount(y[correct], minlength=classes)
    occurs = occurrences > 0
    f1 = 2 * true_positives[occurs] / occurrences[occurs]

    errors = p.copy()
    errors[np.arange(n), y] -= 1.0

    ece = sum(
        b["count"] / n * abs(b["accuracy"] - b["confidence"])
        for b in _reliability_bins(p, y, bins)
        if b["count"]
    )
    return {
        "accuracy": float(correct.mean()),
        "macro_f1": float(f1.mean()),
        "nll": float(-np.log(np.clip(p[np.arange(n), y], NLL_CLIP, 1.0)).mean()),
        "brier": float((errors**2).sum(axis=1).mean()),
        "ece": float(ece),
        "n": n,
    }


def reliability_bins(
    probabilities: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray | torch.Tensor,
    bins: int = 15,
) -> list[dict[str, Any]]:
    """Accuracy against confidence (the top class's probability) in `bins` bins of equal width on [0, 1].

    Returns `bins` dicts with `lower`, `upper`, `count`, and the bin's mean `confidence` and `accuracy` (None
    where count = 0). A bin holds lower ≤ confidence < upper; the last one also holds 1. Guo et al. close the
    bins at the other end, which matters only to a confidence exactly on an edge; this is torchmetrics' side,
    which however gives confidences of exactly 1 a bin of their own.
    """
    return _reliability_bins(*_validated(probabilities, labels), bins)


def per_language_metrics(
    probabilities: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray | torch.Tensor,
    languages: Sequence[str],
    bins: int = 15,
) -> dict[str, dict[str, float]]:
    """`classification_metrics` of each language's rows, sorted by language code; `languages`: (n,) codes."""
    p, y = _validated(probabilities, labels)
    codes = np.asarray(list(languages), dtype=object)
    if len(codes) != len(y):
        raise ValueError(
            f"languages has {len(codes)} entries, labels has {len(y)}; they must be equally long"
        )
    strange = [code for code in codes if not isinstance(code, str) or not code]
    if strange:
        raise ValueError(f"languages must be non-empty language codes, found {strange[0]!r}")
    return {
        code: classification_metrics(p[codes == code], y[codes == code], bins)
        for code in sorted(set(codes.tolist()))
    }


def macro_average(per_language: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over languages of each metric: every language counts the same, however many rows it has."""
    if not per_language:
        raise ValueError("per_language is empty; it must hold the metrics of at least one language")
    _require(per_language, METRICS)
    return {metric: float(np.mean([row[metric] for row in per_language.values()])) for metric in METRICS}


def parity(per_language: Mapping[str, Mapping[str, float]], reference: str = "en") -> dict[str, Any]:
    """How evenly accuracy is spread over languages.

    gap = accuracy of `reference` − accuracy of the worst language (the reference included, so gap ≥ 0);
    std = population standard deviation of accuracy over the languages. Both are fractions, as accuracy is.
    """
    if reference not in per_language:
        raise ValueError(
            f"reference language {reference!r} is not among the languages {sorted(per_language)}"
        )
    _require(per_language, ("accuracy",))
    accuracy = {language: float(row["accuracy"]) for language, row in sorted(per_language.items())}
    worst = min(accuracy, key=accuracy.__getitem__)
    return {
        "reference": reference,
        "reference_accuracy": accuracy[reference],
        "worst_language": worst,
        "worst_accuracy": accuracy[worst],
        "gap": accuracy[reference] - accuracy[worst],
        "std": float(np.std(list(accuracy.values()))),
    }


def _reliability_bins(p: np.ndarray, y: np.ndarray, bins: int) -> list[dict[str, Any]]:
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be an integer of at least 1, got {bins!r}")
    confidence = p.max(axis=1)
    correct = p.argmax(axis=1) == y
    edges = np.linspace(0, 1, bins + 1)
    index = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, bins - 1)
    count = np.bincount(index, minlength=bins)
    confidence_sum = np.bincount(index, weights=confidence, minlength=bins)
    correct_sum = np.bincount(index, weights=correct, minlength=bins)
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


def _to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu()
        # numpy has no bfloat16.
        values = values.double() if values.is_floating_point() else values
        return values.numpy()
    return np.asarray(values)


def _validated(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    p, y = _to_numpy(probabilities), _to_numpy(labels)
    if p.ndim != 2 or p.shape[0] == 0 or p.shape[1] == 0:
        raise ValueError(f"probabilities must have shape (n ≥ 1, classes ≥ 1), got {p.shape}")
    if not np.issubdtype(p.dtype, np.floating):
        raise ValueError(f"probabilities must be floating point, got {p.dtype}")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels must be integers of shape (n,), got {y.dtype} of shape {y.shape}")
    if len(y) != len(p):
        raise ValueError(
            f"labels has {len(y)} entries, probabilities has {len(p)} rows; they must be equally many"
        )

    p = p.astype(np.float64)
    _reject_row(~np.isfinite(p).all(axis=1), p, "probabilities must be finite")
    _reject_row((p < 0).any(axis=1), p, "probabilities must not be negative (are these logits?)")
    off = np.abs(p.sum(axis=1) - 1) > ROW_SUM_TOLERANCE
    _reject_row(off, p, f"each row of probabilities must sum to 1 within {ROW_SUM_TOLERANCE}")
    out = (y < 0) | (y >= p.shape[1])
    if out.any():
        row = int(out.argmax())
        raise ValueError(f"labels must be in [0, {p.shape[1]}), row {row} has {y[row]}")
    return p, y.astype(np.int64)


def _reject_row(bad: Any, p: np.ndarray, rule: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{rule}; row {row} is {np.array2string(p[row], precision=4, threshold=8)}")


def _require(per_language: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> None:
    for language, row in per_language.items():
        missing = [metric for metric in metrics if metric not in row]
        if missing:
            raise ValueError(f"per_language[{language!r}] lacks {', '.join(missing)}")
