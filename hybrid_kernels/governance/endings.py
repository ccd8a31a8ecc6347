"""How texts end: with a sentence mark or not, and if not, whether in a way that no whole text does.

A text that is cut off between words, or after a piece of a word that is a word too, looks like a headline; only what is
listed here gives it away, so most of what is cut in the middle is *not* found. In return next to nothing else is.
"""

from __future__ import annotations

import re

_MARKS = frozenset(".!?…。！？．｡।॥؟۔։።፧‼⁇⁈⁉;")
_BEHIND = " \t\n\r\u00a0\"'”’»›“‘″)]}）】」』》〉"
#: Typed for the danda and for the Urdu full stop.
_BAR, _HYPHEN = re.compile(r"[\u0900-\u097f]\s*\|\Z"), re.compile(r"[\u0600-\u06ff]\s*[-–]\Z")

_BRACKETS = tuple(zip("([{（【「『《", ")]}）】」』》", strict=True))
_BRACKETED = 60
_SMILEY = re.compile(r"[:;=8xX]['-]?\(")
_GOES_ON = re.compile(r"[^\W\d_\u2e80-\uffff][,،]\Z|[^\W\d_\u0600-\u06ff][-‐]\Z|[&/]\Z")
#: Letters that another must follow: viramas, Thai vowels that stand before their consonant or need one behind, σ for
#: which Greek has ς at the end of a word, Hebrew letters that have such forms too, tatweel; single consonants in
#: Devanagari, and the article in Arabic.
_STUB = re.compile(
    "(?:[\u094d\u09cd\u0a4d\u0acd\u0b4d\u0e40-\u0e44\u0e31\u0e37\u0640\u200d]|[\u0370-\u03ff]σ|[\u05d0-\u05ea][כמנצ]"
    r"|(?:^|\s)(?:[\u0915-\u0927\u092a-\u0934\u0936-\u0939]|ال))\Z"
)
_CONSONANTS = re.compile(
    r"(?<=[^\W\d_] )(?:[b-df-hj-np-tv-xzßçñ]{1,3}|[бвгджзйклмнпрстфхцчшщ]{1,3}|[βγδζθκλμνξπρσςτφχψ]{1,3})\Z"
)
# fmt: off
_ABBREVIATIONS = frozenset((
    "km", "kg", "cm", "mm", "ml", "mg", "gb", "mb", "kb", "hz", "db", "kw", "lb", "lbs", "ft", "pm", "tv",
    "pc", "cd", "dvd", "sms", "nr", "bzw", "vs", "mph", "kmh", "st", "nd", "rd", "th", "hmm", "mm", "mmm",
    "shh", "pst", "brr", "psst", "www", "x", "n", "к", "с", "в", "б", "ж", "гр", "см", "км", "кг", "мм",
    "мл", "др", "см", "пр", "тв", "χλμ", "δρ", "κ",
))
# fmt: on
_OPENING = "\"'“‘«„("

