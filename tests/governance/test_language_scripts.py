"""Scripts: tags, letters, romanised text, the variants of Chinese."""

import unicodedata
from collections import Counter

import pytest

from hybrid_kernels.governance.scripts import Tag, letters, read_tag
from tests.governance.language_support import SENTENCES, Judged, judged, reason

TRADITIONAL, SIMPLIFIED = "由於下大雨，火車晚了一個小時才到站。", SENTENCES["zh"]
SERBIAN_LATIN = "Voz je stigao na stanicu sat vremena kasnije zbog jake kiše."
SERBIAN_CYRILLIC = "Воз је стигао на станицу сат времена касније због јаке кише."
ROMANISED = {
    "ur": "Barish ki wajah se gari ek ghanta der se station pohanchi.",
    "hi": "Baarish ke kaaran rail gaadi ek ghante der se station pahunchi.",
    "ar": "Wasala al-qitar ila al-mahatta muta'akhiran sa'a kamila bisabab al-matar.",
    "el": "To treno eftase ston stathmo me mia ora kathisterisi logo tis vrochis.",
    "ru": "Poezd pribyl na stantsiyu s opozdaniem na chas iz-za silnogo dozhdya.",
}


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("en", "en"),
        ("zho_Hans", "zh-Hans"),
        ("cmn-hant", "zh-Hant"),
        ("zh_TW", "zh-Hant"),
        ("zh-CN", "zh-Hans"),
        ("zh-Hant-HK", "zh-Hant"),
        ("zh_Hani", "zh"),
        ("arb_Arab", "ar"),
        ("hi-Deva", "hi"),
        ("HIN_LATN", "hi-Latn"),
        ("sr-Latn-RS", "sr-Latn"),
        ("pt-BR", "pt"),
        ("es-419", "es"),
        ("jpn_Jpan", "ja"),
        ("iw", "he"),
        ("swh_Latn", "sw"),
        ("en-Deva", None),
        ("english", None),
        ("", None),
        ("x" * 99, None),
    ],
)
def test_tags_are_read(text, tag):
    found = read_tag(text)
    assert (found and str(found)) == tag


def test_a_tag_accepts_what_it_contains():
    for wanted, claim, accepted in (
        ("zh", "zh-Hans", True),
        ("zh-Hans", "zh", False),
        ("zh-Hans", "zh-Hant", False),
        ("sr", "sr-Latn", True),
        ("hi", "hi-Latn", False),
        ("hi-Latn", "hi", False),
        ("hi", "ur", False),
    ):
        assert read_tag(wanted).accepts(read_tag(claim)) is accepted, (wanted, claim)


def test_letters_are_counted_as_unicode_names_them():
    texts = [*SENTENCES.values(), "", "１２ ＡＢＣ 𝐛𝐨𝐥𝐝 １", "सड़क 42 Straße", "日本のカタカナ"]
    found = letters(texts)
    for i, text in enumerate(texts):
        counts = Counter(
            unicodedata.name(c).split()[0].split("-")[0]
            for c in unicodedata.normalize("NFKC", text)
            if c.isalpha()
        )
        assert {name: n for name, n in zip(found.names, found.counts[i].tolist(), strict=True) if n} == counts
        assert found.dominant()[i] == (max(sorted(counts), key=counts.__getitem__) if counts else None)
    assert letters([]).dominant() == []


def test_ties_between_scripts_do_not_depend_on_what_was_read_before():
    assert letters(["яz"]).dominant() == letters(["zя"]).dominant() == ["CYRILLIC"]


@pytest.mark.parametrize("claim", ROMANISED)
def test_romanised_text_is_named(claim):
    found = judged(ROMANISED[claim], claim)
    [(_, why, detail)] = found.against()
    assert why == "romanised"
    assert detail.startswith(f"expected {claim} in ") and detail.endswith("most are Latin")
    kept = judged(ROMANISED[claim], claim, romanised="keep")
    assert (kept.against(), kept.flags()) == ([], ["romanised"])
    # With one wanted language the restricted posterior is 1; the script tells all the same.
    assert reason(ROMANISED[claim], claim, languages=[claim]) == "romanised"


def test_another_language_in_a_foreign_script_is_named_and_not_called_romanised():
    for wanted, why in ((["hi", "en", "de"], "wrong language"), (["hi"], "outside the wanted languages")):
        for other in ("en", "de"):
            [(_, found, detail)] = judged(SENTENCES[other], "hi", languages=wanted).against()
            assert (found, f"expected hi, looks like {other}" in detail) == (why, True)
    assert reason(SENTENCES["ru"], "en", languages=["en", "sw"]) == "outside the wanted languages"


def test_foreign_names_do_not_make_a_foreign_text():
    assert reason("Louisa Alcott和Nathaniel Hawthorne住在同一条街上。", "zh") is None


