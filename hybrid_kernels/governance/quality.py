"""Quality rules on the characters of a text and on pairs of texts, in the manner of Gopher (arXiv 2112.11446) and C4
(1910.10683).

Rules on words apply only where a text has spaces to tell them apart: Chinese and Thai do not separate words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance import boilerplate, endings, mojibake, pairs
from hybrid_kernels.governance.batch import Batch, Bounds, Columns, Features, Objection, Range
from hybrid_kernels.governance.characters import (
    ALPHABET,
    BLANK,
    LETTER,
    NUMBER,
    OTHER,
    SYMBOL,
    VOWEL,
    WALK,
    CodePoints,
    walks,
)
from hybrid_kernels.governance.policy import GovernancePolicy, QualityPolicy
from hybrid_kernels.governance.quality_rules import (
    ROW_RULES,
    TEXT_RULES,
    VARIATIONS,
    Rule,
    coded,
    language_pair,
    limits,
)
from hybrid_kernels.governance.text import excerpt, normalise, shingle_list

__all__ = ["MEASURED", "VARIATIONS", "fields", "measure", "objections"]

MEASURED = ("quality.max_characters", "quality.min_shingles", "quality.min_vowel_letters")

#: Beside the features of rules: whether there is anything to see, and how the text ends.
_OTHER_FEATURES = ("visible", "terminal")

#: Repetition is judged within so many shingles: the longer a text, the more of them have been there before.
_WINDOW = 500
_LONG_SHINGLE = 40
#: From so many words on it is asked how many of them are the same.
_FEWEST_WORDS = 10
#: Of fewer visible characters a mark more is a large share ("Oh, no." has a third), so that for these shares the bounds
#: of longer rows, the data's, do not hold; the policy's do.
_SHARES, _FEWEST_VISIBLE = ("symbols", "digits"), 20


def fields(columns: Columns, policy: GovernancePolicy) -> dict[str, pa.DataType]:
    """The features of each text column i, and of the row without a position; NaN where a text is missing, too long, or
    has too little for the rule.

    `characters_i`, `visible_i`, `letters_i`: how many. `symbols_i`, `digits_i`: shares of the visible characters;
    `links_i`: share of the characters; `vowels_i`: of the letters. `run_i`: the longest run of one character.
    `repetition_i`: share of shingles that came before; `word_share_i`: of the words, that of the commonest;
    `repeated_lines_i`: of the lines, that came before. `mojibake_i`, `markup_i`, `boilerplate_i`, `walk_i`: 1 or 0.
    `terminal_i`: 1 where a sentence mark ends the text; `cut_i`: the bits of `endings.ending`.

    Of a pair `identical`: 1 or 0; of a translation `copied`: Jaccard similarity of the shingles, and the features of
    `pairs.measure`.
    """
    kinds: dict[str, pa.DataType] = {}
    for i in range(len(columns.texts)):
        names = [*(rule.feature for rule in TEXT_RULES), *_OTHER_FEATURES]
        kinds |= {f"{name}_{i}": pa.float32() for name in names}
        kinds[f"cut_{i}"] = pa.int32()
    return kinds | {rule.feature: pa.float32() for rule in ROW_RULES[columns.kind]}


def measure(batch: Batch, policy: GovernancePolicy) -> Features:
    """See `fields`."""
    kinds = fields(batch.columns, policy)
    features: Features = {
        name: np.full(len(batch), np.nan, np.float32)
        if kind == pa.float32()
        else np.zeros(len(batch), np.int32)
        for name, kind in kinds.items()
    }
    longest = policy.quality.max_characters
    for i, texts in enumerate(batch.texts):
        features[f"characters_{i}"][:] = [np.nan if text is None else len(text) for text in texts]
    for rows in _pieces(batch.texts, longest):
        sides = []
        for i, texts in enumerate(batch.texts):
            read = {row: text for row in rows if (text := texts[row]) is not None and len(text) <= longest}
            there = list(read)
            side = _Side(list(read.values()), policy.quality)
            for name, values in side.features().items():
                features[f"{name}_{i}"][there] = values
            sides.append((there, side))
        if len(sides) == 2:
            _measure_pairs(features, batch, sides, policy.quality)
    return features


def _pieces(texts: Sequence[Sequence[str | None]], longest: int) -> Iterator[list[int]]:
    """Rows of some million characters at a time, so that arrays of their characters stay small."""
    rows: list[int] = []
    size = 0
    for row, values in enumerate(zip(*texts, strict=True)):
        rows.append(row)
        size += sum(len(text) for text in values if text is not None and len(text) <= longest)
        if size > 1 << 20:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


class _Side:
    """The texts of one column, as far as they are looked at."""

    def __init__(self, texts: list[str], policy: QualityPolicy) -> None:
        self.texts, self.policy = texts, policy
        self.points = CodePoints(texts)
        self.grams = [shingle_list(text, 3) for text in texts]

    def features(self) -> Features:
        points, texts = self.points, self.texts
        count = points.count
        visible = points.lengths - count(BLANK)
        ends = [endings.ending(text) for text in texts]
        signs = mojibake.signs(texts, points)
        return {
            "visible": visible,
            "letters": count(LETTER),
            "symbols": count(SYMBOL) / np.maximum(visible, 1),
            "digits": count(NUMBER) / np.maximum(visible, 1),
            "links": np.array([boilerplate.linked(text) for text in texts]) / np.maximum(points.lengths, 1),
            "run": points.runs,
            "repetition": [
                self._repetition(text, grams) for text, grams in zip(texts, self.grams, strict=True)
            ],
            "word_share": [_word_share(text) for text in texts],
            "repeated_lines": [_repeated_lines(text) if "\n" in text else np.nan for text in texts],
            "walk": walks(texts, points) >= 0,
            "vowels": self._vowels(),
            "mojibake": [sign is not None for sign in signs],
            "markup": [boilerplate.markup(text) is not None for text in texts],
            "boilerplate": [boilerplate.phrase(text) is not None for text in texts],
            "terminal": [terminal for terminal, _ in ends],
            "cut": [bits for _, bits in ends],
        }

    def _repetition(self, text: str, grams: list[str]) -> float:
        if len(grams) < self.policy.min_shingles:
            return np.nan
        if len(grams) <= _WINDOW:
            return 1 - len(set(grams)) / len(grams)
        windows = [grams[i : i + _WINDOW] for i in range(0, len(grams), _WINDOW)]
        near = 1 - sum(len(set(window)) for window in windows) / len(grams)
        normal = normalise(text)
        far = [normal[i : i + _LONG_SHINGLE] for i in range(len(normal) - _LONG_SHINGLE + 1)]
        return max(near, 1 - len(set(far)) / len(far))

    def _vowels(self) -> NDArray[np.float64]:
        """NaN with few small letters, and where most letters are of scripts that do not write vowels as letters."""
        letters, others = self.points.count(ALPHABET), self.points.count(OTHER)
        vowels = self.points.count_all(ALPHABET | VOWEL) / np.maximum(letters, 1)
        return np.where((letters >= self.policy.min_vowel_letters) & (letters > others), vowels, np.nan)


def _word_share(text: str) -> float:
    words = text.lower().split()
    return max(Counter(words).values()) / len(words) if len(words) >= _FEWEST_WORDS else np.nan


def _repeated_lines(text: str) -> float:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return 1 - len(set(lines)) / len(lines) if len(lines) > 1 else np.nan


def _measure_pairs(
    features: Features, batch: Batch, sides: list[tuple[list[int], _Side]], policy: QualityPolicy
) -> None:
    (rows, first), (others, second) = sides
    if rows != others:
        both = sorted({*rows} & {*others})
        first, second = (_Side([texts[row] or "" for row in both], policy) for texts in batch.texts)
        rows = both
    grams = list(zip(first.grams, second.grams, strict=True))
    if batch.columns.kind == "pair":
        features["identical"][rows] = [a == b for a, b in grams]
        return
    features["copied"][rows] = [_jaccard(a, b) if len(a) >= policy.min_shingles else np.nan for a, b in grams]
    for name, values in pairs.measure(first.texts, second.texts, (first.points, second.points)).items():
        features[name][rows] = values


def _jaccard(first: list[str], second: list[str]) -> float:
    a, b = set(first), set(second)
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def objections(batch: Batch, features: Features, policy: GovernancePolicy, bounds: Bounds) -> list[Objection]:
    """All that speaks against rows of the batch.

    Args:
        batch: the rows.
        features: of `measure`, and `row_language_i`; without these no language's own bounds apply.
        policy: its section `quality`.
        bounds: of this very policy (`thresholds.bounds`); without them the policy's own hold for all languages.
    """
    judge = _Judge(batch, features, policy.quality, bounds)
    found: list[Objection | None] = []
    for i in range(len(batch.texts)):
        found.append(judge.empty(i))
        found += [judge.broken(rule, i) for rule in TEXT_RULES]
        found.append(judge.truncated(i))
    found += [judge.broken(rule, None) for rule in ROW_RULES[batch.columns.kind]]
    return [objection for objection in found if objection is not None]


class _Judge:
    def __init__(self, batch: Batch, features: Features, policy: QualityPolicy, bounds: Bounds) -> None:
        self.batch, self.features, self.policy, self.bounds = batch, features, policy, bounds
        self.limits = limits(policy)
        none = np.full(len(batch), None, object)
        languages = [features.get(f"row_language_{i}", none) for i in range(len(batch.texts))]
        self.languages: dict[int | None, list[str | None]] = {
            i: list(side) for i, side in enumerate(languages)
        }
        if len(languages) == 2:
            self.languages[None] = [language_pair(a, b) for a, b in zip(*languages, strict=True)]
        self.coded = {i: coded(side) for i, side in self.languages.items()}

    def empty(self, i: int) -> Objection | None:
        rows = np.flatnonzero(self.features[f"visible_{i}"] == 0)
        return self._objection("empty", i, rows, ["no characters but white space"] * len(rows))

    def broken(self, rule: Rule, i: int | None) -> Objection | None:
        values = np.asarray(self.features[rule.feature if i is None else f"{rule.feature}_{i}"], np.float32)
        if rule.switch:
            rows = np.flatnonzero(values == 1) if getattr(self.policy, rule.field) else _NO_ROWS
            return self._objection(rule.reason, i, rows, self._explain(rule, i, rows))
        low, high = self._bounds(rule.feature, i)
        outside = (values < low) | (values > high)
        if rule.feature == "letters":
            outside &= self.features[f"visible_{i}"] != 0
        rows = np.flatnonzero(outside)
        bound = np.where(values < low, low, high)[rows].astype(np.float64)
        score = values[rows].astype(np.float64)
        details = [self._detail(rule, i, *each) for each in zip(rows.tolist(), score, bound, strict=True)]
        return self._objection(rule.reason, i, rows, details, score, bound)

    def _bounds(self, feature: str, i: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Per row the least and the most that it may have, by its language and length."""
        name = feature if i is None else f"{feature}_{i}"
        fixed = self.bounds.get((name, None), self.limits[feature])
        known, codes = self.coded[i]
        ranges = [fixed, *(self.bounds.get((name, key), fixed) for key in known)]
        places = codes + 1
        if feature in _SHARES:
            places[np.asarray(self.features[f"visible_{i}"], float) < _FEWEST_VISIBLE] = 0
        low, high = (np.array([getattr(r, side) for r in ranges], np.float32) for side in ("low", "high"))
        return low[places], high[places]

    def _detail(self, rule: Rule, i: int | None, row: int, score: float, bound: float) -> str:
        if rule.feature == "length_ratio":
            return f"the first text has {math.exp(score):.2f} times the length of the second, {_side(score, bound)}"
        text = rule.detail.format(value=score, bound=bound)
        limit = self.limits[rule.feature]
        fixed = limit.low if rule.low else limit.high
        return text if np.float32(fixed) == np.float32(bound) else f"{text} in {self.languages[i][row]}"

    def _explain(self, rule: Rule, i: int | None, rows: NDArray[np.int64]) -> list[str]:
        if rule.feature == "identical":
            return [
                f"{' = '.join(self.batch.columns.texts)}: {excerpt(self.batch.texts[0][row] or '')}"
                for row in rows
            ]
        if rule.feature == "questions":
            return ["one text ends in a question mark, the other has none"] * len(rows)
        assert i is not None
        return _EXPLANATIONS[rule.feature]([self.batch.texts[i][row] or "" for row in rows])

    def truncated(self, i: int) -> Objection | None:
        """Cut off by the look of the end; by the rule that the language's rows end in sentence marks; or at the length
        at which many rows end, and none is longer."""
        if not self.policy.reject_truncated:
            return None
        cut, terminal = np.asarray(self.features[f"cut_{i}"], np.int32), self.features[f"terminal_{i}"]
        known, codes = self.coded[i]
        punctuated = [self.bounds.get((f"cut_{i}", key), Range()).high > 0 for key in known]
        bits = [endings.language_bits(key) * on for key, on in zip(known, punctuated, strict=True)]
        marked = [self.bounds.get((f"terminal_{i}", key), Range()).low > 0 for key in known]
        looks = (cut & np.array(bits, np.int32)[codes]) != 0
        unusual = np.array(marked, bool)[codes]
        longest = self.bounds.get((f"cut_{i}", None), Range()).high
        piled = self.features[f"characters_{i}"] == longest
        rows = np.flatnonzero((terminal == 0) & (looks | unusual | piled))
        details = []
        for row in rows:
            text = self.batch.texts[i][row] or ""
            if looks[row]:
                details.append(endings.explain(text))
            elif piled[row]:
                details.append(f"{longest:.0f} characters, at which many rows end and none is longer")
            else:
                details.append(f"ends without a sentence mark, as hardly a row in {self.languages[i][row]}")
        return self._objection("truncated", i, rows, details)

    def _objection(
        self,
        reason: str,
        i: int | None,
        rows: NDArray[np.int64],
        details: list[str],
        score: NDArray[np.float64] | None = None,
        bound: NDArray[np.float64] | None = None,
    ) -> Objection | None:
        if not len(rows):
            return None
        none = np.full(len(rows), np.nan)
        column = None if i is None else self.batch.columns.texts[i]
        # Features are kept as float32: what is behind its digits says nothing.
        score, bound = (none if values is None else np.round(values, 6) for values in (score, bound))
        return Objection("quality", reason, column, rows.astype(np.int64), score, bound, details)


_NO_ROWS = np.zeros(0, np.int64)


def _side(score: float, bound: float) -> str:
    return f"at {'most' if score > bound else 'least'} {math.exp(bound):.2f}"


def _found(texts: list[str], find: Callable[[str], str | None]) -> list[str]:
    return [f"contains {excerpt(find(text) or '', 40)!r}" for text in texts]


_EXPLANATIONS: dict[str, Callable[[list[str]], list[str]]] = {
    "mojibake": lambda texts: [sign or "" for sign in mojibake.signs(texts, CodePoints(texts))],
    "markup": lambda texts: _found(texts, boilerplate.markup),
    "boilerplate": lambda texts: _found(texts, boilerplate.phrase),
    "walk": lambda texts: [
        f"walks the keyboard: {text[start : start + WALK]!r}"
        for text, start in zip(texts, walks(texts, CodePoints(texts)).tolist(), strict=True)
    ],
}
