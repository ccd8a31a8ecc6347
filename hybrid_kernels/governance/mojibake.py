"""Text that went through a wrong encoding, and what it was before.

`ftfy` knows UTF-8 that was read in a Western or Central European encoding. Added here: UTF-8 read in another encoding
of the text's own script or in a multi-byte one, which is undone for a proof; Cyrillic, Greek, Arabic, Thai or Chinese
read as Latin-1; single letters of another alphabet within a word; letters replaced by question marks; bytes left as
escapes. Not seen: one single-byte encoding of an alphabet read as another of it (KOI8-R as Windows-1251), which gives
letters for letters; the language step may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.characters import CONTROL, LETTER, WESTERN, CodePoints

_REPLACED = re.compile(
    # Within a word, by lossy conversion: "Stra??e", twice at least "d?j? v?cu"; and words of nothing else.
    r"\w\?{2,}\w|[a-z]\?[a-z].*[a-z]\?[a-z]|(?:^|[\s(])\?{2,}[,.;]?\s+\?{2,}(?![\w])|(?:^|\s)\?{3,}[,;]?\s(?=[^\W\d_])",
    re.DOTALL,
)
_ESCAPED = re.compile(
    r"(?:\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}){2}|(?:%[89A-F][0-9A-F]){2}|(?:=[89A-F][0-9A-F]){2}|<0x[0-9A-F]{2}>"
)
# From the beginning of a word: from each character of a long one it would take quadratic time.
_URL = re.compile(r"(?<!\S)\S*(?:://|www\.)\S*")
_ALIEN = re.compile(r"[A-Za-z][\u0370-\u04ff\u207f\u2200-\u22ff][a-z]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_EAST_ASIAN = re.compile(r"[\u3000-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]")

_SINGLE_BYTE = (
    *(f"sloppy-windows-{number}" for number in range(1250, 1257)),
    *("cp874", "koi8-r", "cp866", "cp437", "mac-roman", "mac-cyrillic", "iso-8859-5", "iso-8859-7"),
)
_MULTI_BYTE = ("gb18030", "cp932", "big5hkscs", "cp949")
# Fewer are read by chance: "联通" in GB 18030 is well-formed UTF-8.
_FEWEST, _FEWEST_OF_SEVERAL = 2, 4
_LEADING_BYTES = [ord(character) for character in "ВГРСΒΓΞΟ"]
_UTF8_LEADS = bytes(range(0xC2, 0xF5))


def signs(texts: Sequence[str], points: CodePoints) -> list[str | None]:
    """Per text what shows that it went through a wrong encoding, or None. `points`: of these very texts."""
    from ftfy.badness import badness

    controls, suspicious = points.count(CONTROL).tolist(), _suspicious(points).tolist()
    letters, western = points.count(LETTER), points.count(WESTERN)
    foreign = ((western >= 6) & (2 * western > letters)).tolist()
    found: list[str | None] = []
    for text, control, suspect, all_western in zip(texts, controls, suspicious, foreign, strict=True):
        sign = None
        if control:
            sign = _control(text)
        elif not text.isascii():
            if suspect and (bad := badness(text)):
                sign = f"{bad} sequences typical of a wrong encoding"
            elif all_western:
                sign = "most letters are accented ones of Western Europe"
            elif _ALIEN.search(text):
                sign = f"a letter of another alphabet within {_word(text, _ALIEN)!r}"
            elif (before := decoded(text)) is not None:
                sign = f"reads as {before[:40]!r} in UTF-8"
        if sign is None:
            sign = _lost(text)
        found.append(sign)
    return found


@lru_cache(maxsize=1)
def _suspects() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of code points of the basic plane: whether `badness` looks for it beside another that is not ASCII; and whether
    beside any."""
    from ftfy.badness import MOJIBAKE_CATEGORIES

    beside = np.zeros(0x10000, bool)
    for name, characters in MOJIBAKE_CATEGORIES.items():
        if name not in ("common", "upper_common", "lower_common", "start_punctuation", "end_punctuation"):
            for first, last in re.findall(r"(.)(?:-(.))?", characters, re.DOTALL):
                beside[ord(first) : ord(last or first) + 1] = True
    anywhere = np.zeros(0x10000, bool)
    anywhere[[ord(character) for character in "ŒœÂÃ√≈‚×Ђ€"]] = True
    return beside | anywhere, anywhere


def _suspicious(points: CodePoints) -> NDArray[np.bool_]:
    """Per text whether `badness` may find something: it is slow, and needs such characters side by side."""
    beside, anywhere = _suspects()
    codes = np.minimum(points.codes, 0xFFFF)
    marked, foreign = beside[codes], codes > 0x7F
    hits = anywhere[codes]
    hits[:-1] |= (marked[:-1] & foreign[1:]) | (foreign[:-1] & marked[1:])
    # UTF-8 of Cyrillic and Greek, read as either, alternates between such letters and what is none.
    hits[:-1] |= np.isin(codes[:-1], _LEADING_BYTES) & foreign[1:] & ((points.kinds[1:] & LETTER) == 0)
    return points.total(hits) > 0


def _control(text: str) -> str:
    character = next(c for c, n in zip(text, _controls(text), strict=True) if n)
    if character == "\N{REPLACEMENT CHARACTER}":
        return "contains U+FFFD, the mark of undecodable bytes"
    return f"contains the control character U+{ord(character):04X}"


def _controls(text: str) -> list[int]:
    return CodePoints(list(text)).count(CONTROL).tolist()


def _lost(text: str) -> str | None:
    if "?" in text and _REPLACED.search(text) and _REPLACED.search(_URL.sub("", text)):
        return "letters replaced by question marks"
    escapes = "\\" in text or "%" in text or "=" in text or "<0x" in text
    if escapes and (match := _ESCAPED.search(text)) and not _URL.search(text):
        return f"bytes as escapes, {match.group()!r}"
    return None


def _word(text: str, pattern: re.Pattern[str]) -> str:
    return next(word for word in text.split() if pattern.search(word))


@lru_cache(maxsize=1)
def _leads() -> dict[str, tuple[str, ...]]:
    """Character → the single-byte encodings that have a first byte of UTF-8 there."""
    import ftfy.bad_codecs  # noqa: F401  registers the sloppy ones

    found: dict[str, tuple[str, ...]] = {}
    for codec in _SINGLE_BYTE:
        for character in _UTF8_LEADS.decode(codec, "ignore"):
            found[character] = (*found.get(character, ()), codec)
    return found


def _candidates(first: str) -> Iterator[str]:
    yield from _leads().get(first, ())
    if _EAST_ASIAN.match(first):
        yield from _MULTI_BYTE


def decoded(text: str) -> str | None:
    """`text` as it was before its UTF-8 was read in another encoding; None where that is not what happened.

    The whole of it must be well-formed UTF-8, and enough of it, to be no chance.
    """
    start = _NOT_ASCII.search(text)
    if start is None:
        return None
    for codec in _candidates(start.group()):
        try:
            lead, *rest = text[start.start() : start.start() + 2].encode(codec)
            if not (0xC2 <= lead <= 0xF4 and rest and 0x80 <= rest[0] <= 0xBF):
                continue
            before = text.encode(codec).decode()
        except UnicodeError:
            continue
        fewest = _FEWEST_OF_SEVERAL if codec in _MULTI_BYTE else _FEWEST
        if sum(not character.isascii() for character in before) >= fewest:
            return before
    return None
