"""What a feature may be: the policy's fixed bounds, and stricter ones from the data, a language at a time.

Data bounds are robust: median ± `spread` · 1.4826 · MAD (the standard deviation of a normal distribution; Hampel, *The
influence curve*, 1974), so that up to half of the rows may be noise and they hardly move. They come from histograms of
fixed bins, which add up exactly and in any order, so memory does not grow with the rows. A data bound is used where
`min_rows` rows of a language speak, where it is stricter than the fixed one, and never beyond the point that `GUARD` of the
language's rows exceed: what is skewed by nature (digits: most texts have none) is not cut for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Bounds, Features, Range
from hybrid_kernels.governance.policy import GovernancePolicy

#: Largest share of a language's rows beyond a bound that the data gave.
GUARD = 0.001
#: Share of a language's texts with a sentence mark at the end from which one without seems cut off.
MOSTLY_MARKED = 0.995
_UNKNOWN = "und"


@dataclass(frozen=True, eq=False)
class Feature:
    """A feature with a histogram.

    Attributes:
        label: for a reader.
        edges: of the bins; what lies beyond counts in the first or last one.
        low, high: fields of the policy that bound it, "quality.max_digits"; None: nothing does on that side.
        adapts: whether the data may bound it more strictly, on the sides that are bounded.
        log: deviations are judged on a logarithmic scale.
    """

    label: str
    edges: NDArray[np.float64]
    low: str | None = None
    high: str | None = None
    adapts: bool = False
    log: bool = False


_SHARES = np.linspace(0.0, 1.0, 201)
_COUNTS = np.concatenate([[0.0], np.geomspace(1, 1e6, 241)])
_TEXT = {
    "characters": Feature("characters", _COUNTS, high="quality.max_characters", adapts=True, log=True),
    "letters": Feature("letters", _COUNTS, low="quality.min_letters"),
    "repetition": Feature("share of repeated shingles", _SHARES, high="quality.max_repetition", adapts=True),
    "run": Feature("longest run of one character", _COUNTS, high="quality.max_character_run"),
    "symbols": Feature("share of punctuation and symbols", _SHARES, high="quality.max_symbols", adapts=True),
    "digits": Feature("share of digits", _SHARES, high="quality.max_digits", adapts=True),
    "links": Feature("share of characters in links", _SHARES, high="quality.max_links"),
    "vowels": Feature("share of vowels", _SHARES, low="quality.min_vowels", adapts=True),
    "terminal": Feature("sentence mark at the end", np.array([0.0, 0.5, 1.0])),
    "confidence": Feature("confidence in the language", _SHARES),
    "probability": Feature("probability of the row's language", _SHARES),
    "bits_per_byte": Feature("bits per byte under the language model", np.linspace(0, 16, 321)),
}
_ROW = {
    "length_ratio": Feature("logarithm of the ratio of lengths", np.linspace(-5, 5, 401)),
    "number_agreement": Feature(
        "share of numbers that both sides have", _SHARES, low="quality.min_number_agreement"
    ),
    "punctuation_difference": Feature(
        "sentence marks more on one side", _COUNTS, high="quality.max_punctuation_difference"
    ),
    "copied": Feature("share of shingles that both sides have", _SHARES, high="quality.max_copied"),
}
#: By full name, `digits_0` for the first text column.
FEATURES: dict[str, Feature] = {
    f"{name}_{i}": Feature(
        f"{one.label}, {('first', 'second')[i]} text", one.edges, one.low, one.high, one.adapts, one.log
    )
    for i in range(2)
    for name, one in _TEXT.items()
} | _ROW


def languages_of(feature: str, languages: Sequence[Sequence[str | None]]) -> list[str]:
    """Per row, the language that a feature is bounded by; of the row's own features both sides': "en", "en-de"."""
    if feature.endswith("_1") and len(languages) > 1:
        return [code or _UNKNOWN for code in languages[1]]
    first = [code or _UNKNOWN for code in languages[0]]
    if feature in _ROW and len(languages) > 1:
        return [
            a if a == (b or _UNKNOWN) else f"{a}-{b or _UNKNOWN}"
            for a, b in zip(first, languages[1], strict=True)
        ]
    return first


class Histograms:
    """(feature, language) → rows in each bin of the feature's edges."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], NDArray[np.int64]] = {}

    def add(self, features: Features, languages: Sequence[Sequence[str | None]]) -> None:
        """`languages`: per text column each row's language."""
        for name in FEATURES.keys() & features.keys():
            values = np.asarray(features[name], np.float64)
            there = ~np.isnan(values)
            codes, numbers = np.unique(
                np.array(languages_of(name, languages), dtype=str), return_inverse=True
            )
            bins = len(FEATURES[name].edges) - 1
            places = np.clip(np.searchsorted(FEATURES[name].edges, values[there], "right") - 1, 0, bins - 1)
            flat = np.bincount(numbers[there] * bins + places, minlength=len(codes) * bins)
            for code, found in zip(codes.tolist(), flat.reshape(len(codes), bins), strict=True):
                self._add((name, code), found)

    def _add(self, key: tuple[str, str], found: NDArray[np.int64]) -> None:
        self.counts[key] = self.counts[key] + found if key in self.counts else found.astype(np.int64)

    def merge(self, other: Histograms) -> None:
        for key, found in other.counts.items():
            self._add(key, found)

    def to_json(self) -> list[list[Any]]:
        """Of each, feature, language and the bins that hold rows."""
        return [
            [name, code, np.flatnonzero(found).tolist(), found[found > 0].tolist()]
            for (name, code), found in sorted(self.counts.items())
        ]

    @classmethod
    def from_json(cls, content: Iterable[Sequence[Any]]) -> Histograms:
        histograms = cls()
        for name, code, bins, rows in content:
            counts = np.zeros(len(FEATURES[name].edges) - 1, np.int64)
            counts[bins] = rows
            histograms.counts[name, code] = counts
        return histograms


