"""Bounds per language from the data: histograms of features, and robust bounds from these.

Histograms have fixed bins. So they take little memory however many rows there are, and those of shards add up to the
same in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Bounds, Features, Range
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.quality_rules import coded, language_pair, limits

#: Where rows of no language are counted; they have no bounds of their own.
UNDETERMINED = "und"
#: Rows that show whether texts of a language end in sentence marks.
_FEW = 100
#: Lengths are counted one by one up to here.
_LONGEST = 1 << 16


@dataclass(frozen=True)
class Feature:
    """How a feature is counted, and what bounds the data may give it.

    Attributes:
        label: for a reader.
        edges: of the bins, ascending; what lies beyond is counted in the first or last bin.
        transform: makes the feature's spread about its median even, so that a standard deviation says something.
        low, high: the data may bound it on this side.
        guard: the largest share of a language's rows that such a bound may cut.
    """

    label: str
    edges: NDArray[np.float64]
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] = np.asarray
    low: bool = False
    high: bool = False
    guard: float = 0.001


def _log1p(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log1p(values)


_SHARE = np.linspace(0, 1, 51)
_SMALL_SHARE = np.linspace(0, 1, 61) ** 2  # evenly spaced after the square root
_COUNT = np.array([0, *np.unique(np.geomspace(1, 1e6, 73).round())])

_OF_TEXTS = {
    "characters": Feature("characters", _COUNT, _log1p, high=True),
    "symbols": Feature("share of punctuation and symbols", _SMALL_SHARE, np.sqrt, high=True),
    "digits": Feature("share of digits", _SMALL_SHARE, np.sqrt, high=True),
    "links": Feature("share of links", _SHARE),
    "vowels": Feature("share of vowels", _SHARE, low=True),
    "run": Feature("longest run of a character", np.array([*range(1, 21), 50, 100, 1000.0])),
    "repetition": Feature("share of repeated shingles", _SMALL_SHARE, np.sqrt, high=True),
    "word_share": Feature("share of the commonest word", _SMALL_SHARE, np.sqrt, high=True),
    "repeated_lines": Feature("share of repeated lines", _SHARE),
    "terminal": Feature("ends in a sentence mark", np.array([0, 0.5, 1.0])),
    "confidence": Feature("probability of the likeliest language", _SHARE),
    "probability": Feature("probability of its language", _SHARE),
    "own_script": Feature("share of letters in its language's script", _SHARE),
    "switched": Feature("share of letters in another language", _SHARE),
    "bits_per_byte": Feature("bits per byte under the language model", np.linspace(0, 16, 321), high=True),
}
_OF_ROWS = {
    "copied": Feature("similarity of the two texts", _SHARE),
    "length_ratio": Feature(
        "log ratio of the lengths", np.linspace(-4, 4, 321), low=True, high=True, guard=0.01
    ),
    "numbers": Feature("share of numbers that agree", _SHARE),
    "marks": Feature("difference in sentence marks", np.arange(0.0, 21)),
}
#: By the names features have in a batch, those of a text with its number behind.
FEATURES = {f"{name}_{i}": feature for name, feature in _OF_TEXTS.items() for i in range(2)} | _OF_ROWS


class Histograms:
    """Of every feature in `FEATURES`, per language, how many rows lie in each bin; exact lengths besides.

    Attributes:
        counts: (feature, language) → rows in each bin. A feature of a translation has both languages, "en → sw".
        lengths: "characters_0" → length → rows, over all languages.
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], NDArray[np.int64]] = {}
        self.lengths: dict[str, Counter[int]] = {}

    def add(self, features: Features, languages: Sequence[Sequence[str | None]]) -> None:
        """Count rows. `languages`: per text column those of the rows; NaN is not counted."""
        keys = [[language or UNDETERMINED for language in side] for side in languages]
        codes = [coded(side) for side in keys]
        if len(languages) == 2:
            pairs = [language_pair(a, b) or UNDETERMINED for a, b in zip(*languages, strict=True)]
            codes.append(coded(pairs))
        for name, feature in FEATURES.items():
            if name in features:
                place = -1 if name in _OF_ROWS else int(name[-1])
                self._count(name, feature, np.asarray(features[name], np.float64), *codes[place])
        for i in range(len(languages)):
            self._count_lengths(f"characters_{i}", features)

    def _count(
        self,
        name: str,
        feature: Feature,
        values: NDArray[np.float64],
        languages: list[str],
        codes: NDArray[np.int64],
    ) -> None:
        there = ~np.isnan(values)
        bins = len(feature.edges) - 1
        places = np.clip(np.searchsorted(feature.edges, values[there], side="right") - 1, 0, bins - 1)
        counts = np.bincount(codes[there] * bins + places, minlength=bins * len(languages)).reshape(-1, bins)
        for language, found in zip(languages, counts, strict=True):
            if found.any():
                self._add(name, language, found)

    def _add(self, name: str, language: str, found: NDArray[np.int64]) -> None:
        key = name, language
        self.counts[key] = self.counts[key] + found if key in self.counts else found.astype(np.int64)

    def _count_lengths(self, name: str, features: Features) -> None:
        values = np.asarray(features.get(name, ()), np.float64)
        lengths = np.minimum(values[~np.isnan(values)], _LONGEST).astype(np.int64)
        found, counts = np.unique(lengths, return_counts=True)
        self.lengths.setdefault(name, Counter()).update(
            dict(zip(found.tolist(), counts.tolist(), strict=True))
        )

    def merge(self, other: Histograms) -> None:
        """Add the rows of another."""
        for (name, language), found in other.counts.items():
            self._add(name, language, found)
        for name, lengths in other.lengths.items():
            self.lengths.setdefault(name, Counter()).update(lengths)

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads; the same for the same rows, in whatever order they were counted."""
        return {
            "counts": {
                name: {
                    language: {int(i): int(found[i]) for i in np.flatnonzero(found)}
                    for (other, language), found in sorted(self.counts.items(), key=lambda item: item[0])
                    if other == name
                }
                for name in sorted({name for name, _ in self.counts})
            },
            "lengths": {
                name: dict(sorted(lengths.items())) for name, lengths in sorted(self.lengths.items())
            },
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Histograms:
        """Raises KeyError where it names a feature that is none of `FEATURES`."""
        histograms = cls()
        for name, languages in content["counts"].items():
            for language, bins in languages.items():
                found = np.zeros(len(FEATURES[name].edges) - 1, np.int64)
                for place, rows in bins.items():
                    found[int(place)] = rows
                histograms.counts[name, language] = found
        for name, lengths in content["lengths"].items():
            histograms.lengths[name] = Counter({int(length): rows for length, rows in lengths.items()})
        return histograms


def bounds(histograms: Histograms, policy: GovernancePolicy) -> Bounds:
    """What features may be: the policy's limits for language None, and for a language of `min_rows` rows stricter ones
    from its data.

    A bound from the data lies `spread` robust standard deviations (1.4826 · median absolute deviation)
    from the median, after the feature's transform, and further out if needed for it to cut no more than the feature's
    `guard` of the rows. There is none for a feature that half of the rows have the same value of. Besides, under names
    that are no feature's limit:

    - `terminal_i`: low 1 for a language whose share of rows that end in a sentence mark is `min_terminated`, or more;
    - `cut_i` of a language: high 0 where fewer of its rows than `min_punctuated` end in a sentence mark, of 100 or
      more: where many end without, ending without is no sign of a text cut off;
    - `cut_i`, language None: high is the length at which rows were cut off, if they pile up there and none is longer.

    Of `bits_per_byte_i` the bound is always from the data, with the `spread` of `perplexity` and no guard.
    """
    fixed = limits(policy.quality) if policy.quality.enabled else {}
    found: Bounds = {}
    for name in FEATURES:
        limit = fixed.get(name if name in _OF_ROWS else name[:-2])
        if limit is not None:
            found[name, None] = limit
    for (name, language), counts in histograms.counts.items():
        if name.startswith("terminal") and _is_unpunctuated(counts, policy):
            found[f"cut_{name[-1]}", language] = Range(high=0.0)
        if language == UNDETERMINED or counts.sum() < policy.thresholds.min_rows:
            continue
        if (limit := _own_limit(name, counts, found.get((name, None)), policy)) is not None:
            found[name, language] = limit
    if policy.thresholds.enabled and policy.quality.enabled:
        for name, lengths in histograms.lengths.items():
            if (length := _pile(lengths)) is not None:
                found[name.replace("characters", "cut"), None] = Range(high=length)
    return found


def _own_limit(
    name: str, counts: NDArray[np.int64], limit: Range | None, policy: GovernancePolicy
) -> Range | None:
    feature, thresholds = FEATURES[name], policy.thresholds
    if name.startswith("bits_per_byte"):
        return _robust(feature, counts, policy.perplexity.spread, guard=1.0)
    if not (thresholds.enabled and policy.quality.enabled):
        return None
    if name.startswith("terminal"):
        return Range(low=1.0) if counts[1] >= thresholds.min_terminated * counts.sum() else None
    if limit is None or not (feature.low or feature.high):
        return None
    spread = thresholds.pair_spread if name == "length_ratio" else thresholds.spread
    own = _robust(feature, counts, spread, feature.guard)
    if name == "length_ratio":
        # The fixed ratio is meant from the pair's usual one.
        usual = quantile(feature, counts, 0.5)
        limit = Range(usual + limit.low, usual + limit.high)
    if own is None:
        return limit if name == "length_ratio" else None
    stricter = Range(max(own.low, limit.low), min(own.high, limit.high))
    return stricter if stricter != limit or name == "length_ratio" else None


def _is_unpunctuated(counts: NDArray[np.int64], policy: GovernancePolicy) -> bool:
    rows = counts.sum()
    return policy.thresholds.enabled and rows >= _FEW and counts[1] < policy.thresholds.min_punctuated * rows


def _robust(feature: Feature, counts: NDArray[np.int64], spread: float, guard: float) -> Range | None:
    if 2 * counts.max() >= counts.sum():
        return None
    edges, total = feature.transform(feature.edges), np.concatenate([[0], np.cumsum(counts)])
    share = total / total[-1]
    median = float(np.interp(0.5, share, edges))
    deviation = 1.4826 * _median_deviation(edges, share, median)
    low = high = None
    if feature.low:
        allowed = edges[share <= guard][-1] if guard < 1 else np.inf
        low = min(median - spread * deviation, allowed)
    if feature.high:
        allowed = edges[share >= 1 - guard][0] if guard < 1 else -np.inf
        high = max(median + spread * deviation, allowed)
    return Range(
        -np.inf if low is None else _undo(feature, edges, low),
        np.inf if high is None else _undo(feature, edges, high),
    )


def _undo(feature: Feature, edges: NDArray[np.float64], value: float) -> float:
    """The feature's value whose transform is `value`; ±inf beyond the bins."""
    return float(np.interp(value, edges, feature.edges, left=-np.inf, right=np.inf))


