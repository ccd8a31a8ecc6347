"""Punctuation lost, set apart by spaces, in ASCII, or as a typesetter has it."""

from __future__ import annotations

import random

import regex

from hybrid_kernels.evaluation.robustness.edits import SPACELESS, Edit, per_cluster, scripts_of
from hybrid_kernels.governance.scripts import Tag

# Marks that are read as words or parts of numbers are no punctuation here.
_READ = r"%&@#*/\\٪％‰§"
# Within a word an apostrophe or hyphen, within a number a separator.
_INNER = r"(?<=[\p{L}\p{M}\p{N}])['’\-‐‑](?=[\p{L}\p{N}])|(?<=\p{Nd})[.,:٫٬](?=\p{Nd})"
_MARK = rf"(?:(?!{_INNER})[\p{{P}}--[{_READ}]](?!\p{{M}}))"
_LOSS = regex.compile(rf"\s+{_MARK}+(?=\s|$)|^{_MARK}+\s+|{_MARK}+", regex.V1)
_ALPHANUMERIC = regex.compile(r"[\p{L}\p{M}\p{N}]")

_SPACED = regex.compile(
    r"(?:(?<![\p{L}\p{M}\p{N}])[,;:.!?]|[,;:.!?](?![\p{L}\p{N}])|[…()\[\]«»“”„\"،؛؟۔।॥，。！？；：、（）《》「」])(?!\p{M})"
)

#: Punctuation in other scripts and of typesetters → its like in ASCII.
ASCII = {
    mark: ascii_mark
    for marks, ascii_mark in {
        "“”„‟«»″《》〈〉「」『』": '"',
        "‘’‚‛‹›′": "'",
        "–—―‒‐‑−─": "-",
        "…": "...",
        "¿¡": "",
        "،，、": ",",
        "؛；": ";",
        "：": ":",
        "؟？": "?",
        "！": "!",
        "۔।॥。．": ".",
        "٪％": "%",
        "٫": ".",
        "٬": ",",
        "（": "(",
        "）": ")",
        "【［": "[",
        "】］": "]",
        "／": "/",
    }.items()
    for mark in marks
}

#: Quotation marks by CLDR 46 (`quotationStart`, `quotationEnd`); languages that are not named: “ ”.
_QUOTES = {
    **dict.fromkeys(("el", "es", "fa", "fr", "it", "ru", "uk"), "«»"),
    **dict.fromkeys(("bg", "cs", "de", "sk", "sl"), "„“"),
    **dict.fromkeys(("hu", "pl", "ro"), "„”"),
    "ar": "”“",
}
_TYPEWRITTEN = regex.compile(
    r"""(?P<ellipsis>\.{3})
    | (?P<apostrophe>(?<=[\p{L}\p{M}\p{N}])'(?=\p{L}))
    | (?P<range>(?<=\p{Nd})-(?=\p{Nd}))
    | (?P<dash>(?<=\s)--?(?=\s))
    | (?P<open>(?<=(?:^|[\s(\[–—-])"*)"(?=\S))
    | (?P<close>")""",
    regex.VERBOSE,
)


def punctuation_loss(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    spaced = not scripts_of(tag) & SPACELESS
    edits = []
    for match in _LOSS.finditer(text):
        start, end = match.span()
        # Words that only the mark kept apart stay apart; U.S. becomes US.
        joins = (
            _ALPHANUMERIC.match(text, end) is not None
            and start > 0
            and _ALPHANUMERIC.match(text, start - 1) is not None
        )
        edits.append(Edit(start, end, " " if spaced and joins and match[0] != "." else ""))
    return edits


def punctuation_spacing(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    edits = []
    for match in _SPACED.finditer(text):
        start, end = match.span()
        before = " " if start and not text[start - 1].isspace() else ""
        # A mark that follows brings its own.
        after = " " if end < len(text) and not text[end].isspace() and not _SPACED.match(text, end) else ""
        if before or after:
            edits.append(Edit(start, end, before + match[0] + after))
    return edits


ascii_punctuation = per_cluster(lambda cluster, following: ASCII.get(cluster, cluster))


def typographic_punctuation(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    quotes = _QUOTES.get(tag.language, "“”")
    marks = {
        "ellipsis": "…",
        "apostrophe": "’",
        "range": "–",
        "dash": "–",
        "open": quotes[0],
        "close": quotes[1],
    }
    return [
        Edit(match.start(), match.end(), marks[str(match.lastgroup)]) for match in _TYPEWRITTEN.finditer(text)
    ]
