"""Charts of a result file: time against size, ratio bars, peak memory, roofline shares. Needs matplotlib.

They touch neither pyplot's global state nor a display. Times are ratios on a CPU; on a GPU also absolute. Sides are told
apart by names, markers and hatches, not by colour alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from hybrid_kernels.chart_style import GRID, INK, PALETTE, SOFT, STYLE, colour, marker

from . import series
from .records import Record
from .series import Bar, Family

WIDTH = 8.4  # inches: a README shows about 800 pixels
#: Colour, hatch and meaning of a side's role.
ROLES = {
    "ours": ("#1f6fb8", "", "this package"),
    "variant": ("#a9cdec", "///", "this package, another configuration"),
    "peer": ("#c3c8ce", "", "others"),
    "floor": ("#ffffff", "", "floor"),
}
TITLES = {"time": "time", "memory": "peak memory", "roofline": "share of the roofline"}
#: A ratio's axis is logarithmic where the largest is that many times the smallest.
WIDE_RANGE = 6.0
CHARACTER = 5.3  # points that a character of a label takes at the size of labels


@dataclass(frozen=True)
class Chart:
    """``name`` is that of its file without the ending, ``text`` what is said in place of the picture."""

    name: str
    family: Family
    text: str
    _draw: Callable[[], Figure]

    def figure(self) -> Figure:
        with matplotlib.rc_context(STYLE):
            return self._draw()


def charts(records: Iterable[Record]) -> list[Chart]:
    """All charts of the records, of which `series.newest` has taken what is out of date."""
    found: list[Chart] = []
    for family in series.drawn(series.families(records)):
        alone = series.bars(family)
        for quantity in series.QUANTITIES:
            if alone is not None and _panels(alone, quantity):
                found.append(_chart(alone, quantity, lambda f=alone, q=quantity: bar_chart(f, q)))
        for sweep, points in series.sweeps(family).items():
            if any(series.failure(record) is None for record in points.records):
                for absolute in (False, True) if family.on_gpu else (False,):
                    what = f"{'seconds' if absolute else 'time'}-against-{sweep}"
                    found.append(
                        _chart(points, what, lambda s=sweep, p=points, a=absolute: sweep_chart(s, p, a))
                    )
    names: dict[str, int] = {}
    result = []
    for chart in found:  # the same cases of several machines
        count = names[chart.name] = names.get(chart.name, 0) + 1
        name = chart.name if count == 1 else f"{chart.name}-{count}"
        result.append(Chart(name, chart.family, chart.text, chart._draw))
    return result


def _chart(family: Family, what: str, draw: Callable[[], Figure]) -> Chart:
    title = TITLES.get(what, what.replace("-", " "))
    text = f"{_title(family)}: {title}, {series.place(family)}; the numbers are in the tables."
    return Chart(f"{family.slug}.{what}", family, text, draw)


def _title(family: Family) -> str:
    return f"{family.kind}/{family.name}, {series.PASSES[family.part]}"


def _panels(family: Family, quantity: str) -> dict[str, list[Bar]]:
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


def _framed(
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


def _ticks(axis: Any, low: float, high: float, suffix: str, most: int) -> None:
    """At most so many ticks, as plain numbers, of a logarithmic axis."""
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [t for d in decades for step in steps if low <= (t := step * 10.0**d) <= high]
        if len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{suffix}"))
    axis.set_minor_locator(NullLocator())


def bar_chart(family: Family, quantity: str) -> Figure:
    """A panel a shape, a horizontal bar a side; error bars are quartiles of the ratio within a round."""
    panels, base = _panels(family, quantity), family.base
    sides = list(dict.fromkeys(bar.side for bars in panels.values() for bar in bars))
    columns = min(len(panels), 2 if len(panels) == 4 or quantity == "time" and family.on_gpu else 3)
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
        "roofline": "The least time that the memory or the arithmetic allows, measured on this machine, as a share of the time. ",
    }[quantity]
    height = rows * (len(sides) * (0.2 if lines == 1 else 0.3) + 0.62)
    figure, legend = _framed(
        height,
        f"{_title(family)}: {over}",
        " · ".join(part for part in (series.place(family), series.sizes(fixed)) if part),
        [*_missing(missing, len(panels)), *series.notes(family), note + series.origin(family)],
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
        _ticks(first.xaxis, low, max(values) * 1.1, "×", 12 if columns == 1 else 6)
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


def _missing(missing: dict[tuple[str, str], list[str]], cases: int) -> list[str]:
    """Notes of {(side, why): where}, the first of them; ``cases`` is everywhere."""
    notes = []
    for (side, why), where in missing.items():
        at = f" at {_cut('; '.join(where), 60)}" if len(where) < cases else ""
        notes.append(f"Not measured: {side}{at}: {_cut(why, 110)}")
    return notes if len(notes) <= 4 else [*notes[:3], f"Not measured: {len(notes) - 3} more, see the tables."]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _bar(axes: Axes, row: int, bar: Bar, low: float, room: float, origin: float) -> None:
    if bar.value is None:
        fitting = max(int(room / (0.85 * CHARACTER)) - 2, 12)
        why = _cut(f"not measured: {bar.label}", fitting)
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


def sweep_chart(sweep: str, family: Family, absolute: bool = False) -> Figure:
    """A line a side with its quartiles as a band: ratios to the floor, which is the line at 1, or times."""
    base = family.base
    title, sizes = series.abscissa(sweep, family)
    unit = 1.0
    if absolute:
        longest = max(r["median_seconds"] for r in family.records if series.failure(r) is None)
        unit = 1e3 if longest >= 1e-3 else 1e6
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    roles: dict[str, str] = {}
    missing: dict[tuple[str, str], list[str]] = {}
    for case, records in family.cases.items():
        for record in records:
            side, why = record["side"], series.failure(record)
            roles.setdefault(side, series.role(record))
            found = series.ratio(record, base)
            if absolute and why is None:
                low, high = (unit * quartile for quartile in record["quartiles_seconds"])
                point = (sizes[case], unit * record["median_seconds"], low, high)
            elif found is not None:
                point = (sizes[case], found[0], *(found[1] or (found[0], found[0])))
            else:
                missing.setdefault((side, why or f"{base} was not measured beside it"), []).append(
                    f"{sweep} {sizes[case]}"
                )
                continue
            lines.setdefault(side, []).append(point)
    if not absolute:
        lines.pop(base, None) if roles.get(base) == "floor" else None
    measure = ("ms" if unit == 1e3 else "µs") if absolute else f", × {base}"
    figure, _ = _framed(
        max(3.5, 0.24 * len(lines) + 0.9),
        f"{_title(family)}: time{f', {measure}' if absolute else measure}",
        " · ".join(part for part in (series.place(family), series.sizes(family.fixed())) if part),
        [
            *_missing(missing, len(family.cases)),
            *series.notes(family),
            "Less is faster; bands are quartiles. " + series.origin(family),
        ],
        legend=False,
    )
    axes = figure.subplots()
    # In the legend as they end on the right.
    order = sorted(lines, key=lambda side: -max(lines[side])[1])
    for side in order:
        index = list(lines).index(side)
        _line(axes, side, sorted(lines[side]), roles[side], index)
    if not absolute and base not in lines:
        axes.axhline(1, color=INK, linewidth=1.2, linestyle="--", label=f"{base} = 1")
    ticks = sorted(set(sizes.values()))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(title)
    values = [point[1] for points in lines.values() for point in points]
    if absolute or max(values) / min(values) > WIDE_RANGE:
        axes.set_yscale("log")
        _ticks(axes.yaxis, min(1.0, *values), max(values), "" if absolute else "×", 10)
    else:
        axes.set_ylim(bottom=min(0.9, *values) - 0.05)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    if absolute:
        axes.set_ylabel(f"time, {measure}")
    axes.grid(**GRID)
    figure.legend(loc="outside right center", fontsize=8.5, handlelength=2.6, labelspacing=0.7)
    return figure


LINES = ("-", (0, (6, 1.5)))


def _line(
    axes: Axes, side: str, points: Sequence[tuple[int, float, float, float]], role: str, index: int
) -> None:
    ours = role == "ours"
    shade = ROLES["ours"][0] if ours else INK if role == "floor" else colour(index % (len(PALETTE) - 1) + 1)
    xs, ys, low, high = zip(*points, strict=True)
    axes.plot(
        xs, ys, color=shade, marker="o" if ours else marker((index + index // 9) % 9 + 1), markersize=7 if ours else 6.5,
        linewidth=2.6 if ours else 1.5, linestyle="-" if ours else LINES[index % len(LINES)],
        markeredgecolor="white", markeredgewidth=0.5, zorder=4 if ours else 3, label=textwrap.fill(side, 24),
    )  # fmt: skip
    axes.fill_between(xs, low, high, color=shade, alpha=0.16, linewidth=0, zorder=2)
