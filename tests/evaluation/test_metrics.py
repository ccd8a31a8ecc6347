import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss

from hybrid_kernels.evaluation import (
    Predictions,
    classification_metrics,
    expected_calibration_error,
    macro_average,
    per_language_metrics,
    run_metrics,
)
from tests.evaluation.cases import CASES, torchmetrics_ece


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
            # Compared with scikit-learn in test_calibration.py.
            "ece_equal_mass": expected_calibration_error(probabilities, labels, 15, "equal_mass"),
            "n": len(labels),
        },
        abs=1e-6,
    )


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
    assert set(macro) == {"accuracy", "macro_f1", "nll", "brier", "ece", "ece_equal_mass"}
    for metric, value in macro.items():
        assert value == pytest.approx((per_language["en"][metric] + per_language["sw"][metric]) / 2)


def predictions(seed, languages=("en", "sw"), rows=60):
    generator = np.random.default_rng(seed)
    n = rows * len(languages)
    probabilities = generator.dirichlet(np.ones(3), n)
    return Predictions(probabilities, generator.integers(0, 3, n), np.repeat(languages, rows), np.arange(n))


def test_a_run_has_every_metric():
    one = predictions(0)
    found = run_metrics(one)
    assert set(found) == {"macro", "per_language", "parity", "by_script", "by_resource_class"}
    assert found["per_language"] == per_language_metrics(one.probabilities, one.labels, one.languages)
    accuracy = [found["per_language"][language]["accuracy"] for language in ("en", "sw")]
    assert found["macro"]["accuracy"] == pytest.approx(np.mean(accuracy))
    assert found["parity"]["gap"] == pytest.approx(accuracy[0] - min(accuracy))
    assert list(found["by_script"]["groups"]) == ["Latin"]
    assert list(found["by_resource_class"]["groups"]) == ["2", "5"]


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


def test_malformed_languages_are_refused():
    with pytest.raises(ValueError, match="languages has 3 entries, labels has 4"):
        per_language_metrics(GOOD, [0, 1, 0, 1], ["en"] * 3)
    with pytest.raises(ValueError, match="language codes, found None"):
        per_language_metrics(GOOD, [0, 1, 0, 1], ["en", None, "en", "en"])
    with pytest.raises(ValueError, match="per_language is empty"):
        macro_average({})
    with pytest.raises(
        ValueError, match=r"per_language\['fr'\] lacks macro_f1, nll, brier, ece, ece_equal_mass"
    ):
        macro_average({"fr": {"accuracy": 0.5}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 3, 0]}, r"labels must be in \[0, 2\), row 1 has 3"),
        ({"languages": ["en", "en"]}, "languages has 2 entries, labels has 3"),
        ({"ids": ["a", "b", "a"]}, "ids must be unique, 'a' occurs 2 times"),
        ({"ids": ["a", "b"]}, r"ids has shape \(2,\), labels has 3 entries"),
        ({"clusters": ["a"]}, r"clusters has shape \(1,\), labels has 3 entries"),
    ],
)
def test_malformed_runs_are_refused(changes, message):
    fields = {"probabilities": GOOD[:3], "labels": [0, 1, 0], "languages": ["en"] * 3, "ids": ["a", "b", "c"]}
    with pytest.raises(ValueError, match=message):
        Predictions(**fields | changes)
