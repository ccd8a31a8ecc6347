"""Translation: quality of every direction, against copying the source, and the balance of directions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hybrid_kernels.evaluation.significance import Bootstrap, Comparison
from hybrid_kernels.evaluation.tables.quality import pairs_in_words
from hybrid_kernels.evaluation.tables.study import Cell, Setting, seeds_in_words, seeds_of
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value, best_in_rows, over_seeds
from hybrid_kernels.evaluation.translation_significance import TRANSLATION_DIRECTIONS, bootstrap_translations

_METRICS = {
    "bleu": ("BLEU", "", 1, "higher"),
    "chrf": ("chrF++", "", 1, "higher"),
    "bits_per_byte": ("Bits per byte", "", 3, "lower"),
}


def scores(cell: Cell) -> dict[str, Any]:
    """What `evaluation.translation.evaluate_translations` returned of a cell's test part."""
    return cell.result.metrics["test"]


@dataclass(frozen=True, eq=False)
class Translations:
    """The translations of a setting's methods.

    Attributes:
        cells: method → its cells, as `Setting.by_method` aligns them.
        resampled: None where there can be no intervals; `why` says why.
    """

    setting: Setting
    cells: dict[str, list[Cell]]
    resampled: Bootstrap | None
    why: str

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Of the means over directions, against the best baseline; none of one method."""
        if self.resampled is None or len(self.cells) < 2:
            return []
        baselines = [name for name in self.setting.baselines if name in self.cells] or list(self.cells)
        return self.resampled.compare(baselines)

    @property
    def directions(self) -> dict[str, Any]:
        """Those of the first cell; the rows are the same in all."""
        found: dict[str, Any] = scores(next(iter(self.cells.values()))[0])["directions"]
        return found

    def mean(self, method: str, metric: str) -> Value:
        """A metric's mean over directions: mean and deviation over seeds, interval and mark."""
        cells = self.cells[method]
        compared = [c for c in self.comparisons if c.method == method and c.metric == metric]
        return over_seeds(
            means(cells, metric),
            _sources(cells),
            interval=None if self.resampled is None else self.resampled.interval(method, metric),
            mark=compared[0].mark if compared else None,
            p=compared[0].p_holm if compared else None,
        )


def translations(setting: Setting) -> Translations:
    cells = setting.by_method()
    there = next(iter(scores(next(iter(cells.values()))[0])["directions"].values()))
    metrics = [metric for metric in TRANSLATION_DIRECTIONS if metric in there]
    arrays = {name: [cell.arrays["test"] for cell in own] for name, own in cells.items()}
    try:
        return Translations(
            setting, cells, bootstrap_translations(arrays, metrics, seeds=seeds_of(cells)), ""
        )
    except ValueError as error:
        return Translations(setting, cells, None, str(error))


def direction_tables(found: Translations) -> list[Table]:
    """For each metric there is: directions × methods, with their mean, and for BLEU and chrF++ copying the source."""
    setting, cells, first = found.setting, found.cells, found.directions
    tables = []
    for metric, (name, unit, decimals, better) in _METRICS.items():
        if not all(metric in direction for direction in first.values()):
            continue
        columns = [Column(setting.label(m), unit, decimals, better) for m in cells]  # type: ignore[arg-type]
        copied = all("copy" in direction for direction in first.values()) and metric != "bits_per_byte"
        rows = []
        for direction, content in first.items():
            values = [
                over_seeds([scores(cell)["directions"][direction][metric] for cell in own], _sources(own))
                for own in cells.values()
            ]
            tokens = " *" if metric == "bleu" and content.get("first") == "chrf" else ""
            rows.append(Row(f"{direction.replace('-', ' → ')}{tokens}, {content['n']} sentences", values))
        rows.append(Row("Mean of directions", [found.mean(method, metric) for method in cells]))
        rows = best_in_rows(columns, rows)
        if copied:
            # The sources are the same in every cell.
            columns.append(Column("Source copied", unit, decimals))
            some = next(iter(cells.values()))[0].source
            baseline = [content["copy"][metric] for content in first.values()]
            baseline.append(sum(baseline) / len(baseline))
            rows = [
                Row(row.label, [*row.values, Value(number, sources=(some,))])
                for row, number in zip(rows, baseline, strict=True)
            ]
        tables.append(
            Table(
                f"translation_{metric}",
                f"Translation with {setting.shown_shots}: {name}",
                "Direction",
                columns,
                rows,
                _note(metric, found),
            )
        )
    return tables


