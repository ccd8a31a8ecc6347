import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from hybrid_kernels.evaluation.translation import evaluate_translations
from hybrid_kernels.evaluation.translation_significance import (
    TRANSLATION_DIRECTIONS,
    bootstrap_translations,
)

WORDS = np.array(
    ["the", "a", "cat", "dog", "house", "water", "sits", "runs", "falls", "on", "under", "with", "red"]
)


def made(wrong, seed=0, n=40, directions=(("de", "en"), ("en", "de")), noise=0.0):
    """Arrays as the task returns them, a share of the words wrong; references do not depend on the seed."""
    arrays = {name: [] for name in ("ids", "clusters", "references", "translations", "nats", "bytes")}
    languages = {"source_languages": [], "target_languages": []}
    texts, errors = np.random.default_rng(0), np.random.default_rng([1, seed])
    for source, target in directions:
        for i in range(n):
            words = texts.choice(WORDS, 9)
            bad = errors.random(9) < wrong
            arrays["ids"].append(f"{i}-{source}-{target}")
            arrays["clusters"].append(str(i))
            arrays["references"].append(" ".join(words))
            arrays["translations"].append(" ".join(np.where(bad, "wrong", words)))
            arrays["nats"].append(20 + 10 * bad.sum() + noise)
            arrays["bytes"].append(len(" ".join(words)))
            languages["source_languages"].append(source)
            languages["target_languages"].append(target)
    return {name: np.array(values) for name, values in (arrays | languages).items()}


def test_estimates_are_the_scores_of_the_translations():
    run = made(0.2)
    found = bootstrap_translations({"a": [run]}, resamples=100)
    rows = [
        {"source_language": s, "target_language": t, "source": "-", "target": reference}
        for s, t, reference in zip(
            run["source_languages"].tolist(), run["target_languages"].tolist(), run["references"], strict=True
        )
    ]
    directions = evaluate_translations(rows, run["translations"].tolist(), run["nats"])["directions"]
    for metric in TRANSLATION_DIRECTIONS:
        mean = np.mean([one[metric] for one in directions.values()])
        assert found.estimates[metric]["a"] == pytest.approx([mean], rel=1e-12)
        interval = found.interval("a", metric)
        assert interval.low < mean < interval.high


def test_deviations_are_those_of_sacrebleus_paired_bootstrap():
    """One direction, every sentence its own cluster: the same sampling, other random numbers."""
    one = [("de", "en")]
    baseline, system = made(0.3, 1, directions=one), made(0.25, 2, directions=one)
    metrics = {"bleu": BLEU(tokenize="13a"), "chrf": CHRF(word_order=2)}
    found = bootstrap_translations({"a": [baseline], "b": [system]}, list(metrics), resamples=4000)
    test = PairedTest(
        [("a", baseline["translations"].tolist()), ("b", system["translations"].tolist())],
        metrics,
        [baseline["references"].tolist()],
        test_type="bs",
        n_samples=4000,
    )
    tables = dict(test()[1])
    for metric in metrics:
        (theirs,) = (tables[name][1] for name in tables if name.lower().startswith(metric))
        interval = found.interval("b", metric)
        assert interval.estimate == pytest.approx(theirs.score, abs=1e-9)
        assert (interval.high - interval.low) / 2 == pytest.approx(theirs.ci, rel=0.08)
        _, p = found.difference("b", "a", metric)
        # Theirs is of the absolute difference after centring: two-sided as well.
        assert p == pytest.approx(theirs.p_value, abs=0.03) and 0.001 < p < 0.5


def test_a_worse_system_is_told_apart_and_an_equal_one_is_not():
    methods = {
        "baseline": [made(0.3, 1)],
        "good": [made(0.05, 2)],
        "bad": [made(0.7, 3)],
        "level": [made(0.3, 4)],
    }
    comparisons = bootstrap_translations(methods, resamples=1000).compare(["baseline"])
    marks = {(one.method, one.metric): one.mark for one in comparisons}
    assert len(marks) == 9
    for metric in TRANSLATION_DIRECTIONS:
        assert marks["good", metric] == "significantly better"
        assert marks["bad", metric] == "significantly worse"
        assert marks["level", metric] == "not distinguishable"


def test_directions_of_a_sentence_are_drawn_together():
    """Errors that the two directions of a sentence share leave as wide an interval as one direction has."""
    one = made(0.3, directions=[("de", "en")])
    both = {
        name: np.concatenate([values, values])
        for name, values in one.items()
        if name not in ("ids", "source_languages", "target_languages")
    }
    both["ids"] = np.concatenate([one["ids"], [f"{name}-back" for name in one["ids"]]])
    for name, other in (("source_languages", "target_languages"), ("target_languages", "source_languages")):
        both[name] = np.concatenate([one[name], one[other]])
    narrow, wide = (
        bootstrap_translations({"a": [run]}, ["chrf"], resamples=500).interval("a", "chrf")
        for run in (both, one)
    )
    assert narrow.high - narrow.low == pytest.approx(wide.high - wide.low, rel=1e-6)


def test_bleu_over_characters_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    run = made(0.3, directions=[("th", "en"), ("en", "th")])
    found = bootstrap_translations({"a": [run]}, resamples=100)
    only = {name: values[:40] for name, values in run.items()}
    alone = bootstrap_translations({"a": [only]}, ["bleu"], resamples=100)
    assert found.estimates["bleu"]["a"] == pytest.approx(alone.estimates["bleu"]["a"])
    with pytest.raises(ValueError, match="metrics has bleu, which is over characters in every direction"):
        bootstrap_translations({"a": [made(0.3, directions=[("en", "th")])]}, resamples=100)


def test_rows_may_come_in_any_order_but_must_be_the_same():
    run, order = made(0.3), np.random.default_rng(0).permutation(80)
    shuffled = {name: values[order] for name, values in run.items()}
    found = bootstrap_translations({"a": [run, shuffled]}, resamples=100)
    for metric in TRANSLATION_DIRECTIONS:
        assert np.allclose(*found.resampled[metric]["a"].T, rtol=1e-12)
    with pytest.raises(ValueError, match="'b', seed 0, and 'a', seed 0, differ in ids"):
        bootstrap_translations({"a": [run], "b": [made(0.3, n=39)]}, resamples=100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["ter"]}, "metrics must be some of bleu, chrf, bits_per_byte; got ter"),
        ({"resamples": 10}, "resamples must be an integer of at least 100, got 10"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
        ({"methods": {"a": []}}, "methods must have predictions"),
        ({"methods": {"a": [made(0.3, n=1)]}}, "at least two clusters"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_translations(**({"methods": {"a": [made(0.3)]}} | arguments))
