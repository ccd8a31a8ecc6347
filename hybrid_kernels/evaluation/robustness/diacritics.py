"""Marks lost: diacritics, tone marks, the tonos; and umlauts spelled out."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from hybrid_kernels.evaluation.robustness.edits import is_of, per_cluster, per_word, without_marks
from hybrid_kernels.governance.scripts import Tag

#: Languages in Latin letters whose own words have no diacritics; in foreign names alone there is nothing to test.
PLAIN = frozenset({"en", "id", "jv", "la", "mg", "ms", "rw", "sn", "so", "st", "sw", "xh", "zu"})

# Vietnamese: grave, acute, tilde, hook above, dot below are tones; circumflex, breve, horn are vowels of their own.
_VIETNAMESE_TONES = frozenset("\u0300\u0301\u0303\u0309\u0323")
_VIETNAMESE_QUALITIES = frozenset("\u0302\u0306\u031b")
_THAI_TONES = frozenset("\u0e48\u0e49\u0e4a\u0e4b")
_TONOS = frozenset("\u0301")
_UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ẞ": "SS"}


@lru_cache(maxsize=4096)
def _plain_latin(cluster: str) -> str:
    """ế → e, ı → i, đ → d, ø → o; ß, æ, þ are letters of their own and stay."""
    if not is_of(cluster, "LATIN"):
        return cluster
    decomposed = unicodedata.normalize("NFD", cluster)
    base = decomposed[0]
    name = unicodedata.name(base)
    if base == "ı":
        base = "i"
    elif name.endswith(" WITH STROKE") and len(name.split()) == 6:
        base = unicodedata.lookup(name.removesuffix(" WITH STROKE"))
    rest = "".join(character for character in decomposed[1:] if not unicodedata.combining(character))
    return base + rest if base + rest != decomposed else cluster


def _without_tones(cluster: str, following: str) -> str:
    if is_of(cluster, "LATIN"):
        return without_marks(cluster, _VIETNAMESE_TONES)
    return without_marks(cluster, _THAI_TONES) if len(cluster) > 1 else cluster


def _spelled_out(word: str, tag: Tag) -> str:
    composed = unicodedata.normalize("NFC", word)
    new = composed
    for letter, digraph in _UMLAUTS.items():
        new = new.replace(letter, digraph.upper() if composed.isupper() and len(composed) > 1 else digraph)
    return word if new == composed else new


diacritic_loss = per_cluster(lambda cluster, following: _plain_latin(cluster))
tone_loss = per_cluster(_without_tones)
vowel_quality_loss = per_cluster(
    lambda cluster, following: (
        without_marks(cluster, _VIETNAMESE_QUALITIES) if is_of(cluster, "LATIN") else cluster
    )
)
tonos_loss = per_cluster(
    lambda cluster, following: without_marks(cluster, _TONOS) if is_of(cluster, "GREEK") else cluster
)
yo_loss = per_cluster(
    lambda cluster, following: {"ё": "е", "Ё": "Е"}.get(unicodedata.normalize("NFC", cluster), cluster)
)


umlaut_digraphs = per_word(_spelled_out)
