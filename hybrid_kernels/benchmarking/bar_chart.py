"""Bars of one quantity: a panel a shape, a horizontal bar a side."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from hybrid_kernels.chart_style import GRID, INK, SOFT

from . import series
from .frame import ROLES, WIDE_RANGE, WIDTH, cut, framed, heading, log_ticks, missing_notes
from .series import Bar, Family

TITLES = {"time": "time", "memory": "peak memory", "roofline": "share of the roofline"}
CHARACTER = 5.3  # points that a character of a label takes at the size of labels


def panels_of(family: Family, quantity: str) -> dict[str, list[Bar]]:
    """{case: bars}, of the cases with a value. The floor is the line at 1 of a ratio, no bar."""
    base = family.base
    panels = {}
    for case, records in family.cases.items():
        bars = [
            bar
            for record in records
            if (bar := series.bar(record, quantity, base)) is not None
            and not (quantity == "time" and bar.role == "floor")
        ]
        if any(bar.value is not None for bar in bars):
            panels[case] = bars
    return panels


def bar_chart(family: Family, quantity: str) -> Figure:
    """A panel a shape, a horizontal bar a side; error bars are quartiles of the ratio within a round."""
    panels, base = panels_of(family, quantity), family.base
    sides = list(dict.fromkeys(bar.side for bars in panels.values() for bar in bars))
    columns = min(len(panels), 2 if len(panels) == 4 or (quantity == "time" and family.on_gpu) else 3)
    rows = math.ceil(len(panels) / columns)
    names = [textwrap.fill(side, 34) for side in sides]
    lines = max(name.count("\n") + 1 for name in names)
    missing: dict[tuple[str, str], list[str]] = {}
    for case, bars in panels.items():
        for bar in bars:
            if bar.value is None:
                where = series.sizes(family.cases[case][0]["shape"])
                missing.setdefault((bar.side, bar.label), []).append(where)
    kinds = [kind for kind in ROLES if any(bar.role == kind for bars in panels.values() for bar in bars)]
    fixed = {name: size for name, size in family.fixed().items() if len(panels) > 1}
    over = f"{TITLES[quantity]}{f', × {base}' if quantity == 'time' else ''}"
    note = {
        "time": "Less is faster; error bars are quartiles. ",
        "memory": "What the step takes beyond what was there before it. ",
        "roofline": "The least time that memory or arithmetic allow, by measured rates, as a share of the time. ",
    }[quantity]
    height = rows * (len(sides) * (0.2 if lines == 1 else 0.3) + 0.62)
    figure, legend = framed(
        height,
        f"{heading(family)}: {over}",
        " · ".join(part for part in (series.place(family), series.sizes(fixed)) if part),
        [*missing_notes(missing, len(panels)), *series.notes(family), note + series.origin(family)],
        legend=True,
    )
    grid = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False)
    values = [bar.value for bars in panels.values() for bar in bars if bar.value is not None]
    log = quantity == "time" and max(values) / min(values) > WIDE_RANGE
    room = 72 * (WIDTH - max(len(line) for name in names for line in name.split("\n")) * 0.078) / columns - 18
    low = min(1.0, *values) / 1.06 if log else 0.0
    ends = [
        _reach(
            bar.quartiles[1] if bar.quartiles else bar.value, low, len(bar.label) * CHARACTER + 6, room, log
        )
        for bars in panels.values()
        for bar in bars
        if bar.value is not None
    ]
    first = grid[0, 0]
    first.set_ylim(len(sides) - 0.45, -0.55)
    first.set_yticks(range(len(sides)), names, fontsize=8.5)
    ours = {bar.side for bars in panels.values() for bar in bars if bar.role == "ours"}
    for left in grid[:, 0]:
        left.tick_params(axis="y", length=0, labelsize=8.5)
        for label, side in zip(left.get_yticklabels(), sides, strict=True):
            if side in ours:
                label.set(fontweight="bold", color=INK)
    for axes, (case, bars) in zip(grid.flat, panels.items(), strict=False):
        for bar in bars:
            _bar(axes, sides.index(bar.side), bar, low, room, 1.0 if log else 0.0)
        shape = {name: size for name, size in family.cases[case][0]["shape"].items() if name not in fixed}
        axes.set_title(series.sizes(shape), loc="left", fontsize=8.5, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8, labelbottom=True)
        axes.grid(axis="x", **GRID)
        axes.spines["left"].set_visible(False)
        if quantity == "time":
            axes.axvline(1, color=INK, linewidth=1, zorder=3)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    if log:
        first.set_xscale("log")
        log_ticks(first.xaxis, low, max(values) * 1.1, "×", 12 if columns == 1 else 6)
    else:
        share = FixedLocator(range(0, 101, 50)) if quantity == "roofline" else None
        first.xaxis.set_major_locator(share or MaxNLocator(4 if columns > 1 else 8))
        suffix = {"time": "×", "memory": "", "roofline": " %"}[quantity]
        first.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{suffix}"))
    first.set_xlim(low, max(ends))
    handles: list[Any] = [
        Patch(
            facecolor=ROLES[kind][0], hatch=ROLES[kind][1], edgecolor=INK, linewidth=0.5, label=ROLES[kind][2]
        )
        for kind in kinds
    ]
    if quantity == "time":
        handles.append(Line2D([], [], color=INK, linewidth=1, label=f"1 = {base}"))
    _legend(figure, handles, legend)
    return figure


def _reach(end: float, low: float, label: float, room: float, log: bool) -> float:
    """How far the axis must go for a label, in points, to fit behind a bar's end."""
    share = max(1 - label / room, 0.2)
    return low * (end / low) ** (1 / share) if log else end / share


def _bar(axes: Axes, row: int, bar: Bar, low: float, room: float, origin: float) -> None:
    if bar.value is None:
        fitting = max(int(room / (0.85 * CHARACTER)) - 2, 12)
        why = cut(f"not measured: {bar.label}", fitting)
        axes.annotate(
            why, (0, row), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7.5, style="italic", color=SOFT,
        )  # fmt: skip
        return
    face, hatch, _ = ROLES[bar.role]
    axes.barh(
        row, bar.value - origin, left=origin, height=0.68, color=face, hatch=hatch, edgecolor=INK, linewidth=0.5,
        zorder=2,
    )  # fmt: skip
    end = max(bar.value, origin)
    if bar.quartiles is not None:
        below, above = bar.quartiles
        spread = [[max(bar.value - below, 0)], [max(above - bar.value, 0)]]
        axes.errorbar(
            bar.value, row, xerr=spread, color=INK, elinewidth=0.9, capsize=2, capthick=0.9, zorder=4
        )
        end = max(end, above)
    axes.annotate(
        bar.label, (end, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
        color=INK, fontweight="bold" if bar.role == "ours" else "normal",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}, zorder=5,
    )  # fmt: skip


def _legend(figure: Figure, handles: list[Any], y: float) -> None:
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.004, y), ncols=len(handles), fontsize=8.5,
        handlelength=1.6, columnspacing=1.6, borderaxespad=0.2,
    )  # fmt: skip
