"""Recipes applied to texts, and how much they change."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from hybrid_kernels.evaluation.robustness.edits import CLUSTER, apply
from hybrid_kernels.evaluation.robustness.recipes import RECIPES
from hybrid_kernels.governance.scripts import Tag, read_tag


def recipes_for(language: str) -> tuple[str, ...]:
    """The names of the recipes offered for a language, in the order of `RECIPES`.

    Args:
        language: a tag as data sets have them: `en`, `zh-Hant`, `zho_Hant`, `hi-Latn`. `zh` is Simplified Chinese.

    Raises:
        ValueError: the language is unknown.
    """
    tag = _tag(language)
    return tuple(name for name, recipe in RECIPES.items() if recipe.applies(tag))


def perturb(
    texts: Sequence[str], language: str, recipe: str, *, seed: int = 0, rate: float | None = None
) -> list[str]:
    """The texts as the recipe varies them.

    What becomes of a text depends on it, the language, the recipe, the seed and the rate, and on no other text.
    At a higher rate the same places are varied and more (but where places overlap, as transpositions do).
    No grapheme cluster is torn: whole ones are replaced, moved or removed.

    Args:
        texts: n texts in the language; other text in them (names in Latin letters) is varied where the recipe fits it.
        language: as `recipes_for` has it.
        recipe: one of `recipes_for(language)`.
        rate: probability, in (0, 1], with which each of the recipe's units is varied; None: its `default_rate`.

    Returns:
        n texts.

    Raises:
        ValueError: an unknown language or recipe, a recipe that is not offered for the language, a rate out of bounds.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts is one string, {texts[:40]!r}; it must be a sequence of strings")
    if strange := [(i, text) for i, text in enumerate(texts) if not isinstance(text, str)]:
        raise ValueError(f"texts[{strange[0][0]}] is {strange[0][1]!r}; every text must be a string")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed is {seed!r}; it must be an integer")
    tag = _tag(language)
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; it must be one of {', '.join(RECIPES)}")
    chosen = RECIPES[recipe]
    if not chosen.applies(tag):
        raise ValueError(
            f"recipe {recipe!r} is not offered for language {language!r}; these are: {', '.join(recipes_for(language))}"
        )
    if rate is None:
        rate = chosen.default_rate
    if not 0 < rate <= 1:
        raise ValueError(
            f"rate is {rate!r}; it must be in (0, 1], or None for the recipe's {chosen.default_rate}"
        )
    return [_perturbed(text, tag, recipe, seed, rate) for text in texts]


def _perturbed(text: str, tag: Tag, recipe: str, seed: int, rate: float) -> str:
    key = "\0".join((str(seed), str(tag), recipe, text)).encode("utf-8", "surrogatepass")
    # Only `random()` of it is used: its numbers are the same in every version of Python.
    generator = random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big"))
    edits = RECIPES[recipe].propose(text, tag, generator)
    return apply(text, edits, generator, rate)


def _tag(language: str) -> Tag:
    tag = read_tag(language)
    if tag is None:
        raise ValueError(
            f"language is {language!r}; it must be a language code, with a script where one is needed: en, zh-Hant"
        )
    return tag


@dataclass(frozen=True)
class Change:
    """How much a recipe changed.

    Attributes:
        texts: share of the texts that differ.
        characters: Σ d / Σ max(length before, length after), d the Levenshtein distance, all in grapheme clusters.
    """

    texts: float
    characters: float


def change(before: Sequence[str], after: Sequence[str]) -> Change:
    """What share of texts and of characters differs between n ≥ 1 texts and what a recipe made of them."""
    if len(before) != len(after) or not before:
        raise ValueError(
            f"before has {len(before)} texts, after has {len(after)}; they must be equally many, at least one"
        )
    from rapidfuzz.distance import Levenshtein

    differing = [
        (CLUSTER.findall(a), CLUSTER.findall(b)) for a, b in zip(before, after, strict=True) if a != b
    ]
    distance = sum(Levenshtein.distance(a, b) for a, b in differing)
    longest = sum(max(len(a), len(b)) for a, b in differing)
    longest += sum(len(CLUSTER.findall(a)) for a, b in zip(before, after, strict=True) if a == b)
    return Change(len(differing) / len(before), distance / longest if longest else 0.0)
