"""Quality rules: each catches its defect, none touches ordinary text of any script."""

import numpy as np
import pytest

from hybrid_kernels.governance import GovernancePolicy, quality, thresholds
from hybrid_kernels.governance.batch import Batch, Columns
from hybrid_kernels.governance.policy import QualityPolicy


def objections(*texts, languages=("en",), policy=None, translation=False, bounds=None):
    """To one row, or where a text is a list to its rows."""
    policy = GovernancePolicy(quality=policy or QualityPolicy())
    lists = tuple(text if isinstance(text, list) else [text] for text in texts)
    columns = Columns(("premise", "hypothesis")[: len(texts)], translation=translation)
    claims = tuple([languages[i % len(languages)]] * len(lists[0]) for i in range(len(texts)))
    batch = Batch(lists, claims, columns, tuple(languages))
    features = quality.measure(batch, policy)
    assert features.keys() == quality.fields(columns, policy).keys()
    features |= {f"row_language_{i}": np.array(codes, object) for i, codes in enumerate(claims)}
    if bounds is None:
        bounds = thresholds.bounds(thresholds.Histograms(), policy)
    return quality.objections(batch, features, policy, bounds)


def reasons(*texts, **options):
    return {objection.reason for objection in objections(*texts, **options)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (" \n\t\u00a0", "empty"),
        ("x", "too short"),
        ("a" * 16 + "h, that was close", "repetition"),
        ("price price price price price price", "repetition"),
        ("很好很好很好很好很好很好很好很好很好很好很好很好", "repetition"),
        ("word " * 3000, "too long"),
        ("??? ???? ?? ????? ??? ??", "symbols"),
        ("★ ★ ★ ▶ ● ● ok", "symbols"),
        ("0039 4471 8820 77.15 1203 tel", "digits"),
        ('<div class="box">Menu</div>', "markup"),
        ("Read&nbsp;more", "markup"),
        ("if (x) { return f(x); } }", "markup"),
        ("https://example.org/a/b?id=12 www.example.com", "links"),
        ("Write to info@example.org", "links"),
        ("DerÃ¼berfluss ist groÃŸ und schÃ¶n", "mojibake"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚, ÐºÐ°Ðº Ð´ÐµÐ»Ð°?", "mojibake"),
        ("The caf\ufffd was closed", "mojibake"),
        ("Lorem ipsum dolor sit amet, consectetur", "boilerplate"),
        ("Tüm hakları saklıdır, 2019", "boilerplate"),
        ("Мы обновили политику использования файлов cookie", "boilerplate"),
        ("asdfghjkl qwe", "keyboard mash"),
        ("йцукенг фывапр", "keyboard mash"),
        ("sdkfj hskdjf hwkjr hskdj fhskdjfh", "keyboard mash"),
        ("And then he said very very very very little.", "repetition"),
        ("Ïðèâåò, êàê äåëà? Âñå õîðîøî.", "mojibake"),
        ("Straße hat ein ?? und Stra??e auch", "mojibake"),
        ("a page \x0c\x07 with a bell", "mojibake"),
        ("He went to the shop and bought the", "truncated"),
        ("The committee met in June (with all of its members", "truncated"),
        ("Although nobody had seen him,", "truncated"),
    ],
)
def test_defect_is_named(text, expected):
    assert expected in reasons(text)


@pytest.mark.parametrize(
    "text",
    [
        "No.",
        "是的。",
        "Er kam 1998 und ging 2004; die Angstschweißperlen blieben.",
        "He paid $1,250.50 (about 20% more) on 12/03/2019!",
        "The strengths of Schwarzwald rhythms were shown in Szczyrk.",
        "लेकिन वह उस दिन घर पर ही था।",
        "เขาไม่ได้พูดสักคำ",
        "شدید بارش کی وجہ سے ٹرین دیر سے پہنچی۔",
        "See https://example.org for the full text of the agreement, which runs to forty pages.",
        "The property owner was liberty-loving; he typed a poem.",
        "Ha ha ha, that is funny.",
        "NOOOOOOOOOOO, not again!",
        "CBS 为 310 万、NBC 为 294万、 MSNBC 为 289万、 CNN 为 252 万。",
        "Chad Hammel 告诉 KSWB-TV，他与朋友们潜水了大约半个小时。",
    ],
)
def test_ordinary_text_passes(text):
    assert reasons(text) == set()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Er ging in das Haus und sah den", "de"),
        ("Вчера вечером мы говорили о", "ru"),
        ("Χθες το βράδυ μιλήσαμε για", "el"),
        ("کل رات ہم نے بات کی اور", "ur"),
        ("这家公司昨天宣布将", "zh"),
        ("เมื่อวานนี้เราได้พูดคุยกันเกี่ยวกับ", "th"),
    ],
)
def test_what_ends_in_a_word_that_needs_another_is_truncated_in_its_language_only(text, language):
    assert "truncated" in reasons(text, languages=(language,))
    assert "truncated" not in reasons(text, languages=("fi",))


