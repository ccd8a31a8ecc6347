"""The main results: quality and calibration of classifiers, over seeds, with intervals and marks; and their parity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hybrid_kernels.evaluation.calibration import apply_temperature, fit_temperature, reliability_bins
from hybrid_kernels.evaluation.metrics import METRICS, macro_average, per_language_metrics, run_metrics
from hybrid_kernels.evaluation.parallel import LANGUAGES
from hybrid_kernels.evaluation.predictions import Predictions
from hybrid_kernels.evaluation.significance import Bootstrap, Comparison, bootstrap
from hybrid_kernels.evaluation.tables.study import Cell, Resampled, Setting, seeds_of
from hybrid_kernels.evaluation.tables.table import (
    Column,
    Row,
    Table,
    Value,
    best_in_rows,
    over_seeds,
    with_best,
)

#: what methods are compared by, corrected for all of these together
COMPARED = ("accuracy", "ece", "gap")
RESAMPLES = 10_000
#: for a note, of the intervals of calibration errors
CHANCE = (
    "Chance makes a calibration error larger than it is, the more so the fewer the rows: its interval takes that off "
    "and may lie below the number."
)

MAIN_COLUMNS = (
    Column("Accuracy", "%", 1, "higher"),
    Column("Macro-F1", "%", 1, "higher"),
    Column("NLL", "nats", 3, "lower"),
    Column("Brier", "0 to 2", 3, "lower"),
    Column("ECE, equal width", "%", 1, "lower"),
    Column("ECE, equal mass", "%", 1, "lower"),
)
SCALED_COLUMNS = (
    Column("NLL", "nats", 3, "lower", top="After temperature scaling"),
    Column("ECE, equal width", "%", 1, "lower", top="After temperature scaling"),
    Column("T", "", 2, top="After temperature scaling"),
)


@dataclass(frozen=True, eq=False)
class Quality(Resampled):
    """The metrics of a setting's methods with so many shots."""

    @cached_property
    def metrics(self) -> dict[str, list[dict[str, Any]]]:
        """method → `run_metrics` of each seed."""
        return {
            name: [run_metrics(cell.predictions(), self.setting.reference) for cell in cells]
            for name, cells in self.cells.items()
        }

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Of `COMPARED` metrics, against the best baseline; none of one method."""
        there = {} if self.resampled is None else self.resampled.estimates
        return self.compared([metric for metric in COMPARED if metric in there])

    @cached_property
    def temperatures(self) -> dict[str, list[tuple[float, dict[str, float]]]]:
        """method → of each seed the temperature fitted on the dev part, and the scaled test part's macro metrics.

        Empty where some cell has no dev part.
        """
        if not all("dev" in cell.arrays for cells in self.cells.values() for cell in cells):
            return {}
        return {name: [_scaled(cell) for cell in cells] for name, cells in self.cells.items()}

    def value(self, method: str, metric: str) -> Value:
        """A macro metric, or `gap`: mean and deviation over seeds, interval and mark."""
        seeds = [
            one["parity"]["gap"] if metric == "gap" else one["macro"][metric] for one in self.metrics[method]
        ]
        there = self.resampled is not None and metric in self.resampled.estimates
        compared = [c for c in self.comparisons if c.method == method and c.metric == metric]
        return over_seeds(
            seeds,
            self.sources(method),
            interval=self.resampled.interval(method, metric) if self.resampled and there else None,
            mark=compared[0].mark if compared else None,
            p=compared[0].p_holm if compared else None,
        )

    def sources(self, method: str) -> tuple[str, ...]:
        return tuple(cell.source for cell in self.cells[method])

    def row(self, method: str, values: list[Value]) -> Row:
        return Row(self.setting.label(method), values, self.setting.place(method))

    @property
    def languages(self) -> list[str]:
        return sorted(next(iter(self.metrics.values()))[0]["per_language"])

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / next(iter(self.cells.values()))[0].predictions().probabilities.shape[1]

    @property
    def seeds(self) -> dict[str, list[int]]:
        return {
            name: [cell.result.seed for cell in cells]
            for name, cells in self.cells.items()
            if cells[0].trains
        }


def resample(
    predictions: Mapping[str, Sequence[Predictions]],
    metrics: Sequence[str],
    reference: str,
    seeds: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Bootstrap | None, str]:
    """`bootstrap`, or None and why there is none: too few rows to resample."""
    first = next(iter(predictions.values()))[0]
    languages = set(first.languages.tolist())
    if reference not in languages or len(languages) == 1:
        metrics = [metric for metric in metrics if metric != "gap"]
    try:
        return bootstrap(predictions, metrics, reference=reference, resamples=RESAMPLES, seeds=seeds), ""
    except ValueError as error:
        return None, str(error)


def quality(setting: Setting, cells: dict[str, list[Cell]], metrics: Sequence[str]) -> Quality:
    """Args: metrics: that get intervals."""
    predictions = {name: [cell.predictions() for cell in own] for name, own in cells.items()}
    return Quality(setting, cells, *resample(predictions, metrics, setting.reference, seeds_of(cells)))


def main_quality(setting: Setting) -> Quality:
    return quality(setting, setting.by_method(), (*METRICS, "gap"))


def main_table(found: Quality) -> Table:
    """Methods × macro metrics; the temperature-scaled ones beside them where there is a dev part."""
    columns = list(MAIN_COLUMNS) + list(SCALED_COLUMNS if found.temperatures else ())
    rows = []
    for name in found.cells:
        values = [found.value(name, metric) for metric in METRICS]
        if found.temperatures:
            fitted, sources = found.temperatures[name], found.sources(name)
            values += [over_seeds([macro[m] for _, macro in fitted], sources) for m in ("nll", "ece")]
            values.append(over_seeds([temperature for temperature, _ in fitted], sources))
        rows.append(found.row(name, values))
    caption = f"Main results with {found.setting.shown_shots}: means over {_plural(found.languages)}"
    return Table("main", caption, "Method", columns, with_best(columns, rows), _note(found))


def parity_table(found: Quality) -> Table | None:
    """Methods × how evenly accuracy is spread over languages; None for one language."""
    if len(found.languages) < 2:
        return None
    reference = found.setting.reference
    columns = [
        Column(f"Accuracy, {reference}", "%", 1, "higher"),
        Column("Worst language", "%", 1, "higher"),
        Column(f"Gap, {reference} − worst", "points", 1, "lower"),
        Column(f"{reference} − mean of others", "points", 1, "lower"),
        Column("Deviation over languages", "points", 1, "lower"),
        Column("Gini", "", 3, "lower"),
    ]
    rows = []
    for name, seeds in found.metrics.items():
        sources = found.sources(name)

        def of(key: str, seeds: Any = seeds, sources: Any = sources, **other: Any) -> Value:
            return over_seeds([one["parity"][key] for one in seeds], sources, **other)

        worst = Counter(one["parity"]["worst_language"] for one in seeds)
        values = [
            of("reference_accuracy"),
            of("worst_accuracy", detail=", ".join(code for code, _ in worst.most_common())),
            found.value(name, "gap"),
            *(of(key) for key in ("transfer_gap", "std", "gini")),
        ]
        rows.append(found.row(name, values))
    note = (
        "The worst language is found for each seed. Picking the worst of several languages makes the gap larger than 0 "
        "by chance alone: its interval corrects for that and may lie below the estimate."
    )
    caption = f"Parity over languages with {found.setting.shown_shots}"
    return Table("parity", caption, "Method", columns, with_best(columns, rows), note)


def language_table(found: Quality, metric: str) -> Table:
    """Languages × methods of one metric: "accuracy" or "ece"."""
    better, name = ("higher", "Accuracy") if metric == "accuracy" else ("lower", "Expected calibration error")
    columns = _method_columns(found, better)
    rows = []
    for code in found.languages:
        n = next(iter(found.metrics.values()))[0]["per_language"][code]["n"]
        values = [
            over_seeds([one["per_language"][code][metric] for one in seeds], found.sources(method))
            for method, seeds in found.metrics.items()
        ]
        rows.append(Row(f"{name_and_code(code)}, {n} rows", values))
    return Table(
        f"languages_{metric}",
        f"{name} by language, %",
        "Language",
        columns,
        best_in_rows(columns, rows),
        folded=metric != "accuracy",
    )


def group_table(found: Quality, by: str) -> Table | None:
    """Groups of languages × mean accuracy of methods; `by`: "by_script" or "by_resource_class"; None for one group."""
    groups = next(iter(found.metrics.values()))[0][by]["groups"]
    if len(groups) < 2:
        return None
    columns = _method_columns(found, "higher")
    rows = []
    for group, content in groups.items():
        values = [
            over_seeds([one[by]["groups"][group]["accuracy"] for one in seeds], found.sources(method))
            for method, seeds in found.metrics.items()
        ]
        rows.append(Row(f"{group} ({', '.join(content['languages'])})", values))
    script = by == "by_script"
    return Table(
        by,
        f"Mean accuracy by {'script' if script else 'class of resources'}, %",
        "Script" if script else "Class",
        columns,
        best_in_rows(columns, rows),
        ""
        if script
        else "Classes of Joshi et al. 2020 (arXiv 2004.09095): 5 has the most data, 0 the least.",
    )


def reliability(found: Quality) -> dict[str, list[dict[str, Any]]]:
    """method → `reliability_bins` of all rows of all seeds together."""
    return {
        name: reliability_bins(
            np.concatenate([cell.predictions().probabilities for cell in cells]),
            np.concatenate([cell.predictions().labels for cell in cells]),
        )
        for name, cells in found.cells.items()
    }


def name_and_code(code: str) -> str:
    """Of a language, for a reader: "German (de)"; its code alone where `LANGUAGES` lacks it."""
    return f"{LANGUAGES[code][0]} ({code})" if code in LANGUAGES else code


def _method_columns(found: Quality, better: Any) -> list[Column]:
    return [Column(found.setting.label(name), "%", 1, better) for name in found.cells]


def _scaled(cell: Cell) -> tuple[float, dict[str, float]]:
    dev, test = cell.arrays["dev"], cell.predictions()
    temperature = fit_temperature(dev["log_probabilities"], dev["labels"])
    scaled = apply_temperature(test.probabilities, temperature)
    return temperature, macro_average(per_language_metrics(scaled, test.labels, test.languages.tolist()))


def _note(found: Quality) -> str:
    text = found.setting.describe(found.cells)
    if found.resampled is None:
        return f"{text}No intervals: {found.why}."
    clusters = len(set(next(iter(found.cells.values()))[0].arrays["test"]["clusters"].tolist()))
    text += (
        f"In brackets: 95 % intervals of a bootstrap over {clusters} groups of rows that share an item or a premise"
        + (", and over seeds. " if any(own[1:] for own in found.seeds.values()) else ". ")
    )
    text += f"{CHANCE} "
    if tested := [comparison for comparison in found.comparisons if comparison.tested]:
        text += (
            f"▲ ▼: significantly better or worse than the best baseline ({_best_baselines(found)}) in accuracy, ECE "
            f"of equal width or parity gap; p < 0.05, paired bootstrap, Holm-corrected for "
            f"{len(tested)} comparisons{pairs_in_words(tested, found.cells)}. Other columns are not tested. "
        )
    if found.temperatures:
        text += "The temperature T is fitted on the dev part, for each seed. "
    return text + "Bold: best of the column, whether or not others can be told from it."


def pairs_in_words(tested: Sequence[Comparison], cells: Mapping[str, Sequence[Cell]]) -> str:
    """For a table's note, where a comparison rests on fewer seeds than the means that it compares."""
    pairs = sorted({comparison.seeds for comparison in tested})
    if all(one.seeds == len(cells[one.method]) == len(cells[one.baseline]) for one in tested):
        return ""
    number = f"{pairs[0]} to {pairs[-1]}" if pairs[1:] else f"{pairs[0]}"
    return f", each over the {number} seeds that both methods have"


def _best_baselines(found: Quality) -> str:
    chosen = {c.metric: found.setting.label(c.baseline) for c in found.comparisons}
    if len(set(chosen.values())) == 1:
        return next(iter(chosen.values()))
    names = {"accuracy": "accuracy", "ece": "ECE", "gap": "gap"}
    return ", ".join(f"{names[metric]}: {label}" for metric, label in chosen.items())


def _plural(languages: Sequence[str]) -> str:
    return f"{len(languages)} language{'s' * (len(languages) != 1)}"
