"""What characters texts are made of, counted for many texts at once: code points are looked up in a table."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.text import script

#: Kinds of characters, as bits. ALPHABET: small letters of Latin, Cyrillic and Greek, whose vowels are written; OTHER:
#: letters of all other scripts. CONTROL: controls, private use, U+FFFD: no text has them. WESTERN: letters of U+00C0 to
#: U+00FF, which no language writes most of its words with.
LETTER, SYMBOL, NUMBER, BLANK, CONTROL, ALPHABET, VOWEL, OTHER, IDEOGRAPH, KANA, WESTERN = (
    1 << i for i in range(11)
)

# Base letters after canonical decomposition; y and й stand for vowels often enough to count.
_VOWELS = frozenset("aeiouyıæœøəʉ" + "аеёиоуыэюяъіїєй" + "αεηιουω")
_ALPHABETS = frozenset({"LATIN", "CYRILLIC", "GREEK"})
_SPACES = frozenset("\t\n\v\f\r")

#: Code points that are looked at one by one; those of a uniform range follow its first, all others are unassigned.
_SINGLE = (
    range(0x3400),
    range(0xA000, 0xAC00),
    range(0xD7A4, 0xD800),
    range(0xF900, 0x17000),
    range(0x18AFF, 0x20000),
)
_UNIFORM = (
    range(0x3400, 0x4DC0),  # ideographs
    range(0x4DC0, 0x4E00),  # hexagrams
    range(0x4E00, 0xA000),
    range(0xAC00, 0xD7A4),  # Hangul
    range(0xD800, 0xE000),  # surrogates
    range(0xE000, 0xF900),  # private use
    range(0x17000, 0x18AFF),  # Tangut
    range(0x20000, 0x32400),  # ideographs
    range(0xE0000, 0xE0100),  # tags
    range(0xE0100, 0xE01F0),  # variation selectors
    range(0xF0000, 0x110000),  # private use
)

_KEYBOARDS = (
    "qwertyuiop asdfghjkl zxcvbnm",
    "qwertzuiop yxcvbnm",
    "azertyuiop qsdfghjklm wxcvbn",
    "йцукенгшщзхъ фывапролджэ ячсмитьбю",
    "ςερτυθιοπ ασδφγηξκλ ζχψωβνμ",
    "ضصثقفغعهخحجد شسيبلاتنمكط",
    "ौैाीूबहगदजड ोे्िुपरकतचट",
    "ๆไำพะัีรนยบล ฟหกดเ้่าสวง ผปแอิืทมใฝ",
)
_KEYS = 0x1000
#: A text that walks along a row of keys for so many is typing, not language.
WALK = 6
#: Keys that are also words: the names of layouts.
_LAYOUT = re.compile(r"(?<!\w)(?:qwerty|qwertz|azerty|йцукен)(?!\w)", re.IGNORECASE)


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint16]:
    """Code point → bits of its kinds."""
    table = np.full(0x110000, BLANK, np.uint16)
    for code in itertools.chain(*_SINGLE):
        table[code] = _kind(chr(code))
    for uniform in _UNIFORM:
        table[uniform.start : uniform.stop] = _kind(chr(uniform.start))
    return table


def _kind(character: str) -> int:
    category = unicodedata.category(character)
    if category in ("Cc", "Co", "Cs"):
        return BLANK if character in _SPACES else BLANK | CONTROL
    if character == "\N{REPLACEMENT CHARACTER}":
        return SYMBOL | CONTROL
    kind = {"L": LETTER, "P": SYMBOL, "S": SYMBOL, "N": NUMBER, "M": 0, "Z": BLANK, "C": BLANK}[category[0]]
    if kind != LETTER:
        return kind
    written = script(character)
    if written in _ALPHABETS:
        base = unicodedata.normalize("NFD", character)[0]
        kind |= ALPHABET * base.islower() | VOWEL * (base in _VOWELS)
    else:
        kind |= (
            OTHER | IDEOGRAPH * (written == "CJK") | KANA * (written in ("HIRAGANA", "KATAKANA", "HANGUL"))
        )
    return kind | WESTERN * ("À" <= character <= "ÿ")


@lru_cache(maxsize=1)
def _keys() -> NDArray[np.int16]:
    """(layouts, code points): where a key is; the key beside it differs by 1."""
    table = np.full((len(_KEYBOARDS), _KEYS), -10, np.int16)
    for places, layout in zip(table, _KEYBOARDS, strict=True):
        for row, keys in enumerate(layout.split()):
            for column, key in enumerate(keys):
                places[[ord(key), ord(key.upper()) if len(key.upper()) == 1 else ord(key)]] = (
                    64 * row + column
                )
    # Scripts do not share keys: one table for all of them, and one more for each further Latin layout.
    return np.stack([table[[0, *range(3, len(table))]].max(axis=0), table[1], table[2]])


class CodePoints:
    """The code points of texts, one after the other, each text followed by a line feed.

    Args:
        texts: what is counted; not much longer together than some million characters.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "\n".join((*texts, "")).encode("utf-32-le", "surrogatepass")
        self.codes = np.frombuffer(joined, np.uint32)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._starts = np.concatenate([[0], np.cumsum(lengths[:-1] + 1)]) if len(texts) else lengths
        self.lengths = lengths

    @cached_property
    def kinds(self) -> NDArray[np.uint16]:
        return _kinds()[self.codes]

    def count(self, kind: int) -> NDArray[np.int64]:
        """Per text, its characters of any of the kinds."""
        hits = (self.kinds & kind) != 0
        return self.total(hits) - (kind & BLANK != 0)

    def count_all(self, kinds: int) -> NDArray[np.int64]:
        """Per text, its characters that are of all these kinds."""
        return self.total((self.kinds & kinds) == kinds)

    def total(self, hits: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Per text how many of its characters are hits."""
        return np.add.reduceat(hits, self._starts, dtype=np.int64) if len(self._starts) else self._starts

    @cached_property
    def runs(self) -> NDArray[np.int32]:
        """Per text, the longest run of one character, white space aside."""
        same = (self.codes[1:] == self.codes[:-1]) & ((self.kinds[1:] & BLANK) == 0)
        places = np.arange(len(self.codes), dtype=np.int32)
        begins = places.copy()
        np.multiply(begins[1:], ~same, out=begins[1:])
        return self._max(places - np.maximum.accumulate(begins) + 1)

    @cached_property
    def walks(self) -> NDArray[np.int64]:
        """Per text, where it first walks along a keyboard row for `WALK` keys, in either direction; −1: nowhere."""
        found = np.zeros(len(self.codes) - WALK + 1 if len(self.codes) >= WALK else 0, bool)
        for places in _keys():
            steps = np.diff(places[np.minimum(self.codes, _KEYS - 1)])
            for step in (1, -1):
                along = steps == step
                walk = along[: len(found)].copy()
                for i in range(1, WALK - 1):
                    walk &= along[i : i + len(found)]
                found |= walk
        first = np.full(len(self._starts), -1)
        hits = np.flatnonzero(found)[::-1]
        text = np.searchsorted(self._starts, hits, side="right") - 1
        first[text] = hits - self._starts[text]
        return first

    def _max(self, values: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.maximum.reduceat(values, self._starts) if len(self._starts) else values[:0]


def walks(texts: Sequence[str], points: CodePoints) -> NDArray[np.int64]:
    """`points.walks` of these very texts, where the name of a layout among other words is no walk."""
    found = points.walks.copy()
    for row in np.flatnonzero(found >= 0).tolist():
        rest = _LAYOUT.sub(lambda name: " " * len(name.group()), texts[row])
        if any(map(str.isalpha, rest)):
            found[row] = CodePoints([rest]).walks[0]
    return found
