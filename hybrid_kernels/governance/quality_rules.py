"""Which field of the quality policy bounds which feature, and what an objection says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Range
from hybrid_kernels.governance.policy import QualityPolicy

#: Values of the policy's fields worth trying.
VARIATIONS: dict[str, list[float]] = {
    "min_letters": [1, 2, 5, 10],
    "max_repetition": [0.4, 0.5, 0.6, 0.65, 0.7, 0.8],
    "max_word_share": [0.3, 0.4, 0.5, 0.6],
    "max_repeated_lines": [0.1, 0.2, 0.3, 0.5],
    "max_character_run": [5, 8, 15, 30],
    "max_symbols": [0.2, 0.3, 0.4, 0.5, 0.6],
    "max_digits": [0.2, 0.3, 0.4, 0.5, 0.6],
    "max_links": [0.1, 0.2, 0.3, 0.5],
    "min_vowels": [0.1, 0.15, 0.2, 0.25, 0.3],
    "reject_markup": [False, True],
    "reject_boilerplate": [False, True],
    "reject_mojibake": [False, True],
    "reject_truncated": [False, True],
    "reject_identical": [False, True],
    "max_length_ratio": [2.0, 2.5, 3.0, 4.0, 6.0],
    "min_number_agreement": [0.1, 0.3, 0.4, 0.5, 0.7],
    "max_punctuation_difference": [1, 2, 3, 6],
    "reject_question_mismatch": [False, True],
    "reject_keyboard_walks": [False, True],
    "max_copied": [0.6, 0.7, 0.8, 0.9],
}


@dataclass(frozen=True)
class Rule:
    """A feature and the field of `QualityPolicy` that bounds it.

    Attributes:
        feature: without the column's position.
        reason: of the objection.
        field: a number that the feature is held against, or whether it may be other than 0.
        low: the field is the least that the feature may be, not the most.
        detail: of `value` and `bound`; empty where `_EXPLANATIONS` has a function of the texts.
    """

    feature: str
    reason: str
    field: str
    detail: str = ""
    low: bool = False

    @property
    def switch(self) -> bool:
        return self.field.startswith("reject_")


TEXT_RULES = (
    Rule("characters", "too long", "max_characters", "{value:.0f} characters, at most {bound:.0f}"),
    Rule("letters", "too short", "min_letters", "{value:.0f} letters, at least {bound:.0f}", low=True),
    Rule("mojibake", "mojibake", "reject_mojibake"),
    Rule("markup", "markup", "reject_markup"),
    Rule("boilerplate", "boilerplate", "reject_boilerplate"),
    Rule("links", "links", "max_links", "{value:.0%} of the characters are links, at most {bound:.0%}"),
    Rule("symbols", "symbols", "max_symbols", "{value:.0%} are punctuation or symbols, at most {bound:.0%}"),
    Rule("digits", "digits", "max_digits", "{value:.0%} are digits, at most {bound:.0%}"),
    Rule(
        "run",
        "repetition",
        "max_character_run",
        "a character {value:.0f} times in a row, at most {bound:.0f}",
    ),
    Rule(
        "repetition",
        "repetition",
        "max_repetition",
        "{value:.0%} of the shingles repeat, at most {bound:.0%}",
    ),
    Rule(
        "word_share",
        "repetition",
        "max_word_share",
        "{value:.0%} of the words are one word, at most {bound:.0%}",
    ),
    Rule(
        "repeated_lines",
        "repetition",
        "max_repeated_lines",
        "{value:.0%} of the lines repeat, at most {bound:.0%}",
    ),
    Rule("walk", "keyboard mash", "reject_keyboard_walks"),
    Rule(
        "vowels",
        "keyboard mash",
        "min_vowels",
        "{value:.0%} of the letters are vowels, at least {bound:.0%}",
        low=True,
    ),
)
PAIR_RULES = (Rule("identical", "identical columns", "reject_identical"),)
TRANSLATION_RULES = (
    Rule(
        "copied",
        "untranslated",
        "max_copied",
        "{value:.0%} of the shingles are in both texts, at most {bound:.0%}",
    ),
    Rule("length_ratio", "length ratio", "max_length_ratio"),
    Rule(
        "numbers",
        "numbers differ",
        "min_number_agreement",
        "{value:.0%} of the numbers agree, at least {bound:.0%}",
        low=True,
    ),
    Rule(
        "marks",
        "punctuation differs",
        "max_punctuation_difference",
        "one text has {value:.0f} sentence marks more, at most {bound:.0f}",
    ),
    Rule("questions", "punctuation differs", "reject_question_mismatch"),
)
ROW_RULES = {"text": (), "pair": PAIR_RULES, "translation": TRANSLATION_RULES}


def limits(policy: QualityPolicy) -> dict[str, Range]:
    """Feature (without a column's position) → what the policy lets it be; switches aside."""
    found = {}
    for rule in TEXT_RULES + TRANSLATION_RULES:
        value = getattr(policy, rule.field)
        if rule.feature == "length_ratio":
            found[rule.feature] = Range(-math.log(value), math.log(value))
        elif not rule.switch:
            found[rule.feature] = Range(low=value) if rule.low else Range(high=value)
    return found


def language_pair(first: str | None, second: str | None) -> str | None:
    """Under what the bounds of a translation's features are kept."""
    return None if first is None or second is None else f"{first} → {second}"


Key = TypeVar("Key", str, str | None)


def coded(keys: Sequence[Key]) -> tuple[list[Key], NDArray[np.int64]]:
    """(distinct keys, per row which of them)."""
    places: dict[Key, int] = {}
    codes = [places.setdefault(key, len(places)) for key in keys]
    return list(places), np.array(codes, np.int64)
