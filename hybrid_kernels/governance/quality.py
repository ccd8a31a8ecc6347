"""Quality rules on the characters of a text, in the manner of Gopher (arXiv 2112.11446) and C4 (1910.10683).

No rule counts words: Chinese and Thai do not separate them.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping

from hybrid_kernels.governance.policy import Decision, QualityPolicy
from hybrid_kernels.governance.text import excerpt, normalise, script, shingle_list

_LINK = re.compile(r"(?:https?://|www\.)\S+|\b[\w.+-]+@[\w-]+\.[\w.-]+", re.IGNORECASE)
_MARKUP = re.compile(
    r"</?(?:a|b|body|br|button|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|li|link|meta|"
    r"ol|option|p|pre|script|section|span|strong|style|table|tbody|td|th|title|tr|u|ul)(?:\s[^<>]*)?/?>"
    r"|<!--|&(?:nbsp|lt|gt|quot|#\d+|#x[0-9a-f]+);|\bfunction\s*\(|\bvar\s+\w+\s*=|[{};]\s*}",
    re.IGNORECASE,
)
# C4's list without phrases of ordinary sentences, and the two commonest of it in other languages.
_BOILERPLATE = re.compile(
    r"lorem ipsum|enable javascript|javascript is disabled|404 not found|page not found|click here to"
    r"|subscribe to our newsletter|(?:use|uses|using) cookies|cookies? policy|politique de cookies"
    r"|pol[íi]tica de cookies|cookie-richtlinie|политик\w* (?:использования )?(?:файлов )?cookie"
    r"|политика за бисквитки"
    r"|πολιτική cookies|çerez politikası|chính sách cookie|sera ya vidakuzi|कुकी नीति|นโยบายคุกกี้"
    r"|سياسة (?:ملفات )?(?:تعريف الارتباط|الكوكيز)|کوکی پالیسی|cookie\s?政策"
    r"|all rights reserved|tous droits réservés|todos los derechos reservados|alle rechte vorbehalten"
    r"|все права защищены|всички права запазени|με επιφύλαξη παντός δικαιώματος|tüm hakları saklıdır"
    r"|haki zote zimehifadhiwa|bảo lưu mọi quyền|सर्वाधिकार सुरक्षित|สงวนลิขสิทธิ์|جميع الحقوق محفوظة"
    r"|جملہ حقوق محفوظ|版权所有|保留所有权利",
    re.IGNORECASE,
)

# Keyboard rows of the scripts here. A text that walks along one for `_WALK` keys is typing, not language.
_WALK = 6
_KEYBOARD_ROWS = (
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "qwertzuiop",
    "yxcvbnm",
    "azertyuiop",
    "qsdfghjklm",
    "wxcvbn",
    "йцукенгшщзхъ",
    "фывапролджэ",
    "ячсмитьбю",
    "ςερτυθιοπ",
    "ασδφγηξκλ",
    "ζχψωβνμ",
    "ضصثقفغعهخحجد",
    "شسيبلاتنمكط",
    "ौैाीूबहगदजड",
    "ोे्िुपरकतचट",
    "ๆไำพะัีรนยบล",
    "ฟหกดเ้่าสวง",
    "ผปแอิืทมใฝ",
)
_WALKS = frozenset(
    line[i : i + _WALK]
    for row in _KEYBOARD_ROWS
    for line in (row, row[::-1])
    for i in range(len(line) - _WALK + 1)
)

# Base letters after canonical decomposition; y and й stand for vowels often enough to count.
_VOWELS = frozenset("aeiouyıæœøəʉ" + "аеёиоуыэюяъіїєй" + "αεηιουω")
_ALPHABETS = frozenset({"LATIN", "CYRILLIC", "GREEK"})


def quality_decision(texts: Mapping[str, str], policy: QualityPolicy) -> Decision | None:
    """The first rule that a row breaks, or None.

    Args:
        texts: column name → text.
    """
    for column, text in texts.items():
        for reason, detail, score in _defects(text, policy):
            return Decision("quality", reason, f"{column}: {detail}", score)
    if policy.reject_identical and len(texts) > 1 and len({normalise(text) for text in texts.values()}) == 1:
        return Decision("quality", "identical columns", f"{' = '.join(texts)}: {excerpt(text)}", 1.0)
    return None


def _defects(text: str, policy: QualityPolicy) -> Iterator[tuple[str, str, float]]:
    """(reason, detail, score) of each rule that `text` breaks, cheapest and most telling first."""
    if not text.strip():
        yield "empty", "no characters but white space", 0.0
        return
    if len(text) > policy.max_characters:
        yield "too long", f"{len(text)} characters, at most {policy.max_characters}", float(len(text))
        return
    if policy.reject_mojibake and (evidence := _mojibake(text)):
        yield "mojibake", evidence, 1.0
    if policy.reject_markup and (match := _MARKUP.search(text)):
        yield "markup", f"contains {excerpt(match.group(), 40)!r}", 1.0
    if policy.reject_boilerplate and (match := _BOILERPLATE.search(text)):
        yield "boilerplate", f"contains {match.group()!r}", 1.0
    links = sum(len(match.group()) for match in _LINK.finditer(text)) / len(text)
    if links > policy.max_links:
        yield "links", f"{links:.0%} of the characters are links, at most {policy.max_links:.0%}", links

    classes = Counter(unicodedata.category(c)[0] for c in text)
    visible = sum(classes.values()) - classes["Z"] - classes["C"]
    symbols = (classes["P"] + classes["S"]) / max(visible, 1)
    if symbols > policy.max_symbols:
        yield (
            "symbols",
            f"{symbols:.0%} are punctuation or symbols, at most {policy.max_symbols:.0%}",
            symbols,
        )
    digits = classes["N"] / max(visible, 1)
    if digits > policy.max_digits:
        yield "digits", f"{digits:.0%} are digits, at most {policy.max_digits:.0%}", digits
    if classes["L"] < policy.min_letters:
        yield "too short", f"{classes['L']} letters, at least {policy.min_letters}", float(classes["L"])

    if match := re.search(rf"(\S)\1{{{policy.max_character_run},}}", text):
        run = len(match.group())
        yield (
            "repetition",
            f"{match.group(1)!r} {run} times in a row, at most {policy.max_character_run}",
            float(run),
        )
    grams = shingle_list(text, 3)
    repeated = 1 - len(set(grams)) / len(grams)
    if len(grams) >= policy.min_shingles and repeated > policy.max_repetition:
        yield (
            "repetition",
            f"{repeated:.0%} of the shingles repeat, at most {policy.max_repetition:.0%}",
            repeated,
        )

    if walk := _keyboard_walk(text):
        yield "keyboard mash", f"walks the keyboard: {walk!r}", 1.0
    vowels, letters = _vowel_share(text)
    if letters >= policy.min_vowel_letters and vowels < policy.min_vowels:
        yield (
            "keyboard mash",
            f"{vowels:.0%} of the letters are vowels, at least {policy.min_vowels:.0%}",
            vowels,
        )


def _mojibake(text: str) -> str | None:
    """Evidence that `text` went through a wrong encoding, or None."""
    from ftfy.badness import badness

    if "\N{REPLACEMENT CHARACTER}" in text:
        return "contains U+FFFD, the mark of undecodable bytes"
    if found := badness(text):
        return f"{found} sequences typical of a wrong encoding"
    return None


def _keyboard_walk(text: str) -> str | None:
    lower = text.casefold()
    for i in range(len(lower) - _WALK + 1):
        if lower[i : i + _WALK] in _WALKS:
            return lower[i : i + _WALK]
    return None


def _vowel_share(text: str) -> tuple[float, int]:
    """Share of vowels among the Latin, Cyrillic and Greek letters of `text`, and the number of these letters.

    Capitals do not count (abbreviations). (1, 0) where most letters are of other scripts: what is left is names.
    """
    letters = vowels = others = 0
    for character, n in Counter(unicodedata.normalize("NFD", text)).items():
        if not character.isalpha():
            continue
        if script(character) not in _ALPHABETS:
            others += n
        elif character.islower():
            letters += n
            vowels += n * (character in _VOWELS)
    return (vowels / letters, letters) if letters > others else (1.0, 0)