def balance_table(setting: Setting, metric: str) -> Table | None:
    """Languages × methods: to English minus from English; None where no language has both directions."""
    cells = setting.by_method()
    first = scores(next(iter(cells.values()))[0])["balance"].get(metric)
    if not first or not first["languages"]:
        return None
    name, unit, decimals, _ = _METRICS[metric]
    columns = []
    for method in cells:
        top = setting.label(method)
        columns += [
            Column("to English", unit, decimals, top=top),
            Column("from English", unit, decimals, top=top),
        ]
        columns.append(Column("difference", unit, decimals, signed=True, top=top))
    rows = []
    for code in first["languages"]:
        values = [
            over_seeds(
                [scores(cell)["balance"][metric]["languages"][code][key] for cell in own], _sources(own)
            )
            for own in cells.values()
            for key in ("to_english", "from_english", "difference")
        ]
        rows.append(Row(code, values))
    values = []
    for own in cells.values():
        mean = over_seeds([scores(cell)["balance"][metric]["mean"] for cell in own], _sources(own))
        values += [Value(None), Value(None), mean]
    rows.append(Row("Mean", values))
    meaning = (
        "a positive difference means that English is the harder side to produce"
        if metric == "bits_per_byte"
        else "a positive difference means that translations into English score better"
    )
    return Table(
        f"balance_{metric}",
        f"Directional balance, {name}: to English minus from English",
        "Language",
        columns,
        rows,
        f"Scores in different target languages are not of one scale: {meaning}, and compare methods, not languages.",
    )


def means(cells: list[Cell], metric: str) -> list[float]:
    """The mean over directions of each cell."""
    return [
        sum(one[metric] for one in scores(cell)["directions"].values()) / len(scores(cell)["directions"])
        for cell in cells
    ]


def lead_metric(found: Translations) -> str:
    """The metric to rank methods by: chrF++ where there are translations, whose tokens need no choice."""
    return "chrf" if "chrf" in next(iter(found.directions.values())) else "bits_per_byte"


def _note(metric: str, found: Translations) -> str:
    cells, first = found.cells, found.directions
    text = seeds_in_words(cells)
    if found.resampled is None:
        text += f"No intervals: {found.why}. "
    else:
        clusters = len(set(next(iter(cells.values()))[0].arrays["test"]["clusters"].tolist()))
        text += (
            f"In brackets, of the means: 95 % intervals of a bootstrap over {clusters} sentences, each in all "
            f"directions{', and over seeds. ' if any(own[1:] for own in cells.values()) else '. '}"
        )
    tested = [comparison for comparison in found.comparisons if comparison.tested]
    if own := [comparison for comparison in tested if comparison.metric == metric]:
        text += (
            f"▲ ▼: significantly better or worse than the best baseline ({found.setting.label(own[0].baseline)}); "
            f"p < 0.05, paired bootstrap, Holm-corrected for {len(tested)} comparisons{pairs_in_words(tested)}. "
        )
    if metric == "bits_per_byte":
        return text + "Teacher-forced: −log₂ p(reference | prompt) a byte of the reference; lower is better."
    signatures = dict.fromkeys(direction[f"{metric}_signature"] for direction in first.values())
    text += f"sacrebleu: {'; '.join(signatures)}. "
    if metric == "bleu" and any(direction.get("first") == "chrf" for direction in first.values()):
        text += "* BLEU over characters: chrF++ is the metric to lead with. "
    return text + "“Source copied”: the source handed in as its translation, the score of doing nothing."


def _sources(cells: list[Cell]) -> tuple[str, ...]:
    return tuple(cell.source for cell in cells)
