import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from hybrid_kernels.evaluation import Predictions, bootstrap, classification_metrics, run_metrics
from hybrid_kernels.evaluation.resampling import DIRECTIONS, draws, resample
from hybrid_kernels.evaluation.significance import holm
from tests.evaluation.cases import softmax

LANGUAGES = ("en", "sw", "th")
SKILL = np.array([1.6, 0.8, 1.1])


def items(n, seed):
    """Labels (n,) and what is peculiar to each item, in all languages and for all methods (1, n, 3)."""
    generator = np.random.default_rng((seed, 0))
    return generator.integers(0, 3, n), generator.normal(size=(1, n, 3))


def trained(labels, peculiar, /, seed, skill=0.0, languages=LANGUAGES, **changes):
    """Predictions of a synthetic model; `skill` is added to that of each language."""
    n, size = len(labels), len(languages)
    logits = np.random.default_rng((seed, 1)).normal(size=(size, n, 3)) + peculiar
    logits[:, np.arange(n), labels] += (SKILL[:size] + skill)[:, None]
    fields = {
        "probabilities": softmax(logits).reshape(-1, 3),
        "labels": np.tile(labels, size),
        "languages": np.repeat(languages, n),
        "ids": np.arange(size * n),
        "clusters": np.tile(np.arange(n), size),
    }
    return Predictions(**fields | changes)


def taken(run, rows):
    """The run with these rows, in this order; those that are repeated get ids of their own."""
    return Predictions(
        run.probabilities[rows],
        run.labels[rows],
        run.languages[rows],
        np.arange(len(rows)),
        run.clusters[rows],
    )


def test_estimates_are_the_metrics_whatever_the_order_of_rows():
    data = items(80, 0)
    runs = [trained(*data, seed) for seed in (1, 2)]
    order = np.random.default_rng(0).permutation(240)
    shuffled = Predictions(*(values[order] for values in vars(runs[1]).values()))
    found = bootstrap({"a": [runs[0], shuffled]}, tuple(DIRECTIONS), resamples=100)
    whole = [run_metrics(run) for run in runs]
    for metric in DIRECTIONS:
        part = "parity" if metric == "gap" else "macro"
        assert found.estimates[metric]["a"] == pytest.approx([run[part][metric] for run in whole], abs=1e-12)
    repeated = bootstrap({"a": runs}, tuple(DIRECTIONS), resamples=100)
    for metric in DIRECTIONS:
        assert (found.resampled[metric]["a"] == repeated.resampled[metric]["a"]).all()


