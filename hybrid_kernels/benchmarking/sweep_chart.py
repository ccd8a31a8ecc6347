"""Time against the size that varies: a line a side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from hybrid_kernels.chart_style import GRID, INK, PALETTE, colour, marker

from . import series
from .frame import ROLES, WIDE_RANGE, framed, heading, log_ticks, missing_notes
from .series import Family


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
                value, (low, high) = record["median_seconds"], record["quartiles_seconds"]
            elif found is not None:
                value, (low, high) = found[0], found[1] or (found[0], found[0])
            else:
                missing.setdefault((side, why or f"{base} was not measured beside it"), []).append(
                    f"{sweep} {sizes[case][1]}"
                )
                continue
            lines.setdefault(side, []).append((sizes[case][0], unit * value, unit * low, unit * high))
    if not absolute:
        lines.pop(base, None) if roles.get(base) == "floor" else None
    measure = ("ms" if unit == 1e3 else "µs") if absolute else f", × {base}"
    figure, _ = framed(
        max(3.5, 0.24 * len(lines) + 0.9),
        f"{heading(family)}: time{f', {measure}' if absolute else measure}",
        " · ".join(part for part in (series.place(family), series.sizes(family.fixed())) if part),
        [
            *missing_notes(missing, len(family.cases)),
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
    ticks = dict(sorted(sizes.values()))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([*ticks]))
    axes.xaxis.set_major_formatter(FixedFormatter([*ticks.values()]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(title)
    values = [point[1] for points in lines.values() for point in points]
    if absolute or max(values) / min(values) > WIDE_RANGE:
        axes.set_yscale("log")
        log_ticks(axes.yaxis, min(1.0, *values), max(values), "" if absolute else "×", 10)
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
        xs,
        ys,
        color=shade,
        marker="o" if ours else marker((index + index // 9) % 9 + 1),
        markersize=7 if ours else 6.5,
        linewidth=2.6 if ours else 1.5,
        linestyle="-" if ours else LINES[index % len(LINES)],
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=4 if ours else 3,
        label=textwrap.fill(side, 24),
    )
    axes.fill_between(xs, low, high, color=shade, alpha=0.16, linewidth=0, zorder=2)
