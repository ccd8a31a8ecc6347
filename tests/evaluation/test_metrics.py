import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from hybrid_kernels.evaluation import (
    classification_metrics,
    macro_average,
    parity,
    per_language_metrics,
    reliability_bins,
)


def softmax_case(n, classes, sharpness, seed=0):
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(n, classes))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    return probabilities / probabilities.sum(axis=1, keepdims=True), generator.integers(0, classes, n)


CASES = {
    "moderate": softmax_case(500, 3, 1.0),
    "overconfident": softmax_case(500, 3, 8.0, seed=1),
    "two classes": softmax_case(200, 2, 1.0, seed=2),
    "many classes": softmax_case(400, 11, 2.0, seed=3),
    "single row": (np.array([[0.2, 0.7, 0.1]]), np.array([2])),
    "all certain": (np.eye(3)[[0, 1, 2, 0, 1]], np.array([0, 1, 2, 1, 1])),
    "class never occurs": (
        np.array([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.8, 0.2, 0.0]]),
        np.array([0, 1, 1]),
    ),
    "class predicted only": (np.array([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1]]), np.array([0, 0])),
}


def torchmetrics_ece(probabilities, labels, bins):
    # torchmetrics gives confidences of exactly 1 a bin of their own; one float32 step less is in the last.
    below_one = np.float32(1) - np.finfo(np.float32).epsneg
    metric = MulticlassCalibrationError(num_classes=probabilities.shape[1], n_bins=bins, norm="l1")
    return metric(torch.tensor(probabilities).clamp(max=below_one), torch.tensor(labels)).item()


@pytest.mark.parametrize("name", CASES)
def test_metrics_agree_with_scikit_learn_and_torchmetrics(name):
    probabilities, labels = CASES[name]
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    found = classification_metrics(probabilities, labels)
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "macro_f1": f1_score(labels, predicted, average="macro"),
            "nll": log_loss(labels, probabilities, labels=range(classes)),
            "brier": brier_score_loss(labels, probabilities, labels=range(classes), scale_by_half=False),
            "ece": torchmetrics_ece(probabilities, labels, 15),
            "n": len(labels),
        },
        abs=1e-6,
    )


def test_confidences_on_bin_edges_fall_where_torchmetrics_puts_them():
    # Eighths are exact in float32 and float64, so both sides see the same edges.
    confidence = np.arange(4, 9) / 8
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 1, 0, 1, 1])
    bins = reliability_bins(probabilities, labels, bins=8)
    assert [b["count"] for b in bins] == [0, 0, 0, 0, 1, 1, 1, 2]
    ece = classification_metrics(probabilities, labels, bins=8)["ece"]
    assert ece == pytest.approx(torchmetrics_ece(probabilities, labels, 8), abs=1e-6)
    # By hand: |1 − 4/8| + |0 − 5/8| + |1 − 6/8| + |0 − (7/8 + 1)|, over five rows.
    assert ece == pytest.approx((0.5 + 0.625 + 0.25 + 1.875) / 5)


def test_edges_of_fifteen_bins_belong_to_the_upper_bin():
    probabilities = np.array([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.8, 0.1, 0.1]])
    bins = reliability_bins(probabilities, np.zeros(3, int))
    assert [i for i, b in enumerate(bins) if b["count"]] == [6, 9, 12]


def test_reliability_bins_account_for_every_row():
    probabilities, labels = CASES["moderate"]
    bins = reliability_bins(probabilities, labels, bins=7)
    assert len(bins) == 7 and bins[0]["lower"] == 0 and bins[-1]["upper"] == 1
    assert sum(b["count"] for b in bins) == len(labels)
    filled = [b for b in bins if b["count"]]
    assert all(b["lower"] <= b["confidence"] < b["upper"] for b in filled)
    correct = sum(b["count"] * b["accuracy"] for b in filled)
    assert correct == pytest.approx((probabilities.argmax(axis=1) == labels).sum())
    empty = [b for b in bins if not b["count"]]
    assert empty and all(b["confidence"] is None and b["accuracy"] is None for b in empty)


