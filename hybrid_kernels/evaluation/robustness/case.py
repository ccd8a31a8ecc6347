"""Case, by the rules of the language: Turkish dotted and dotless i, Greek capitals without the tonos."""

from __future__ import annotations

import random
import unicodedata

import regex

from hybrid_kernels.evaluation.robustness.edits import CLUSTER, Edit, per_word
from hybrid_kernels.governance.scripts import Tag

BICAMERAL = frozenset({"Latn", "Cyrl", "Grek", "Armn"})
_TURKIC = frozenset({"tr", "az"})
# 28χρονος and l'homme are one word.
_TITLE_WORD = regex.compile(r"[\p{L}\p{M}\p{N}][\p{L}\p{M}\p{N}'’]*")
# "Or" keeps its tonos, unlike the article η.
_OR = frozenset({"ή", "Ή"})
# ά before ι or υ without a dialytika shows that they are no diphthong; without the tonos the dialytika has to.
_HIATUS = regex.compile("(?<=[αεηιουωΑΕΗΙΟΥΩ]\u0301)([ιυΙΥ])(?!\u0308)")


def upper(text: str, tag: Tag) -> str:
    if tag.language in _TURKIC:
        text = unicodedata.normalize("NFC", text).replace("i", "İ")
    if tag.language == "el" and unicodedata.normalize("NFC", text) not in _OR:
        decomposed = unicodedata.normalize("NFD", text)
        marked = _HIATUS.sub("\\1\u0308", decomposed)
        text = unicodedata.normalize("NFC", marked.replace("\u0301", ""))
    return text.upper()


def lower(text: str, tag: Tag) -> str:
    if tag.language in _TURKIC:
        text = unicodedata.normalize("NFC", text).replace("İ", "i").replace("I", "ı")
    return text.lower()


def _capital(cluster: str, tag: Tag) -> str:
    return "İ" if tag.language in _TURKIC and cluster == "i" else cluster.title()


upper_case = per_word(upper)
lower_case = per_word(lower)


def title_case(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    edits = []
    for word in _TITLE_WORD.finditer(text):
        first = CLUSTER.match(text, word.start())
        assert first is not None
        if (new := _capital(first[0], tag)) != first[0]:
            edits.append(Edit(first.start(), first.end(), new))
    return edits


def random_case(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    edits = []
    for match in CLUSTER.finditer(text):
        letter = match[0]
        new = letter
        if letter.islower():
            # Of a single letter: with the tonos, which Greek capitals lose only in words of capitals.
            new = _capital(letter, tag)
        elif letter.isupper():
            new = lower(letter, tag)
        # ß has no capital of one letter in this use.
        if new != letter and len(new) == len(letter):
            edits.append(Edit(match.start(), match.end(), new))
    return edits
