"""Character-level views of a text that every step shares; nothing here depends on its language."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache


@lru_cache(maxsize=65536)
def script(character: str) -> str:
    """Unicode script of a letter ("LATIN", "CJK", "DEVANAGARI", …): the first word of its Unicode name."""
    return unicodedata.name(character, "UNKNOWN").split(" ", 1)[0].split("-", 1)[0]


def script_counts(text: str) -> Counter[str]:
    """Letters of `text` per script; compatibility forms (full width, bold) count as what they mean."""
    counts: Counter[str] = Counter()
    for character, n in Counter(unicodedata.normalize("NFKC", text)).items():
        if character.isalpha():
            counts[script(character)] += n
    return counts


#: Characters known to stay, and known to go; whether one does depends on nothing but itself.
_STAYING: set[str] = set()
_GOING: set[str] = set()
_IGNORED_ASCII = bytes(i for i in range(128) if unicodedata.category(chr(i))[0] in "PZC")
#: From here on there are ideographs.
_EAST_ASIAN = re.compile("[\u2e80-\U0010ffff]")


def _remove_ignored(text: str) -> str:
    found = set(text) - _STAYING
    for character in found - _GOING:
        (_GOING if unicodedata.category(character)[0] in "PZC" else _STAYING).add(character)
    for character in found & _GOING:
        text = text.replace(character, "")
    return text


def normalise(text: str) -> str:
    """What a comparison of texts looks at: NFKC, case-folded, without punctuation, white space and controls.

    Symbols stay ("5 < 7" is not "5 > 7"), and so do combining marks, which Thai and Devanagari are written
    with.
    """
    if text.isascii():
        return text.encode().lower().translate(None, _IGNORED_ASCII).decode()
    return _remove_ignored(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


def shingle_list(text: str, size: int) -> list[str]:
    """All `size`-character windows of the normalised text, in order.

    Where ideographs dominate, of half of it (rounded up): one carries what two to three letters do. A shorter
    text is its own single shingle.
    """
    normal = normalise(text)
    if _EAST_ASIAN.search(normal) and 2 * sum(script(c) == "CJK" for c in normal) > len(normal):
        size = (size + 1) // 2
    return [normal[i : i + size] for i in range(max(1, len(normal) - size + 1))]


def shingles(text: str, size: int) -> frozenset[str]:
    """The set of shingles of `text`; see `shingle_list`."""
    return frozenset(shingle_list(text, size))


def excerpt(text: str, length: int = 120) -> str:
    """`text` on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
