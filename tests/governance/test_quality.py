"""Quality rules: each catches its defect, none touches ordinary text of any script."""

import random
import time
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from hybrid_kernels.governance import quality
from hybrid_kernels.governance.batch import Columns, Range
from hybrid_kernels.governance.policy import GovernancePolicy, QualityPolicy
from hybrid_kernels.governance.text import normalise, shingle_list
from tests.governance.quality_support import batch, governance, judged, measured, reasons

LONG_TEXT = " ".join(
    f"Sentence {i} of {i * i} tells of {'abcdefghij'[i % 10] * 2}{i % 7}." for i in range(400)
)


def reasons_of(text, language=None, **fields):
    return reasons(judged([text], languages=[language], policy=governance(**fields)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"empty"}),
        (" \n\t\u00a0\u200b", {"empty"}),
        ("x", {"too short"}),
        ("a" * 16 + "h, that was close", {"repetition"}),
        ("price price price price price price", {"repetition"}),
        ("很好很好很好很好很好很好很好很好很好很好很好很好", {"repetition"}),
        ("go to go by go up go on go in go at go", {"repetition"}),
        ("Menu\nHome\nMenu\nHome\nWe sell good shoes.", {"repetition"}),
        ("word " * 3000, {"too long"}),
        ("??? ???? ?? ????? ??? ??", {"symbols", "too short", "mojibake"}),
        ("★ ★ ★ ▶ ● ● ok", {"symbols"}),
        ("0039 4471 8820 77.15 1203 tel", {"digits"}),
        ('<div class="box">Menu</div>', {"markup"}),
        ("Read&nbsp;more", {"markup"}),
        ("caf&eacute; au lait", {"markup"}),
        ("if (x) { return f(x); } }", {"markup"}),
        ("See function(a, b) { return a; } here", {"markup"}),
        ("Run function clean(a){ it; } now", {"markup"}),
        ("https://example.org/a/b?id=12 www.example.com", {"links"}),
        ("Write to info@example.org", {"links"}),
        ("Lorem ipsum dolor sit amet, consectetur", {"boilerplate"}),
        ("Tüm hakları saklıdır, 2019", {"boilerplate"}),
        ("Мы обновили политику использования файлов cookie", {"boilerplate"}),
        ("asdfghjkl qwe", {"keyboard mash"}),
        ("йцукенг фывапр", {"keyboard mash"}),
        ("poiuytr is typed", {"keyboard mash"}),
        ("qwerty QWERTY", {"keyboard mash"}),
        ("The qwerty keys asdfgh", {"keyboard mash"}),
        ("sdkfj hskdjf hwkjr hskdj fhskdjfh", {"keyboard mash"}),
    ],
)
def test_defect_is_named(text, expected):
    assert expected <= {*reasons_of(text)}
    # All reasons, but no rule that has nothing to do with the defect.
    assert {*reasons_of(text)} <= expected | {"symbols", "digits", "repetition", "truncated"}


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
        "Liver function (ALT and AST) was normal in all patients.",
        "Most typists use QWERTY, not QWERTZ or AZERTY.",
        "Раскладка йцукен привычна многим.",
        "The property owner was liberty-loving; he typed a poem.",
        "Ha ha ha, that is funny.",
        "NOOOOOOOOOOO, not again!",
        "CBS 为 310 万、NBC 为 294万、 MSNBC 为 289万、 CNN 为 252 万。",
        "Chad Hammel 告诉 KSWB-TV，他与朋友们潜水了大约半个小时。",
        "这个程序用 nginx 和 xml 以及 html 与 css 编写而成，运行得非常稳定可靠，所以大家都很喜欢它。",
        "AT&T and R&D grew by < 5 %; is [sic] that so?",
        "Really??? What?!",
        "First line.\nSecond line.\nThird line.",
        "Người đàn ông ấy đã được đưa đến bệnh viện.",
    ],
)
def test_ordinary_text_passes(text):
    assert reasons_of(text) == []