#: Language → small words that need another behind, in speech too: not those that are left at the end ("interested in",
#: "kommst du mit", "πες το").
_LEADING = {
    "ar": "في من على إلى عن أو التي الذي الذين مع بين كل لم لن أن إن حيث عندما بسبب ولكن لكن منذ حول دون سوف قد هل "
    "لقد خلال ضد عبر حتى بعض مثل أي",
    "bg": "на за в във с със и от по че ще до при през към без или но а като който която което които ако когато "
    "защото между докато пред след върху най",
    "de": "der die das dem den des eine einen einem und oder dass von für als im am zum zur ins wenn wie sondern weil "
    "ob seit gegen beim ohne zwischen während ihre ihren seine seinen unsere bis vom",
    "el": "ο η οι των στο στη στην στον στα στους στις και να θα για από με σε ότι δεν μην αν ή όταν επειδή μέχρι "
    "μεταξύ προς πιο σαν ως αλλά κάθε",
    "en": "the a an and or but my your our their its if because than whether very every into during between without "
    "until although while which as",
    "es": "el la los las un y o de del al en con por para que se su sus mi mis tu tus pero si como muy lo le les a "
    "entre hasta desde sin sobre cuando porque donde cada e ni tan",
    "fr": "le la les des du de à au aux et ou en dans par sur sous que ce cette ces son sa ses mon ma mes notre votre "
    "nos vos chez mais très entre depuis dont lorsque puis",
    "hi": "के का ने और कि या जो एक इस उस जब अपने अपनी लेकिन यदि अगर कई किसी इन उन जिस बारे",
    "ru": "в во на с со и а но или из от до по для о об при у к ко не чтобы если который которая которое которые "
    "через между без под над перед потому даже свою",
    "sw": "na ya wa za cha vya kwa katika ni au kama kutoka kwamba ambayo ambao ambaye ambazo ili kila hadi "
    "baada bila kuhusu kwenye si mwa ikiwa kuliko ingawa dhidi",
    "tr": "ve veya ile her hiçbir fakat ancak çünkü olan en hem bazı birkaç",
    "ur": "کے کا نے اور کہ یا جو ایک اس ان جب اپنے اپنی لیکن اگر کئی کسی جس",
    "vi": "của và những các cho với để khi như rằng bị đã sẽ rất vì nên hoặc nếu từ thì bởi do",
}
#: The same of languages that do not separate words, as far as no word ends in them (而, but not 和: 缓和).
_LEADING_ENDS = {
    "th": ("และ", "ซึ่ง", "โดย", "เพื่อ", "เพราะ", "แต่", "ถ้า", "เมื่อ", "ระหว่าง", "สำหรับ", "เกี่ยวกับ", "กับ"),
    "zh": tuple("或把被而但很最更将將这這且并並虽雖"),
}
LANGUAGES = tuple(sorted({*_LEADING, *_LEADING_ENDS}))
_WORDS: dict[str, int] = {}
for _language, _words in _LEADING.items():
    for _word in _words.split():
        _WORDS[_word] = _WORDS.get(_word, 0) | 2 << LANGUAGES.index(_language)
_ENDS = {end: 2 << LANGUAGES.index(language) for language, ends in _LEADING_ENDS.items() for end in ends}


def language_bits(language: str | None) -> int:
    """The bits of `ending` that show a text of this language to be cut off."""
    base = (language or "").partition("-")[0]
    return 1 | (2 << LANGUAGES.index(base) if base in LANGUAGES else 0)


def ending(text: str) -> tuple[bool, int]:
    """(whether a sentence mark ends the text, in which languages its end shows it to be cut off).

    The latter is 0, or bits: 1 in any, 2 << i in `LANGUAGES[i]`.
    """
    core = text.rstrip(_BEHIND)
    if (
        core[-1:] in _MARKS
        or _BAR.search(core, max(0, len(core) - 4))
        or _HYPHEN.search(core, max(0, len(core) - 4))
    ):
        return True, 0
    return False, _any(text) or _in_languages(text)


def explain(text: str) -> str:
    """What shows that a text whose `ending` has bits is cut off."""
    tail = text.rstrip()
    if bracket := _unclosed(tail):
        return f"{bracket!r} is not closed"
    word = tail.split()[-1] if tail else ""
    return f"ends in {word[-20:]!r} without a sentence mark"


def _any(text: str) -> int:
    tail = text.rstrip()
    near = max(0, len(tail) - 8)
    cut = (
        _GOES_ON.search(tail, near)
        or _STUB.search(tail, near)
        or ((found := _CONSONANTS.search(tail, near)) and found.group() not in _ABBREVIATIONS)
        or _unclosed(tail)
    )
    return int(bool(cut))


def _unclosed(tail: str) -> str:
    """A bracket that was opened not long before the end; further back somebody forgot to close it."""
    tail = tail[-_BRACKETED:]
    for pair in _BRACKETS:
        opening, closing = pair[0], pair[1]
        place = tail.rfind(opening)
        if place > tail.rfind(closing) and not (
            opening == "(" and _SMILEY.search(tail, max(0, place - 2), place + 1)
        ):
            return opening
    return ""


def _in_languages(text: str) -> int:
    tail = text.rstrip()
    bits = 0
    for length in (1, 2, 3, 4, 5, 6, 7, 8):
        bits |= _ENDS.get(tail[-length:], 0)
    before, _, word = tail.rpartition(" ")
    word = word.lstrip(_OPENING)
    if not before or word != word.lower():
        return bits
    return bits | _WORDS.get(word, 0)
