"""What a recipe makes of a text: edits, each of whole grapheme clusters, of which a share is carried out."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import regex

from hybrid_kernels.governance.scripts import CHINESE_VARIANTS, Tag

#: A letter with its marks, a conjunct, a digit...: what a reader takes for one character (UAX #29, extended).
CLUSTER = regex.compile(r"\X")
#: Letters with their marks; joiners and non-joiners within (Persian, Hindi) are part of the letter before them.
WORD = regex.compile(r"\p{L}[\p{L}\p{M}\u200c\u200d]*")

#: Scripts that set no space between words.
SPACELESS = frozenset({"Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr"})


class Edit(NamedTuple):
    """`text[start:end]` is replaced; both ends lie between grapheme clusters."""

    start: int
    end: int
    replacement: str


#: All edits that a recipe may make of a text, from left to right. What is left to chance among them is drawn here, the
#: same however many are carried out.
Proposal = Callable[[str, Tag, random.Random], Sequence[Edit]]


def apply(text: str, edits: Sequence[Edit], generator: random.Random, rate: float) -> str:
    """Carries out each edit with probability `rate`; one that overlaps an earlier one that was carried out is left.

    One number is drawn for each edit whatever the rate, so edits that do not overlap and are carried out at one rate
    are carried out at any higher one.
    """
    parts: list[str] = []
    at = 0
    for edit, draw in [(edit, generator.random()) for edit in edits]:
        if draw < rate and edit.start >= at:
            parts += text[at : edit.start], edit.replacement
            at = edit.end
    return "".join((*parts, text[at:]))


def scripts_of(tag: Tag) -> frozenset[str]:
    """The scripts of a language; both variants of Chinese are Hani."""
    return frozenset("Hani" if script in CHINESE_VARIANTS else script for script in tag.scripts)


def per_cluster(replace: Callable[[str, str], str]) -> Proposal:
    """Edits of single grapheme clusters: `replace(cluster, what follows it)` gives the new one."""

    def propose(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
        edits = []
        for match in CLUSTER.finditer(text):
            start, end = match.span()
            new = replace(match[0], text[end : end + 1])
            if new != match[0]:
                edits.append(Edit(start, end, new))
        return edits

    return propose


def letters_replaced(letters: Mapping[str, str]) -> Proposal:
    """Letters exchanged for others wherever they stand; their marks stay."""
    table = str.maketrans(dict(letters))

    def replace(cluster: str, following: str) -> str:
        composed = unicodedata.normalize("NFC", cluster)
        new = composed.translate(table)
        return cluster if new == composed else new

    return per_cluster(replace)


def without_marks(cluster: str, marks: frozenset[str]) -> str:
    """The cluster without these combining marks, composed; as it is where it has none of them."""
    decomposed = unicodedata.normalize("NFD", cluster)
    rest = "".join(character for character in decomposed if character not in marks)
    return cluster if rest == decomposed else unicodedata.normalize("NFC", rest)


def per_word(replace: Callable[[str, Tag], str]) -> Proposal:
    """Edits of whole words (see `WORD`)."""

    def propose(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
        return [
            Edit(match.start(), match.end(), new)
            for match in WORD.finditer(text)
            if (new := replace(match[0], tag)) != match[0]
        ]

    return propose


def is_of(cluster: str, script: str) -> bool:
    """Whether a cluster's first character is a letter of the script, by Unicode's name for it ("LATIN")."""
    return cluster[0].isalpha() and unicodedata.name(cluster[0], "").startswith(script)
