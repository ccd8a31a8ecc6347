"""Rows that were cut off: what gives them away, in which languages, and that whole texts do not look like it."""

import random

import pytest

from hybrid_kernels.governance import endings
from tests.governance.quality_support import (
    FLORES,
    flores,
    governance,
    judged,
    needs_data,
    ntrex,
    reasons,
    rejected,
)

MARKED = [f"Row {'abcdefgh'[i % 8] * (i % 5 + 1)} ends in a mark." for i in range(600)]


def cut(text, language):
    return "truncated" in reasons(judged([text], languages=[language]))


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (None, "He went to the sea,"),
        (None, "They had a well-"),
        (None, "The man (who had been there"),
        (None, "这个人（他曾经在那里"),
        (None, "We all went d"),
        (None, "It was so thr"),
        (None, "Мы все пошли д"),
        (None, "वह घर पर थ्"),
        (None, "वह घर में क"),
        (None, "เขาไปที่โ"),
        (None, "Πήγαμε όλοι στο σχολείο μασ"),
        (None, "לקחתי את הספר שלכ"),
        (None, "ذهب الرجل إلى ال"),
        ("en", "He went to the"),
        ("en-GB", "He went to the"),
        ("de", "Er ging mit dem"),
        ("fr", "Il est allé à la"),
        ("es", "Fue a la casa de"),
        ("ru", "Он пошёл в лес и"),
        ("bg", "Той отиде в гората и"),
        ("el", "Πήγε στο δάσος με"),
        ("ar", "ذهب الرجل إلى"),
        ("hi", "वह अपने घर के"),
        ("ur", "وہ اپنے گھر کے"),
        ("sw", "Alikwenda shule na"),
        (None, "Πήγαμε στο σχ"),
        ("tr", "Okula gitti ve"),
        ("vi", "Anh ấy đi đến trường và"),
        (None, "Anh ấy đi đến tr"),
        ("th", "เขาไปโรงเรียนและ"),
        ("zh", "他去了学校，但"),
    ],
)
def test_cut_off(language, text):
    assert cut(text, language)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "He went to the."),
        ("en", 'He said: "I went to the sea."'),
        ("en", "Wales AMs worried about looking like muppets"),
        ("en", "I am so sad :("),
        (
            "en",
            "Ten (of whom we have never heard anything since the summer of that long year came to its end",
        ),
        ("en", "He ran 5 km"),
        ("en", "That is what I was interested in"),
        ("de", "Kommst du auch mit"),
        ("bg", "Той се разсмя и се"),
        ("zh", "他们现在很温和"),
        ("hi", "उन्होंने नाराज़गी जाहिर की"),
        ("en", "Vitamin D"),
        ("en", "The Who"),
        ("en", "The"),
        ("en", "He told them (they knew)"),
        ("en", "All in all 5 cm vs"),
        ("de", "Wir gingen in die USA"),
        ("de", "Die Welt am Ende der Welt"),
        ("sw", "Alizaliwa Dublin"),
        ("sw", "Sijaona yeye tangu breakfast"),
        ("hi", "वह घर पर ही था।"),
        ("hi", "वह घर पर ही था |"),
        ("ur", "وہ گھر پر تھا-"),
        ("ur", "وہ گھر پر تھا۔"),
        ("th", "เขาไม่ได้พูดสักคำ"),
        ("zh", "议会议员担心"),
        ("el", "Τι είπε;"),
        ("xx", "He went to the"),
        (None, "He went to the"),
    ],
)
def test_whole(language, text):
    assert not cut(text, language)


def test_the_evidence_is_named():
    [found] = judged(["He went to the", "And so (it goes"], languages=[["en", "en"]])
    assert found.detail == ["ends in 'the' without a sentence mark", "'(' is not closed"]
    assert (found.reason, found.column) == ("truncated", "a")


def test_words_are_those_of_the_rows_language():
    assert cut("He wants to die", "de")
    assert not cut("He wants to die", "en")


