"""Translations: what is no translation is seen by copy, length, numbers and marks, and what is one is left alone."""

import pytest

from hybrid_kernels.governance import pairs
from tests.governance.quality_support import (
    DATA,
    FLORES,
    governance,
    judged,
    lines,
    needs_data,
    ntrex,
    reasons,
    rejected,
)


def reasons_of(first, second, **fields):
    return reasons(judged([first], [second], translation=True, policy=governance(**fields)))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("The council met on Tuesday.", "The council met on Tuesday.", ["untranslated"]),
        ("The council met on Tuesday.", "THE COUNCIL met on tuesday", ["untranslated"]),
        (
            "No.",
            "Das ist ein langer Satz, der von etwas ganz anderem handelt als der erste.",
            ["length ratio"],
        ),
        (
            "Das ist ein langer Satz, der von etwas ganz anderem handelt als der erste.",
            "No.",
            ["length ratio"],
        ),
        ("It rose from 25 to 1,250 in 2019.", "Es stieg von 31 auf 17 im Jahr 1987.", ["numbers differ"]),
        ("It rose from 26,750 to 31,250.", "Выросло с 17 480 до 19 360.", ["numbers differ"]),
        ("In 1998 and 2004 they came.", "Sie kamen damals sehr gern.", ["numbers differ"]),
        ("Why did he go?", "Er ging nach Hause.", ["punctuation differs"]),
        ("He went home.", "他为什么回家了呢？", ["punctuation differs"]),
        ("He went home.", "Γιατί πήγε σπίτι;", ["punctuation differs"]),
        (
            "He came. She went. They sat. All ate. It rained.",
            "Er kam, sie ging, alle aßen, es regnete.",
            ["punctuation differs"],
        ),
    ],
)
def test_defect_is_named(first, second, expected):
    assert reasons_of(first, second) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("New York", "New York"),
        ("Yes.", "Ndiyo, bwana mkubwa."),
        ("It rose to 1,234.5 in 2019.", "Es stieg auf 1.234,5 im Jahr 2019."),
        (
            "It rose to 1,234,567 and 12.",
            "Il est passé à 1 234 567 et à 12.".replace(" 234 ", "\u202f234\u202f"),
        ),
        ("Thieves take $26,750 at Newport.", "Крадци задигат 26 750 $ в Нюпорт."),
        ("The number of people rose from 12,345 to 1,234,567.", "Число людей выросло с 12 345 до 1 234 567."),
        ("He chose 100, 200 or 300.", "Он выбрал 100 200 300."),
        ("On 12/03/2019, at 09:05, he came home.", "عاد إلى بيته يوم ١٢/٠٣/٢٠١٩ الساعة ٠٩:٠٥."),
        ("In 2019 there were 25 of 340.", "२०१९ में ३४० में से २५ थे।"),
        ("In 2019 there were 25 of 340.", "ในปี ๒๐๑๙ มี ๒๕ จาก ๓๔๐"),
        ("10,000 people and 25 dogs came.", "来了1万人和25只狗。"),
        ("He has 2 dogs.", "Er hat zwei Hunde."),
        ("Why did he go?", "Γιατί έφυγε;"),
        ("Why did he go?", "لماذا ذهب؟"),
        ("Why did he go?", "他为什么走了？"),
        ("Why did he go?", "ทำไมเขาถึงไป"),
        ("One. Two. Three. Four. Five.", "หนึ่ง สอง สาม สี่ ห้า"),
        ("He came; she went.", "Er kam. Sie ging."),
        ("He came. She went.", "वह आया | वह गई |"),
        ("He came. She went.", "وہ آیا- وہ گئی-"),
    ],
)
def test_translations_pass(first, second):
    assert reasons_of(first, second) == []
    assert reasons_of(second, first) == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,234.50 and 1 234,5", {"12345": 1, "1": 1, "2345": 1}),
        ("007 + 7", {"7": 2}),
        ("０ and 0.0", {"0": 2}),
        ("٣٤٥ ३४५ ๓๔๕ ৩৪৫ 345", {"345": 5}),
        ("COVID-19", {"19": 1}),
        ("none", {}),
    ],
)
def test_numbers(text, numbers):
    assert dict(pairs.numbers(text)) == numbers


