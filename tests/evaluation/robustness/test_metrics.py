"""What variation costs, by hand and against scipy."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from hybrid_kernels.evaluation.robustness import paired_metrics, robustness_metrics


def probabilities(n, seed, classes=3):
    logits = np.random.default_rng(seed).normal(size=(n, classes)) * 2
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_by_hand():
    clean = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
    varied = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    found = paired_metrics(clean, varied, [0, 1, 1, 0])
    # Rows 1 and 3 change their class, both were right; row 2 stays wrong.
    assert found["clean_accuracy"] == 0.75 and found["accuracy"] == 0.25 and found["accuracy_drop"] == 0.5
    assert found["consistency"] == 0.5 and found["n"] == 4
    assert found["total_variation"] == pytest.approx((0 + 0.5 + 0.1 + 1) / 4, abs=1e-15)
    assert paired_metrics(clean[3:], varied[3:], [0])["jensen_shannon"] == 1.0


def test_jensen_shannon_is_scipys():
    p, q = probabilities(50, 0), probabilities(50, 1)
    p[0] = [0, 0.5, 0.5]
    found = paired_metrics(p, q, np.zeros(50, int))["jensen_shannon"]
    assert found == pytest.approx((jensenshannon(p, q, base=2, axis=1) ** 2).mean(), abs=1e-12)


def test_single_precision_is_widened():
    p, q = probabilities(400, 0), probabilities(400, 1)
    single = paired_metrics(p.astype(np.float32), q.astype(np.float32), np.zeros(400, int))
    double = paired_metrics(p, q, np.zeros(400, int))
    assert single["jensen_shannon"] == pytest.approx(double["jensen_shannon"], abs=1e-7)


@pytest.fixture
def table():
    """Three rows each of en, de, ur; German is right thrice, then twice and once; the others keep their predictions."""
    labels, languages = np.zeros(9, int), ["en"] * 3 + ["de"] * 3 + ["ur"] * 3
    right, wrong = [0.9, 0.1], [0.2, 0.8]
    clean = np.array([right, right, wrong] + [right] * 3 + [wrong] * 3)
    varied = {
        "lower_case": ([0, 5, 1, 3, 4, 2], np.array([right, wrong, right, right, right, wrong])),
        "diacritic_loss": ([5, 3], np.array([wrong, right])),
        "tashkil_loss": ([6, 7, 8], np.array([wrong, right, right])),
    }
    return robustness_metrics(clean, labels, languages, varied)


def test_by_language_and_script(table):
    german = table["per_language"]["de"]
    assert german["lower_case"]["accuracy_drop"] == pytest.approx(1 / 3) and german["lower_case"]["n"] == 3
    assert german["diacritic_loss"]["accuracy_drop"] == 0.5 and german["diacritic_loss"]["n"] == 2
    assert german["diacritic_loss"]["total_variation"] == pytest.approx((0.7 + 0) / 2)
    recipes = {language: set(of_language) for language, of_language in table["per_language"].items()}
    assert recipes["en"] == {"lower_case"} and recipes["ur"] == {"tashkil_loss"}
    assert set(table["per_script"]) == {"Latn", "Arab"}
    latin = table["per_script"]["Latn"]
    assert table["per_language"]["en"]["lower_case"]["consistency"] == 1
    # English has 0, German 1/3: the mean of the two languages.
    assert latin["lower_case"]["accuracy_drop"] == pytest.approx(1 / 6)
    assert latin["lower_case"]["n"] == 6 and latin["lower_case"]["languages"] == 2
    assert latin["diacritic_loss"]["languages"] == 1


def test_variants_of_chinese_are_scripts():
    p = probabilities(2, 0)
    table = robustness_metrics(p, [0, 1], ["zh-Hans", "ja"], {"half_width": ([0, 1], p)})
    assert set(table["per_script"]) == {"Hans", "Hani+Hira+Kana"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 0], "occur twice or are not in"),
        ([0, 4], r"not in \[0, 4\)"),
        ([0], "must be as many integers"),
        ([0.0, 1.0], "must be as many integers"),
    ],
)
def test_bad_rows(rows, message):
    p = probabilities(4, 0)
    with pytest.raises(ValueError, match=message):
        robustness_metrics(p, [0] * 4, ["en"] * 4, {"lower_case": (rows, p[:2])})


def test_bad_arrays():
    p = probabilities(4, 0)
    with pytest.raises(ValueError, match="must sum to 1"):
        paired_metrics(p, p * 2, [0] * 4)
    with pytest.raises(ValueError, match=r"clean has shape \(4, 3\), varied has shape \(4, 2\)"):
        paired_metrics(p, probabilities(4, 0, 2), [0] * 4)
    with pytest.raises(ValueError, match="languages has 'xx'"):
        robustness_metrics(p, [0] * 4, ["xx"] * 4, {})
