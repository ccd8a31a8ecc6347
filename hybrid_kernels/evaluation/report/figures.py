"""The report's figures, each as SVG text, or None where there is nothing to draw.

They touch neither pyplot's global state nor a display.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from statistics import fmean
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from hybrid_kernels.chart_style import GRID, SOFT, STYLE, colour, line_style, marker, svg
from hybrid_kernels.evaluation.tables import training
from hybrid_kernels.evaluation.tables.cost import IMPLEMENTATIONS, Cost, Point, frontier, named
from hybrid_kernels.evaluation.tables.quality import Quality, name_and_code, reliability
from hybrid_kernels.evaluation.tables.shots import FewShot, shots_name
from hybrid_kernels.evaluation.tables.study import Setting
from hybrid_kernels.evaluation.tables.training import Curve, Mixing

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
def language_chart(found: Quality) -> Figure | None:
    """Accuracy of each method in each language, mean over seeds, with binomial standard errors of the rows."""
    methods, languages = found.metrics, found.languages
    if len(languages) < 2:
        return None
    lane = 0.74 / len(methods)
    figure = Figure(
        figsize=(WIDTH, 1.1 + len(languages) * max(0.3, 0.085 * len(methods) + 0.12)), layout="constrained"
    )
    axes = figure.subplots()
    for row in range(0, len(languages), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f4f6f8", linewidth=0, zorder=0)
    for index, (name, seeds) in enumerate(methods.items()):
        place = found.setting.place(name)
        means = [fmean(one["per_language"][code]["accuracy"] for one in seeds) for code in languages]
        rows = [seeds[0]["per_language"][code]["n"] for code in languages]
        axes.errorbar(
            means,
            [row + lane * (index - (len(methods) - 1) / 2) for row in range(len(languages))],
            xerr=[math.sqrt(p * (1 - p) / n) for p, n in zip(means, rows, strict=True)],
            fmt=marker(place),
            color=colour(place),
            markersize=5.5,
            elinewidth=1.2,
            label=found.setting.label(name),
        )
    axes.axvline(found.chance, color=SOFT, linestyle="--", linewidth=1, label="guessing")
    axes.set_yticks(range(len(languages)), [name_and_code(code) for code in languages])
    axes.set_ylim(len(languages) - 0.5, -0.5)
    axes.set_xlabel("accuracy (bars: ± 1 standard error of the number of rows)")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", **GRID)
    _legend_above(figure, axes)
    return figure


@_svg
def reliability_diagrams(found: Quality) -> Figure:
    """Accuracy against confidence per method, above the share of rows in each bin; all rows of all seeds."""
    shown = reliability(found)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(WIDTH * columns / 4, 3.4 * rows), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": [3, 1] * rows})
    for axes in grid.flat:
        axes.set_visible(False)
    for index, (name, every) in enumerate(shown.items()):
        row, column = divmod(index, columns)
        top, bottom = grid[2 * row, column], grid[2 * row + 1, column]
        bins = [b for b in every if b["count"]]
        total = sum(b["count"] for b in bins)
        error = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / total
        lower, widths = [b["lower"] for b in bins], [b["upper"] - b["lower"] for b in bins]
        bar = {
            "align": "edge",
            "color": colour(found.setting.place(name)),
            "edgecolor": "white",
            "linewidth": 0.6,
        }
        top.bar(lower, [b["accuracy"] for b in bins], widths, **bar)
        top.plot([0, 1], [0, 1], color=SOFT, linestyle="--", linewidth=1)
        top.set_title(f"{textwrap.fill(found.setting.label(name), 24)}\nECE {100 * error:.1f} %")
        top.set_ylim(0, 1)
        top.tick_params(labelbottom=False)
        bottom.bar(lower, [b["count"] / total for b in bins], widths, **bar)
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
def shots_figure(found: FewShot) -> Figure:
    """Mean accuracy over seeds against shots, with each seed as a dot and their range as a band."""
    figure = Figure(figsize=(WIDTH * 0.72, 4.2), layout="constrained")
    axes = figure.subplots()
    places = list(found.by_shots)
    for name in found.setting.methods:
        index = found.setting.place(name)
        there = [
            (x, [one["macro"]["accuracy"] for one in quality.metrics[name]])
            for x, quality in enumerate(found.by_shots.values())
            if name in quality.metrics
        ]
        xs, seeds = [x for x, _ in there], [values for _, values in there]
        axes.plot(
            xs, [fmean(one) for one in seeds], line_style(index), color=colour(index), marker=marker(index),
            linewidth=1.6, label=found.setting.label(name),
        )  # fmt: skip
        axes.fill_between(
            xs, [min(one) for one in seeds], [max(one) for one in seeds], color=colour(index), alpha=0.15
        )
        dots = [(x, value) for x, values in there for value in values]
        axes.scatter(
            [x for x, _ in dots], [y for _, y in dots], color=colour(index), s=9, alpha=0.6, linewidths=0
        )
    axes.set_xticks(range(len(places)), [shots_name(shots) for shots in places])
    axes.set_xlabel("training examples a language")
    axes.set_ylabel("accuracy, mean over languages")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(**GRID)
    _legend_above(figure, axes)
    return figure


@_svg
def frontier_figure(found: Quality) -> Figure | None:
    """Accuracy against time per step and against peak memory; the Pareto front as a line through ringed points."""
    kinds: list[tuple[Cost, float, str]] = [
        ("step_seconds", 1e-3, "time per training step, ms"),
        ("peak_memory_bytes", 2**20, "peak memory, MiB"),
    ]
    shown = [(points, unit, name) for cost, unit, name in kinds if (points := frontier(found, cost))]
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    grid = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, (points, unit, name) in zip(grid, shown, strict=True):
        _front(axes, points, unit)
        for point in points:
            index = found.setting.place(point.method)
            stock = point.implementation in ("peft", "transformers")
            axes.scatter(
                point.cost / unit,
                point.quality,
                s=60,
                marker=marker(index),
                facecolors="white" if stock else colour(index),
                edgecolors=colour(index),
                linewidths=1.6,
                zorder=3,
                label=named(found.setting, point.method)
                + (f" · {IMPLEMENTATIONS[point.implementation]}" if stock else ""),
            )
        axes.set_xlabel(name)
        axes.grid(**GRID)
        axes.margins(0.12)
    grid[0].set_ylabel("accuracy, mean over languages")
    grid[0].yaxis.set_major_formatter(PercentFormatter(1))
    _legend_above(figure, grid[0])
    return figure


def _front(axes: Axes, points: Sequence[Point], unit: float) -> None:
    front = sorted((p.cost / unit, p.quality) for p in points if p.front)
    xs, ys = [x for x, _ in front], [y for _, y in front]
    axes.step(xs, ys, where="post", color=SOFT, linewidth=1.2, linestyle="--", label="Pareto front", zorder=1)
    axes.scatter(xs, ys, s=170, facecolors="none", edgecolors=SOFT, linewidths=1, zorder=2)


@_svg
def training_curves(setting: Setting) -> Figure | None:
    """Training loss and gradient norm against the optimiser step."""
    loss, norm = training.loss_curves(setting), training.gradient_curves(setting)
    if not loss:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, setting, loss, "training loss (nats)")
    _draw(right, setting, norm, "gradient norm before clipping", logarithmic=True)
    _legend_above(figure, left)
    return figure


@_svg
def inside_curves(setting: Setting) -> Figure | None:
    """Gradient norms by branch, and the greatest orthogonality defect of a method's layers."""
    branches = {
        name: curves for name, curves in training.branch_curves(setting).items() if name not in ("head",)
    }
    defects = training.defect_curves(setting)
    panels = [(f"gradient norm, {name.replace('_', ' ')}", curves) for name, curves in branches.items()]
    panels += [("greatest ‖QᵀQ − I‖ of a layer", defects)] if defects else []
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    handles: dict[str, Any] = {}
    for axes, (name, curves) in zip(grid.flat, panels, strict=False):
        _draw(axes, setting, curves, name, logarithmic=True)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=min(5, len(handles))
    )
    return figure


