"""Quality rules: each catches its defect, none touches ordinary text of any script."""

import pytest

from hybrid_kernels.governance import QualityPolicy, quality_decision

POLICY = QualityPolicy()


def reason(text, policy=POLICY):
    decision = quality_decision({"text": text}, policy)
    return decision and decision.reason


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
    ],
)
def test_defect_is_named(text, expected):
    assert reason(text) == expected


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
    assert reason(text) is None


def test_decision_says_where_what_and_how_much():
    decision = quality_decision({"premise": "All is well.", "hypothesis": "12345 678 kg"}, POLICY)
    assert decision is not None
    assert (decision.step, decision.reason) == ("quality", "digits")
    assert decision.detail == "hypothesis: 80% are digits, at most 50%"
    assert decision.score == pytest.approx(0.8)


def test_identical_columns():
    same = {"premise": "Chair of the board", "hypothesis": "chair of the board."}
    part = {"premise": "Chair of the board", "hypothesis": "Chair of the"}
    decision = quality_decision(same, POLICY)
    assert decision is not None
    assert decision.reason == "identical columns"
    assert quality_decision(part, POLICY) is None
    assert quality_decision(same, QualityPolicy(reject_identical=False)) is None


@pytest.mark.parametrize(
    ("switch", "text"),
    [
        ({"reject_markup": False}, "<b>Bold words</b> in a row"),
        ({"reject_mojibake": False}, "Der Fluss ist groÃŸ und schÃ¶n"),
        ({"reject_boilerplate": False}, "Lorem ipsum dolor sit amet"),
        ({"max_digits": 1.0}, "12345 678 kg"),
        ({"min_letters": 0}, "x"),
    ],
)
def test_rules_are_switchable(switch, text):
    assert reason(text) is not None
    assert reason(text, QualityPolicy(**switch)) is None
