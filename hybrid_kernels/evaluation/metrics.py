"""Quality of a classifier from its class probabilities: by language, averaged, and over seeds.

Everywhere: `probabilities` (n, classes) floating point, numpy array or torch tensor on any device, each row
summing to 1 within 1e-3 (rows are used as given, not renormalised); `labels` (n,) integers in [0, classes).
Computation is in float64. Malformed input raises ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_kernels.evaluation.calibration import BINS, NLL_CLIP, expected_calibration_error
from hybrid_kernels.evaluation.parity import parity, parity_by_resource_class, parity_by_script, require
from hybrid_kernels.evaluation.predictions import Predictions, check_languages, check_predictions

if TYPE_CHECKING:
    import torch

METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece", "ece_equal_mass")


def classification_metrics(
    probabilities: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray | torch.Tensor,
    bins: int = BINS,
) -> dict[str, float]:
    """Metrics of one set of predictions; the prediction is the most probable class (the first one on a tie).

    Returns:
        accuracy: share of rows whose prediction is the label.
        macro_f1: mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur as label or prediction.
        nll: mean of −ln p(label), in nats; p is clipped to at least `calibration.NLL_CLIP`.
        brier: mean over rows of the squared error summed over classes, in [0, 2] (Brier 1950; not halved).
        ece, ece_equal_mass: `expected_calibration_error` over bins of equal width and of equal mass.
        n: number of rows.
    """
    p, y = check_predictions(probabilities, labels)
    n, classes = p.shape
    predicted = p.argmax(axis=1)
    correct = predicted == y

    occurrences = np.bincount(predicted, minlength=classes) + np.bincount(y, minlength=classes)
    true_positives = np.bincount(y[correct], minlength=classes)
    occurs = occurrences > 0
    f1 = 2 * true_positives[occurs] / occurrences[occurs]

    errors = p.copy()
    errors[np.arange(n), y] -= 1.0
    return {
        "accuracy": float(correct.mean()),
        "macro_f1": float(f1.mean()),
        "nll": float(-np.log(np.clip(p[np.arange(n), y], NLL_CLIP, 1.0)).mean()),
        "brier": float((errors**2).sum(axis=1).mean()),
        "ece": expected_calibration_error(p, y, bins),
        "ece_equal_mass": expected_calibration_error(p, y, bins, "equal_mass"),
        "n": n,
    }


def per_language_metrics(
    probabilities: np.ndarray | torch.Tensor,
    labels: Sequence[int] | np.ndarray | torch.Tensor,
    languages: Sequence[str] | np.ndarray,
    bins: int = BINS,
) -> dict[str, dict[str, float]]:
    """`classification_metrics` of each language's rows, sorted by language code; `languages`: (n,) codes."""
    p, y = check_predictions(probabilities, labels)
    codes = check_languages(languages, len(y))
    return {
        code: classification_metrics(p[codes == code], y[codes == code], bins)
        for code in sorted(set(codes.tolist()))
    }


def macro_average(per_language: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over languages of each metric: every language counts the same, however many rows it has."""
    if not per_language:
        raise ValueError("per_language is empty; it must hold the metrics of at least one language")
    require(per_language, METRICS)
    return {metric: float(np.mean([row[metric] for row in per_language.values()])) for metric in METRICS}


def run_metrics(predictions: Predictions, reference: str = "en", bins: int = BINS) -> dict[str, Any]:
    """All there is to say of one run.

    Returns:
        macro: `macro_average`; per_language: `per_language_metrics`; parity, by_script, by_resource_class: of
        `hybrid_kernels.evaluation.parity`.
    """
    per_language = per_language_metrics(
        predictions.probabilities, predictions.labels, predictions.languages, bins
    )
    return {
        "macro": macro_average(per_language),
        "per_language": per_language,
        "parity": parity(per_language, reference),
        "by_script": parity_by_script(per_language, reference),
        "by_resource_class": parity_by_resource_class(per_language, reference),
    }
