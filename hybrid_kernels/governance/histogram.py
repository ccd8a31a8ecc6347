"""Histograms of features as drawings: where the rows of each language lie, and what they were held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Range

#: In pixels of the drawing: of the bins, of the bars, of a language's strip and from one to the next.
WIDTH, HEIGHT, STRIP, PITCH = 560, 72, 11, 16
_SHADES = 5
#: Narrower bins are drawn together.
MAX_BARS = 64


@dataclass(frozen=True)
class Bar:
    """Bins next to each other that look the same, in pixels from the left; `height` of 1, or `shade` of 1 to 5."""

    x: float
    width: float
    height: float
    shade: int
    title: str


@dataclass(frozen=True)
class Strip:
    """A language: its bars, and where its bounds are; None where there is none within the drawing."""

    language: str
    bars: list[Bar]
    low: float | None
    high: float | None
    bounds: str


@dataclass(frozen=True)
class Drawing:
    """A feature: all languages' bars together, a strip each, the marks of the axis (pixels, text).

    `shared`: bounds of all languages, in pixels; empty where they differ.
    """

    feature: str
    label: str
    rows: int
    bars: list[Bar]
    strips: list[Strip]
    shared: list[float]
    ticks: list[tuple[float, str]]


def draw(
    feature: str,
    label: str,
    edges: NDArray[np.float64],
    counts: Mapping[str, NDArray[np.int64]],
    bounds: Mapping[str, Range],
) -> Drawing:
    """All bins are drawn equally wide; heights and shades are logarithmic, for what matters is few rows far out.

    Args:
        edges: of the bins, ascending, one more than bins.
        counts: language → rows in each bin.
        bounds: language → what its rows are held against.
    """
    bins = len(edges) - 1
    ends = np.append(np.arange(0, bins, -(-bins // MAX_BARS)), bins)
    pixels = ends * (WIDTH / bins)
    merged = {language: np.add.reduceat(found, ends[:-1]) for language, found in counts.items()}
    total = np.sum(list(merged.values()), axis=0)
    peak = np.log1p(total.max(initial=1))
    places = zip(pairwise(pixels.tolist()), pairwise(edges[ends].tolist()), total.tolist(), strict=True)
    bars = [
        Bar(x, end - x, float(np.log1p(n) / peak), 0, f"{figure(low)} to {figure(high)}: {n:,} rows")
        for (x, end), (low, high), n in places
        if n
    ]
    strips = []
    for language, found in merged.items():
        limit = bounds.get(language, Range())
        low, high = _pixel(edges, limit.low), _pixel(edges, limit.high)
        strips.append(Strip(language, _shaded(found, pixels), low, high, describe(limit)))
    marks = range(0, bins + 1, _step(bins))
    ticks = [(i * WIDTH / bins, figure(edges[i])) for i in marks if np.isfinite(edges[i])]
    same = [strips[0].low, strips[0].high] if len({strip.bounds for strip in strips}) == 1 else []
    shared = [place for place in same if place is not None]
    return Drawing(feature, label, int(total.sum()), bars, strips, shared, ticks)


def _step(bins: int) -> int:
    """Bins from one mark of the axis to the next, so that some ten marks end with the last bin if they can."""
    parts = next((parts for parts in (8, 10, 6, 5, 9, 7) if bins % parts == 0), None)
    return 1 if bins <= 10 else bins // parts if parts else -(-bins // 8)


def _shaded(counts: NDArray[np.int64], pixels: NDArray[np.float64]) -> list[Bar]:
    shades = np.ceil(_SHADES * np.log1p(counts) / np.log1p(counts.max(initial=1)) - 1e-9).astype(int)
    ends = [0, *(np.flatnonzero(np.diff(shades)) + 1).tolist(), len(shades)]
    return [
        Bar(pixels[a], pixels[b] - pixels[a], 1.0, int(shades[a]), "") for a, b in pairwise(ends) if shades[a]
    ]


def _pixel(edges: NDArray[np.float64], value: float) -> float | None:
    """Where a value lies; None beyond the drawing."""
    if not edges[0] <= value <= edges[-1] or not np.isfinite(value):
        return None
    return float(np.interp(value, edges, np.arange(len(edges)))) * WIDTH / (len(edges) - 1)


def describe(limit: Range) -> str:
    """ "0.1 to 0.5", "at most 0.5"; empty where nothing is bounded."""
    low, high = np.isfinite(limit.low), np.isfinite(limit.high)
    if low and high:
        return f"{figure(limit.low)} to {figure(limit.high)}"
    return f"at most {figure(limit.high)}" if high else f"at least {figure(limit.low)}" if low else ""


def figure(value: float) -> str:
    """Three digits, as short as can be."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
