"""Other writing of the same language: Simplified and Traditional Chinese, romanisation; homophones of Chinese."""

from __future__ import annotations

import random
import unicodedata
from functools import lru_cache
from typing import Any

import regex

from hybrid_kernels.evaluation.robustness.edits import CLUSTER, Edit
from hybrid_kernels.evaluation.robustness.punctuation import ASCII
from hybrid_kernels.governance.scripts import Tag

# Latin letters and digits beside Han characters.
_HAN_BOUNDARY = regex.compile(
    r"(?<=\p{Han})(?=[\p{L}\p{N}--\p{Han}])|(?<=[\p{L}\p{N}--\p{Han}])(?=\p{Han})", regex.V1
)
_HAN = regex.compile(r"\p{Han}+")
# Languages that `uroman` has rules of their own for, among those not in Latin letters; ISO 639-3.
_UROMAN_CODES = {
    "be": "bel",
    "bg": "bul",
    "el": "ell",
    "fa": "fas",
    "kk": "kaz",
    "ky": "kir",
    "mk": "mkd",
    "ps": "pus",
    "ru": "rus",
    "sr": "srp",
    "ug": "uig",
    "uk": "ukr",
    "yi": "yid",
}


@lru_cache(maxsize=2)
def _opencc(configuration: str) -> Any:
    import opencc

    return opencc.OpenCC(configuration)


@lru_cache(maxsize=1)
def _uroman() -> Any:
    import uroman

    return uroman.Uroman()


def _whole(text: str, new: str) -> list[Edit]:
    return [Edit(0, len(text), new)] if new != text else []


def traditional_chinese(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    return _whole(text, _opencc("s2t").convert(text))


def simplified_chinese(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    return _whole(text, _opencc("t2s").convert(text))


def romanisation(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    if tag.language == "zh":
        spaced = _HAN_BOUNDARY.sub(" ", text).translate(str.maketrans(ASCII))
        return _whole(text, _HAN.sub(lambda run: " ".join(_syllables(run[0])), spaced))
    # uroman does not know decomposed letters.
    composed = unicodedata.normalize("NFC", text)
    return _whole(text, str(_uroman().romanize_string(composed, lcode=_UROMAN_CODES.get(tag.language))))


def _syllables(characters: str) -> list[str]:
    """Pinyin without tones, one of each character; of those that have several the one that the phrase asks for."""
    from pypinyin import lazy_pinyin

    return [str(syllable) for syllable in lazy_pinyin(characters)]


@lru_cache(maxsize=1)
def _homophones() -> dict[str, tuple[str, ...]]:
    """The 3,755 most common characters (GB 2312, level 1) by their sound without the tone."""
    pairs = ((row, cell) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    # The last row is not full.
    common = [character for pair in pairs if (character := bytes(pair).decode("gb2312", "ignore"))]
    sounds = [_syllables(character)[0] for character in common]
    alike: dict[str, list[str]] = {}
    for character, sound in zip(common, sounds, strict=True):
        alike.setdefault(sound, []).append(character)
    return {
        character: tuple(other for other in alike[sound] if other != character)
        for character, sound in zip(common, sounds, strict=True)
    }


def homophones(text: str, tag: Tag, generator: random.Random) -> list[Edit]:
    edits = []
    for match in CLUSTER.finditer(text):
        if others := _homophones().get(match[0]):
            edits.append(Edit(match.start(), match.end(), others[int(generator.random() * len(others))]))
    return edits
