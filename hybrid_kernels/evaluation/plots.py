"""The report's figures, each as SVG text, or None where there is nothing to draw.

They touch neither pyplot's global state nor a display.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from hybrid_kernels.chart_style import GRID, STYLE, colour, marker, svg
from hybrid_kernels.evaluation.findings import sampling_error
from hybrid_kernels.evaluation.results import Method

WIDTH = 10.4  # inches; the page is 1040 px wide

P = ParamSpec("P")


def _svg(draw: Callable[P, Figure | None]) -> Callable[P, str | None]:
    @wraps(draw)
    def render(*args: P.args, **kwargs: P.kwargs) -> str | None:
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        return None if figure is None else svg(figure)

    return render


@_svg
def language_chart(methods: Sequence[Method], languages: dict[str, str], chance: float) -> Figure:
    """Accuracy of each method in each language (code → name), with standard errors."""
    lane = 0.74 / len(methods)
    figure = Figure(
        figsize=(WIDTH, 1.1 + len(languages) * max(0.3, 0.085 * len(methods) + 0.12)), layout="constrained"
    )
    axes = figure.subplots()
    for row in range(0, len(languages), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", linewidth=0, zorder=0)
    for index, method in enumerate(methods):
        scores = method.evaluation.per_language
        rows = [row for row, code in enumerate(languages) if code in scores]
        found = [scores[code] for code in languages if code in scores]
        axes.errorbar(
            [s.accuracy for s in found],
            [row + lane * (index - (len(methods) - 1) / 2) for row in rows],
            xerr=[sampling_error(s) for s in found],
            fmt=marker(index),
            color=colour(index),
            markersize=5.5,
            elinewidth=1.2,
            label=method.label,
        )
    axes.axvline(chance, color="#57606a", linestyle="--", linewidth=1, label="guessing")
    axes.set_yticks(range(len(languages)), list(languages.values()))
    axes.set_ylim(len(languages) - 0.5, -0.5)
    axes.set_xlabel("accuracy (bars: ± 1 standard error of the number of rows)")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", **GRID)
    _legend_above(figure, axes)
    return figure


@_svg
def reliability_diagrams(methods: Sequence[Method]) -> Figure | None:
    """Accuracy against confidence per method, above the share of rows in each bin."""
    errors = [method.evaluation.pooled_ece for method in methods]
    shown = [(colour(i), methods[i], ece) for i, ece in enumerate(errors) if ece is not None]
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(WIDTH * columns / 4, 3.4 * rows), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": [3, 1] * rows})
    for axes in grid.flat:
        axes.set_visible(False)
    for index, (shade, method, ece) in enumerate(shown):
        row, column = divmod(index, columns)
        top, bottom = grid[2 * row, column], grid[2 * row + 1, column]
        bins = [b for b in method.evaluation.reliability if b.count]
        total = sum(b.count for b in bins)
        lower, widths = [b.lower for b in bins], [b.upper - b.lower for b in bins]
        bar = {"align": "edge", "color": shade, "edgecolor": "white", "linewidth": 0.6}
        top.bar(lower, [b.accuracy for b in bins], widths, **bar)
        top.plot([0, 1], [0, 1], color="#57606a", linestyle="--", linewidth=1)
        top.set_title(f"{textwrap.fill(method.label, 24)}\nECE {100 * ece:.1f} %")
        top.set_ylim(0, 1)
        top.tick_params(labelbottom=False)
        bottom.bar(lower, [b.count / total for b in bins], widths, **bar)
        bottom.set_xlabel("confidence")
        bottom.yaxis.set_major_locator(MaxNLocator(2))
        for axes in (top, bottom):
            axes.set_visible(True)
            axes.set_xlim(0, 1)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.grid(axis="y", **GRID)
        if column == 0:
            top.set_ylabel("accuracy")
            bottom.set_ylabel("rows")
    return figure


@_svg
def training_curves(methods: Sequence[Method]) -> Figure | None:
    """Training loss and gradient norm against the optimiser step."""
    shown = [(i, m) for i, m in enumerate(methods) if m.history]
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    loss, norm = figure.subplots(1, 2)
    for index, method in shown:
        style: dict[str, Any] = {"color": colour(index), "linewidth": 1.4}
        if len(method.history) < 30:
            style |= {"marker": marker(index), "markersize": 4}
        steps = [e.step for e in method.history]
        loss.plot(steps, [e.loss for e in method.history], **style, label=method.label)
        norms = [math.nan if e.grad_norm is None else e.grad_norm for e in method.history]
        norm.plot(steps, norms, **style)
    norm.set_yscale("log", nonpositive="mask")
    norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    norm.yaxis.set_major_formatter("{x:g}")
    norm.yaxis.set_minor_locator(NullLocator())
    loss.set_ylabel("training loss (nats per row)")
    norm.set_ylabel("gradient norm (log scale)")
    for axes in (loss, norm):
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(**GRID)
    _legend_above(figure, loss)
    return figure


@_svg
def mixing_heat_map(method: Method) -> Figure | None:
    """The mixing coefficient λ of each layer (rows, in model order) at each recorded step (columns)."""
    layers = list(dict.fromkeys(layer for entry in method.mixing_history for layer in entry.values))
    if not layers:
        return None
    values = [[entry.values.get(layer, math.nan) for entry in method.mixing_history] for layer in layers]
    # The scale is symmetric about ½, where both branches weigh the same, and no narrower than ± 0.05.
    reach = max([0.05] + [abs(v - 0.5) for row in values for v in row if math.isfinite(v)])
    figure = Figure(figsize=(WIDTH, 1.3 + 0.2 * min(len(layers), 48)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        values, aspect="auto", interpolation="nearest", cmap="PuOr_r", vmin=0.5 - reach, vmax=0.5 + reach
    )
    every = math.ceil(len(layers) / 48)
    axes.set_yticks(range(0, len(layers), every), _short_names(layers)[::every], fontsize=8)
    steps = [entry.step for entry in method.mixing_history]
    ticks = range(0, len(steps), math.ceil(len(steps) / 12))
    axes.set_xticks(ticks, [str(steps[t]) for t in ticks])
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("layer")
    axes.set_title(method.label, loc="left")
    figure.colorbar(image, ax=axes, pad=0.015, label="λ   (reflections ← ½ → low rank)")
    return figure


def _short_names(layers: Sequence[str]) -> list[str]:
    """Drop the module path which all layers share; keep at most the last 44 characters."""
    paths = [layer.split(".") for layer in layers]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    names = [".".join(path[shared:]) for path in paths]
    return [name if len(name) <= 44 else "…" + name[-43:] for name in names]


def _legend_above(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)))
