"""Translation: quality of every direction, against copying the source, and the balance of directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from hybrid_kernels.evaluation.significance import Comparison
from hybrid_kernels.evaluation.tables.quality import pairs_in_words
from hybrid_kernels.evaluation.tables.study import Cell, Resampled, Setting, seeds_of
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value, best_in_rows, over_seeds
from hybrid_kernels.evaluation.translation_scores import averaged, bleu_tokenizer, directional_balance
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
class Translations(Resampled):
    """The translations of a setting's methods."""

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Of the means over directions, against the best baseline; none of one method."""
        return self.compared()

    @property
    def directions(self) -> dict[str, Any]:
        """Those of the first cell; the rows are the same in all."""
        found: dict[str, Any] = scores(next(iter(self.cells.values()))[0])["directions"]
        return found

    def averaged(self, metric: str) -> list[str]:
        """The directions that means of a metric are over: scored alike, and on one scale, in every cell."""
        every = [scores(cell)["directions"] for own in self.cells.values() for cell in own]
        names = [name for name in self.directions if all(name in averaged(one, metric) for one in every)]
        if metric == "bleu":
            names = [name for name in names if len({_tokenizer(one[name]) for one in every}) == 1]
        return names

    def means(self, method: str, metric: str) -> list[float]:
        """The mean over `averaged` directions of each cell."""
        names = self.averaged(metric)
        return [
            fmean(scores(cell)["directions"][name][metric] for name in names) for cell in self.cells[method]
        ]

    def mean(self, method: str, metric: str) -> Value:
        """A metric's mean over directions: mean and deviation over seeds, interval and mark."""
        there = self.resampled is not None and metric in self.resampled.estimates
        compared = [c for c in self.comparisons if c.method == method and c.metric == metric]
        return over_seeds(
            self.means(method, metric),
            _sources(self.cells[method]),
            interval=self.resampled.interval(method, metric) if self.resampled and there else None,
            mark=compared[0].mark if compared else None,
            p=compared[0].p_holm if compared else None,
        )


def translations(setting: Setting) -> Translations:
    cells = setting.by_method()
    found = Translations(setting, cells, None, "")
    there = next(iter(found.directions.values()))
    metrics = [
        metric
        for metric in TRANSLATION_DIRECTIONS
        if metric in there and (metric != "bleu" or _same_bleu(found))
    ]
    arrays = {name: [cell.arrays["test"] for cell in own] for name, own in cells.items()}
    try:
        return replace(found, resampled=bootstrap_translations(arrays, metrics, seeds=seeds_of(cells)))
    except ValueError as error:
        return replace(found, why=str(error))


def _same_bleu(found: Translations) -> bool:
    """Whether BLEU's mean can be resampled: there is one, and its tokenisers are those that are installed here."""
    here = [
        name
        for name, one in found.directions.items()
        if (tokenizer := bleu_tokenizer(name.partition("-")[2])) != "char"
        and _tokenizer(one).startswith(tokenizer)
    ]
    return bool(here) and here == found.averaged("bleu")


def _tokenizer(direction: Mapping[str, Any]) -> str:
    """BLEU's, by its signature; they depend on what was installed where it was scored."""
    return str(direction["bleu_signature"]).partition("tok:")[2].partition("|")[0]


def direction_tables(found: Translations) -> list[Table]:
    """For each metric there is: directions × methods, with their mean, and for BLEU and chrF++ copying the source."""
    setting, cells, first = found.setting, found.cells, found.directions
    tables = []
    for metric, (name, unit, decimals, better) in _METRICS.items():
        if not all(metric in direction for direction in first.values()):
            continue
        mean_of = found.averaged(metric)
        columns = [Column(setting.label(m), unit, decimals, better) for m in cells]  # type: ignore[arg-type]
        copied = all("copy" in direction for direction in first.values()) and metric != "bits_per_byte"
        rows = []
        for direction, content in first.items():
            values = [
                over_seeds([scores(cell)["directions"][direction][metric] for cell in own], _sources(own))
                for own in cells.values()
            ]
            other = "" if direction in mean_of else " *"
            rows.append(Row(f"{direction.replace('-', ' → ')}{other}, {content['n']} sentences", values))
        if mean_of:
            label = "Mean of directions" if len(mean_of) == len(first) else "Mean of directions without *"
            rows.append(Row(label, [found.mean(method, metric) for method in cells]))
        rows = best_in_rows(columns, rows)
        if copied:
            # The sources are the same in every cell.
            columns.append(Column("Source copied", unit, decimals))
            some = next(iter(cells.values()))[0].source
            baseline = [content["copy"][metric] for content in first.values()]
            if mean_of:
                baseline.append(fmean(first[name]["copy"][metric] for name in mean_of))
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


def balance_table(found: Translations, metric: str) -> Table | None:
    """Languages × methods: to English minus from English; None where no language has both directions."""
    setting, cells = found.setting, found.cells
    if metric not in next(iter(found.directions.values())):
        return None
    names = found.averaged(metric)
    balances = {
        method: [
            directional_balance({name: scores(cell)["directions"][name] for name in names}, metric)
            for cell in own
        ]
        for method, own in cells.items()
    }
    first = next(iter(balances.values()))[0]
    if not first["languages"]:
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
            over_seeds([one["languages"][code][key] for one in own], _sources(cells[method]))
            for method, own in balances.items()
            for key in ("to_english", "from_english", "difference")
        ]
        rows.append(Row(code, values))
    values = []
    for method, own in balances.items():
        mean = over_seeds([one["mean"] for one in own], _sources(cells[method]))
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


def lead_metric(found: Translations) -> str:
    """The metric to rank methods by: chrF++ where there are translations, whose tokens need no choice."""
    return "chrf" if "chrf" in next(iter(found.directions.values())) else "bits_per_byte"


def _note(metric: str, found: Translations) -> str:
    cells = found.cells
    text = found.setting.describe(cells)
    if found.resampled is None:
        text += f"No intervals: {found.why}. "
    elif metric not in found.resampled.estimates:
        text += (
            "No intervals: sacrebleu's tokenisers here are not those it was scored with, or only characters. "
        )
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
            f"p < 0.05, paired bootstrap, Holm-corrected for {len(tested)} comparisons{pairs_in_words(tested, cells)}. "
        )
    if metric == "bits_per_byte":
        return text + "Teacher-forced: −log₂ p(reference | prompt) a byte of the reference; lower is better."
    signatures = dict.fromkeys(
        direction[f"{metric}_signature"]
        for own in cells.values()
        for cell in own
        for direction in scores(cell)["directions"].values()
    )
    text += f"sacrebleu: {'; '.join(signatures)}. "
    if len(found.averaged(metric)) < len(found.directions):
        text += "* Not in the mean: over characters, where chrF++ leads, or with unlike tokenisers. "
    return text + "“Source copied”: the source handed in as its translation, the score of doing nothing."


def _sources(cells: list[Cell]) -> tuple[str, ...]:
    return tuple(cell.source for cell in cells)