def test_a_resample_has_the_metrics_of_its_rows_taken_one_by_one():
    run = trained(*items(40, 0), seed=1, clusters=np.tile(np.arange(40) // 3, 3))
    # A class that one item alone has, and nobody predicts: it occurs in some resamples only.
    labels = np.where(np.arange(120) % 40 == 7, 3, run.labels)
    run = replace(run, probabilities=np.pad(run.probabilities, ((0, 0), (0, 1))), labels=labels)
    # Bins of equal mass keep their edges, so they are no metric of the resampled rows alone.
    metrics = [metric for metric in DIRECTIONS if metric != "ece_equal_mass"]
    _, found = resample({"a": [run]}, metrics, "en", 20, 15, np.random.default_rng(5))
    names, cluster = np.unique(run.clusters, return_inverse=True)
    (counts,) = draws(np.random.default_rng(5), len(names), 20, 20)
    assert (counts.sum(axis=1) == len(names)).all() and counts.max() > 2
    for values, count in zip(found[:, 0], counts, strict=True):
        own = run_metrics(taken(run, np.repeat(np.arange(120), count[cluster].astype(int))))
        expected = [own["parity"]["gap"] if m == "gap" else own["macro"][m] for m in metrics]
        assert values == pytest.approx(expected, abs=1e-6)


def test_chunks_of_resamples_come_from_one_stream(monkeypatch):
    run = trained(*items(40, 0), seed=1)
    whole = bootstrap({"a": [run]}, resamples=150, seed=3).resampled["accuracy"]["a"]
    monkeypatch.setattr("hybrid_kernels.evaluation.resampling._CHUNK", 40 * 45)
    assert (bootstrap({"a": [run]}, resamples=150, seed=3).resampled["accuracy"]["a"] == whole).all()
    assert (bootstrap({"a": [run]}, resamples=150, seed=4).resampled["accuracy"]["a"] != whole).any()


def test_distribution_is_that_of_all_resamples():
    labels, peculiar = items(5, 3)
    runs = {
        name: [trained(labels, peculiar, seed, languages=("en", "sw"))] for name, seed in (("a", 1), ("b", 2))
    }
    right = {
        name: (run.probabilities.argmax(1) == run.labels).reshape(2, 5).mean(axis=0)
        for name, (run,) in runs.items()
    }
    gain = right["a"] - right["b"]
    exact = np.array([gain[list(drawn)].mean() for drawn in itertools.product(range(5), repeat=5)])
    found = bootstrap(runs, ("accuracy",), resamples=20_000)
    resampled = (found.resampled["accuracy"]["a"] - found.resampled["accuracy"]["b"])[:, 0]
    values = np.unique(exact.round(9))
    assert len(values) > 5 and set(resampled.round(9)) == set(values)
    for value in values:
        share = (exact < value + 1e-6).mean()
        error = 4 * np.sqrt(share * (1 - share) / 20_000)
        assert (resampled < value + 1e-6).mean() == pytest.approx(share, abs=error + 1e-12)

    interval, p = found.difference("a", "b", "accuracy")
    assert interval.estimate == pytest.approx(gain.mean())
    deviations = exact - gain.mean()
    one_side = min((deviations > gain.mean() - 1e-9).mean(), (deviations < gain.mean() + 1e-9).mean())
    assert p == pytest.approx(min(1, 2 * one_side), abs=0.02)


def test_intervals_agree_with_scipy():
    data = items(200, 0)
    runs = {name: [trained(*data, seed, languages=("en",))] for name, seed in (("a", 1), ("b", 2))}
    found = bootstrap(runs, ("nll",), resamples=20_000, confidence=0.9)
    loss = {name: -np.log(run.probabilities[np.arange(200), run.labels]) for name, (run,) in runs.items()}
    for interval, values in (
        (found.interval("a", "nll"), loss["a"]),
        (found.difference("a", "b", "nll")[0], loss["a"] - loss["b"]),
    ):
        theirs = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="basic", rng=0
        )
        # A twentieth of the standard error is what 20,000 resamples leave open at the quantiles.
        near = {"abs": theirs.standard_error / 20}
        assert interval.estimate == pytest.approx(values.mean())
        assert interval.low == pytest.approx(theirs.confidence_interval.low, **near)
        assert interval.high == pytest.approx(theirs.confidence_interval.high, **near)


def test_seeds_that_alone_vary_give_students_interval_and_test():
    # Each row of a run has the same probability of its label, so items add nothing.
    labels, losses = np.zeros(30, int), {"a": [1.0, 1.3, 1.2, 1.9], "b": [0.8, 1.0, 0.7, 1.1]}

    def run(loss):
        p = np.tile([np.exp(-loss), 1 - np.exp(-loss)], (30, 1))
        return Predictions(p, labels, np.repeat(["en", "sw"], 15), np.arange(30))

    found = bootstrap({name: [run(x) for x in values] for name, values in losses.items()}, ("nll",))
    for interval, values in (
        (found.interval("a", "nll"), np.array(losses["a"])),
        (found.difference("a", "b", "nll")[0], np.subtract(losses["a"], losses["b"])),
    ):
        theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval()
        assert interval.estimate == pytest.approx(values.mean())
        assert interval.low == pytest.approx(theirs.low, abs=0.04 * (theirs.high - theirs.low))
        assert interval.high == pytest.approx(theirs.high, abs=0.04 * (theirs.high - theirs.low))
    p = scipy.stats.ttest_rel(losses["a"], losses["b"]).pvalue
    assert found.difference("a", "b", "nll")[1] == pytest.approx(p, abs=4 * np.sqrt(2 * p / 10_000))


def test_translations_of_one_item_count_once():
    run = trained(*items(300, 0), seed=1, languages=("en",))
    twice = {
        "probabilities": np.tile(run.probabilities, (2, 1)),
        "labels": np.tile(run.labels, 2),
        "languages": np.repeat(["en", "sw"], 300),
        "ids": np.arange(600),
    }

    def width(one):
        interval = bootstrap({"a": [one]}, ("accuracy",)).interval("a", "accuracy")
        return interval.high - interval.low

    clustered = Predictions(**twice, clusters=np.tile(np.arange(300), 2))
    assert width(clustered) == pytest.approx(width(run), rel=1e-6)
    assert width(Predictions(**twice)) == pytest.approx(width(run) / np.sqrt(2), rel=0.05)


def test_intervals_cover_and_tests_do_not_cry_wolf():
    experiments, covered, rejected = 300, {"accuracy": 0, "ece": 0}, 0
    sample = trained(*items(100_000, 1), seed=2)
    truth = run_metrics(sample)["macro"]
    for experiment in range(experiments):
        data = items(150, experiment + 10)
        one = bootstrap(
            {"a": [trained(*data, experiment)]}, ("accuracy", "ece"), resamples=400, seed=experiment
        )
        for metric in covered:
            interval = one.interval("a", metric)
            covered[metric] += interval.low <= truth[metric] <= interval.high
        # Two methods of equal skill, three seeds each, that vary more than items do.
        generator = np.random.default_rng((experiment, 2))
        runs = {
            name: [
                trained(*data, 10_000 * experiment + 10 * place + s, 0.5 * generator.normal())
                for s in range(3)
            ]
            for place, name in enumerate("ab", 1)
        }
        rejected += bootstrap(runs, ("accuracy",), resamples=400).difference("a", "b", "accuracy")[1] < 0.05
    # Three standard errors of a share in 300 experiments are 0.038 about 0.95.
    assert covered["accuracy"] / experiments == pytest.approx(0.95, abs=0.038)
    # The basic interval corrects most of the bias of the calibration error; the percentile interval is below 0.5.
    assert covered["ece"] / experiments > 0.85
    assert rejected / experiments < 0.05 + 0.038


def test_methods_are_marked_against_the_best_baseline_of_each_metric():
    data = items(400, 0)
    runs = {
        name: [trained(*data, 10 * i + s, skill) for s in range(2)]
        for i, (name, skill) in enumerate({"weak": -1.0, "base": 0.0, "same": 0.0, "strong": 1.0}.items())
    }
    found = bootstrap(runs, ("accuracy", "nll"), resamples=2_000)
    # Seeds of the same skill differ little, yet two of them hardly carry a corrected test; one seed does.
    single = bootstrap(
        {name: seeds[:1] for name, seeds in runs.items()}, ("accuracy", "nll"), resamples=2_000
    )
    table = {(c.metric, c.method): c for c in single.compare(["weak", "base"])}
    assert {key: c.mark for key, c in table.items()} == {
        (metric, method): mark
        for metric in ("accuracy", "nll")
        for method, mark in {
            "weak": "significantly worse",
            "same": "not distinguishable",
            "strong": "significantly better",
        }.items()
    }
    assert {c.baseline for c in table.values()} == {"base"} and {c.seeds for c in table.values()} == {1}
    strong = table["nll", "strong"]
    assert strong.difference.high < 0 and strong.difference.estimate == pytest.approx(
        single.interval("strong", "nll").estimate - single.interval("base", "nll").estimate
    )
    assert strong.p == pytest.approx(2 / 2001) and strong.p_holm == pytest.approx(6 * strong.p)
    assert [c.p_holm for c in table.values()] == holm([c.p for c in table.values()])
    assert len(found.compare(["base"], ["nll"])) == 3
    assert all(c.seeds == 2 for c in found.compare(["base"]))


def test_a_method_is_not_distinguishable_from_itself():
    runs = [trained(*items(50, 0), seed) for seed in range(3)]
    found = bootstrap({"a": runs, "b": runs}, tuple(DIRECTIONS), resamples=200)
    for comparison in found.compare(["a"]):
        difference = comparison.difference
        assert (difference.estimate, difference.low, difference.high) == (0, 0, 0)
        assert comparison.p == comparison.p_holm == 1 and comparison.mark == "not distinguishable"


def test_seeds_are_paired_by_index_as_far_as_both_have_them():
    data = items(60, 0)
    runs = [trained(*data, seed) for seed in range(3)]
    found = bootstrap({"three": runs, "two": runs[:2]}, ("nll",), resamples=200)
    interval, p = found.difference("three", "two", "nll")
    assert (interval.low, interval.high, p) == (0, 0, 1)
    assert found.compare(["two"])[0].seeds == 2


def test_seeds_are_paired_by_name():
    data = items(60, 0)
    runs = [trained(*data, seed) for seed in range(4)]
    methods = {"a": runs[:3], "b": [runs[2], runs[1]], "c": [runs[3]]}
    found = bootstrap(methods, ("nll",), resamples=200, seeds={"a": [0, 1, 2], "b": [2, 1], "c": [3]})
    interval, p = found.difference("b", "a", "nll")
    assert (interval.estimate, interval.low, interval.high, p) == (0, 0, 0, 1)
    table = {comparison.method: comparison for comparison in found.compare(["a"])}
    assert (table["b"].seeds, table["c"].seeds) == (2, 0)
    assert not table["c"].tested and table["c"].mark == "not distinguishable"
    assert table["c"].difference.estimate == pytest.approx(
        found.estimates["nll"]["c"][0] - found.estimates["nll"]["a"].mean()
    )
    with pytest.raises(ValueError, match=r"seeds\['b'\] must be 2 different names, got \[1, 1\]"):
        bootstrap(methods, ("nll",), seeds={"a": [0, 1, 2], "b": [1, 1], "c": [3]})


def test_one_pair_of_seeds_is_not_tested_where_seeds_vary():
    data = items(100, 0)
    methods = {
        "one": [trained(*data, 1)],
        "better": [trained(*data, 2 + s, 2.0 + 0.01 * s) for s in range(3)],
        "worse": [trained(*data, 5 + s, -2.0 + 0.01 * s) for s in range(3)],
    }
    for comparison in bootstrap(methods, ("accuracy",), resamples=500).compare(["one"]):
        assert comparison.seeds == 1 and not comparison.tested
        assert (comparison.p, comparison.p_holm, comparison.mark) == (1, 1, "not distinguishable")
        assert (comparison.difference.low, comparison.difference.high) == (-np.inf, np.inf)
    # It does not count in the correction of the others.
    found = {c.method: c for c in bootstrap(methods, ("accuracy",), resamples=500).compare(["better"])}
    assert found["worse"].p_holm == found["worse"].p < 0.05 and not found["one"].tested


def test_intervals_stay_in_the_range_of_the_metric():
    run = trained(*items(30, 0), seed=1, skill=-SKILL)
    found = bootstrap({"a": [run]}, resamples=500)
    for metric in ("ece", "gap"):
        assert 0 <= found.interval("a", metric).low <= found.interval("a", metric).high <= 1
    # Two seeds that vary have a t with one degree of freedom, whose interval is wide.
    seeds = [trained(*items(30, 0), seed=seed, skill=skill) for seed, skill in ((1, 3.0), (2, -SKILL))]
    found = bootstrap({"a": seeds, "b": seeds[::-1]}, resamples=500)
    difference, _ = found.difference("a", "b", "accuracy")
    assert (difference.low, difference.high) == (-1, 1)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
    generator = np.random.default_rng(0)
    for _ in range(50):
        p = generator.random(8) ** 4
        adjusted = np.array(holm(p))
        rejected = np.zeros(8, bool)
        for k, i in enumerate(np.argsort(p)):
            if p[i] > 0.05 / (8 - k):
                break
            rejected[i] = True
        assert ((adjusted <= 0.05) == rejected).all()


def good(**changes):
    return replace(trained(*items(10, 0), seed=1), **changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": {}}, "at least one seed each"),
        ({"methods": {"a": []}}, "at least one seed each"),
        ({"metrics": ("accuracy", "bleu")}, "metrics must be some of accuracy, .*; got bleu"),
        ({"metrics": ()}, "got none"),
        ({"resamples": 99}, "resamples must be an integer of at least 100, got 99"),
        ({"resamples": 1e4}, "got 10000.0"),
        ({"confidence": 95}, "confidence must be between 0 and 1, got 95"),
        ({"reference": "fr"}, r"reference language 'fr' is not among the languages \['en', 'sw', 'th'\]"),
        ({"bins": 0}, "bins must be an integer of at least 1"),
        ({"methods": {"a": [good(clusters=["x"] * 30)]}}, "all rows are of cluster 'x'; at least two"),
        (
            {"methods": {"a": [good()], "b": [good(), good(ids=np.arange(1, 31))]}},
            "'b', seed 1, and 'a', seed 0, differ in 2 of their rows' ids, as '0'",
        ),
        (
            {"methods": {"a": [good()], "b": [good(labels=(good().labels + 1) % 3)]}},
            "'b', seed 0, and 'a', seed 0, differ in the labels of row '0'",
        ),
        ({"methods": {"a": [good()], "b": [good(clusters=None)]}}, "differ in the clusters of row"),
        (
            {"methods": {"a": [good()], "b": [good(probabilities=np.full((30, 4), 0.25))]}},
            "have 4 and 3 classes",
        ),
    ],
)
def test_malformed_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(**{"methods": {"a": [good()]}, "resamples": 100} | arguments)


