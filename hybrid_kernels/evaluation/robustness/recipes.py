"""The recipes by name: what each does, by which source, and for which languages it is offered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hybrid_kernels.evaluation.robustness import (
    arabic,
    case,
    characters,
    conversion,
    devanagari,
    diacritics,
    keyboard,
    punctuation,
)
from hybrid_kernels.evaluation.robustness.edits import Proposal, scripts_of
from hybrid_kernels.governance.scripts import Tag

Unit = Literal["character", "word", "mark", "text"]


@dataclass(frozen=True)
class Recipe:
    """One kind of orthographic variation.

    Attributes:
        statement: what it does, in one line.
        source: where the variation or the mapping is described or attested.
        unit: what `rate` counts: grapheme clusters, words, punctuation marks, or whole texts.
        default_rate: the probability with which each unit that the recipe can change is changed.
        applies: whether it is offered for a language.
        propose: all edits that it may make of a text.
    """

    statement: str
    source: str
    unit: Unit
    default_rate: float
    applies: Callable[[Tag], bool]
    propose: Proposal


def _languages(*languages: str) -> Callable[[Tag], bool]:
    return lambda tag: tag.language in languages and not tag.is_romanised


def _scripts(*scripts: str) -> Callable[[Tag], bool]:
    return lambda tag: bool(scripts_of(tag) & set(scripts))


def _has_diacritics(tag: Tag) -> bool:
    return scripts_of(tag) == {"Latn"} and tag.language not in diacritics.PLAIN and not tag.is_romanised


def _is_simplified(tag: Tag) -> bool:
    return tag.language == "zh" and tag.script in (None, "Hans")


_UCD = "Unicode Character Database"
_CAMEL = "Habash 2010, Introduction to Arabic Natural Language Processing; Obeid et al. 2020 (CAMeL Tools)"
_HINDI = "Central Hindi Directorate, Standardization of Devanagari Script and Hindi Spelling"
_TYPING = "Belinkov & Bisk 2018, arXiv 1711.02173; layouts of xkeyboard-config"

RECIPES: dict[str, Recipe] = {
    "diacritic_loss": Recipe(
        "Latin letters lose their marks and strokes: é → e, ế → e, đ → d, ı → i; ß and æ stay",
        "Náplava et al. 2018, LREC, L18-1247 (what diacritics restoration undoes)",
        "character",
        1.0,
        _has_diacritics,
        diacritics.diacritic_loss,
    ),
    "umlaut_digraphs": Recipe(
        "German umlauts and ß spelled out: ä → ae, ß → ss",
        "DIN 5007-2; ICAO Doc 9303-3, section 6",
        "word",
        1.0,
        _languages("de"),
        diacritics.umlaut_digraphs,
    ),
    "tone_loss": Recipe(
        "tone marks lost, vowels kept: Vietnamese ế → ê, Thai ก่ → ก",
        "The Unicode Standard, sections 7.1 (Vietnamese) and 16.1 (Thai)",
        "character",
        1.0,
        _languages("vi", "th"),
        diacritics.tone_loss,
    ),
    "vowel_quality_loss": Recipe(
        "Vietnamese circumflex, breve and horn lost, tones kept: ế → é, ươ → uo",
        "The Unicode Standard, section 7.1 (Vietnamese)",
        "character",
        1.0,
        _languages("vi"),
        diacritics.vowel_quality_loss,
    ),
    "tonos_loss": Recipe(
        "Greek tonos lost, dialytika kept: ά → α, ΐ → ϊ",
        "The Unicode Standard, section 7.2 (Greek)",
        "character",
        1.0,
        _languages("el"),
        diacritics.tonos_loss,
    ),
    "yo_loss": Recipe(
        "Russian ё written е",
        "Rules of Russian Orthography and Punctuation 2006, § 5 (ё is optional in print)",
        "character",
        1.0,
        _languages("ru"),
        diacritics.yo_loss,
    ),
    "lower_case": Recipe(
        "all letters small, by the language's rules: Turkish I → ı",
        f"{_UCD}, SpecialCasing.txt",
        "word",
        1.0,
        _scripts(*case.BICAMERAL),
        case.lower_case,
    ),
    "upper_case": Recipe(
        "all letters capital, by the language's rules: Turkish i → İ, Greek without the tonos",
        f"{_UCD}, SpecialCasing.txt; CLDR el-Upper",
        "word",
        1.0,
        _scripts(*case.BICAMERAL),
        case.upper_case,
    ),
    "title_case": Recipe(
        "the first letter of each word capital, the others as they are",
        f"{_UCD}, SpecialCasing.txt",
        "word",
        1.0,
        _scripts(*case.BICAMERAL),
        case.title_case,
    ),
    "random_case": Recipe(
        "letters in the other case, at random",
        f"{_UCD}, SpecialCasing.txt",
        "character",
        0.5,
        _scripts(*case.BICAMERAL),
        case.random_case,
    ),
    "punctuation_loss": Recipe(
        "punctuation left out, but for apostrophes and hyphens in words, separators in numbers, and % & @ # /",
        f"{_UCD}, general category P",
        "mark",
        1.0,
        lambda tag: True,
        punctuation.punctuation_loss,
    ),
    "punctuation_spacing": Recipe(
        "punctuation set apart by a space on either side, as tokenisers leave it",
        "Koehn et al. 2007, P07-2045 (tokenizer.perl of Moses)",
        "mark",
        1.0,
        lambda tag: True,
        punctuation.punctuation_spacing,
    ),
    "ascii_punctuation": Recipe(
        "punctuation in ASCII: « » “ ” → \", ’ → ', – → -, … → ..., ، → , ۔ । 。 → . and ¿ ¡ left out",
        "The Unicode Standard, section 6.2 (General Punctuation)",
        "mark",
        1.0,
        lambda tag: True,
        punctuation.ascii_punctuation,
    ),
    "typographic_punctuation": Recipe(
        "typewriter punctuation as typeset: ' → ’, \"…\" → the language's quotation marks, ... → …, 1-2 → 1–2",
        "CLDR 46, delimiters; The Unicode Standard, section 6.2",
        "mark",
        1.0,
        lambda tag: not scripts_of(tag) & {"Hani"},
        punctuation.typographic_punctuation,
    ),
    "alef_hamza_loss": Recipe(
        "Arabic أ إ آ ٱ written ا",
        _CAMEL,
        "character",
        1.0,
        _languages("ar", "fa", "ur"),
        arabic.alef_hamza_loss,
    ),
    "hamza_carrier_loss": Recipe(
        "hamza left off its carrier: Arabic ؤ → و, ئ → ي; Persian and Urdu ئ → ی, ۓ → ے, ۂ → ہ",
        _CAMEL,
        "character",
        1.0,
        _languages("ar", "fa", "ur"),
        lambda text, tag, generator: (
            arabic.hamza_carrier_loss_arabic if tag.language == "ar" else arabic.hamza_carrier_loss_persian
        )(text, tag, generator),
    ),
    "yeh_as_alef_maqsura": Recipe(
        "final Arabic ي written ى, as in Egypt",
        _CAMEL,
        "character",
        1.0,
        _languages("ar"),
        arabic.yeh_as_alef_maqsura,
    ),
    "alef_maqsura_as_yeh": Recipe(
        "final Arabic ى written ي", _CAMEL, "character", 1.0, _languages("ar"), arabic.alef_maqsura_as_yeh
    ),
    "teh_marbuta_as_heh": Recipe(
        "Arabic ة written ه", _CAMEL, "character", 1.0, _languages("ar"), arabic.teh_marbuta_as_heh
    ),
    "foreign_kaf_yeh": Recipe(
        "kaf and yeh of the other orthography: Arabic ك ي → ک ی; Persian and Urdu ک ی ہ → ك ي ه",
        "The Unicode Standard, section 9.2 (Arabic)",
        "character",
        1.0,
        _languages("ar", "fa", "ur"),
        lambda text, tag, generator: (
            arabic.persian_kaf_yeh if tag.language == "ar" else arabic.arabic_kaf_yeh
        )(text, tag, generator),
    ),
    "do_chashmi_heh": Recipe(
        "Urdu ہ written ھ",
        "attested in XNLI's Urdu hypotheses",
        "character",
        1.0,
        _languages("ur"),
        arabic.do_chashmi_heh,
    ),
    "nun_ghunna_as_nun": Recipe(
        "Urdu ں written ن",
        "attested in XNLI's Urdu hypotheses",
        "character",
        1.0,
        _languages("ur"),
        arabic.nun_ghunna_as_nun,
    ),
    "tashkil_loss": Recipe(
        "Arabic vowel signs, tanwin, shadda and sukun left out",
        _CAMEL,
        "character",
        1.0,
        _languages("ar", "fa", "ur"),
        arabic.tashkil_loss,
    ),
    "tatweel": Recipe(
        "letters elongated by a tatweel (ـ) where they join the next one",
        _CAMEL,
        "character",
        0.2,
        _languages("ar", "fa", "ur"),
        arabic.tatweel,
    ),
    "nukta_loss": Recipe(
        "Devanagari nukta left out: क़ → क, ड़ → ड",
        "The Unicode Standard, section 12.1 (Devanagari)",
        "character",
        1.0,
        _languages("hi"),
        devanagari.nukta_loss,
    ),
    "chandrabindu_as_anusvara": Recipe(
        "Devanagari ँ written ं",
        _HINDI,
        "character",
        1.0,
        _languages("hi"),
        devanagari.chandrabindu_as_anusvara,
    ),
    "nasal_as_anusvara": Recipe(
        "a nasal before a stop of its class as anusvara: हिन्दी → हिंदी",
        _HINDI,
        "word",
        1.0,
        _languages("hi", "mr", "ne"),
        devanagari.nasal_as_anusvara,
    ),
    "digits_swapped": Recipe(
        "each digit in the language's other set: 0–9 in its script's own digits, and these in 0–9",
        f"{_UCD}, general category Nd",
        "character",
        1.0,
        lambda tag: characters.zero(tag) is not None,
        characters.digits_swapped,
    ),
    "traditional_chinese": Recipe(
        "Simplified Chinese in Traditional characters",
        "OpenCC, configuration s2t",
        "text",
        1.0,
        _is_simplified,
        conversion.traditional_chinese,
    ),
    "simplified_chinese": Recipe(
        "Traditional Chinese in Simplified characters",
        "OpenCC, configuration t2s",
        "text",
        1.0,
        lambda tag: tag.script == "Hant",
        conversion.simplified_chinese,
    ),
    "full_width": Recipe(
        "Latin letters and digits at full width: 49 → ４９",
        f"{_UCD}, block Halfwidth and Fullwidth Forms",
        "character",
        1.0,
        _scripts("Hani"),
        characters.full_width,
    ),
    "half_width": Recipe(
        "full-width punctuation, letters and digits at half width: ， → ,",
        f"{_UCD}, block Halfwidth and Fullwidth Forms",
        "character",
        1.0,
        _scripts("Hani"),
        characters.half_width,
    ),
    "romanisation": Recipe(
        "the text in Latin letters; Chinese with a space between syllables, without tones",
        "Hermjakob et al. 2018, P18-4003 (uroman); Chinese: pinyin (ISO 7098) by pypinyin",
        "text",
        1.0,
        # What Japanese reads its kanji as, neither library knows.
        lambda tag: "Latn" not in scripts_of(tag) and tag.language != "ja",
        conversion.romanisation,
    ),
    "homoglyphs": Recipe(
        "letters replaced by look-alikes of another script: Latin by Cyrillic, Cyrillic and Greek by Latin",
        "UTS #39, confusables.txt; Eger et al. 2019, N19-1165",
        "character",
        0.1,
        lambda tag: bool(scripts_of(tag) & {"Latn", "Cyrl", "Grek"}) and not tag.is_romanised,
        characters.homoglyphs,
    ),
    "homophones": Recipe(
        "characters of Simplified Chinese replaced by common ones of the same sound, tone aside",
        "Liu et al. 2010, COLING (most wrong characters sound right); GB 2312, level 1; sounds by pypinyin",
        "character",
        0.05,
        _is_simplified,
        conversion.homophones,
    ),
    "keyboard_substitution": Recipe(
        "letters replaced by one on a neighbouring key of the language's layout",
        _TYPING,
        "character",
        0.05,
        keyboard.has_layout,
        keyboard.keyboard_substitution,
    ),
    "keyboard_transposition": Recipe(
        "letters exchanged with the next one of the word",
        _TYPING,
        "character",
        0.05,
        keyboard.has_layout,
        keyboard.keyboard_transposition,
    ),
    "keyboard_omission": Recipe(
        "letters left out, but for the first of a word",
        _TYPING,
        "character",
        0.05,
        keyboard.has_layout,
        keyboard.keyboard_omission,
    ),
    "keyboard_doubling": Recipe(
        "letters typed twice", _TYPING, "character", 0.05, keyboard.has_layout, keyboard.keyboard_doubling
    ),
    "keyboard_noise": Recipe(
        "at each letter a neighbouring key, a transposition, an omission or a doubling, drawn evenly",
        _TYPING,
        "character",
        0.05,
        keyboard.has_layout,
        keyboard.keyboard_noise,
    ),
}
