"""Other code points for the same characters: digits of the script, full width, letters that look alike."""

from __future__ import annotations

import random
import unicodedata
from functools import lru_cache

from hybrid_kernels.evaluation.robustness.edits import (
    Edit,
    Proposal,
    letters_replaced,
    per_cluster,
    scripts_of,
)
from hybrid_kernels.governance.scripts import SCRIPTS, Tag

#: Digit zero of the scripts that have decimal digits of their own (Unicode's Nd); the others follow it.
_ZERO = {
    "Beng": "০",
    "Deva": "०",
    "Gujr": "૦",
    "Guru": "੦",
    "Khmr": "០",
    "Knda": "೦",
    "Laoo": "໐",
    "Mlym": "൦",
    "Mymr": "၀",
    "Orya": "୦",
    "Taml": "௦",
    "Telu": "౦",
    "Thai": "๐",
    "Tibt": "༠",
}
# Arabic writes its digits as ٤٥٦, the languages east of it as ۴۵۶.
_ARABIC_ZERO, _EASTERN_ZERO = "٠", "۰"


def zero(tag: Tag) -> str | None:
    """Digit zero of the language's own digits; None where it has only 0–9."""
    if "Arab" in scripts_of(tag):
        return _ARABIC_ZERO if tag.language == "ar" else _EASTERN_ZERO
    return next((_ZERO[script] for script in sorted(scripts_of(tag)) if script in _ZERO), None)


def digits_swapped(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    first = zero(tag)
    assert first is not None
    own, ascii_digits = "".join(chr(ord(first) + i) for i in range(10)), "0123456789"
    both = str.maketrans(own + ascii_digits, ascii_digits + own)
    return list(per_cluster(lambda cluster, following: cluster.translate(both))(text, tag, generator))


# U+FF01–FF5E are U+0021–007E at full width.
_FULL_WIDTH = {chr(code - 0xFEE0): chr(code) for code in range(0xFF01, 0xFF5F)}
full_width = letters_replaced({narrow: wide for narrow, wide in _FULL_WIDTH.items() if narrow.isalnum()})
half_width = letters_replaced({wide: narrow for narrow, wide in _FULL_WIDTH.items()} | {"\u3000": " "})


@lru_cache(maxsize=4)
def _look_alikes(script: str) -> Proposal:
    """Letters of Latin to Cyrillic ones, letters of Cyrillic and Greek to Latin ones."""
    from confusable_homoglyphs.confusables import confusables_data

    targets = [*map(chr, range(0x0400, 0x0460))] if script == "Latn" else [*map(chr, range(0x41, 0x7B))]
    taken: dict[str, str] = {}
    for source in map(chr, range(0x41, 0x0530)):
        if not source.isalpha() or not unicodedata.name(source, "").startswith(SCRIPTS[script]):
            continue
        alike = {entry["c"] for entry in confusables_data.get(source, ())}
        # One to one, so that the text can be told from its look: σ is no o where ο is.
        for target in targets:
            same_kind = unicodedata.category(target) == unicodedata.category(source)
            if target in alike and same_kind and target not in taken.values():
                taken[source] = target
                break
    return letters_replaced(taken)


def homoglyphs(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    script = next(script for script in ("Latn", "Cyrl", "Grek") if script in scripts_of(tag))
    return list(_look_alikes(script)(text, tag, generator))
