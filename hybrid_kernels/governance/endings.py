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

_BRACKETS = ("()", "[]", "{}", "（）", "【】", "「」", "『』", "《》")
_SMILEY = re.compile(r"[:;=8xX]['-]?\(")
_GOES_ON = re.compile(r"[^\W\d_\u2e80-\uffff][,،]\Z|[^\W\d_\u0600-\u06ff][-‐]\Z|[&/]\Z")
#: Letters that another must follow: viramas, Thai vowels that stand before their consonant or need one behind, σ for
#: which Greek has ς at the end of a word, Hebrew letters that have such forms too, tatweel; single consonants in
#: Devanagari, and the article in Arabic.
_STUB = re.compile(
    "(?:[\u094d\u09cd\u0a4d\u0acd\u0b4d\u0e40-\u0e44\u0e31\u0e37\u0640\u200d]|[\u0370-\u03ff]σ|[\u05d0-\u05ea][כמנצ]"
    r"|(?:^|\s)(?:[\u0915-\u0927\u092a-\u0934\u0936-\u0939]|ال))\Z"
)
_CONSONANTS = re.compile(r"(?<=[^\W\d_] )(?:[b-df-hj-np-tv-xzßçñ]{1,3}|[бвгджзйклмнпрстфхцчшщ]{1,3})\Z")
# fmt: off
_ABBREVIATIONS = frozenset((
    "km", "kg", "cm", "mm", "ml", "mg", "gb", "mb", "kb", "hz", "db", "kw", "lb", "lbs", "ft", "pm", "tv",
    "pc", "cd", "dvd", "sms", "nr", "bzw", "vs", "mph", "kmh", "st", "nd", "rd", "th", "hmm", "mm", "mmm",
    "shh", "pst", "brr", "psst", "www", "x", "n", "к", "с", "в", "б", "ж", "гр", "см", "км", "кг", "мм",
    "мл", "др", "см", "пр", "тв",
))
# fmt: on
_OPENING = "\"'“‘«„("

#: Language → small words that need another behind.
_LEADING = {
    "ar": "في من على إلى عن أو التي الذي الذين مع بين كل لم لن أن إن حيث عندما بسبب ولكن لكن منذ حول دون سوف قد هل "
    "لقد خلال ضد عبر حتى بعض مثل أي",
    "bg": "на за в във с със и от по че ще да до при през към без или но а като който която което които ако когато "
    "защото между докато около пред след върху най не се",
    "de": "der die das dem den des ein eine einen einem einer eines und oder dass mit von für als im am zum zur ins "
    "wenn wie über sondern weil ob seit gegen beim ohne zwischen während ihre ihren ihrer seine seinen seiner unsere "
    "diese diesem diesen dieser bis vom bei nach sehr",
    "el": "ο η το οι τα των τον την τις στο στη στην στον στα στους στις και να θα για από με σε που ότι "
    "ένα ένας μια μία δεν μην αν ή όταν επειδή κατά μέχρι μεταξύ προς πιο πολύ σαν ως αλλά κάθε",
    "en": "the a an and or but of my your our their its if because than than whether very every into during between "
    "without until although while who which with from for at as by is are was were has have had be been to in on that "
    "this these those his her will would could should can may must not",
    "es": "el la los las un una unos unas y o de del al en con por para que se su sus mi mis tu tus pero si como muy "
    "más lo le les a entre hasta desde sin sobre cuando porque donde ha han es era fue cada e ni tan",
    "fr": "le la les un une des du de d l à au aux et ou en dans par pour sur avec sans sous que qu qui se s ne n ce "
    "cette ces son sa ses leur leurs mon ma mes notre nos votre vos chez si comme mais très est sont a ont été où "
    "entre depuis dont lorsque puis",
    "hi": "के का की में से को ने पर और कि लिए या जो एक इस उस यह वह जब तक साथ अपने अपनी लेकिन यदि अगर द्वारा बहुत कई "
    "सभी किसी कोई इन उन जिस बारे",
    "ru": "в во на с со и а но или что из от до по за для о об при у к ко не как чтобы если когда который которая "
    "которое которые через между без под над перед потому даже слишком более очень свой свою своей",
    "sw": "na ya wa za la cha vya kwa katika ni au kama kutoka kwamba lakini ambayo ambao ambaye ambazo ili kila hadi "
    "baada kabla bila kuhusu kwenye si mwa pa ikiwa kuliko ingawa dhidi",
    "tr": "ve veya ile bir bu çok daha her hiçbir gibi ama fakat ancak çünkü olan en ki ya hem bazı birkaç",
    "ur": "کے کا کی میں سے کو نے پر اور کہ لیے لئے یا جو ایک اس ان یہ وہ جب تک ساتھ اپنے اپنی لیکن اگر بہت کئی کسی "
    "کوئی جس ہر",
    "vi": "của và những các cho với ở để khi như rằng bị được đang đã sẽ rất vì nên hoặc nếu trong từ là một thì "
    "mà tại bởi do về đến vào",
}
#: Language → last letters that its own words do not have.
_NEVER_LAST = {
    "el": "βγδζθκλμπστφχψ",
    "es": "bcfghjkmpqtvwñ",
    "sw": "bcdfghjkpqrstvwxyz",
    "tr": "bcdgj",
    "vi": "bdđfjklqrsvwxz",
}
#: Characters of Chinese that need another behind, and Thai words that do.
_LEADING_ENDS = {
    "th": ("และ", "ซึ่ง", "ใน", "โดย", "เพื่อ", "เพราะ", "แต่", "ถ้า", "เมื่อ", "ระหว่าง", "สำหรับ", "เกี่ยวกับ", "กับ"),
    "zh": tuple("和与與及或在把被从從于於而但这這很最更将將其因如该該给給让讓至需还還并並且虽雖以由所向每"),
}
LANGUAGES = tuple(sorted({*_LEADING, *_LEADING_ENDS}))
_WORDS: dict[str, int] = {}
for _language, _words in _LEADING.items():
    for _word in _words.split():
        _WORDS[_word] = _WORDS.get(_word, 0) | 2 << LANGUAGES.index(_language)
_ENDS = {end: 2 << LANGUAGES.index(language) for language, ends in _LEADING_ENDS.items() for end in ends}
_LETTERS: dict[str, int] = {}
for _language, _letters in _NEVER_LAST.items():
    for _letter in _letters:
        _LETTERS[_letter] = _LETTERS.get(_letter, 0) | 2 << LANGUAGES.index(_language)


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
    never = _LETTERS.get(word[-1], 0) if len(word) > 2 and word.isalpha() else 0
    return bits | _WORDS.get(word, 0) | never