def _draw(
    axes: Axes, setting: Setting, curves: Sequence[Curve], name: str, *, logarithmic: bool = False
) -> None:
    """The mean over seeds as a line, and their range as a band."""
    for curve in curves:
        index = setting.place(curve.method)
        style: dict[str, Any] = {"color": colour(index), "linewidth": 1.4}
        if len(curve.steps) < 30:
            style |= {"marker": marker(index), "markersize": 4}
        axes.plot(curve.steps, curve.mean, line_style(index), **style, label=setting.label(curve.method))
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour(index), alpha=0.15, linewidth=0)
    if logarithmic:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(name)
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(**GRID)


@_svg
def mixing_heat_map(setting: Setting, found: Mixing) -> Figure:
    """The mixing coefficient λ of each layer (rows, in model order) at each recorded step (columns)."""
    # The scale is symmetric about ½, where both branches weigh the same, and no narrower than ± 0.05.
    reach = max(0.05, float(np.nanmax(np.abs(found.values - 0.5))))
    layers = found.layers
    figure = Figure(figsize=(WIDTH, 1.3 + 0.2 * min(max(len(layers), 10), 48)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        found.values,
        aspect="auto",
        interpolation="nearest",
        cmap="PuOr_r",
        vmin=0.5 - reach,
        vmax=0.5 + reach,
    )
    every = math.ceil(len(layers) / 48)
    axes.set_yticks(range(0, len(layers), every), _short_names(layers)[::every], fontsize=8)
    ticks = range(0, len(found.steps), math.ceil(len(found.steps) / 12))
    axes.set_xticks(ticks, [str(found.steps[t]) for t in ticks])
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("layer")
    axes.set_title(setting.label(found.method), loc="left")
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