def test_probability_zero_for_the_label_costs_the_documented_clip():
    found = classification_metrics(np.array([[1.0, 0.0], [1.0, 0.0]]), [1, 0])
    assert found["nll"] == pytest.approx(-math.log(2.0**-52) / 2)
    assert found["brier"] == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_tensors_give_the_same_as_arrays(dtype):
    logits = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(-1).requires_grad_()
    # bfloat16 rows would miss the sum by more than allowed, were they not exact: use halves and quarters.
    if dtype is torch.bfloat16:
        probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.75, 0.0]], dtype=dtype)
    labels = torch.arange(len(probabilities)) % 3
    as_array = probabilities.detach().to(dtype).double().numpy()
    assert classification_metrics(probabilities.to(dtype), labels) == classification_metrics(
        as_array, labels.tolist()
    )


def test_per_language_metrics_select_each_language_and_sort():
    probabilities, labels = CASES["moderate"]
    languages = ["th", "en", "ar", "en", "th"] * 100
    found = per_language_metrics(probabilities, labels, languages)
    assert list(found) == ["ar", "en", "th"]
    assert [row["n"] for row in found.values()] == [100, 200, 200]
    rows = [i for i, language in enumerate(languages) if language == "ar"]
    assert found["ar"] == classification_metrics(probabilities[rows], labels[rows])


def test_macro_average_counts_each_language_once():
    probabilities, labels = CASES["moderate"]
    languages = ["en"] * 490 + ["sw"] * 10
    per_language = per_language_metrics(probabilities, labels, languages)
    macro = macro_average(per_language)
    assert set(macro) == {"accuracy", "macro_f1", "nll", "brier", "ece"}
    for metric, value in macro.items():
        assert value == pytest.approx((per_language["en"][metric] + per_language["sw"][metric]) / 2)


def test_parity():
    accuracies = {"en": 0.8, "fr": 0.7, "sw": 0.5, "de": 0.5}
    found = parity({language: {"accuracy": value} for language, value in accuracies.items()})
    assert found == pytest.approx(
        {
            "reference": "en",
            "reference_accuracy": 0.8,
            "worst_language": "de",
            "worst_accuracy": 0.5,
            "gap": 0.3,
            "std": math.sqrt((0.175**2 + 0.075**2 + 2 * 0.125**2) / 4),
        }
    )
    assert parity({"en": {"accuracy": 0.4}, "fr": {"accuracy": 0.6}})["gap"] == 0


GOOD = np.full((4, 2), 0.5)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((0, 3)), [], r"shape \(n ≥ 1, classes ≥ 1\), got \(0, 3\)"),
        (np.full(3, 1 / 3), [0, 1, 2], r"got \(3,\)"),
        (np.ones((2, 1), int), [0, 0], "floating point, got int64"),
        (GOOD, [0, 1], "labels has 2 entries, probabilities has 4 rows"),
        (GOOD, [0, 1, 2, 1], r"labels must be in \[0, 2\), row 2 has 2"),
        (GOOD, [0, -1, 0, 1], "row 1 has -1"),
        (GOOD, [0.0, 1.0, 0.0, 1.0], "labels must be integers"),
        (GOOD, [[0, 1, 0, 1]], r"shape \(n,\)"),
        (np.array([[0.5, 0.5], [0.5, 0.502]]), [0, 1], "must sum to 1 within 0.001; row 1"),
        (np.array([[2.0, -1.0]]), [0], "must not be negative"),
        (np.array([[0.5, 0.5], [np.nan, 0.5]]), [0, 1], "must be finite; row 1"),
        (np.array([[np.inf, 0.5]]), [0], "must be finite"),
    ],
)
def test_malformed_predictions_are_refused(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(probabilities, labels)


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
def test_malformed_bins_are_refused(bins):
    with pytest.raises(ValueError, match="bins must be an integer of at least 1"):
        reliability_bins(GOOD, [0, 1, 0, 1], bins=bins)


def test_malformed_languages_are_refused():
    with pytest.raises(ValueError, match="languages has 3 entries, labels has 4"):
        per_language_metrics(GOOD, [0, 1, 0, 1], ["en"] * 3)
    with pytest.raises(ValueError, match="language codes, found None"):
        per_language_metrics(GOOD, [0, 1, 0, 1], ["en", None, "en", "en"])
    with pytest.raises(ValueError, match=r"reference language 'en' is not among the languages \['fr'\]"):
        parity({"fr": {"accuracy": 0.5}})
    with pytest.raises(ValueError, match="per_language is empty"):
        macro_average({})
    with pytest.raises(ValueError, match=r"per_language\['fr'\] lacks macro_f1, nll, brier, ece"):
        macro_average({"fr": {"accuracy": 0.5}})