def bounds(histograms: Histograms, policy: GovernancePolicy) -> Bounds:
    """Language None: the policy's own bounds; a language: where the data has stricter ones."""
    found: Bounds = {(name, None): fixed(feature, policy) for name, feature in FEATURES.items()}
    found["length_ratio", None] = Range(*_around(0.0, policy))
    for (name, code), counts in histograms.counts.items():
        if name.startswith("terminal"):
            if policy.thresholds.enabled and counts.sum() >= policy.thresholds.min_rows:
                found[name, code] = Range(low=0.5 if counts[1] >= MOSTLY_MARKED * counts.sum() else -np.inf)
        elif name.startswith("bits_per_byte"):
            if policy.perplexity.enabled and counts.sum() >= policy.thresholds.min_rows:
                found[name, code] = Range(high=_robust(name, counts, policy.perplexity.spread).high)
        elif policy.thresholds.enabled and counts.sum() >= policy.thresholds.min_rows:
            if name == "length_ratio":
                low, high = _around(_median(FEATURES[name].edges, counts), policy)
                own = _robust(name, counts, policy.thresholds.spread)
                found[name, code] = Range(max(low, own.low), min(high, own.high))
            elif FEATURES[name].adapts:
                found[name, code] = _stricter(
                    found[name, None], _robust(name, counts, policy.thresholds.spread)
                )
    return {key: limit for key, limit in found.items() if key[1] is None or limit != found[key[0], None]}


def fixed(feature: Feature, policy: GovernancePolicy) -> Range:
    """What the policy itself asks of a feature."""

    def value(field: str | None, otherwise: float) -> float:
        if field is None:
            return otherwise
        section, name = field.split(".")
        return float(getattr(getattr(policy, section), name))

    return Range(value(feature.low, -np.inf), value(feature.high, np.inf))


def _around(median: float, policy: GovernancePolicy) -> tuple[float, float]:
    room = float(np.log(policy.quality.max_length_ratio))
    return median - room, median + room


def _stricter(limit: Range, other: Range) -> Range:
    """On the sides that `limit` bounds."""
    low = max(limit.low, other.low) if np.isfinite(limit.low) else limit.low
    high = min(limit.high, other.high) if np.isfinite(limit.high) else limit.high
    return Range(low, high)


def _robust(name: str, counts: NDArray[np.int64], spread: float) -> Range:
    feature = FEATURES[name]
    edges = np.log1p(feature.edges) if feature.log else feature.edges
    median = _median(edges, counts)
    middles = (edges[1:] + edges[:-1]) / 2
    order = np.argsort(np.abs(middles - median), kind="stable")
    mad = abs(middles - median)[order][np.searchsorted(counts[order].cumsum(), counts.sum() / 2)]
    room = spread * 1.4826 * max(float(mad), float(np.median(np.diff(edges))))
    low, high = median - room, median + room
    return Range(
        _guarded(_back(low, feature), feature.edges, counts, -1),
        _guarded(_back(high, feature), feature.edges, counts, 1),
    )


def _back(value: float, feature: Feature) -> float:
    return float(np.expm1(value)) if feature.log else value


def _median(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Interpolated within its bin."""
    above = np.concatenate([[0], counts.cumsum()])
    return float(np.interp(counts.sum() / 2, above, edges))


def _guarded(bound: float, edges: NDArray[np.float64], counts: NDArray[np.int64], side: int) -> float:
    """The bound, or the edge beyond which `GUARD` of the rows lie, whichever lets more pass."""
    allowed = GUARD * counts.sum()
    if side > 0:
        beyond = counts[::-1].cumsum()[::-1]  # in this bin or above
        return max(bound, float(edges[:-1][beyond <= allowed].min(initial=edges[-1])))
    beyond = counts.cumsum()
    return min(bound, float(edges[1:][beyond <= allowed].max(initial=edges[0])))


def limits(
    feature: str, codes: Sequence[str], bounds: Bounds
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per row (low, high), by the row's language; `codes` as of `languages_of`."""
    general = bounds.get((feature, None), Range())
    own: Mapping[str, Range] = {code: bounds.get((feature, code), general) for code in set(codes)}
    low = np.fromiter((own[code].low for code in codes), np.float64, len(codes))
    high = np.fromiter((own[code].high for code in codes), np.float64, len(codes))
    return low, high
