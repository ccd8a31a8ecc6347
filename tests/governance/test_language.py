"""The language step: verification, assignment, pairs, claims, and the benefit of the doubt for short text."""

import numpy as np
import pyarrow as pa
import pytest

from hybrid_kernels.governance import language
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.scripts import scripts_of
from tests.governance.language_support import LANGUAGES, SENTENCES, Judged, judged, reason

COLUMN = [SENTENCES[code] for code in LANGUAGES]


def test_each_language_is_verified():
    found = Judged([COLUMN], [LANGUAGES])
    assert found.objections == []
    assert found.languages == (list(LANGUAGES),)
    assert found.features["language_0"].tolist() == list(LANGUAGES)


def test_each_language_is_assigned():
    found = Judged([COLUMN])
    assert found.objections == []
    assert found.languages == (list(LANGUAGES),)


def test_every_swap_is_rejected_and_both_languages_are_named():
    swaps = [(true, claim) for true in LANGUAGES for claim in LANGUAGES if true != claim]
    found = Judged([[SENTENCES[true] for true, _ in swaps]], [[claim for _, claim in swaps]])
    for row, (true, claim) in enumerate(swaps):
        [(column, why, detail)] = found.against(row)
        assert (column, why) == ("text", "wrong language")
        assert detail.startswith(f"expected {claim}, looks like {true} (p = 0.9")
    [objection] = found.objections
    assert (objection.score < objection.bound).all()


@pytest.mark.parametrize("missing", LANGUAGES)
def test_a_language_outside_the_set_is_rejected(missing):
    wanted = [code for code in LANGUAGES if code != missing]
    found = judged(SENTENCES[missing], languages=wanted)
    assert found.languages == ([None],)
    [(_, why, detail)] = found.against()
    assert (why, detail.startswith(f"looks like {missing} (p = 0.9")) == (
        "outside the wanted languages",
        True,
    )
    claimed = Judged([[SENTENCES[missing]] * len(wanted)], [wanted], wanted)
    for row, claim in enumerate(wanted):
        [(_, why, detail)] = claimed.against(row)
        # Romanised text is taken for Swahili at times, so that Swahili in place of Hindi is not sure to be Swahili.
        if why == "romanised" and missing == "sw":
            assert "Latn" not in scripts_of(claim)
            continue
        assert why == "outside the wanted languages"
        assert detail.startswith(f"expected {claim}, looks like {missing} (p = ")


def test_with_one_wanted_language_other_ones_are_outside():
    assert reason(SENTENCES["en"], "sw", languages=["sw"]) == "outside the wanted languages"
    assert reason(SENTENCES["en"], languages=["sw"]) == "outside the wanted languages"
    assert reason(SENTENCES["sw"], "sw", languages=["sw"]) is None


def test_short_text_gets_the_benefit_of_the_doubt():
    for claim, text in (("es", "No."), ("de", "Ja."), ("tr", "Evet."), ("bg", "Да."), ("zh", "NASA。")):
        assert reason(text, claim) is None
    assert reason("12:30 – 14:00", "fr") is None


def test_texts_without_letters_are_assigned_nothing():
    found = judged("12:30")
    assert found.against() == [("text", "undetermined", "no letters")]
    assert found.languages == ([None],)


def test_what_is_not_sure_enough_is_not_assigned():
    text = SENTENCES["es"]
    probability = judged(text).features["assigned_probability_0"][0]
    assert reason(text, min_assigned=probability) is None
    found = judged(text, min_assigned=np.nextafter(probability, 1), min_rival=1)
    [(_, why, detail)] = found.against()
    assert (why, detail.startswith("closest is es (p = ")) == ("undetermined", True)
    assert found.languages == ([None],)


@pytest.mark.parametrize("claim", ["EN", " en ", "en_US", "en-GB", "eng", "eng_Latn"])
def test_claims_are_read_as_they_are_usually_written(claim):
    found = judged(SENTENCES["en"], claim)
    assert (found.against(), found.languages) == ([], (["en"],))


def test_a_claim_outside_the_wanted_languages_is_named():
    found = Judged([[SENTENCES["en"], SENTENCES["en"]]], [["it", "Klingon"]], ["en", "sw"])
    assert found.against(0) == [("text", "outside the wanted languages", "claims 'it', wanted are en, sw")]
    assert found.against(1) == [
        ("text", "outside the wanted languages", "claims 'Klingon', wanted are en, sw")
    ]
    assert found.languages == (["it", "Klingon"],)


@pytest.mark.parametrize("blank", [None, "", "  "])
def test_a_row_without_a_claim_among_rows_with_one_is_assigned_its_language(blank):
    found = Judged([[SENTENCES["en"], SENTENCES["fr"]]], [["en", blank]])
    assert (found.objections, found.languages) == ([], (["en", "fr"],))


def test_either_side_of_a_claimed_pair_can_reject_it():
    for one, other, column in (("en", "sw", "one"), ("sw", "en", "other")):
        found = Judged([[SENTENCES[one]], [SENTENCES[other]]], [["sw"], ["sw"]])
        [(named, why, detail)] = found.against()
        assert (named, why) == (column, "wrong language")
        assert detail.startswith("expected sw, looks like en")


def test_an_unlabelled_pair_is_assigned_jointly_and_each_side_verified():
    # "No." alone could be in many languages.
    found = Judged([[SENTENCES["es"]], ["No."]])
    assert (found.objections, found.languages) == ([], (["es"], ["es"]))
    long, short = f"{SENTENCES['sw']} {SENTENCES['sw']}", SENTENCES["en"]
    for texts, column in (((long, short), "other"), ((short, long), "one")):
        found = Judged([[texts[0]], [texts[1]]])
        [(named, _, detail)] = found.against()
        assert (named, detail.startswith("expected sw, looks like en")) == (column, True)


