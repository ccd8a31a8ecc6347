"""What governance of the training rows changes: each of its variants against no governance, and against all steps."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_kernels.evaluation.significance import Bootstrap, Interval
from hybrid_kernels.evaluation.tables.quality import resample
from hybrid_kernels.evaluation.tables.study import Cell, Setting, Shots, shots_in_words
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value, over_seeds, with_best

METRICS = ("accuracy", "nll", "ece", "gap")
_COLUMNS = {
    "accuracy": ("Accuracy", "%", 1, "higher"),
    "nll": ("NLL", "nats", 3, "lower"),
    "ece": ("ECE", "%", 1, "lower"),
    "gap": ("Parity gap", "points", 1, "lower"),
}


@dataclass(frozen=True, eq=False)
class Ablation:
    """One method with each variant of governance.

    Attributes:
        variants: variant → its cells, the seeds in the same order.
        kept: variant → training rows kept, before the choice of shots.
    """

    setting: Setting
    method: str
    shots: Shots
    variants: dict[str, list[Cell]]
    kept: dict[str, int]
    resampled: Bootstrap | None
    why: str


def ablations(setting: Setting) -> list[Ablation]:
    """Of each method that was trained with two variants or more of governance and as many shots."""
    found = []
    for run in setting.runs:
        variants = run.results.governance_variants
        by_place: dict[tuple[str, Shots], dict[str, list[Cell]]] = {}
        for cell in sorted(run.cells, key=lambda cell: cell.result.seed):
            place = by_place.setdefault((cell.result.method, cell.result.shots), {})
            place.setdefault(cell.result.governance, []).append(cell)
        for (method, shots), cells in by_place.items():
            if len(cells) < 2:
                continue
            # Only seeds that all variants have: a difference is of one seed with another variant.
            seeds = set.intersection(*({c.result.seed for c in own} for own in cells.values()))
            if not seeds:
                continue
            paired = {
                name: [cell for cell in cells[name] if cell.result.seed in seeds]
                for name in variants
                if name in cells
            }
            predictions = {name: [cell.predictions() for cell in own] for name, own in paired.items()}
            kept = {name: variants[name].kept for name in paired}
            found.append(
                Ablation(
                    setting,
                    method,
                    shots,
                    paired,
                    kept,
                    *resample(predictions, METRICS, setting.reference),
                )
            )
    return found


def ablation_table(found: Ablation) -> Table | None:
    """Variants × rows kept, metrics, and differences of accuracy, ECE and gap to no and to all governance."""
    resampled = found.resampled
    if resampled is None:
        return None
    metrics = [metric for metric in METRICS if metric in resampled.estimates]
    compared = [metric for metric in metrics if metric != "nll"]
    others = [name for name in ("none", "all") if name in found.variants]
    columns = [Column("Rows kept", "", 0)]
    columns += [Column(*_COLUMNS[metric]) for metric in metrics]  # type: ignore[arg-type]
    columns += [
        Column(name, "points", 1, None, True, top=f"Minus “{other}”")
        for other in others
        for name in (_COLUMNS[metric][0] for metric in compared)
    ]
    rows = []
    for name, cells in found.variants.items():
        sources = tuple(cell.source for cell in cells)
        values = [Value(found.kept[name], sources=sources)]
        values += [
            over_seeds(
                resampled.estimates[metric][name].tolist(),
                sources,
                interval=resampled.interval(name, metric),
            )
            for metric in metrics
        ]
        for other in others:
            behind = sources + tuple(cell.source for cell in found.variants[other])
            for metric in compared:
                if name == other:
                    values.append(Value(None))
                    continue
                interval: Interval = resampled.difference(name, other, metric)[0]
                values.append(Value(interval.estimate, interval=interval, sources=behind))
        rows.append(Row(name, values))
    seeds = len(next(iter(found.variants.values())))
    label = found.setting.label(found.method)
    return Table(
        f"governance_{found.method}",
        f"Governance of the training rows: {label}, {shots_in_words(found.shots)}",
        "Variant",
        columns,
        with_best(columns, rows),
        f"{seeds} seed{'s' * (seeds != 1)}. “only-” has one step on, “without-” all but one. In brackets: 95 % "
        "intervals, not corrected for their number; a difference whose interval holds 0 is not distinguishable "
        "from none.",
    )
