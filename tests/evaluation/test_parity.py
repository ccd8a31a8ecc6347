import math

import numpy as np
import pytest

from hybrid_kernels.evaluation import parity, parity_by_group, parity_by_resource_class, parity_by_script
from hybrid_kernels.evaluation.parity import RESOURCE_CLASSES, gini, resource_class_of, script_of


def scored(**accuracies):
    return {language.replace("_", "-"): {"accuracy": value} for language, value in accuracies.items()}


def test_parity():
    found = parity(scored(en=0.8, fr=0.7, sw=0.5, de=0.5))
    assert found == pytest.approx(
        {
            "reference": "en",
            "reference_accuracy": 0.8,
            "worst_language": "de",
            "worst_accuracy": 0.5,
            "gap": 0.3,
            "transfer_gap": 0.8 - 1.7 / 3,
            "std": math.sqrt((0.175**2 + 0.075**2 + 2 * 0.125**2) / 4),
            # Pairs differ by 0.1 + 0.3 + 0.3 + 0.2 + 0.2 + 0.
            "gini": 2 * 1.1 / (2 * 16 * 0.625),
        }
    )
    better_elsewhere = parity(scored(en=0.4, fr=0.6))
    assert better_elsewhere["gap"] == 0 and better_elsewhere["transfer_gap"] == pytest.approx(-0.2)
    alone = parity(scored(en=0.4))
    assert (alone["gap"], alone["transfer_gap"], alone["std"], alone["gini"]) == (0, 0, 0, 0)


def test_gini_is_the_mean_difference_of_pairs():
    for n in (1, 2, 15):
        x = np.random.default_rng(n).random(n)
        pairs = np.abs(x[:, None] - x).sum() / (2 * n * n * x.mean())
        assert gini(x) == pytest.approx(pairs)
    assert gini([0, 0, 0, 1]) == pytest.approx(0.75)
    assert gini([0.3] * 5) == pytest.approx(0, abs=1e-15) and gini([0.0, 0.0]) == 0


@pytest.mark.parametrize("values", [[], [-0.1, 0.2], [float("nan")], [[0.1]]])
def test_malformed_values_are_refused(values):
    with pytest.raises(ValueError, match="one or more finite numbers ≥ 0"):
        gini(values)


def test_scripts_and_resource_classes_of_xnli():
    scripts = {}
    for language in RESOURCE_CLASSES:
        scripts.setdefault(script_of(language), set()).add(language)
    assert scripts == {
        "Arabic": {"ar", "ur"},
        "Cyrillic": {"bg", "ru"},
        "Devanagari": {"hi"},
        "Greek": {"el"},
        "Han": {"zh"},
        "Latin": {"de", "en", "es", "fr", "sw", "tr", "vi"},
        "Thai": {"th"},
    }
    assert [resource_class_of(language) for language in ("fr", "hi", "th", "sw")] == ["5", "4", "3", "2"]


def test_codes_of_other_data_sets_and_unknown_ones():
    assert [script_of(code) for code in ("zho_Hant", "hi-Latn", "urd_Arab", "xx", "Klingon")] == [
        "Han", "Latin", "Arabic", "unknown", "unknown",
    ]  # fmt: skip
    # Danish is a known language, but none of the table.
    assert [resource_class_of(code) for code in ("zho_Hant", "swh", "da", "xx")] == [
        "5",
        "2",
        "unknown",
        "unknown",
    ]


def test_parity_by_script():
    found = parity_by_script(scored(en=0.8, fr=0.6, ar=0.5, ur=0.3, xx=0.9))
    assert list(found["groups"]) == ["Arabic", "Latin", "unknown"]
    arabic = found["groups"]["Arabic"]
    assert arabic.pop("languages") == ["ar", "ur"]
    assert arabic == pytest.approx(
        {
            "accuracy": 0.4,
            "mean_gap": 0.4,
            "worst_language": "ur",
            "worst_accuracy": 0.3,
            "gap": 0.5,
            "std": 0.1,
            "gini": 0.2 / (2 * 4 * 0.4) * 2,
        }
    )
    assert found["groups"]["unknown"]["gap"] == pytest.approx(-0.1)
    between = found["between"]
    assert (between["reference"], between["worst_language"]) == ("Latin", "Arabic")
    assert between["gap"] == pytest.approx(0.3)
    assert between["std"] == pytest.approx(np.std([0.4, 0.7, 0.9]))


def test_parity_by_resource_class_and_own_groups():
    per_language = scored(en=0.8, hi=0.6, sw=0.4)
    by_class = parity_by_resource_class(per_language)
    assert {group: row["languages"] for group, row in by_class["groups"].items()} == {
        "2": ["sw"], "4": ["hi"], "5": ["en"],
    }  # fmt: skip
    own = parity_by_group(per_language, {"hi": "Indo-European", "en": "Indo-European"}, reference="sw")
    assert list(own["groups"]) == ["Indo-European", "unknown"]
    assert own["between"]["reference"] == "unknown" and own["between"]["gap"] == 0


def test_malformed_languages_are_refused():
    for function in (parity, parity_by_script, parity_by_resource_class):
        with pytest.raises(ValueError, match=r"reference language 'en' is not among the languages \['fr'\]"):
            function(scored(fr=0.5))
    with pytest.raises(ValueError, match=r"per_language\['en'\] lacks accuracy"):
        parity({"en": {"nll": 0.5}})
