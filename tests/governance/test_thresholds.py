"""Bounds from the data: robust, by language, never more lenient than the policy's, and the same from any split of it."""

import numpy as np
import pytest

from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.governance.batch import Range
from hybrid_kernels.governance.thresholds import FEATURES, GUARD, Histograms, bounds, languages_of, limits

POLICY = GovernancePolicy()


def histograms(name, values, codes):
    found = Histograms()
    found.add({name: np.asarray(values, float)}, (list(codes),))
    return found


def normal(mean, deviation, rows=5000, seed=0):
    return np.random.default_rng(seed).normal(mean, deviation, rows)


def test_without_data_the_policy_bounds():
    found = bounds(Histograms(), GovernancePolicy.model_validate({"quality": {"max_digits": 0.3}}))
    assert found["digits_1", None] == Range(high=0.3)
    assert found["letters_0", None] == Range(low=2)
    assert all(language is None for _, language in found)


def test_median_and_mad_bound_a_language():
    found = bounds(histograms("symbols_0", normal(0.1, 0.01), ["en"] * 5000), POLICY)
    assert found["symbols_0", "en"].high == pytest.approx(0.1 + 8 * 0.01, abs=0.01)
    assert ("symbols_0", "de") not in found


def test_noise_hardly_moves_a_bound():
    clean = normal(0.1, 0.01, 5000)
    noise = np.full(1500, 0.45)
    with_noise = bounds(histograms("symbols_0", [*clean, *noise], ["en"] * 6500), POLICY)
    # The guard lets the noise itself pass: more than so few rows are a kind of text.
    assert with_noise["symbols_0", "en"].high >= 0.45
    few = bounds(histograms("symbols_0", [*clean, 0.45, 0.46], ["en"] * 5002), POLICY)
    assert few["symbols_0", "en"].high < 0.2


def test_no_bound_of_the_data_cuts_more_than_the_guard():
    values = np.abs(normal(0, 0.03, 20_000)) ** 2 * 10
    found = bounds(histograms("repetition_0", values, ["en"] * len(values)), POLICY)["repetition_0", "en"]
    assert 0 < (values > found.high).mean() <= GUARD


def test_few_rows_have_no_bound_of_their_own():
    rows = POLICY.thresholds.min_rows
    for number, expected in ((rows, True), (rows - 1, False)):
        found = bounds(histograms("symbols_0", normal(0.1, 0.01, number), ["en"] * number), POLICY)
        assert (("symbols_0", "en") in found) is expected


def test_the_policy_is_never_made_more_lenient_nor_switched_on_by_data():
    wide = histograms("symbols_0", normal(0.5, 0.1), ["en"] * 5000)
    assert ("symbols_0", "en") not in bounds(wide, POLICY)
    off = GovernancePolicy.model_validate({"thresholds": {"enabled": False}})
    assert ("symbols_0", "en") not in bounds(histograms("symbols_0", normal(0.1, 0.01), ["en"] * 5000), off)


def test_lengths_of_translations_are_held_against_the_usual_ratio_of_their_languages():
    found = Histograms()
    values = normal(1.0, 0.1)
    found.add({"length_ratio": values}, (["zh"] * 5000, ["en"] * 5000))
    got = bounds(found, POLICY)
    assert got["length_ratio", "zh-en"].low == pytest.approx(1 - 0.8, abs=0.1)
    assert got["length_ratio", "zh-en"].high == pytest.approx(1 + 0.8, abs=0.1)
    assert got["length_ratio", None] == Range(-np.log(6), np.log(6))


@pytest.mark.parametrize(("unmarked", "asked"), [(4, True), (60, False)])
def test_sentence_marks_are_asked_for_where_nearly_all_have_them(unmarked, asked):
    found = bounds(
        histograms("terminal_0", [0.0] * unmarked + [1.0] * 1000, ["en"] * (1000 + unmarked)), POLICY
    )
    assert (("terminal_0", "en") in found) is asked


def test_shards_add_up_in_any_order_and_survive_as_json():
    values, codes = normal(30, 10, 3000), ["en", "de", None] * 1000
    whole = histograms("characters_0", values, codes)
    parts = [histograms("characters_0", values[i::3], codes[i::3]) for i in (2, 0, 1)]
    merged = Histograms()
    for part in parts:
        merged.merge(Histograms.from_json(part.to_json()))
    assert merged.to_json() == whole.to_json()
    assert {code for _, code in whole.counts} == {"en", "de", "und"}
    assert sum(n.sum() for n in whole.counts.values()) == 3000


def test_values_beyond_the_edges_and_none_at_all():
    found = histograms("digits_0", [-1.0, 2.0, np.nan], ["en"] * 3).counts["digits_0", "en"]
    assert (found[0], found[-1], found.sum()) == (1, 1, 2)


def test_limits_follow_each_rows_language():
    found = {("digits_0", None): Range(high=0.5), ("digits_0", "en"): Range(high=0.2)}
    low, high = limits("digits_0", ["en", "de"], found)
    assert high.tolist() == [0.2, 0.5]
    assert np.isneginf(low).all()
    languages = (["en", "en"], ["en", "de"])
    assert languages_of("copied", languages) == ["en", "en-de"]
    assert languages_of("digits_1", languages) == ["en", "de"]


def test_every_bound_is_a_field_of_the_policy():
    for feature in FEATURES.values():
        assert (np.diff(feature.edges) > 0).all()
        for field in filter(None, (feature.low, feature.high)):
            section, name = field.split(".")
            assert hasattr(getattr(POLICY, section), name)
