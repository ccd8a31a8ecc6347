"""Text that went through a wrong encoding, and what it was before.

`ftfy` knows UTF-8 that was read in a Western or Central European encoding. Added here: UTF-8 read in another encoding of
the text's own script or in a multi-byte one, which is undone for a proof; Cyrillic, Greek, Arabic, Thai or Chinese read as
Latin-1; single letters of another alphabet within a word; letters replaced by question marks; bytes left as escapes.
Not seen: one single-byte encoding of an alphabet read as another of it (KOI8-R as Windows-1251), which gives letters for
letters; the language step may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from hybrid_kernels.governance.characters import CONTROL, LETTER, WESTERN, CodePoints

_REPLACED = re.compile(
    # Within a word, by lossy conversion: "Stra??e", twice at least "d?j? v?cu"; and words of nothing else.
    r"\w\?{2,}\w|[a-z]\?[a-z].*[a-z]\?[a-z]|(?:^|[\s(])\?{2,}[,.;]?\s+\?{2,}(?![\w])|(?:^|\s)\?{3,}[,;]?\s(?=[^\W\d_])",
    re.DOTALL,
)
_ESCAPED = re.compile(
    r"(?:\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}){2}|(?:%[89A-F][0-9A-F]){2}|(?:=[89A-F][0-9A-F]){2}|<0x[0-9A-F]{2}>"
)
_URL = re.compile(r"\S*(?:://|www\.)\S*")
_ALIEN = re.compile(r"[A-Za-z][\u0370-\u04ff\u207f\u2200-\u22ff][a-z]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_EAST_ASIAN = re.compile(r"[\u3000-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]")

_SINGLE_BYTE = (
    *(f"sloppy-windows-{number}" for number in range(1250, 1257)),
    *("cp874", "koi8-r", "cp866", "cp437", "mac-roman", "mac-cyrillic", "iso-8859-5", "iso-8859-7"),
)
_MULTI_BYTE = ("gb18030", "cp932", "big5hkscs", "cp949")
# What one reads by chance: "联通" in GB 18030 is well-formed UTF-8.
_FEWEST = {codec: 4 if codec in _MULTI_BYTE else 2 for codec in _SINGLE_BYTE + _MULTI_BYTE}
_UTF8_LEADS = bytes(range(0xC2, 0xF5))


def signs(texts: Sequence[str], points: CodePoints) -> list[str | None]:
    """Per text what shows that it went through a wrong encoding, or None. `points`: of these very texts."""
    from ftfy.badness import badness

    controls = points.count(CONTROL).tolist()
    letters, western = points.count(LETTER), points.count(WESTERN)
    foreign = ((western >= 6) & (2 * western > letters)).tolist()
    found: list[str | None] = []
    for text, control, all_western in zip(texts, controls, foreign, strict=True):
        sign = None
        if control:
            sign = _control(text)
        elif not text.isascii():
            if bad := badness(text):
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
    if ("\\" in text or "%" in text or "=" in text or "<0x" in text) and (match := _ESCAPED.search(text)):
        if not _URL.search(text):
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
        if sum(not c.isascii() for c in before) >= _FEWEST[codec]:
            return before
    return None
