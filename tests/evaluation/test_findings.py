import math

import pytest

from hybrid_kernels.evaluation import findings
from hybrid_kernels.evaluation.results import LanguageScores, parse_results


@pytest.fixture
def results_with_accuracies(make_results):
    return lambda *arguments, **options: set_accuracies(make_results, *arguments, **options)


def set_accuracies(make_results, accuracies, rows=400, backends=None, spread=None):
    """Results in which method i answers the share accuracies[i] of each language's rows right."""
    results = make_results(len(accuracies))
    for index, (method, accuracy) in enumerate(zip(results["methods"], accuracies, strict=True)):
        evaluation = method["evaluation"]
        evaluation["macro"]["accuracy"] = accuracy
        for scores in evaluation["per_language"].values():
            scores |= {"accuracy": accuracy, "n": rows}
        evaluation["parity"]["gap"] = 0.0
        method["spread"] = spread
        method["seeds"] = [0] if spread is None else [0, 1, 2]
        method["backend"] = backends[index] if backends else "peft"
    return parse_results(results)


def said(results, topic):
    return dict(findings.findings(results))[topic]


def test_sampling_error_is_binomial_and_never_zero():
    scores = {"macro_f1": 0, "nll": 0, "brier": 0, "ece": 0, "n": 100}
    half = findings.sampling_error(LanguageScores(accuracy=0.5, **scores))
    assert half == pytest.approx(0.05)
    certain = findings.sampling_error(LanguageScores(accuracy=1.0, **scores))
    assert certain == pytest.approx(math.sqrt(0.005 * 0.995 / 100))


def test_difference_inside_the_sampling_error_is_not_a_win(results_with_accuracies):
    # 3 × 400 rows: one standard error is 1.3 points, so 3 points are inside 1.96 · √2 · 1.3 = 3.7, not 5.
    close = said(results_with_accuracies([0.70, 0.67]), "Accuracy")
    assert "Method 0 has the highest macro accuracy: 70.0 ± 1.3 %" in close
    assert (
        "Not distinguishable from it, the difference being inside the uncertainty: Method 1 (67.0)" in close
    )
    assert "Distinguishably" not in close
    far = said(results_with_accuracies([0.70, 0.65]), "Accuracy")
    assert "Distinguishably lower: Method 1 (65.0)" in far
    assert "Not distinguishable" not in far


def test_difference_inside_the_spread_over_seeds_is_not_a_win(results_with_accuracies):
    spread = {"accuracy": 0.03, "ece": 0.01, "gap": None}
    results = results_with_accuracies([0.70, 0.65], spread=spread)
    assert "Not distinguishable from it" in said(results, "Accuracy")
    assert "trained with 3 seeds" in said(results, "Certainty")
    assert findings.accuracy(results.methods[0]).error == pytest.approx(
        math.hypot(0.03, math.sqrt(0.21 / 1200))
    )


def test_guessing_is_named_and_recognised(results_with_accuracies):
    results = results_with_accuracies([0.60, 0.34, 0.20])
    text = said(results, "Accuracy")
    assert "Guessing among 3 classes scores 33.3 %." in text
    assert "Not distinguishable from guessing: Method 1." in text
    assert "Worse than guessing: Method 2." in text


def test_own_method_that_loses_is_said_to_lose(results_with_accuracies):
    backends = ["peft", "hybrid-kernels"]
    lost = said(results_with_accuracies([0.70, 0.60], backends=backends), "This project")
    assert lost.startswith("Method 1 is ") and "not the best in accuracy" in lost
    tied = said(results_with_accuracies([0.70, 0.69], backends=backends), "This project")
    assert "not distinguishable from the best in accuracy" in tied
    shared_first = said(results_with_accuracies([0.69, 0.70], backends=backends), "This project")
    assert "not distinguishable from the best in accuracy" in shared_first
    won = said(results_with_accuracies([0.60, 0.70], backends=backends), "This project")
    assert "Method 1 is best in accuracy" in won


def test_cost_names_the_extremes_and_overlapping_times(results_with_accuracies):
    results = results_with_accuracies([0.6, 0.7, 0.6])
    for method, ratio in zip(results.methods, (1.05, 1.08, 1.9), strict=True):
        method.step_time_ratio, method.step_time_spread = ratio, (ratio - 0.02, ratio + 0.02)
    text = said(results, "Cost")
    assert text.startswith("Method 1, first in accuracy, trains 123,456 parameters (12 % of the model's)")
    assert "runs from 1.05× (Method 0) to 1.90× (Method 2)" in text
    assert "Not distinguishable from the fastest (the middle halves overlap): Method 1." in text


def test_one_method_is_described_without_comparison(results_with_accuracies):
    results = results_with_accuracies([0.7])
    topics = dict(findings.findings(results))
    assert topics["Accuracy"].startswith("Method 0: 70.0 ± 1.3 %.")
    assert "This project" not in topics


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"), (5 * 2**40, "5120 GiB")],
)
def test_binary_size(size, text):
    assert findings.binary_size(size) == text
