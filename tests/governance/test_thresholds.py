"""Histograms add up; bounds from them are robust, cut little, and are stricter than the policy or absent."""

import json
import random

import numpy as np
import pytest

from hybrid_kernels.governance import thresholds
from hybrid_kernels.governance.batch import Range
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.quality_rules import limits
from hybrid_kernels.governance.thresholds import FEATURES, Histograms, bounds
from tests.governance.quality_support import batch, histograms, judged, measured, rejected

GENERATOR = np.random.default_rng(0)


def of(name, values, language="en", second=None):
    """Histograms of one feature."""
    found = Histograms()
    languages = [[language] * len(values)] + ([[second] * len(values)] if second else [])
    found.add({name: np.asarray(values, np.float32)}, languages)
    return found


def policy(**sections):
    return GovernancePolicy.model_validate(sections)


def test_shards_add_up_in_any_order():
    texts = ["Was ist das?", "Ein Haus. 12", "x" * 90, "www.example.org sah ich", "", None, "a, b, c!"] * 9
    languages = ["de", "en", None, "de", "sw", "en", "zh-Hant"] * 9
    whole = histograms(measured(batch(texts), [languages]))
    parts = [(texts[i::4], languages[i::4]) for i in range(4)]
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        merged = Histograms()
        for i in order:
            merged.merge(histograms(measured(batch(parts[i][0]), [parts[i][1]])))
        assert json.dumps(merged.to_json()) == json.dumps(whole.to_json())
    assert whole.counts["characters_0", "de"].sum() == 18
    assert whole.counts["characters_0", "und"].sum() == 9
    # One of the two texts of "en" is missing.
    assert whole.counts["characters_0", "en"].sum() == 9
    assert whole.lengths["characters_0"][90] == 9


def test_merging_does_not_change_what_is_merged():
    a, b = of("digits_0", [0.1]), of("digits_0", [0.2, 0.3])
    merged = Histograms()
    merged.merge(b)
    merged.merge(a)
    assert merged.counts["digits_0", "en"].sum() == 3
    assert (a.counts["digits_0", "en"].sum(), b.counts["digits_0", "en"].sum()) == (1, 2)


def test_json_round_trip():
    found = of("characters_0", [1, 5, 5, 900])
    again = Histograms.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert bounds(again, policy()) == bounds(found, policy())


def test_every_value_is_counted_and_nan_is_not():
    for name, feature in FEATURES.items():
        values = [-1e9, *feature.edges, 1e9, np.nan]
        counts = of(name, values, second="sw").counts
        [(key, found)] = counts.items()
        assert found.sum() == len(feature.edges) + 2
        assert key == (name, {"0": "en", "1": "sw"}.get(name[-1], "en → sw"))
        assert (np.diff(feature.edges) > 0).all()
        assert np.isfinite(feature.edges).all()


def test_limits_of_the_policy_hold_where_there_are_no_data():
    found = bounds(Histograms(), policy(quality={"max_digits": 0.3}))
    assert found["digits_0", None] == found["digits_1", None] == Range(high=0.3)
    assert found["vowels_0", None] == Range(low=0.2)
    assert found["length_ratio", None].high == pytest.approx(np.log(3))
    assert {language for _, language in found} == {None}
    assert bounds(Histograms(), policy(quality={"enabled": False})) == {}


@pytest.mark.parametrize(
    ("name", "mean", "deviation"), [("length_ratio", 0.4, 0.1), ("bits_per_byte_0", 3.0, 0.2)]
)
def test_robust_bounds_of_a_normal_feature(name, mean, deviation):
    """Median ± 6 robust standard deviations, and 3 % of rubbish far out does not move them much."""
    values = GENERATOR.normal(mean, deviation, 20_000)
    for rubbish in (0, 150):
        mixed = np.concatenate([values, np.full(rubbish, mean + 1.0)])
        found = bounds(of(name, mixed, second="sw"), policy(perplexity={"enabled": True, "model": "m"}))
        limit = found[name, "en → sw" if name == "length_ratio" else "en"]
        assert limit.high == pytest.approx(mean + 6 * deviation, abs=0.1 * deviation + 0.02)
        if name == "length_ratio":
            assert limit.low == pytest.approx(mean - 6 * deviation, abs=0.1 * deviation + 0.02)


def test_the_length_ratio_of_the_policy_is_about_the_usual_one():
    values = GENERATOR.normal(1.0, 0.5, 5000)
    limit = bounds(of("length_ratio", values, second="zh"), policy())["length_ratio", "en → zh"]
    assert limit.high == pytest.approx(1.0 + np.log(3), abs=0.05)
    assert limit.low == pytest.approx(1.0 - np.log(3), abs=0.05)


