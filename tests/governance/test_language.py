"""Language identification: verification, assignment, scripts, and the benefit of the doubt for short text."""

import pytest

from hybrid_kernels.governance import LanguagePolicy, assign_language, language_decision, supported_languages
from hybrid_kernels.governance.language import posterior

LANGUAGES = ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]
POLICY = LanguagePolicy()

# Two sentences of one meaning in each language, written for this test.
SENTENCES = {
    "ar": "وصل القطار إلى المحطة متأخرا ساعة كاملة بسبب الأمطار الغزيرة.",
    "bg": "Влакът пристигна на гарата с един час закъснение заради силния дъжд.",
    "de": "Der Zug kam wegen des starken Regens eine Stunde zu spät am Bahnhof an.",
    "el": "Το τρένο έφτασε στον σταθμό με μία ώρα καθυστέρηση λόγω της δυνατής βροχής.",
    "en": "The train reached the station an hour late because of the heavy rain.",
    "es": "El tren llegó a la estación con una hora de retraso por la fuerte lluvia.",
    "fr": "Le train est arrivé à la gare avec une heure de retard à cause de la forte pluie.",
    "hi": "भारी बारिश के कारण ट्रेन एक घंटे की देरी से स्टेशन पहुँची।",
    "ru": "Поезд прибыл на станцию с опозданием на час из-за сильного дождя.",
    "sw": "Treni ilifika kituoni ikiwa imechelewa saa moja kwa sababu ya mvua kubwa.",
    "th": "รถไฟมาถึงสถานีช้าไปหนึ่งชั่วโมงเพราะฝนตกหนัก",
    "tr": "Tren şiddetli yağmur yüzünden istasyona bir saat geç ulaştı.",
    "ur": "شدید بارش کی وجہ سے ٹرین ایک گھنٹہ دیر سے اسٹیشن پہنچی۔",
    "vi": "Tàu đến ga muộn một giờ vì trời mưa rất to.",
    "zh": "由于下大雨，火车晚了一个小时才到站。",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_is_verified_and_assigned(language):
    texts = {"text": SENTENCES[language]}
    assert language_decision(texts, language, LANGUAGES, POLICY) is None
    assert assign_language(texts, LANGUAGES, POLICY) == (language, None)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("expected", LANGUAGES)
def test_every_swap_is_rejected(language, expected):
    if language == expected:
        return
    decision = language_decision({"text": SENTENCES[language]}, expected, LANGUAGES, POLICY)
    assert decision is not None
    assert decision.reason == "wrong language"
    assert f"expected {expected}, looks like {language} (p = " in decision.detail
    assert decision.score < POLICY.min_expected


@pytest.mark.parametrize("missing", LANGUAGES)
def test_a_language_outside_the_set_is_rejected(missing):
    wanted = [language for language in LANGUAGES if language != missing]
    texts = {"text": SENTENCES[missing]}
    language, decision = assign_language(texts, wanted, POLICY)
    assert language is None
    assert decision is not None
    assert decision.reason == "outside the wanted languages"
    for claimed in ("en", "ru", "sw"):
        if claimed in wanted:
            assert language_decision(texts, claimed, wanted, POLICY) is not None


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("ur", "Barish ki wajah se gari ek ghanta der se station pohanchi."),
        ("hi", "Baarish ke kaaran rail gaadi ek ghante der se station pahunchi."),
        ("ar", "Wasala al-qitar ila al-mahatta muta'akhiran sa'a kamila bisabab al-matar."),
    ],
)
def test_romanised_text_is_named(expected, text):
    decision = language_decision({"text": text}, expected, LANGUAGES, POLICY)
    assert decision is not None
    assert decision.reason == "romanised"
    assert f"expected {expected} in " in decision.detail


def test_english_in_another_script_is_called_english_and_not_romanised():
    decision = language_decision({"text": SENTENCES["en"]}, "hi", LANGUAGES, POLICY)
    assert decision is not None
    assert (decision.reason, "looks like en" in decision.detail) == ("wrong language", True)


def test_short_text_gets_the_benefit_of_the_doubt():
    for language, text in (("es", "No."), ("de", "Ja."), ("tr", "Evet."), ("bg", "Да."), ("zh", "NASA。")):
        assert language_decision({"text": text}, language, LANGUAGES, POLICY) is None
    assert language_decision({"text": "12:30 – 14:00"}, "fr", LANGUAGES, POLICY) is None
    assert assign_language({"text": "12:30"}, LANGUAGES, POLICY)[1].reason == "undetermined"


def test_foreign_names_do_not_make_a_foreign_text():
    text = "Louisa Alcott和Nathaniel Hawthorne住在同一条街上。"
    assert language_decision({"text": text}, "zh", LANGUAGES, POLICY) is None


def test_spaced_apostrophes_do_not_make_walloon():
    for text in ("C' est pratique .", "Oui , c ' est ça .", "Il s' est rendu compte qu' il l' avait dit ."):
        assert language_decision({"text": text}, "fr", LANGUAGES, POLICY) is None


def test_either_side_of_a_pair_can_reject_it():
    for premise, hypothesis, column in (("en", "sw", "premise"), ("sw", "en", "hypothesis")):
        texts = {"premise": SENTENCES[premise], "hypothesis": SENTENCES[hypothesis]}
        decision = language_decision(texts, "sw", LANGUAGES, POLICY)
        assert decision is not None
        assert decision.detail.startswith(f"{column}: expected sw, looks like en")


def test_posterior_restricts_by_renormalising():
    found = posterior(SENTENCES["es"], ["es", "de"])
    assert found.top == found.best == "es"
    assert found.restricted("es") + found.restricted("de") == pytest.approx(1)
    assert found.wanted["es"] <= found.restricted("es")
    assert 0 < found.mass <= 1


def test_supported_languages_hold_the_fifteen_and_no_class_for_noise():
    assert set(LANGUAGES) <= set(supported_languages())
    assert "zxx" not in supported_languages()
