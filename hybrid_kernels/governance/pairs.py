"""What the two sides of a translation have in common whatever their languages: length, numbers, sentence marks.

A row whose sides belong to different rows (files that slipped by a line) differs in one of these only if it says
something that shows it; a short sentence beside another short one stays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.characters import BLANK, IDEOGRAPH, KANA, NUMBER, CodePoints

#: Letters of an alphabet that a character of these scripts stands for, roughly.
_IDEOGRAPH_WEIGHT, _KANA_WEIGHT = 3.0, 2.0
#: Added to both lengths, so that "Yes." and "Ndiyo, bwana." are no odd pair.
_SMOOTHING = 10.0

_NUMBER = re.compile(r"\d+(?:[.,٫٬’'\u00a0\u202f]\d+)*")
#: "26 750" with a plain space is one number or two.
_GROUPED = re.compile(r"(?<!\d)\d{1,3}(?: \d{3})+(?!\d)")
_SEPARATORS = re.compile(r"[^0-9]+")
_ZEROS = (
    0x660,
    0x6F0,
    0x966,
    0x9E6,
    0xA66,
    0xAE6,
    0xB66,
    0xBE6,
    0xC66,
    0xCE6,
    0xD66,
    0xE50,
    0xED0,
    0x1040,
    0x17E0,
    0xFF10,
)
_DECIMAL = {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
#: From here on numbers are compared: two small ones that are words on the other side prove nothing.
_FEWEST = 3

_QUESTION = re.compile(r"[?？؟]|(?<=[\u0370-\u03ff])[;\u037e]")
_CLOSING = " \t\n\r\u00a0\"'”’»)]」』"
_SENTENCES = re.compile(
    r"[.!?…;\u037e]+(?=[\s\"'”’»)\]]|\Z)|[。！？।॥؟۔]+|(?<=[\u0900-\u097f])\s?\||(?<=[\u0600-\u06ff])[-–](?=\s|\Z)"
)
#: Thai, Lao, Burmese and Khmer do without marks at the end of sentences.
_MARKLESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


def measure(
    first: Sequence[str], second: Sequence[str], points: tuple[CodePoints, CodePoints]
) -> dict[str, NDArray[np.float64]]:
    """Features of the pairs:

    - `length_ratio`: natural logarithm of the first text's length by the second's, in visible characters, where an
      ideograph counts for three and a syllable of Japanese or Korean for two;
    - `numbers`: the share of numbers that both sides have; NaN with too few to tell;
    - `marks`: sentence marks that one side has more than the other, `questions`: 1 where one side ends in a question
      mark and the other has none; NaN where a script does without.
    """
    lengths = [_weighted_lengths(side) for side in points]
    pairs = list(zip(first, second, strict=True))
    numeric = ((points[0].count(NUMBER) > 0) | (points[1].count(NUMBER) > 0)).tolist()
    agreement = [
        _agreement(a, b) if digits else np.nan for (a, b), digits in zip(pairs, numeric, strict=True)
    ]
    marks = np.array([_marks(a, b) for a, b in pairs], float).reshape(-1, 2)
    ratio = np.log((lengths[0] + _SMOOTHING) / (lengths[1] + _SMOOTHING))
    return {
        "length_ratio": ratio,
        "numbers": np.array(agreement),
        "marks": marks[:, 0],
        "questions": marks[:, 1],
    }


def _weighted_lengths(points: CodePoints) -> NDArray[np.float64]:
    visible = points.lengths - points.count(BLANK)
    ideographs, kana = points.count(IDEOGRAPH), points.count(KANA)
    return visible + (_IDEOGRAPH_WEIGHT - 1) * ideographs + (_KANA_WEIGHT - 1) * kana


def numbers(text: str) -> Counter[str]:
    """The numbers of a text as they are in any language's way to write them, with how often they occur.

    Decimal digits of any script; without separators, leading zeros (of dates) and trailing ones (10,000 is 1万).
    """
    found: Counter[str] = Counter()
    for number in _NUMBER.findall(text):
        found[_SEPARATORS.sub("", number.translate(_DECIMAL)).strip("0") or "0"] += 1
    return found


def _agreement(first: str, second: str) -> float:
    common, most = _common(first, second)
    if common < most:
        joined, fewer = _common(_joined(first), _joined(second))
        if joined * most > common * fewer:
            common, most = joined, fewer
    return common / most if most >= _FEWEST else np.nan


def _joined(text: str) -> str:
    return _GROUPED.sub(lambda group: group.group().replace(" ", ""), text)


def _common(first: str, second: str) -> tuple[int, int]:
    """Weight of the numbers that both texts have, and of those of the one that has more."""
    a, b = numbers(first), numbers(second)
    return _weight(a & b), max(_weight(a), _weight(b))


def _weight(found: Counter[str]) -> int:
    """Numbers of one digit count for half: the other side may have them in words."""
    return sum(n * (2 if len(number) > 1 else 1) for number, n in found.items())


def _marks(first: str, second: str) -> tuple[float, float]:
    if _MARKLESS.search(first) or _MARKLESS.search(second):
        return np.nan, np.nan
    difference = abs(len(_SENTENCES.findall(first)) - len(_SENTENCES.findall(second)))
    return difference, _asks(first, second) or _asks(second, first)


def _asks(first: str, second: str) -> bool:
    """The first text ends in a question mark and the second has none."""
    end = first.rstrip(_CLOSING)
    return bool(_QUESTION.search(end, len(end) - 1)) and not _QUESTION.search(second)
