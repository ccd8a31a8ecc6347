"""What holds of every recipe, on real text in every language it is offered for."""

import random

import pytest

from hybrid_kernels.evaluation.robustness import RECIPES, change, perturb, recipes_for
from hybrid_kernels.evaluation.robustness.edits import CLUSTER, apply
from hybrid_kernels.governance.scripts import read_tag
from tests.evaluation.robustness.support import CODES, flores, needs_data

OFFERED = [(language, recipe) for language in CODES for recipe in recipes_for(language)]

# Not: swaps, what is drawn anew each time, and conversion to Traditional, which 里 and 裡 both survive.
NOT_IDEMPOTENT = {"digits_swapped", "traditional_chinese", "random_case", "tatweel", "homophones"}
IDEMPOTENT = {r for r in RECIPES if r not in NOT_IDEMPOTENT and not r.startswith("keyboard_")}


@needs_data
@pytest.mark.parametrize(("language", "recipe"), OFFERED)
def test_real_text(language, recipe):
    """Something changes; only whole clusters do; none is torn or joined to another; every edit changes its place."""
    texts = flores(language)[:8] if RECIPES[recipe].unit == "text" else flores(language)[:40]
    if RECIPES[recipe].unit != "text":
        # With a joiner, a non-joiner, decomposed letters, an emoji of several code points.
        texts += ("क्\u200dषमा किया", "می\u200cشود", "o\u0302\u0301ng cafe\u0301s", "wow 👩\u200d👧 ok")
    tag, proposed = read_tag(language), RECIPES[recipe].propose
    for text in texts:
        edits = proposed(text, tag, random.Random(0))
        borders = {0, *(match.end() for match in CLUSTER.finditer(text))}
        assert all(edit.start in borders and edit.end in borders for edit in edits)
        assert all(text[edit.start : edit.end] != edit.replacement for edit in edits)
        assert [edit.start for edit in edits] == sorted(edit.start for edit in edits)
        pieces, at = [], 0
        for edit in edits:
            if edit.start >= at:
                pieces += CLUSTER.findall(text[at : edit.start]) + CLUSTER.findall(edit.replacement)
                at = edit.end
        pieces += CLUSTER.findall(text[at:])
        whole = apply(text, edits, random.Random(0), 1)
        assert CLUSTER.findall(whole) == pieces
    assert any(perturb([text], language, recipe) != [text] for text in flores(language))


@needs_data
@pytest.mark.parametrize(
    ("language", "recipe"), [(language, recipe) for language, recipe in OFFERED if recipe in IDEMPOTENT]
)
def test_idempotent(language, recipe):
    texts = flores(language)[:8] if RECIPES[recipe].unit == "text" else flores(language)[:100]
    once = perturb(texts, language, recipe, rate=1)
    assert perturb(once, language, recipe, rate=1) == once


@needs_data
@pytest.mark.parametrize("language", ["ar", "ur", "hi", "th"])
def test_digits_swap_back(language):
    texts = flores(language)
    swapped = perturb(texts, language, "digits_swapped")
    assert perturb(swapped, language, "digits_swapped") == list(texts) != swapped


@needs_data
def test_there_and_back():
    zh = flores("zh")[:200]
    back = perturb(perturb(zh, "zh", "traditional_chinese"), "zh-Hant", "simplified_chinese")
    assert sum(a == b for a, b in zip(zh, back, strict=True)) >= 0.95 * len(zh)
    ascii_only = [text for text in flores("en") if text.isascii()]
    wide = perturb(ascii_only, "zh", "full_width")
    assert perturb(wide, "zh", "half_width") == ascii_only != wide


@pytest.mark.parametrize(("language", "recipe"), OFFERED)
def test_unchanged_where_nothing_applies(language, recipe):
    texts = ["", " ", "\n", "+ = €"]
    assert perturb(texts, language, recipe, rate=1) == texts


@needs_data
@pytest.mark.parametrize("recipe", ["keyboard_noise", "random_case", "homoglyphs", "punctuation_loss"])
def test_a_text_does_not_depend_on_its_neighbours(recipe):
    texts = list(flores("de")[:40])
    together = perturb(texts, "de", recipe, seed=3, rate=0.3)
    assert together == [perturb([text], "de", recipe, seed=3, rate=0.3)[0] for text in texts]
    assert together[::-1] == perturb(texts[::-1], "de", recipe, seed=3, rate=0.3)
    assert together != perturb(texts, "de", recipe, seed=4, rate=0.3)


def test_the_same_in_every_process_and_version():
    found = perturb(["The quick brown fox jumps over the lazy dog"], "en", "keyboard_noise", seed=7, rate=0.3)
    assert found == ["The quicck brown fox ujmmpps oet ghee lazy od"]


@needs_data
@pytest.mark.parametrize(
    ("language", "recipe"), [("vi", "tone_loss"), ("en", "keyboard_substitution"), ("ru", "homoglyphs")]
)
def test_rate(language, recipe):
    texts = flores(language)
    tag, possible, places = read_tag(language), 0, dict.fromkeys((0.1, 0.3), 0)
    for rate in places:
        varied = perturb(texts, language, recipe, rate=rate)
        places[rate] = sum(
            a != b
            for text, new in zip(texts, varied, strict=True)
            for a, b in zip(CLUSTER.findall(text), CLUSTER.findall(new), strict=True)
        )
    possible = sum(len(RECIPES[recipe].propose(text, tag, random.Random(0))) for text in texts)
    for rate, count in places.items():
        # Four standard deviations of the binomial distribution.
        assert abs(count - rate * possible) < 4 * (possible * rate * (1 - rate)) ** 0.5


@needs_data
def test_a_higher_rate_varies_the_same_places_and_more():
    text = max(flores("en"), key=len)
    low, high = (perturb([text], "en", "random_case", rate=rate)[0] for rate in (0.2, 0.6))
    changed_low, changed_high = (
        {i for i, (a, b) in enumerate(zip(text, new, strict=True)) if a != b} for new in (low, high)
    )
    assert changed_low < changed_high


def test_change():
    found = change(["kitten", "same", "ế\u0323x"], ["sitting", "same", "ếx"])
    assert found.texts == 2 / 3
    assert found.characters == (3 + 0 + 1) / (7 + 4 + 2)
    with pytest.raises(ValueError, match="before has 1 texts, after has 2"):
        change(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        change([], [])
