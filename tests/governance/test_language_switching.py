"""Code-switching: rows that change language are flagged, with how much of them is in which."""

import pytest

from tests.governance.language_support import SENTENCES, Judged, judged

LONG = {code: f"{SENTENCES[code]} {SENTENCES[code]}" for code in SENTENCES}
ENGLISH = f"{SENTENCES['en']} Nobody told us why we had to wait."
MIXED = f"{LONG['sw']} {ENGLISH}"


def test_a_switch_is_flagged_and_kept():
    found = judged(MIXED, "sw")
    assert (found.against(), found.flags()) == ([], ["code-switched"])
    [objection] = found.objections
    share = len(ENGLISH) / len(MIXED)
    # The segment in which the switch lies, some 25 of 200 letters, counts for neither.
    assert share - 0.15 <= objection.score[0] <= share + 0.02
    assert objection.bound[0] == 0.25
    assert objection.detail[0].startswith("expected sw, ") and objection.detail[0].endswith(
        "of the letters look like en"
    )


def test_policy_decides_from_which_share_and_whether_it_rejects():
    assert [why for _, why, _ in judged(MIXED, "sw", code_switched="reject").against()] == ["code-switched"]
    assert judged(MIXED, "sw", min_switched=0.6).objections == []


@pytest.mark.parametrize("own", ["de", "es", "tr", "vi", "hi", "ru"])
@pytest.mark.parametrize("other", ["en", "sw", "fr"])
def test_switches_between_many_languages(own, other):
    if own == other:
        return
    found = judged(f"{LONG[own]} {SENTENCES[other]}", own, min_switched=0.15)
    assert found.flags() == ["code-switched"]
    assert found.features["switched_to_0"][0] == other


@pytest.mark.parametrize("own", ["zh", "th"])
def test_scripts_without_spaces_are_cut_by_characters(own):
    found = judged(f"{LONG[own]}{LONG['en']}", own, min_switched=0.2)
    assert found.features["switched_to_0"][0] == "en"
    # Nothing but characters, without a space in it.
    assert judged(f"{LONG['zh']}{LONG['th']}".replace(" ", ""), own).features["switched_0"][0] > 0.2


def test_text_in_one_language_does_not_switch():
    found = Judged([list(LONG.values())], [list(LONG)])
    assert found.features["switched_0"].max() == 0
    assert set(found.features["switched_to_0"]) == {None}


def test_a_text_all_in_another_language_is_no_switch():
    found = judged(LONG["en"], "sw")
    assert found.features["switched_0"][0] == 0
    assert [why for _, why, _ in found.against()] == ["wrong language"]


def test_short_texts_and_single_names_do_not_switch():
    for text, own in (
        ("Ndiyo, sawa.", "sw"),
        ("Jana asubuhi alikutana na rafiki yake George Washington huko Philadelphia.", "sw"),
    ):
        assert judged(text, own).objections == []


def test_the_switch_is_from_the_language_that_a_row_claims():
    found = Judged([[MIXED, MIXED, MIXED]], [["sw", "en", None]])
    assert found.features["switched_to_0"].tolist()[::2] == ["en", "en"]
    assert found.features["switched_to_0"][1] == "sw"
    assert (
        found.features["switched_0"][1]
        > 0.5
        > found.features["switched_0"][0]
        == found.features["switched_0"][2]
    )


def test_rows_do_not_depend_on_their_neighbours():
    texts = [MIXED, *LONG.values(), "", "a", MIXED]
    claims = ["sw", *LONG, "en", "en", "sw"]
    found = Judged([texts], [claims])
    for row, (text, claim) in enumerate(zip(texts, claims, strict=True)):
        assert found.features["switched_0"][row] == judged(text, claim).features["switched_0"][0]


def test_of_two_other_languages_the_one_with_more_of_the_text_is_named():
    for more, less in (("en", "tr"), ("tr", "en")):
        text = f"{LONG['sw']} {LONG['sw']} {LONG[more]} {SENTENCES[less]}"
        found = judged(text, "sw")
        assert found.features["switched_to_0"][0] == more
        alone = judged(f"{LONG['sw']} {LONG['sw']} {LONG[more]}", "sw")
        assert 0 < found.features["switched_0"][0] < alone.features["switched_0"][0]


def test_a_romanised_language_that_the_model_does_not_know_is_not_switched_from():
    text = f"Baarish ke kaaran rail gaadi ek ghante der se station pahunchi, {SENTENCES['en']}"
    assert judged(text, "hi-Latn", languages=["hi-Latn", "sw"]).features["switched_0"][0] == 0