def test_what_was_not_resampled_is_refused():
    found = bootstrap({"a": [good()]}, ("nll",), resamples=100)
    with pytest.raises(ValueError, match="metric 'ece' was not resampled; there are nll"):
        found.interval("a", "ece")
    with pytest.raises(ValueError, match="method 'b' is not among a"):
        found.compare(["b"])
    with pytest.raises(ValueError, match="methods is empty"):
        found.compare([])


def test_a_language_of_too_few_clusters_is_refused():
    languages = np.array(["sw"] + ["en"] * 29)
    run = good(languages=languages, clusters=None)
    # The one cluster of "sw" is missed by (1 − 1/30)^30 = 36 % of the resamples, which are left out.
    found = bootstrap({"a": [run]}, resamples=1000)
    assert len(found.resampled["accuracy"]["a"]) == pytest.approx(638, abs=60)
    lone = good(languages=np.repeat([f"l{i}" for i in range(10)], 3), clusters=np.repeat(np.arange(10), 3))
    with pytest.raises(ValueError, match="resamples missed a language; it has rows of too few clusters"):
        bootstrap({"a": [lone]}, reference="l0", resamples=100)


def test_rows_are_clusters_of_their_own_and_need_no_reference_without_the_gap():
    run = good()
    own = run.languages == "sw"
    expected = classification_metrics(run.probabilities[own], run.labels[own])
    only = Predictions(run.probabilities[own], run.labels[own], run.languages[own], run.ids[own])
    found = bootstrap({"a": [only]}, ("brier",), resamples=100)
    assert found.interval("a", "brier").estimate == pytest.approx(expected["brier"])
