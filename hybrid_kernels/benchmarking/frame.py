"""What the charts of benchmarks share: the frame with its texts, the looks of sides, the ticks of wide ranges."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hybrid_kernels.chart_style import INK, SOFT

from . import series
from .series import Family

WIDTH = 8.4  # inches: a README shows about 800 pixels
#: Colour, hatch and meaning of a side's role.
ROLES = {
    "ours": ("#1f6fb8", "", "this package"),
    "variant": ("#a9cdec", "///", "this package, another configuration"),
    "peer": ("#c3c8ce", "", "others"),
    "floor": ("#ffffff", "", "floor"),
}
#: A ratio's axis is logarithmic where the largest is that many times the smallest.
WIDE_RANGE = 6.0


def heading(family: Family) -> str:
    return f"{family.kind}/{family.name}, {series.PASSES[family.part]}"


def framed(
    height: float, title: str, subtitle: str, notes: Sequence[str], legend: bool
) -> tuple[Figure, float]:
    """A figure with its texts; the axes go into what is left, ``height`` inches of it. Also the legend's height."""
    subtitles = textwrap.wrap(subtitle, 122)
    footnotes = [line for note in notes for line in textwrap.wrap(note, 155)]
    top = 0.42 + 0.17 * len(subtitles) + (0.3 if legend else 0.06)
    bottom = 0.12 + 0.145 * len(footnotes)
    total = height + top + bottom
    figure = Figure(figsize=(WIDTH, total), layout="constrained", facecolor="white")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.008, bottom / total, 0.984, height / total), w_pad=0.06, h_pad=0.06)
    figure.text(0.012, 1 - 0.1 / total, title, va="top", fontsize=12, fontweight="bold", color=INK)
    y = 1 - 0.36 / total
    figure.text(0.012, y, "\n".join(subtitles), va="top", fontsize=9, color=SOFT, linespacing=1.25)
    figure.text(
        0.012, 0.08 / total, "\n".join(footnotes), va="bottom", fontsize=7.2, color=SOFT, linespacing=1.3
    )
    return figure, 1 - (top - 0.3) / total


def log_ticks(axis: Any, low: float, high: float, suffix: str, most: int) -> None:
    """At most so many ticks, as plain numbers, of a logarithmic axis."""
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [t for d in decades for step in steps if low <= (t := step * 10.0**d) <= high]
        if len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{suffix}"))
    axis.set_minor_locator(NullLocator())


def missing_notes(missing: dict[tuple[str, str], list[str]], cases: int) -> list[str]:
    """Notes of {(side, why): where}, the first of them; ``cases`` is everywhere."""
    notes = []
    for (side, why), where in missing.items():
        at = f" at {cut('; '.join(where), 60)}" if len(where) < cases else ""
        notes.append(f"Not measured: {side}{at}: {cut(why, 110)}")
    return notes if len(notes) <= 4 else [*notes[:3], f"Not measured: {len(notes) - 3} more, see the tables."]


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
