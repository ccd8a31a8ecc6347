"""Each recipe on small texts whose outcome is known."""

import unicodedata

import pytest

from hybrid_kernels.evaluation.robustness import RECIPES, perturb, recipes_for

AT_RATE_1 = [
    ("fr", "diacritic_loss", "Où était le cœur du garçon ?", "Ou etait le cœur du garcon ?"),
    ("de", "diacritic_loss", "Größe über Öl", "Große uber Ol"),
    ("es", "diacritic_loss", "¿El niño llegó?", "¿El nino llego?"),
    ("tr", "diacritic_loss", "Işığı söndür, İzmir'e çık", "Isigi sondur, Izmir'e cik"),
    ("vi", "diacritic_loss", "Đường này rất đẹp", "Duong nay rat dep"),
    ("pl", "diacritic_loss", "Łódź, źdźbło", "Lodz, zdzblo"),
    ("de", "umlaut_digraphs", "Größe ÜBER Öl, Straße", "Groesse UEBER Oel, Strasse"),
    ("vi", "tone_loss", "Đường này rất đẹp, để ở", "Đương nay rât đep, đê ơ"),
    ("th", "tone_loss", "ก่อนย้ายบ้าน ก็ดี ซ่อมเบียร์", "กอนยายบาน ก็ดี ซอมเบียร์"),
    ("vi", "vowel_quality_loss", "Đường này rất đẹp, để ở", "Đuòng này rát đẹp, đẻ ỏ"),
    ("el", "tonos_loss", "Ο Μάιος, η προϊσταμένη, ΐ ΰ Ά", "Ο Μαιος, η προϊσταμενη, ϊ ϋ Α"),
    ("ru", "yo_loss", "Ёлка ещё твой", "Елка еще твой"),
    ("en", "lower_case", "I'm HOME, McCoy", "i'm home, mccoy"),
    ("tr", "lower_case", "ISPARTA İZMİR", "ısparta izmir"),
    ("el", "lower_case", "ΟΔΟΣ ΣΟΦΙΑΣ", "οδος σοφιας"),
    ("de", "upper_case", "Straße ärgern", "STRASSE ÄRGERN"),
    ("tr", "upper_case", "ışık iki", "IŞIK İKİ"),
    ("el", "upper_case", "Ο Μάιος ή η πρωτεύουσα", "Ο ΜΑΪΟΣ Ή Η ΠΡΩΤΕΥΟΥΣΑ"),
    ("ru", "upper_case", "Ещё раз", "ЕЩЁ РАЗ"),
    ("en", "title_case", "it's 3rd in the USA", "It's 3rd In The USA"),
    ("fr", "title_case", "l'école d’été", "L'école D’été"),
    ("tr", "title_case", "iki ışık", "İki Işık"),
    ("en", "punctuation_loss", '"Well-known," he said (12:30 - 1,500 U.S.).', "Well-known he said 12:30 1,500 US"),
    ("en", "punctuation_loss", "it's 5% — word—word...", "it's 5% word word"),
    ("fr", "punctuation_loss", "« Maman ! » dit-il : l'été", "Maman dit-il l'été"),
    ("hi", "punctuation_loss", "वह आया। “हाँ”", "वह आया हाँ"),
    ("zh", "punctuation_loss", "他说，“妈妈”。3.5", "他说妈妈3.5"),
    ("ur", "punctuation_loss", "اس نے کہا، امی۔", "اس نے کہا امی"),
    ("en", "punctuation_spacing", "Yes, (he said): 1,500!", "Yes , ( he said ) : 1,500 !"),
    ("zh", "punctuation_spacing", "他说，妈妈。", "他说 ， 妈妈 。"),
    ("ar", "punctuation_spacing", "قال، نعم؟", "قال ، نعم ؟"),
    ("en", "ascii_punctuation", "“It’s” – well… a—b", "\"It's\" - well... a-b"),
    ("es", "ascii_punctuation", "¿Qué? «No»", 'Qué? "No"'),
    ("ar", "ascii_punctuation", "قال، نعم؟ ٥٪", "قال, نعم? ٥%"),
    ("hi", "ascii_punctuation", "वह आया।", "वह आया."),
    ("zh", "ascii_punctuation", "他说：“好。”、《书》", '他说:"好.",\"书\"'),
    ("en", "typographic_punctuation", 'He said "it\'s 3-4 - so..."', "He said “it’s 3–4 – so…”"),
    ("de", "typographic_punctuation", '"Ja", sagte er ("so")', "„Ja“, sagte er („so“)"),
    ("fr", "typographic_punctuation", 'l\'été "chaud"', "l’été «chaud»"),
    ("ar", "alef_hamza_loss", "أحمد إلى آخر ٱلله سأل", "احمد الى اخر الله سال"),
    ("ar", "hamza_carrier_loss", "مؤمن رئيس ماء", "مومن رييس ماء"),
    ("ur", "hamza_carrier_loss", "مسئلہ جوائن ہوئے", "مسیلہ جواین ہویے"),
    ("ar", "yeh_as_alef_maqsura", "في بيتي الذي ينادي.", "فى بيتى الذى ينادى."),
    ("ar", "alef_maqsura_as_yeh", "إلى مستشفى", "إلي مستشفي"),
    ("ar", "teh_marbuta_as_heh", "مدرسة جديدةٌ", "مدرسه جديدهٌ"),
    ("ar", "foreign_kaf_yeh", "كتاب كبير", "کتاب کبیر"),
    ("ur", "foreign_kaf_yeh", "کہا یہ", "كها يه"),
    ("ur", "do_chashmi_heh", "ہیں بھی", "ھیں بھی"),
    ("ur", "nun_ghunna_as_nun", "میں ہوں", "مین ہون"),
    ("ar", "tashkil_loss", "مُحَمَّدٌ عاماً هٰذا", "محمد عاما هذا"),
    ("ar", "tatweel", "بيت دار لا", "بـيـت دار لا"),
    ("hi", "nukta_loss", "बड़ा क़लम फ़िल्म \u0915", "बडा कलम फिल्म \u0915"),
    ("hi", "chandrabindu_as_anusvara", "हाँ जहाँ", "हां जहां"),
    ("hi", "nasal_as_anusvara", "हिन्दी सम्बन्ध पञ्जाब अन्न", "हिंदी संबंध पंजाब अन्न"),
    ("hi", "digits_swapped", "49 और १२", "४९ और 12"),
    ("ar", "digits_swapped", "456 ٤٥٦", "٤٥٦ 456"),
    ("ur", "digits_swapped", "456", "۴۵۶"),
    ("th", "digits_swapped", "11.00 ๕", "๑๑.๐๐ 5"),
    ("zh", "traditional_chinese", "头发发展，皇后在后面", "頭髮發展，皇后在後面"),
    ("zh-Hant", "simplified_chinese", "頭髮發展，皇后在後面", "头发发展，皇后在后面"),
    ("zh", "full_width", "在 GPU 上用 49 秒。", "在 ＧＰＵ 上用 ４９ 秒。"),
    ("zh", "half_width", "ＧＰＵ（４９）！", "GPU(49)!"),
    ("ru", "romanisation", "Он вернулся домой", "On vernulsya domoy"),
    ("el", "romanisation", "Καλημέρα σας", "Kalemera sas"),
    ("hi", "romanisation", "मेरा नाम", "meraa naam"),
    ("zh", "romanisation", "三个人，28岁了。银行很行", "san ge ren,28 sui le.yin hang hen xing"),
    ("ru", "homoglyphs", "Россия жёстко", "Poccия жёcткo"),
    ("en", "homoglyphs", "peace Box", "реасе Вох"),
    ("el", "homoglyphs", "όνομα Άννα σε", "όvoμa Άvva σε"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "recipe", "text", "expected"), AT_RATE_1)