def test_long_text_is_no_repetition():
    """Most trigrams of a long text were there before; within a window they were not."""
    grams = shingle_list(LONG_TEXT, 3)
    assert 1 - len(set(grams)) / len(grams) > 0.8
    assert reasons_of(LONG_TEXT, max_characters=20_000) == []
    page = LONG_TEXT[:4000]
    assert reasons_of(page) == []
    assert reasons_of(f"{page} {page} {page} {page}", max_characters=50_000) == ["repetition"]


def test_objection_says_where_what_and_how_much():
    [found] = judged(["All is well.", "Well."], ["Good.", "12345 678 kg"])
    assert (found.step, found.reason, found.column, found.rejects) == ("quality", "digits", "b", True)
    assert (found.rows.tolist(), found.rows.dtype) == ([1], np.int64)
    assert found.score.tolist() == [0.8]
    assert found.bound.tolist() == [0.5]
    assert found.detail == ["80% are digits, at most 50%"]


def test_a_short_line_is_not_held_against_the_shares_of_longer_ones():
    """A mark more is a large share of it; the policy's own bounds hold."""
    texts = ["О, не.", "Ох!", "5 км.", "???!!! не", "О, не! " * 8]
    rows = batch(texts)
    bounds = {(f"{name}_0", "bg"): Range(high=0.3) for name in ("symbols", "digits")}
    found = quality.objections(rows, measured(rows, ["bg"]), GovernancePolicy(), bounds)
    shares = {
        (row, o.reason, bound)
        for o in found
        for row, bound in zip(o.rows.tolist(), o.bound.tolist(), strict=True)
        if o.reason in ("symbols", "digits")
    }
    assert shares == {(3, "symbols", 0.5), (4, "symbols", 0.3)}


def test_all_reasons_are_given():
    text = "<p>12345 67890 12345678901234567890</p> asdfghj cafÃ©"
    assert reasons_of(text, min_vowels=0) == ["mojibake", "markup", "digits", "keyboard mash"]


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("sh<b>x</b>", "contains '<b>'"),
        ("We use cookies here", "contains 'use cookies'"),
        ("My qwertyui", "walks the keyboard: 'qwerty'"),
        ("The caf\ufffd was closed", "contains U+FFFD, the mark of undecodable bytes"),
    ],
)
def test_switched_rules_show_their_evidence(text, evidence):
    [found] = judged([text])
    assert found.detail == [evidence]
    assert np.isnan([found.score, found.bound]).all()


def test_identical_columns():
    rows = ["Chair of the board", "Chair of the board"], ["chair of the board.", "Chair of the"]
    [found] = judged(*rows)
    assert (found.reason, found.column, found.rows.tolist()) == ("identical columns", None, [0])
    assert found.detail == ["a = b: Chair of the board"]
    assert judged(*rows, policy=governance(reject_identical=False)) == []


@pytest.mark.parametrize(
    ("switch", "text"),
    [
        ({"reject_markup": False}, "<b>Bold words</b> in a row"),
        ({"reject_mojibake": False}, "Der Fluss ist groÃŸ und schÃ¶n"),
        ({"reject_boilerplate": False}, "Lorem ipsum dolor sit amet"),
        ({"reject_truncated": False}, "He went to the sea,"),
        ({"reject_keyboard_walks": False}, "My qwertyui is new"),
        ({"max_digits": 1.0}, "12345 678 kg"),
        ({"min_letters": 0}, "x"),
        ({"max_word_share": 1.0, "max_repetition": 1.0}, "go to go by go up go on go in go at go"),
    ],
)
def test_rules_are_switchable(switch, text):
    assert reasons_of(text)
    assert reasons_of(text, **switch) == []


def test_every_rule_has_a_field_and_a_variation():
    fields = set(QualityPolicy.model_fields)
    assert {rule.field for rule in quality.TEXT_RULES + quality.ROW_RULES["translation"]} <= fields
    assert set(quality.VARIATIONS) <= fields
    for name, values in quality.VARIATIONS.items():
        for value in values:
            QualityPolicy.model_validate({name: value})
        if not name.startswith("reject_"):
            default = QualityPolicy.model_fields[name].default
            assert min(values) <= default <= max(values), name
    # What changes features cannot be varied over them.
    assert not {f"quality.{name}" for name in quality.VARIATIONS} & {*quality.MEASURED}


