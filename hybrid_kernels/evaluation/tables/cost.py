"""What methods cost, and what their quality costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hybrid_kernels.evaluation.results import Footprint
from hybrid_kernels.evaluation.tables.quality import Quality
from hybrid_kernels.evaluation.tables.study import Run, Setting
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value, with_best
from hybrid_kernels.training.method_config import distinct_labels

IMPLEMENTATIONS = {
    "peft": "PEFT",
    "transformers": "Transformers",
    "accelerated": "this package's kernels",
    "hybrid-kernels": "this package",
}
Cost = Literal["step_seconds", "peak_memory_bytes"]


@dataclass(frozen=True)
class Point:
    """An implementation of a method.

    Attributes:
        front: no other is at least as good in both and better in one.
        source: the file that the cost was read from.
    """

    method: str
    implementation: str
    cost: float
    quality: float
    front: bool
    source: str


def named(setting: Setting, method: str) -> str:
    """A method's label, but for what it says of its training's implementation: others of it are measured too."""
    labels = {name: one.label.replace(", accelerated", "") for name, one in setting.methods.items()}
    return distinct_labels(labels)[method]


def footprints(setting: Setting) -> list[tuple[Run, str, list[Footprint]]]:
    """(run, method, its implementations, the stock one first) of each method that was measured."""
    return [
        (run, method.name, method.footprint)
        for run in setting.runs
        for method in run.results.methods
        if method.footprint and method.name in setting.methods
    ]


def footprint_table(setting: Setting) -> Table | None:
    """Implementations × costs, with the ratio to the stock implementation of the same method."""
    found = footprints(setting)
    if not found:
        return None
    columns = [
        Column("Step", "ms", 1, "lower"),
        Column("Step", "× frozen model", 2, "lower"),
        Column("Tokens", "a second", 0, "higher"),
        Column("Peak memory", "MiB", 0, "lower"),
        Column("Trainable", "parameters", 0),
        Column("Adapter", "MiB", 2, "lower"),
        Column("Energy", "J a step", 2, "lower"),
        Column("Time", "stock = 1", 2, top="Against stock"),
        Column("Memory", "stock = 1", 2, top="Against stock"),
    ]
    rows = []
    for run, name, implementations in found:
        stock = implementations[0]
        # The adapter of the run that was measured: the method may be of several.
        cell = next((cell for cell in run.cells if cell.result.method == name), None)
        for one in implementations:
            sources = (_source(run),)
            low, high = one.step_time_spread
            joules = one.joules_per_step
            ratios: list[Value] = [Value(None), Value(None)]
            if one is not stock:
                ratios = [
                    Value(one.step_seconds / stock.step_seconds, sources=sources),
                    Value(one.peak_memory_bytes / stock.peak_memory_bytes, sources=sources)
                    if stock.peak_memory_bytes
                    else Value(None),
                ]
            values = [
                Value(1000 * one.step_seconds, sources=sources),
                Value(one.step_time_ratio, detail=f"{low:.2f} to {high:.2f}", sources=sources),
                Value(one.tokens_per_second, sources=sources),
                Value(one.peak_memory_bytes / 2**20, sources=sources),
                Value(one.trainable_parameters, sources=sources),
                Value(cell.result.adapter_bytes / 2**20, sources=(cell.source,)) if cell else Value(None),
                Value(joules, sources=sources),
                *ratios,
            ]
            label = f"{named(setting, name)} · {IMPLEMENTATIONS.get(one.implementation, one.implementation)}"
            if setting.machines[1:]:
                label += f", {run.machine}"
            rows.append(Row(label, values, setting.place(name)))
    # A column that nothing could be read for, as energy on most machines, is left out.
    full = [i for i in range(len(columns)) if any(row.values[i].value is not None for row in rows)]
    columns = [columns[i] for i in full]
    rows = [Row(row.label, [row.values[i] for i in full], row.method) for row in rows]
    notes = dict.fromkeys(run.results.step_time_note for run, _, _ in found)
    note = (
        f"{' '.join(notes)} Below the ratio: quartiles. Stock: PEFT's own implementation of the same method. Tokens: "
        "without padding. Trainable: with the head, which no budget counts."
        + (" Energy: of the whole machine." if any(c.name == "Energy" for c in columns) else "")
    )
    return Table(
        "footprint", "Training footprint", "Method · implementation", columns, with_best(columns, rows), note
    )


def frontier(found: Quality, cost: Cost) -> list[Point]:
    """Every measured implementation: accuracy of its method against its cost; empty where less than two."""
    places: dict[tuple[str, str], tuple[float, float]] = {}
    sources: dict[tuple[str, str], str] = {}
    for run, name, implementations in footprints(found.setting):
        if name in found.cells:
            accuracy = found.value(name, "accuracy").value
            assert isinstance(accuracy, float)
            for one in implementations:
                place = (name, one.implementation)
                places.setdefault(place, (float(getattr(one, cost)), accuracy))
                sources.setdefault(place, _source(run))
    if len(places) < 2:
        return []
    every = list(places.values())
    return [
        Point(
            name,
            implementation,
            here,
            accuracy,
            not any(_beats(other, (here, accuracy)) for other in every),
            sources[name, implementation],
        )
        for (name, implementation), (here, accuracy) in places.items()
    ]


def frontier_table(found: Quality) -> Table | None:
    """Implementations × (accuracy, cost, whether on the Pareto front) for time and memory."""
    time, memory = frontier(found, "step_seconds"), frontier(found, "peak_memory_bytes")
    if not time:
        return None
    setting = found.setting
    columns = [
        Column("Accuracy", "%", 1, "higher"),
        Column("Step", "ms", 1, "lower"),
        Column("Peak memory", "MiB", 0, "lower"),
        Column("Front, time"),
        Column("Front, memory"),
    ]
    rows = []
    for one, other in zip(time, memory, strict=True):
        measured = (one.source,)
        both = (*found.sources(one.method), *measured)
        values = [
            found.value(one.method, "accuracy"),
            Value(1000 * one.cost, sources=measured),
            Value(other.cost / 2**20, sources=measured),
            Value("on the front" if one.front else "dominated", sources=both),
            Value("on the front" if other.front else "dominated", sources=both),
        ]
        label = (
            f"{named(setting, one.method)} · {IMPLEMENTATIONS.get(one.implementation, one.implementation)}"
        )
        rows.append(Row(label, values, setting.place(one.method)))
    note = (
        "On the front: no other is at least as accurate and at least as cheap, and better in one. Estimates are taken "
        "as they are: whether two accuracies can be told apart is in the main table."
    )
    return Table(
        "frontier", "Cost and quality", "Method · implementation", columns, with_best(columns, rows), note
    )


def _source(run: Run) -> str:
    return str(run.folder / "footprint.json")


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other
