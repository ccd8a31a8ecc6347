import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from hybrid_kernels.evaluation import (
    apply_temperature,
    classification_metrics,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from hybrid_kernels.evaluation.calibration import NLL_CLIP
from tests.evaluation.cases import CASES, softmax, torchmetrics_ece

GOOD = np.full((4, 2), 0.5)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("name", CASES)
def test_error_of_equal_width_agrees_with_torchmetrics(name, bins):
    probabilities, labels = CASES[name]
    found = expected_calibration_error(probabilities, labels, bins)
    assert found == pytest.approx(torchmetrics_ece(probabilities, labels, bins), abs=1e-6)


def test_confidences_on_bin_edges_fall_where_torchmetrics_puts_them():
    # Eighths are exact in float32 and float64, so both sides see the same edges.
    confidence = np.arange(4, 9) / 8
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 1, 0, 1, 1])
    bins = reliability_bins(probabilities, labels, bins=8)
    assert [b["count"] for b in bins] == [0, 0, 0, 0, 1, 1, 1, 2]
    ece = expected_calibration_error(probabilities, labels, bins=8)
    assert ece == pytest.approx(torchmetrics_ece(probabilities, labels, 8), abs=1e-6)
    # By hand: |1 − 4/8| + |0 − 5/8| + |1 − 6/8| + |0 − (7/8 + 1)|, over five rows.
    assert ece == pytest.approx((0.5 + 0.625 + 0.25 + 1.875) / 5)


def test_edges_of_fifteen_bins_belong_to_the_upper_bin():
    probabilities = np.array([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.8, 0.1, 0.1]])
    bins = reliability_bins(probabilities, np.zeros(3, int))
    assert [i for i, b in enumerate(bins) if b["count"]] == [6, 9, 12]


def two_classes(confidence, seed=0):
    labels = (np.random.default_rng(seed).random(len(confidence)) > confidence).astype(int)
    return np.stack([confidence, 1 - confidence], axis=1), labels


# n − 1 has no factor in common with 15: else an edge may be a confidence itself, and the rounding of k/15 moves
# scikit-learn's edge off it, to either side.
MASS = {
    "no ties": np.random.default_rng(0).uniform(0.5, 1, 500),
    "saturated": np.concatenate([np.ones(300), np.random.default_rng(1).uniform(0.5, 1, 200)]),
    "few values": np.random.default_rng(2).choice([0.5, 0.625, 0.75, 1.0], 333),
    "one value": np.full(50, 0.75),
    "fewer rows than bins": np.array([0.5, 0.7, 0.6, 0.9, 0.8]),
}


@pytest.mark.parametrize("bins", [1, 8, 15])
@pytest.mark.parametrize("name", MASS)
def test_bins_of_equal_mass_agree_with_scikit_learn(name, bins):
    confidence = MASS[name]
    probabilities, labels = two_classes(confidence)
    found = [b for b in reliability_bins(probabilities, labels, bins, "equal_mass") if b["count"]]
    accuracy, mean = calibration_curve(labels == 0, confidence, n_bins=bins, strategy="quantile")
    assert [b["accuracy"] for b in found] == pytest.approx(accuracy, abs=1e-6)
    assert [b["confidence"] for b in found] == pytest.approx(mean, abs=1e-6)
    assert sum(b["count"] for b in found) == len(confidence)
    edges = np.percentile(confidence, np.linspace(0, 100, bins + 1))[1:-1]
    counts = np.bincount(np.digitize(confidence, edges, right=True))
    expected = counts[counts > 0] @ np.abs(accuracy - mean) / len(confidence)
    ece = expected_calibration_error(probabilities, labels, bins, "equal_mass")
    assert ece == pytest.approx(expected, abs=1e-6)


def test_bins_of_equal_mass_share_ties_whatever_the_order_of_rows():
    probabilities, labels = two_classes(MASS["saturated"])
    bins = reliability_bins(probabilities, labels, 10, "equal_mass")
    # The five upper edges are 1: the first of their bins has all rows of confidence 1, the others none.
    assert [b["count"] for b in bins[5:]] == [0] * 5
    assert bins[4]["upper"] == 1 and bins[4]["count"] >= 300
    order = np.random.default_rng(3).permutation(len(labels))
    assert reliability_bins(probabilities[order], labels[order], 10, "equal_mass") == [
        b | {name: pytest.approx(b[name]) for name in ("accuracy", "confidence") if b["count"]} for b in bins
    ]


def test_bins_of_equal_mass_differ_by_one_row_without_ties():
    counts = [b["count"] for b in reliability_bins(*two_classes(MASS["no ties"]), 15, "equal_mass")]
    assert set(counts) == {33, 34}


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_reliability_bins_account_for_every_row(binning):
    probabilities, labels = CASES["moderate"]
    bins = reliability_bins(probabilities, labels, 7, binning)
    assert len(bins) == 7 and sum(b["count"] for b in bins) == len(labels)
    filled = [b for b in bins if b["count"]]
    assert all(b["lower"] <= b["confidence"] <= b["upper"] for b in filled)
    correct = sum(b["count"] * b["accuracy"] for b in filled)
    assert correct == pytest.approx((probabilities.argmax(axis=1) == labels).sum())
    empty = [b for b in bins if not b["count"]]
    assert len(empty) == (2 if binning == "equal_width" else 0)
    assert all(b["confidence"] is None and b["accuracy"] is None for b in empty)


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
def test_malformed_bins_are_refused(bins):
    with pytest.raises(ValueError, match="bins must be an integer of at least 1"):
        reliability_bins(GOOD, [0, 1, 0, 1], bins=bins)
    with pytest.raises(ValueError, match="'equal_width' or 'equal_mass', got 'quantile'"):
        reliability_bins(GOOD, [0, 1, 0, 1], binning="quantile")