@pytest.mark.parametrize("kind", ["text", "pair", "translation"])
def test_features_are_the_fields(kind):
    texts = ["One is here.", None, "", "Three 3\nlines"]
    sides = [texts] if kind == "text" else [texts, ["Eins ist da.", "Zwei.", None, "Drei 3"]]
    rows = batch(*sides, translation=kind == "translation")
    policy = GovernancePolicy()
    features, fields = quality.measure(rows, policy), quality.fields(rows.columns, policy)
    assert features.keys() == fields.keys()
    for name, values in features.items():
        assert pa.array(values, fields[name]).to_numpy(zero_copy_only=False).dtype == values.dtype
    assert np.isnan(features["letters_0"]).tolist() == [False, True, False, False]
    if kind == "translation":
        assert np.isnan(features["length_ratio"]).tolist() == [False, True, True, False]
    if kind == "pair":
        assert np.isnan(features["identical"]).tolist() == [False, True, True, False]


def test_missing_texts_meet_no_objection():
    assert judged([None, "Fine."], [None, None], languages=["en", "en"]) == []


def test_no_rows():
    assert judged([], []) == []
    assert all(len(values) == 0 for values in quality.measure(batch([]), GovernancePolicy()).values())


def test_features_of_a_text_do_not_depend_on_its_neighbours():
    texts = ["Fünf Äpfel!", "", "aaaa bb", "qwertz", "a", "12 34", None, "好好好"]
    together = measured(batch(texts))
    for row, text in enumerate(texts):
        alone = measured(batch([text]))
        for name in quality.fields(Columns(("a",)), GovernancePolicy()):
            assert np.array_equal(together[name][row], alone[name][0], equal_nan=True), (name, text)


def test_bounds_of_a_language_apply_to_it_alone():
    rows = batch(["A 123456 of bananas here."] * 2)
    features = measured(rows, [["en", "sw"]])
    bounds = {("digits_0", None): Range(high=0.5), ("digits_0", "sw"): Range(high=0.2)}
    [found] = quality.objections(rows, features, GovernancePolicy(), bounds)
    assert (found.reason, found.rows.tolist(), found.detail) == (
        "digits",
        [1],
        ["29% are digits, at most 20% in sw"],
    )


def test_very_long_texts_cost_little():
    rows = ["x" * 10_000_000, "?" * 10_000_000, "(" + " b<" * 3_000_000, "Ж" * 9_999]
    started = time.process_time()
    found = judged(rows)
    assert time.process_time() - started < 5
    assert [o.rows.tolist() for o in found if o.reason == "too long"] == [[0, 1, 2]]
    assert reasons(found, 0) == ["too long"]
    # Whoever wants them gets them judged.
    assert "repetition" in reasons(judged([rows[0][:500_000]], policy=governance(max_characters=20_000_000)))


def test_normalised_text_is_what_it_says():
    """Against one character after the other; the result decides what is a duplicate, too."""
    generator = random.Random(0)
    alphabets = [
        range(0x80),
        range(0x20, 0x500),
        range(0x2000, 0x2100),
        range(0x3000, 0x9FFF),
        range(0xE000, 0x110000),
    ]
    for _ in range(2000):
        text = "".join(map(chr, generator.choices(generator.choice(alphabets), k=20)))
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        assert normalise(text) == "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC")
    assert shingle_list("我们去公园 (ok)", 3) == ["我们", "们去", "去公", "公园", "园o", "ok"]
    assert shingle_list("We go 去!", 3) == ["weg", "ego", "go去"]


def test_bounds_are_exclusive():
    assert reasons_of("a1b2c") == []
    assert reasons_of("ab12", max_digits=0.5) == []
    assert reasons_of("ab123", max_digits=0.5) == ["digits"]
    assert reasons_of("ab", min_letters=2) == []


@pytest.mark.parametrize("surrogate", ["\ud800", "A lone \udfff half."])
def test_lone_surrogates_are_a_defect_not_an_error(surrogate):
    assert "mojibake" in reasons_of(surrogate) or "empty" in reasons_of(surrogate)
