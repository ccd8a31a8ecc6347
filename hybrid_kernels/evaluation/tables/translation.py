"""Translation: quality of every direction, against copying the source, and the balance of directions."""

from __future__ import annotations

from typing import Any

from hybrid_kernels.evaluation.tables.study import Cell, Setting
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value, best_in_rows, over_seeds

_METRICS = {
    "bleu": ("BLEU", "", 1, "higher"),
    "chrf": ("chrF++", "", 1, "higher"),
    "bits_per_byte": ("Bits per byte", "", 3, "lower"),
}


def scores(cell: Cell) -> dict[str, Any]:
    """What `evaluation.translation.evaluate_translations` returned of a cell's test part."""
    return cell.result.metrics["test"]


def direction_tables(setting: Setting) -> list[Table]:
    """For each metric there is: directions × methods, with their mean, and for BLEU and chrF++ copying the source."""
    cells = setting.by_method()
    first = scores(next(iter(cells.values()))[0])["directions"]
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
        rows.append(
            Row(
                "Mean of directions",
                [over_seeds(means(own, metric), _sources(own)) for own in cells.values()],
            )
        )
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
                _note(metric, cells, first),
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


def lead_metric(setting: Setting) -> str:
    """The metric to rank methods by: chrF++ where there are translations, whose tokens need no choice."""
    first = next(iter(scores(next(iter(setting.by_method().values()))[0])["directions"].values()))
    return "chrf" if "chrf" in first else "bits_per_byte"


def _note(metric: str, cells: dict[str, list[Cell]], first: dict[str, Any]) -> str:
    seeds = sorted({len(own) for own in cells.values()})
    text = (
        "One seed: how much another seed would change is not known. "
        if seeds == [1]
        else f"Mean ± standard deviation over {' or '.join(map(str, seeds))} seeds. "
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