def test_scores_and_switches():
    [ratio] = judged(["No."], ["Das ist ein langer Satz über etwas ganz anderes."], translation=True)
    assert (ratio.column, ratio.reason) == (None, "length ratio")
    assert ratio.score[0] < ratio.bound[0] == pytest.approx(-1.0986, abs=1e-4)
    assert ratio.detail == ["the first text has 0.26 times the length of the second, at least 0.33"]
    same = "The council met on Tuesday."
    assert reasons_of(same, same, max_copied=1.0) == []
    assert reasons_of("Why did he go?", "Er ging nach Hause.", reject_question_mismatch=False) == []
    assert reasons_of("In 1998 and 2004 they came.", "Sie kamen damals gern.", min_number_agreement=0) == []


def test_an_ideograph_is_several_letters():
    first, second = "He went home to see his mother yesterday evening.", "他昨天晚上回家看望了他的母亲。"
    assert reasons_of(first, second, max_length_ratio=1.5) == []
    assert reasons_of(first, second[:7], max_length_ratio=1.5) == ["length ratio"]


def test_pairs_in_one_language_are_no_translations():
    assert judged(["Why did he go home so late?"], ["No."]) == []


def test_length_ratio_is_held_against_the_usual_one_of_the_languages():
    """Sides of which one is usually twice as long: of equal length they are odd."""
    base = ["ab cd " * (5 + i % 7) for i in range(600)]
    double = ["kl mn op " * (10 + 2 * (i % 7)) + "x" * (i % 11) for i in range(600)]
    base[5], double[5] = "ab cd efg " * 20, "kl mn"
    languages = ["en"] * 600, ["xx"] * 600
    found = judged(base, double, languages=languages, translation=True, from_data=True)
    ratio = [o for o in found if o.reason == "length ratio"]
    assert rejected(ratio) == {5}
    short = judged(base[:6], double[:6], languages=[["en"] * 6, ["xx"] * 6], translation=True, from_data=True)
    assert rejected([o for o in short if o.reason == "length ratio"]) == {5}


def corpora(language):
    for path in (("tatoeba", f"en-{language}"), ("tico19", f"test.en-{language}")):
        # TICO-19's French is truly misaligned in part.
        if DATA.joinpath(path[0], f"{path[1]}.en").exists() and path != ("tico19", "test.en-fr"):
            first, second = (lines(path[0], f"{path[1]}.{code}") for code in ("en", language))
            step = -(-len(first) // 1500)
            yield first[::step], second[::step]
    yield ntrex("en"), ntrex(language)


PAIR_REASONS = {"untranslated", "length ratio", "numbers differ", "punctuation differs"}


@needs_data
@pytest.mark.parametrize("language", [code for code in FLORES if code != "en"])
def test_real_translations(language):
    first, second = ([text for sides in corpora(language) for text in sides[side]] for side in (0, 1))
    found = judged(first, second, languages=["en", language], translation=True, from_data=True)
    odd = [o for o in found if o.reason in PAIR_REASONS]
    assert len(rejected(odd)) <= 0.01 * len(first), [(o.reason, len(o.rows)) for o in odd]


@needs_data
@pytest.mark.parametrize("language", ["de", "sw", "th", "ur", "zh"])
def test_slipped_lines(language):
    """One row in twenty has the translation of the next; a quarter of these differ in something that shows."""
    first, second = ntrex("en"), ntrex(language)
    slipped = list(range(0, len(first) - 1, 20))
    mixed = list(second)
    for row in slipped:
        mixed[row] = second[row + 1]
    found = judged(first, mixed, languages=["en", language], translation=True, from_data=True)
    caught = rejected([o for o in found if o.reason in PAIR_REASONS])
    assert len(caught & {*slipped}) >= 0.25 * len(slipped)
    assert len(caught - {*slipped}) <= 0.01 * len(first)