@pytest.mark.parametrize(
    ("claim", "text", "detail"),
    [
        ("zh-Hans", TRADITIONAL, "Traditional Chinese, expected Simplified"),
        ("zh-Hant", SIMPLIFIED, "Simplified Chinese, expected Traditional"),
        (
            "sr-Latn",
            SERBIAN_CYRILLIC,
            "expected sr-Latn in Latin, 100% of the letters are not, most are Cyrillic",
        ),
        (
            "sr-Cyrl",
            SERBIAN_LATIN,
            "expected sr-Cyrl in Cyrillic, 100% of the letters are not, most are Latin",
        ),
        (
            "hi-Latn",
            SENTENCES["hi"],
            "expected hi-Latn in Latin, 100% of the letters are not, most are Devanagari",
        ),
    ],
)
def test_the_wrong_script_is_named(claim, text, detail):
    wanted = [claim, "en"]
    assert judged(text, claim, languages=wanted).against() == [("text", "wrong script", detail)]
    kept = judged(text, claim, languages=wanted, wrong_script="keep")
    assert (kept.against(), kept.flags()) == ([], ["wrong script"])


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        ("zh-Hans", SIMPLIFIED),
        ("zh-Hant", TRADITIONAL),
        ("zh", TRADITIONAL),
        ("zh", SIMPLIFIED),
        ("zh-Hans", "你好。"),
        ("zh-Hans", "他姓後。"),
        ("sr-Latn", SERBIAN_LATIN),
        ("sr", SERBIAN_LATIN),
        ("sr", SERBIAN_CYRILLIC),
        ("hi-Latn", ROMANISED["hi"]),
    ],
)
def test_the_right_script_is_kept(claim, text):
    found = judged(text, claim, languages=[claim, "en"])
    assert (found.objections, found.languages) == ([], ([claim],))


def test_wanted_variants_of_one_language_are_assigned_by_script():
    texts = [TRADITIONAL, SIMPLIFIED, SERBIAN_LATIN, SERBIAN_CYRILLIC]
    tags = ["zh-Hant", "zh-Hans", "sr-Latn", "sr-Cyrl"]
    found = Judged([texts], languages=["zh-Hans", "zh-Hant", "sr-Cyrl", "sr-Latn"])
    assert (found.objections, found.languages) == ([], (tags,))
    # A claim that leaves the script open means the variant that the text is in.
    claimed = Judged([texts], [["zh", "zh", "sr", "sr"]], ["zh-Hans", "zh-Hant", "sr-Cyrl", "sr-Latn"])
    assert (claimed.objections, claimed.languages) == ([], (tags,))


def test_a_romanised_language_is_not_another_wanted_language_nor_english():
    wanted = ["hi", "hi-Latn", "sw"]
    texts = [ROMANISED["hi"], SENTENCES["sw"], SENTENCES["en"], SENTENCES["hi"]]
    found = Judged([texts], [["hi-Latn"] * 4], wanted)
    assert [found.against(row)[0][1] if found.against(row) else None for row in range(4)] == [
        None,
        "wrong language",
        "outside the wanted languages",
        "wrong script",
    ]
    assert Judged([[SENTENCES["hi"], SENTENCES["sw"]]], languages=wanted).languages == (["hi", "sw"],)


def test_claims_follow_the_scripts_that_are_wanted():
    assert reason(TRADITIONAL, "zh-TW", languages=["zh"]) is None
    assert reason(TRADITIONAL, "zh", languages=["zh-Hans"]) == "wrong script"
    assert reason(ROMANISED["hi"], "hi-Latn", languages=["hi"]) == "outside the wanted languages"
    assert reason(SENTENCES["hi"], "hi", languages=["hi-Latn"]) == "outside the wanted languages"
    assert reason(TRADITIONAL, "zh-Hant", languages=["zh-Hans"]) == "outside the wanted languages"


def test_a_tag_of_a_language_in_its_only_script_is_the_language():
    assert read_tag("hi-Deva") == Tag("hi") == read_tag("hin")


def test_short_text_in_another_script_is_no_romanised_text():
    # Too few letters for the script check.
    assert reason("ไม่ใช่", "hi-Latn", languages=["hi-Latn", "sw"]) == "outside the wanted languages"


def test_unclaimed_text_is_assigned_to_a_romanised_language_if_no_known_language_is_probable():
    texts = ["Maine kal raat ko khana nahi khaya tha.", SENTENCES["sw"], SENTENCES["de"], SENTENCES["th"]]
    found = Judged([texts], languages=["hi", "hi-Latn", "sw"])
    assert found.languages == (["hi-Latn", "sw", None, None],)
    # Two of them cannot be told apart.
    assert Judged([texts], languages=["hi-Latn", "ur-Latn", "sw"]).languages == ([None, "sw", None, None],)