def test_at_rate_1(language, recipe, text, expected):
    assert perturb([text], language, recipe, rate=1) == [expected]


@pytest.mark.parametrize(("language", "recipe", "text", "expected"), AT_RATE_1)
def test_decomposed_text_too(language, recipe, text, expected):
    [found] = perturb([unicodedata.normalize("NFD", text)], language, recipe, rate=1)
    if recipe != "romanisation":
        found, expected = (unicodedata.normalize("NFC", x) for x in (found, expected))
    assert found == expected


def test_every_recipe_has_an_example_here_or_is_random():
    drawn = {"random_case", "homophones", *(name for name in RECIPES if name.startswith("keyboard_"))}
    assert {recipe for _, recipe, _, _ in AT_RATE_1} | drawn == set(RECIPES)


def test_random_case():
    assert perturb(["Iki ışık, ß"], "tr", "random_case", rate=1) == ["ıKİ IŞIK, ß"]


def test_homophones_sound_the_same():
    from pypinyin import lazy_pinyin

    text = "他的妈妈说银子很多"
    [found] = perturb([text], "zh", "homophones", rate=1)
    assert all(a != b for a, b in zip(found, text, strict=True))
    assert [lazy_pinyin(character) for character in found] == [lazy_pinyin(character) for character in text]