def quantile(feature: Feature, counts: NDArray[np.int64], share: float) -> float:
    """Rows are taken to lie evenly within a bin, after the transform."""
    edges = feature.transform(feature.edges)
    total = np.concatenate([[0], np.cumsum(counts)])
    return _undo(feature, edges, float(np.interp(share * total[-1], total, edges)))


def _median_deviation(edges: NDArray[np.float64], share: NDArray[np.float64], median: float) -> float:
    """The d for which half of the rows lie within median ± d, by bisection."""
    low, high = 0.0, float(edges[-1] - edges[0])
    for _ in range(50):
        middle = (low + high) / 2
        within = np.interp(median + middle, edges, share) - np.interp(median - middle, edges, share)
        low, high = (low, middle) if within >= 0.5 else (middle, high)
    return high


def _pile(lengths: Counter[int]) -> int | None:
    """The greatest length, if rows were cut off there: 20 at least, ten times as many as at any of the ten before, and
    less than half of all, for else length is a property of what the rows are."""
    longest = max(lengths, default=0)
    rows, before = lengths[longest], max((lengths[longest - k] for k in range(1, 11)), default=0)
    piled = rows >= 20 and rows >= 10 * before and 2 * rows < lengths.total() and longest < _LONGEST
    return longest if piled else None
