"""Charts of a result file: time against size, ratio bars, peak memory, roofline shares. Needs matplotlib.

They touch neither pyplot's global state nor a display. Times are ratios on a CPU; on a GPU also absolute. Sides are
told apart by names, markers and hatches, not by colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import matplotlib
from matplotlib.figure import Figure

from hybrid_kernels.chart_style import STYLE

from . import series
from .bar_chart import TITLES, bar_chart, panels_of
from .frame import heading
from .records import Record
from .series import Family
from .sweep_chart import sweep_chart


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
    for family in series.drawn(series.together(series.families(records))):
        alone = series.bars(family)
        for quantity in series.QUANTITIES:
            if alone is not None and panels_of(alone, quantity):
                found.append(_chart(alone, quantity, partial(bar_chart, alone, quantity)))
        for sweep, points in series.sweeps(family).items():
            if any(series.failure(record) is None for record in points.records):
                for absolute in (False, True) if family.on_gpu else (False,):
                    what = f"{'seconds' if absolute else 'time'}-against-{sweep}"
                    found.append(_chart(points, what, partial(sweep_chart, sweep, points, absolute)))
    names: dict[str, int] = {}
    result = []
    for chart in found:  # the same cases of several machines
        count = names[chart.name] = names.get(chart.name, 0) + 1
        name = chart.name if count == 1 else f"{chart.name}-{count}"
        result.append(Chart(name, chart.family, chart.text, chart._draw))
    return result


def _chart(family: Family, what: str, draw: Callable[[], Figure]) -> Chart:
    title = TITLES.get(what, what.replace("-", " "))
    text = f"{heading(family)}: {title}, {series.place(family)}; the numbers are in the tables."
    return Chart(f"{family.slug}.{what}", family, text, draw)