@pytest.mark.parametrize(
    ("language", "word", "allowed"),
    [
        ("en", "s", "adwezx"),
        ("en", "Q", "WA"),
        ("de", "y", "asx"),
        ("fr", "a", "zqé"),
        ("es", "l", "kñop"),
        ("tr", "ı", "uoklj"),
        ("el", "α", "ςσζ"),
        ("ru", "ф", "йцыя"),
        ("bg", "а", "яоейъ"),
        ("ar", "س", "شيصثءئ"),
        ("ur", "س", "ادوعشز"),
        ("hi", "क", "रतगस"),
        ("th", "่", "้"),
    ],
)
def test_a_neighbouring_key(language, word, allowed):
    base = "ก" if language == "th" else ""
    found = {
        perturb([base + word], language, "keyboard_substitution", seed=seed, rate=1)[0] for seed in range(60)
    }
    found = {text.removeprefix(base) if text.startswith(base) else text for text in found}
    if language == "th":
        found = {text for text in found if len(text) == 1}
        assert found == set(allowed)
    else:
        assert found <= set(allowed) and len(found) >= 2


def test_keyboard_slips():
    slips = {
        name: perturb(["ab cd"], "en", f"keyboard_{name}", rate=1)[0]
        for name in ("transposition", "omission", "doubling")
    }
    assert slips == {"transposition": "ba dc", "omission": "a c", "doubling": "aabb ccdd"}
    # A conjunct with its vowel sign is one.
    assert perturb(["क्षेत्र"], "hi", "keyboard_transposition", rate=1) == ["त्रक्षे"]
    assert perturb(["aa b"], "en", "keyboard_transposition", rate=1) == ["aa b"]
    # The second pair overlaps the first, which is exchanged already.
    assert perturb(["abc"], "en", "keyboard_transposition", rate=1) == ["bac"]


def test_keyboard_noise_is_all_four():
    one = {perturb(["ab"], "en", "keyboard_noise", seed=seed, rate=0.5)[0] for seed in range(200)}
    assert {"ba", "a", "aab", "abb"} <= one and one & {"sb", "qb", "zb", "wb"}


def test_offered():
    offered = {language: recipes_for(language) for language in ("en", "zh", "zh-Hant", "hi-Latn", "ur", "ja")}
    assert offered["en"] == (
        *("lower_case", "upper_case", "title_case", "random_case"),
        *(
            "punctuation_loss",
            "punctuation_spacing",
            "ascii_punctuation",
            "typographic_punctuation",
            "homoglyphs",
        ),
        *(f"keyboard_{slip}" for slip in ("substitution", "transposition", "omission", "doubling", "noise")),
    )
    assert "traditional_chinese" in offered["zh"] and "traditional_chinese" not in offered["zh-Hant"]
    assert "simplified_chinese" in offered["zh-Hant"] and "homophones" not in offered["zh-Hant"]
    assert "romanisation" not in offered["hi-Latn"] and "nukta_loss" not in offered["hi-Latn"]
    assert {"do_chashmi_heh", "romanisation", "digits_swapped"} <= set(offered["ur"])
    assert "teh_marbuta_as_heh" not in offered["ur"] and "full_width" in offered["ja"]
    assert recipes_for("zho_Hans") == offered["zh"] and recipes_for("eng_Latn") == offered["en"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], "xx", "lower_case"), "language is 'xx'"),
        ((["a"], "en", "lowercase"), "recipe is 'lowercase'; it must be one of diacritic_loss"),
        (
            (["a"], "th", "upper_case"),
            "'upper_case' is not offered for language 'th'; these are: tone_loss, ",
        ),
        (("abc", "en", "lower_case"), "texts is one string"),
        ((["abc", None], "en", "lower_case"), r"texts\[1\] is None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        perturb(*arguments)


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match=r"rate is .*; it must be in \(0, 1\]"):
        perturb(["a"], "en", "lower_case", rate=rate)