def test_all_that_is_wrong_is_said_each_with_where_what_and_how_much():
    found = objections("All is well.", "<b>12345</b> 678")
    assert {one.reason for one in found} == {"markup", "digits"}
    digits = next(one for one in found if one.reason == "digits")
    assert (digits.step, digits.column, digits.rows.tolist()) == ("quality", "hypothesis", [0])
    assert digits.detail == ["53% are digits, at most 50%"]
    assert digits.score == pytest.approx(8 / 15)
    assert digits.bound == [0.5]


def test_rows_are_told_apart_and_missing_texts_left_alone():
    found = objections(["Fine words.", None, "lorem ipsum", "", "More fine words.", "12345 678 kg"])
    assert {(one.reason, *one.rows.tolist()) for one in found} == {
        ("boilerplate", 2),
        ("empty", 3),
        ("digits", 5),
    }


def test_identical_columns():
    assert reasons("Chair of the board", "chair of the board.") == {"identical columns"}
    assert reasons("Chair of the board", "Chair of the town") == set()
    assert reasons("Same.", "Same.", policy=QualityPolicy(reject_identical=False)) == set()


@pytest.mark.parametrize(
    ("switch", "text"),
    [
        ({"reject_markup": False}, "<b>Bold words</b> in a row"),
        ({"reject_mojibake": False}, "Der Fluss ist groÃŸ und schÃ¶n"),
        ({"reject_boilerplate": False}, "Lorem ipsum dolor sit amet"),
        ({"reject_truncated": False}, "He went to the shop and bought the"),
        ({"max_digits": 1.0}, "12345 678 kg"),
        ({"min_letters": 0}, "x"),
        (
            {"max_characters": 100_000, "max_repetition": 1.0},
            "No words are said twice here but all of it. " * 300,
        ),
    ],
)
def test_rules_are_switchable(switch, text):
    assert reasons(text)
    assert reasons(text, policy=QualityPolicy(**switch)) == set()


def test_what_is_too_long_is_not_looked_into():
    found = objections("<b>words</b> " * 1_000_000)
    assert [one.reason for one in found] == ["too long"]
    assert found[0].detail == ["13000000 characters, at most 10000"]


def translated(first, second, languages=("en", "de"), **policy):
    return reasons(first, second, languages=languages, translation=True, policy=QualityPolicy(**policy))


GERMAN = "Der Zug kam am 3. Mai 1998 mit einer Stunde Verspätung an."
ENGLISH = "The train arrived an hour late on May 3, 1998."


def test_a_translation_passes():
    assert translated(ENGLISH, GERMAN) == set()
    assert translated(ENGLISH, "ในวันที่ 3 พฤษภาคม พ.ศ. 2541 รถไฟมาถึงช้าไปหนึ่งชั่วโมง", ("en", "th")) == set()
    assert translated(ENGLISH, "ट्रेन ३ मई १९९८ को एक घंटे देर से पहुँची।", ("en", "hi")) == set()
    assert translated("It cost 1,250,000 dollars in 2001.", "Es kostete 2001 1.250.000 Dollar.") == set()


def test_what_speaks_against_a_translation():
    assert translated(ENGLISH, GERMAN.replace("3. Mai 1998", "7. Juni 2004")) == {"numbers differ"}
    assert translated(ENGLISH, GERMAN.replace("3. Mai 1998", "7. Juni 2004"), min_number_agreement=0) == set()
    assert translated(ENGLISH, "Ja, so ist es.", max_length_ratio=2.0) == {"length ratio"}
    assert translated(ENGLISH, ENGLISH.replace("late", "early")) == {"untranslated"}
    assert translated(ENGLISH, ENGLISH) == {"identical columns"}
    assert translated("No. No! Yes? No. No! Yes? No. No!", "Nein nein ja nein nein ja nein nein") == {
        "punctuation differs"
    }
    pair = reasons(ENGLISH, GERMAN.replace("1998", "2004"), languages=("en",))
    assert pair == set(), "sentences of one language may differ as they like"
