"""What two texts of a row have to do with each other: copies, and of translations lengths, numbers and sentence marks."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch
from hybrid_kernels.governance.text import normalise, shingles

#: Shingles from which a text that stands on both sides is a copy; below it may be a name.
MIN_COPIED = 20
#: Numbers on both sides from which they are held against each other: one may be put in words or another unit.
MIN_NUMBERS = 2

_NUMBER = re.compile(r"\d+")
_GROUPED = re.compile(r"(?<=\d)[.,٬\u00a0\u202f' ](?=\d{3}(?!\d))")
_MARK = re.compile(r"[.!?…。！？．؟।۔;]+(?=\s|[\"'”’»)]|\Z)|[。！？]")
_THAI = re.compile("[\u0e00-\u0e7f]")
# An ideograph says what two to three letters do.
_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_BUDDHIST_ERA = 543

TRANSLATION = ("length_ratio", "number_agreement", "punctuation_difference", "copied")


def measure(batch: Batch) -> dict[str, NDArray[np.generic]]:
    """Of rows with two texts: `identical`, and of translations those of `TRANSLATION`; NaN where they say nothing."""
    pairs = list(zip(*batch.texts, strict=True))
    found = {"identical": _each(pairs, _identical)}
    if batch.columns.kind == "translation":
        measures = (_length_ratio, _number_agreement, _punctuation_difference, _copied)
        found |= {name: _each(pairs, one) for name, one in zip(TRANSLATION, measures, strict=True)}
    return found


def _each(pairs: list[tuple[str | None, ...]], measure: object) -> NDArray[np.float64]:
    assert callable(measure)
    return np.array([np.nan if a is None or b is None else measure(a, b) for a, b in pairs], np.float64)


def _identical(first: str, second: str) -> float:
    return float(first == second or normalise(first) == normalise(second))


def _length_ratio(first: str, second: str) -> float:
    """Natural logarithm of the ratio of lengths in letters, an ideograph or syllable counted thrice."""
    a, b = _length(first), _length(second)
    return float(np.log(a / b)) if a and b else np.nan


def _length(text: str) -> int:
    return len(text.strip()) + 2 * len(_IDEOGRAPH.findall(text))


def numbers(text: str) -> Counter[int]:
    """Numbers in digits of any script; separators of thousands join."""
    return Counter(int(digits) for digits in _NUMBER.findall(_GROUPED.sub("", text)) if len(digits) <= 18)


def _number_agreement(first: str, second: str) -> float:
    """Numbers of the side with fewer that the other has too, a Buddhist year for a Christian one, as a share."""
    a, b = sorted((numbers(first), numbers(second)), key=lambda found: found.total())
    if a.total() < MIN_NUMBERS:
        return np.nan
    common = a & b
    shifted = sum(
        bool(b[n + _BUDDHIST_ERA] or b[n - _BUDDHIST_ERA]) * count for n, count in (a - common).items()
    )
    return (common.total() + shifted) / a.total()


def _punctuation_difference(first: str, second: str) -> float:
    """Sentence marks that one side has more; Thai sets none."""
    if _THAI.search(first) or _THAI.search(second):
        return np.nan
    return float(abs(len(_MARK.findall(first)) - len(_MARK.findall(second))))


def _copied(first: str, second: str) -> float:
    a, b = shingles(first, 3), shingles(second, 3)
    if min(len(a), len(b)) < MIN_COPIED:
        return np.nan
    common = len(a & b)
    return common / (len(a) + len(b) - common)
