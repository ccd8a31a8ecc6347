"""Slips of the keyboard: a neighbouring key, two letters in the wrong order, a letter left out or typed twice."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from hybrid_kernels.evaluation.robustness.case import lower, upper
from hybrid_kernels.evaluation.robustness.edits import CLUSTER, WORD, Edit, Proposal
from hybrid_kernels.evaluation.robustness.layouts import LAYOUT_OF, LAYOUTS, OFFSETS, REACH
from hybrid_kernels.governance.scripts import Tag

# A word as its clusters, with where each begins; an edit of the cluster at a position, or None where there is none.
_Word = list[tuple[int, str]]
_Slip = Callable[[_Word, int, Tag, random.Random], Edit | None]


def has_layout(tag: Tag) -> bool:
    return tag.language in LAYOUT_OF and not tag.is_romanised


@lru_cache(maxsize=64)
def neighbours(layout: str) -> dict[str, tuple[str, ...]]:
    """Of each letter or mark on the layout the sorted ones on the keys around it that could stand in its place."""
    places = [
        (column + OFFSETS[i % 4], i % 4, i // 4, key)
        for i, row in enumerate(LAYOUTS[layout])
        for column, key in enumerate(row.split())
        if key != "-"
    ]
    near: dict[str, tuple[str, ...]] = {}
    for x, row, level, key in places:
        others = [
            other
            for x2, row2, level2, other in places
            if level2 == level and other != key and (x - x2) ** 2 + (row - row2) ** 2 <= REACH**2
        ]
        near[key] = tuple(sorted(other for other in others if _kind(other) == _kind(key)))
    return near


def _kind(character: str) -> tuple[bool, int]:
    """A letter stands in for a letter, a mark for one that attaches alike; the virama and the nukta are alone."""
    return unicodedata.category(character).startswith("M"), unicodedata.combining(character)


def _substituted(word: _Word, i: int, tag: Tag, generator: random.Random) -> Edit | None:
    start, cluster = word[i]
    near = neighbours(LAYOUT_OF[tag.language])
    lowered = lower(cluster, tag)
    is_upper = lowered != cluster
    keys = [(j, near[key]) for j, key in enumerate(lowered) if near.get(key)]
    draws = generator.random(), generator.random()
    if not keys or len(lowered) != len(cluster):
        return None
    j, others = keys[int(draws[0] * len(keys))]
    other = others[int(draws[1] * len(others))]
    new = cluster[:j] + (upper(other, tag) if is_upper else other) + cluster[j + 1 :]
    # Σ has the keys of both σ and ς.
    return Edit(start, start + len(cluster), new) if new != cluster else None


def _transposed(word: _Word, i: int, tag: Tag, generator: random.Random) -> Edit | None:
    if i + 1 == len(word) or word[i][1] == word[i + 1][1]:
        return None
    (start, first), (_, second) = word[i : i + 2]
    return Edit(start, start + len(first) + len(second), second + first)


def _omitted(word: _Word, i: int, tag: Tag, generator: random.Random) -> Edit | None:
    start, cluster = word[i]
    return Edit(start, start + len(cluster), "") if i else None


def _doubled(word: _Word, i: int, tag: Tag, generator: random.Random) -> Edit | None:
    start, cluster = word[i]
    return Edit(start, start + len(cluster), cluster * 2)


def _proposal(*slips: _Slip) -> Proposal:
    """One of the slips, drawn evenly, for each letter (with its marks) of each word."""

    def propose(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
        edits = []
        for match in WORD.finditer(text):
            word = [(match.start() + c.start(), c[0]) for c in CLUSTER.finditer(match[0])]
            for i in range(len(word)):
                slip = slips[int(generator.random() * len(slips))]
                if edit := slip(word, i, tag, generator):
                    edits.append(edit)
        return edits

    return propose


keyboard_substitution = _proposal(_substituted)
keyboard_transposition = _proposal(_transposed)
keyboard_omission = _proposal(_omitted)
keyboard_doubling = _proposal(_doubled)
keyboard_noise = _proposal(_substituted, _transposed, _omitted, _doubled)