def drawn(n, temperature, seed=0):
    """Logits, and labels that softmax(logits / temperature) has drawn."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(n, 3))
    # The largest of logits with Gumbel noise is a draw from their softmax.
    return logits, (logits / temperature + generator.gumbel(size=(n, 3))).argmax(axis=1)


def nll(logits, labels, temperature):
    scaled = torch.tensor(logits) / temperature
    return torch.nn.functional.cross_entropy(scaled, torch.tensor(labels))


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_agrees_with_a_grid_and_with_lbfgs(true):
    logits, labels = drawn(600, true)
    found = fit_temperature(logits, labels)
    grid = np.geomspace(found / 1.05, found * 1.05, 2001)
    best = grid[np.argmin([nll(logits, labels, t).item() for t in grid])]
    assert found == pytest.approx(best, rel=1e-4)

    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [inverse], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = nll(logits, labels, 1 / inverse)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found == pytest.approx(1 / inverse.item(), rel=1e-6)


def test_temperature_recovers_the_one_that_drew_the_labels():
    assert fit_temperature(*drawn(40_000, 2.5)) == pytest.approx(2.5, rel=0.03)


def test_logits_log_probabilities_and_tensors_give_the_same_temperature():
    logits, labels = drawn(300, 2.0)
    found = fit_temperature(logits, labels)
    assert fit_temperature(np.log(softmax(logits)), labels) == pytest.approx(found, rel=1e-9)
    assert fit_temperature(torch.tensor(logits).log_softmax(-1), torch.tensor(labels)) == pytest.approx(found)
    assert fit_temperature(logits + 1000, labels) == pytest.approx(found)


def test_optima_out_of_reach_are_the_ends():
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, [0, 1]) == 0.01  # every row right: T → 0
    assert fit_temperature(logits, [1, 0]) == 100.0  # every row wrong: T → ∞
    # Nor is a softmax that is 1 and 0 already indifferent to T.
    assert fit_temperature(np.array([[60.0, 0.0, 0.0], [0.0, 60.0, 0.0]]), [0, 1]) == 0.01
    assert fit_temperature(logits[:, :1], [0, 0]) == 1.0  # one class
    assert fit_temperature(np.zeros((3, 4)), [0, 1, 2]) == 1.0  # no preference


def test_probability_zero_for_the_label_leaves_a_finite_optimum():
    logits, labels = drawn(300, 1.0)
    with np.errstate(divide="ignore"):
        scores = np.log(np.where(np.arange(3) == labels[:1, None], 0, softmax(logits[:1])))
    scores = np.concatenate([scores - np.log(np.exp(scores).sum()), logits[1:]])
    assert scores[0, labels[0]] == -np.inf
    found = fit_temperature(scores, labels)
    clipped = np.maximum(torch.tensor(scores).log_softmax(-1).numpy(), np.log(NLL_CLIP))
    grid = np.linspace(0.9 * found, 1.1 * found, 4001)
    assert found == pytest.approx(grid[np.argmin([nll(clipped, labels, t) for t in grid])], rel=1e-3)
    # A class that is impossible, and never the label, does not matter.
    wider = np.concatenate([logits, np.full((300, 1), -np.inf)], axis=1)
    assert fit_temperature(wider, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)


def test_applied_temperature_is_that_of_the_logits():
    logits, labels = drawn(500, 3.0)
    p = softmax(logits)
    temperature = fit_temperature(np.log(p), labels)
    scaled = apply_temperature(p, temperature)
    assert scaled == pytest.approx(softmax(logits / temperature), abs=1e-12)
    assert apply_temperature(torch.tensor(p), 1.0) == pytest.approx(p, abs=1e-12)
    before, after = classification_metrics(p, labels), classification_metrics(scaled, labels)
    assert (after["accuracy"], after["macro_f1"]) == (before["accuracy"], before["macro_f1"])
    assert after["nll"] == pytest.approx(nll(logits, labels, temperature).item())
    assert after["nll"] < before["nll"] - 0.1 and after["ece"] < before["ece"] / 3
    assert apply_temperature(np.array([[1.0, 0.0]]), 2.0)[0, 1] == pytest.approx(NLL_CLIP**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(3), [0, 0, 0], r"scores must have shape \(n ≥ 1, classes ≥ 1\), got \(3,\)"),
        (np.zeros((2, 2), int), [0, 0], "scores must be floating point, got int64"),
        (np.zeros((2, 2)), [0], "labels has 1 entries, scores has 2 rows"),
        (np.zeros((2, 2)), [0, 2], r"labels must be in \[0, 2\), row 1 has 2"),
        (np.array([[0.0, np.nan]]), [0], "scores must be finite or −inf; row 0"),
        (np.array([[0.0, np.inf]]), [0], "scores must be finite or −inf; row 0"),
        (np.array([[0.0, 1.0], [-np.inf, -np.inf]]), [0, 0], "must not be −inf alone; row 1"),
        (np.array([[0.3, 0.7], [0.5, 0.5]]), [0, 0], "these are probabilities; pass their logarithm"),
    ],
)
def test_malformed_scores_are_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(scores, labels)


@pytest.mark.parametrize("number", [np.float32(1.5), np.float64(1.5), np.int64(2), 2])
def test_temperatures_may_be_numpys(number):
    assert (apply_temperature(GOOD, number) == apply_temperature(GOOD, float(number))).all()


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "hot", True])
def test_malformed_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        apply_temperature(GOOD, temperature)