def test_an_unlabelled_pair_outside_the_set_is_one_objection_to_the_row():
    found = Judged([[SENTENCES["en"]], [SENTENCES["en"]]], languages=["sw", "ar"])
    assert [(column, why) for column, why, _ in found.against()] == [(None, "outside the wanted languages")]


def test_one_claim_of_a_pair_holds_for_both_sides():
    found = Judged([[SENTENCES["en"]], [SENTENCES["en"]]], [["sw"], [None]])
    assert [column for column, _, _ in found.against()] == ["one", "other"]


def test_each_side_of_a_translation_is_judged_against_its_own_claim():
    sides = [[SENTENCES["en"]], [SENTENCES["sw"]]]
    assert Judged(sides, [["en"], ["sw"]], translation=True).objections == []
    found = Judged(sides, [["sw"], ["en"]], translation=True)
    assert [column for column, _, _ in found.against()] == ["one", "other"]
    found = Judged(sides, translation=True)
    assert (found.objections, found.languages) == ([], (["en"], ["sw"]))
    found = Judged(sides, [["en"], [None]], translation=True)
    assert (found.objections, found.languages) == ([], (["en"], ["sw"]))


def test_missing_texts_have_no_features_and_no_objections():
    found = Judged([[None, SENTENCES["en"]], [SENTENCES["en"], None]], [["en", "en"], ["en", "sw"]])
    assert found.objections == []
    assert np.isnan(found.features["confidence_0"]).tolist() == [True, False]
    assert found.features["language_1"].tolist() == ["en", None]
    assert Judged([[None]]).objections == []
    assert Judged([[None]]).languages == ([None],)


def test_features_are_the_fields_whatever_the_rows():
    policy = GovernancePolicy()
    for texts in ([[]], [[""]], [["\n"]], [[None]], [["a" * 20_000]], [["\ud800 x"]], [["a"], ["b"]]):
        found = Judged(texts)
        kinds = language.fields(found.batch.columns, policy)
        assert found.features.keys() == kinds.keys()
        for name, kind in kinds.items():
            values = found.features[name]
            assert len(values) == len(found.batch)
            assert len(pa.array(values, kind)) == len(found.batch)


def test_thresholds_take_part_in_objections_alone():
    texts, claims = [SENTENCES["en"], SENTENCES["fr"]], ["sw", "fr"]
    found = Judged([texts], [claims])
    lenient = GovernancePolicy.model_validate({"language": {"min_expected": 0, "min_wanted": 0}})
    assert language.objections(found.batch, found.features, lenient, {}) == []
    changed = language.measure(found.batch, lenient)
    assert all(
        np.array_equal(changed[n], found.features[n], equal_nan=changed[n].dtype != object) for n in changed
    )
    assert language.MEASURED == ()
    assert set(language.fields(Columns(("a", "b")), lenient)) == {
        name.replace("_0", f"_{i}") for name in found.features for i in (0, 1)
    }


def test_supported_languages_hold_the_fifteen_and_no_class_for_noise():
    assert set(LANGUAGES) <= set(language.supported_languages())
    assert "zxx" not in language.supported_languages()


def test_wanted_languages_are_checked():
    assert language.checked_languages(["EN", "en", "zho_Hant", "hi-Latn", "hi"]) == [
        "en",
        "zh-Hant",
        "hi-Latn",
        "hi",
    ]
    with pytest.raises(TypeError, match="languages must be a sequence of strings, got 'en'"):
        language.checked_languages("en")
    with pytest.raises(TypeError, match="languages must be a sequence"):
        language.checked_languages([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="languages is empty"):
        language.checked_languages([])
    with pytest.raises(ValueError, match="unknown language code 'xx' in languages; known are ace, af"):
        language.checked_languages(["en", "xx"])
    with pytest.raises(
        ValueError, match="'ru-Thai' is no language with a script it may have; ru may have Cyrl, Latn"
    ):
        language.checked_languages(["ru-Thai"])
    for overlapping in (["zh", "zh-Hans"], ["sr-Latn", "sr"]):
        with pytest.raises(ValueError, match=f"{min(overlapping)} allows all that {max(overlapping)} does"):
            language.checked_languages(overlapping)


def test_what_is_no_language_is_not_named_as_one():
    for claim, before in (("en", "expected en, "), (None, "")):
        [(_, why, detail)] = judged("fdk sldkfj weoiru sldkjf", claim).against()
        assert why == "outside the wanted languages"
        assert detail.startswith(f"{before}looks like no language (p = 0.9")


@pytest.mark.parametrize("code", ["de", "en", "vi"])
@pytest.mark.parametrize("first", [0xFF01, 0x1D400])
def test_letters_of_another_form_are_the_same_language(code, first):
    """Full width, with its spaces and marks, and mathematical letters."""
    wide = {ord(" "): "\u3000"} | {ord("!") + i: chr(0xFF01 + i) for i in range(94)}
    bold = {ord("A") + i: chr(0x1D400 + i) for i in range(26)} | {
        ord("a") + i: chr(0x1D41A + i) for i in range(26)
    }
    text = SENTENCES[code].translate(wide if first == 0xFF01 else bold)
    assert judged(text, code).objections == []
    assert judged(text).languages == ([code],)


def test_a_rival_must_be_as_probable_as_the_policy_asks():
    text, claim = "Bonjour a tous", "sw"
    probability = judged(text, claim).features["likeliest_probability_0"][0]
    assert reason(text, claim, min_rival=probability) == "wrong language"
    assert reason(text, claim, min_rival=np.nextafter(probability, 1)) is None