def test_spread_is_the_policys():
    values = GENERATOR.beta(4, 60, 20_000)
    found = of("symbols_0", values)
    high = {
        spread: bounds(found, policy(thresholds={"spread": spread}))["symbols_0", "en"].high
        for spread in (4.0, 6.0)
    }
    assert high[4.0] < high[6.0] < 0.5
    assert (values > high[4.0]).mean() <= 0.001


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("name", [name for name, feature in FEATURES.items() if feature.low or feature.high])
def test_no_bound_cuts_more_than_its_share(name, spread):
    """However heavy the tails and small the spread."""
    if name.startswith("bits_per_byte"):
        return
    feature = FEATURES[name]
    scale = feature.edges[-1] / 30
    values = np.clip(
        np.abs(GENERATOR.standard_cauchy(5000)) * scale, feature.edges[0], feature.edges[-1] - 1e-9
    )
    values = values if not feature.low else feature.edges[-1] - 1e-9 - values
    values = np.clip(values, feature.edges[0], feature.edges[-1] - 1e-9).astype(np.float32)
    found = bounds(
        of(name, values, second="sw"), policy(thresholds={"spread": spread, "pair_spread": spread})
    )
    limit = found.get((name, "en"), found.get((name, "en → sw"), Range()))
    fixed = limits(policy().quality)[name.removesuffix("_0").removesuffix("_1")]
    cut = ((values > limit.high) & (values <= fixed.high)) | ((values < limit.low) & (values >= fixed.low))
    if name == "length_ratio":  # whose fixed ratio is about the median, and is the policy's own affair
        return
    assert cut.mean() <= feature.guard


def test_bounds_are_the_stricter_ones_or_none():
    wide = GENERATOR.uniform(0.1, 0.9, 5000)
    assert ("symbols_0", "en") not in bounds(of("symbols_0", wide), policy())
    narrow = GENERATOR.normal(0.45, 0.025, 5000)
    assert ("vowels_0", "en") not in bounds(of("symbols_0", narrow), policy())
    low = bounds(of("vowels_0", narrow), policy())["vowels_0", "en"]
    assert 0.2 < low.low < 0.42
    assert low.high == np.inf


def test_few_rows_have_no_bounds_of_their_own():
    values = GENERATOR.normal(0.1, 0.01, 500)
    assert ("symbols_0", "en") in bounds(of("symbols_0", values), policy())
    assert ("symbols_0", "en") not in bounds(of("symbols_0", values[:499]), policy())
    assert ("symbols_0", "en") in bounds(of("symbols_0", values[:499]), policy(thresholds={"min_rows": 499}))
    assert not [key for key in bounds(of("symbols_0", values, None), policy()) if key[1]]


def test_a_feature_that_is_mostly_one_value_has_none():
    values = np.where(GENERATOR.random(5000) < 0.6, 0.0, 0.1)
    assert ("digits_0", "en") not in bounds(of("digits_0", values), policy())


def test_switched_off():
    values = GENERATOR.normal(0.1, 0.01, 900)
    off = policy(thresholds={"enabled": False})
    found = bounds(of("symbols_0", values), off)
    assert {language for _, language in found} == {None}
    bits = of("bits_per_byte_0", GENERATOR.normal(2, 0.1, 900))
    assert bounds(bits, off)["bits_per_byte_0", "en"].high == pytest.approx(2.6, abs=0.1)


def test_terminal_share():
    marks = [1.0] * 996 + [0.0] * 4
    assert bounds(of("terminal_0", marks), policy())["terminal_0", "en"] == Range(low=1.0)
    assert ("terminal_0", "en") not in bounds(of("terminal_0", [*marks, *[0.0] * 6]), policy())
    lower = policy(thresholds={"min_terminated": 0.98})
    assert ("terminal_0", "en") in bounds(of("terminal_0", [*marks, *[0.0] * 6]), lower)


@pytest.mark.parametrize(
    ("lengths", "pile"),
    [
        ([50, 60, 70, 80, 85] * 20 + [100] * 30, 100),
        ([50, 60, 70, 80, 85] * 20 + [100] * 19, None),
        ([50, 60, 70, 80, 85] * 20 + [100] * 30 + [101], None),
        ([50, 60, 70, 80, 95] * 20 + [100] * 30, None),
        ([50] * 20 + [100] * 30, None),
        ([], None),
    ],
)
def test_pile_of_lengths(lengths, pile):
    found = bounds(of("characters_0", lengths), policy())
    assert found.get(("cut_0", None)) == (None if pile is None else Range(high=pile))


def test_memory_does_not_grow_with_rows():
    generator = random.Random(0)
    sizes = []
    found = Histograms()
    for _ in range(3):
        texts = ["ab " * generator.randint(1, 60) + "." for _ in range(3000)]
        found.merge(histograms(measured(batch(texts), ["en"])))
        sizes.append(len(json.dumps(found.to_json())))
    assert sizes[2] < 1.3 * sizes[0]


def test_bounds_reject_what_stands_out_in_its_language():
    """Two fifths of symbols the policy lets pass; here all other texts have far fewer."""
    generator = random.Random(0)
    syllables = [a + b for a in "bdfgklmnrst" for b in "aeiou"]
    words = ["".join(generator.choices(syllables, k=3)) for _ in range(500)]
    texts = [
        " ".join(generator.choices(words, k=12)) + "," * generator.randint(0, 3) + "." for _ in range(2000)
    ]
    texts[7] = "haus garten !?!?!?!?!?!? wasser."
    assert rejected(judged(texts, languages=["de"])) == set()
    found = judged(texts, languages=["de"], from_data=True)
    assert rejected(found) == {7}
    assert found[0].detail[0].endswith("in de")


def test_labels():
    labels = [feature.label for name, feature in FEATURES.items() if not name.endswith("_1")]
    assert len({*labels}) == len(labels)
    assert {*thresholds.FEATURES} >= {
        f"{name}_{i}" for name in ("characters", "bits_per_byte") for i in (0, 1)
    }