def test_a_language_that_ends_its_rows_in_marks():
    """Almost all do, and one does not; in another language a tenth does not, and so proves nothing."""
    texts = [*MARKED, "A headline", *MARKED[:540], *["A headline"] * 60]
    languages = ["en"] * 601 + ["sw"] * 600
    found = judged(texts, languages=[languages], from_data=True)
    assert rejected(found) == {600}
    assert found[0].detail == ["ends without a sentence mark, as hardly a row in en"]
    few = judged(texts[101:], languages=[languages[101:]], from_data=True)
    assert rejected(few) == {499}
    assert rejected(judged(texts[102:], languages=[languages[102:]], from_data=True)) == set()


def test_rows_cut_at_one_length():
    generator = random.Random(0)
    whole = ["x y " * generator.randint(5, 20) + "end" for _ in range(500)]
    long = ["alpha beta " * generator.randint(11, 30) for _ in range(60)]
    texts = whole + [text[:100] for text in long if len(text) > 100]
    texts[-1] = texts[-1][:99] + "."
    piled = set(range(500, len(texts) - 1))
    assert len(piled) > 20
    found = judged(texts, languages=["sv"], from_data=True)
    truncated = [o for o in found if o.reason == "truncated"]
    assert rejected(truncated) >= piled
    assert len(texts) - 1 not in rejected(truncated)
    assert "100 characters, at which many rows end and none is longer" in truncated[0].detail
    # A longer row, and the pile is no end.
    more = judged([*texts, "alpha beta " * 14 + "so"], languages=["sv"], from_data=True)
    assert not any("characters, at which" in detail for o in more for detail in o.detail)


def test_bits_are_languages():
    terminal, bits = endings.ending("He went to the")
    assert not terminal
    assert bits & endings.language_bits("en")
    assert not bits & endings.language_bits("hi")
    assert not bits & endings.language_bits(None)
    assert endings.ending("He went to the,")[1] == 1
    assert max(endings.language_bits(language) for language in endings.LANGUAGES) < 2**31


def _cut_within(text, generator):
    """At a random point within a word, past a fifth of the text."""
    places = [i for i in range(len(text) // 5, len(text)) if text[i - 1].isalpha() and text[i].isalpha()]
    return text[: generator.choice(places)] if places else None


def _cut_between(text, generator):
    places = [i for i in range(len(text) // 5, len(text)) if text[i] == " "]
    return text[: generator.choice(places)] if places else None


#: Shares of NTREX rows that are found when cut, rounded down: mostly what follows does not show.
RECALL = {
    "ar": (0.10, 0.05),
    "bg": (0.25, 0.15),
    "de": (0.2, 0.05),
    "el": (0.2, 0.1),
    "en": (0.1, 0.15),
    "es": (0.3, 0.1),
    "fr": (0.3, 0.15),
    "hi": (0.1, 0.3),
    "ru": (0.2, 0.1),
    "sw": (0.2, 0.1),
    "tr": (0.03, 0.05),
    "ur": (0.1, 0.005),
    "vi": (0.1, 0.25),
    "th": (0.03, 0.05),
    "zh": (0.01, 0.02),
}


@needs_data
@pytest.mark.parametrize("language", FLORES)
def test_recall_is_modest_and_no_less(language):
    generator = random.Random(0)
    texts = ntrex(language)[::3]
    for cut_off, least in zip((_cut_between, _cut_within), RECALL[language], strict=True):
        rows = [row for text in texts if (row := cut_off(text, generator))]
        found = [o for o in judged(rows, languages=[language]) if o.reason == "truncated"]
        assert len(rejected(found)) >= least * len(rows), (cut_off.__name__, len(rejected(found)) / len(rows))


@needs_data
@pytest.mark.parametrize("language", FLORES)
def test_whole_rows_are_not_truncated(language):
    for texts in (flores(language), ntrex(language)):
        found = judged(texts, languages=[language])
        assert len(rejected(found)) <= 0.004 * len(texts), [o.detail for o in found]


def test_switch():
    assert judged(["He went to the"], languages=["en"], policy=governance(reject_truncated=False)) == []


@pytest.mark.parametrize(("unmarked", "found"), [(2, True), (40, True), (60, False)])
def test_where_many_end_without_a_mark_the_end_shows_nothing(unmarked, found):
    texts = [
        "He went to the",
        *["Nobody saw him"] * unmarked,
        *["Everybody saw him leave."] * (119 - unmarked),
    ]
    assert (0 in rejected(judged(texts, languages=["en"], from_data=True))) is found
