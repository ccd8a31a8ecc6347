"""What governance of the training rows changes: each of its variants against no governance, and against all steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from hybrid_kernels.evaluation.metrics import run_metrics
from hybrid_kernels.evaluation.significance import Bootstrap
from hybrid_kernels.evaluation.tables.quality import CHANCE, name_and_code, resample
from hybrid_kernels.evaluation.tables.study import Cell, Run, Setting, Shots, shots_in_words
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value, over_seeds, with_best

METRICS = ("accuracy", "nll", "ece", "gap")
_COLUMNS = {
    "accuracy": Column("Accuracy", "%", 1, "higher"),
    "nll": Column("NLL", "nats", 3, "lower"),
    "ece": Column("ECE", "%", 1, "lower"),
    "gap": Column("Parity gap", "points", 1, "lower"),
}


@dataclass(frozen=True, eq=False)
class Ablation:
    """One method with each variant of governance.

    Attributes:
        variants: variant → its cells, the seeds in the same order.
        kept: variant → training rows kept, before the choice of shots.
        resampled: None where there can be no intervals; `why` says why.
    """

    setting: Setting
    method: str
    shots: Shots
    variants: dict[str, list[Cell]]
    kept: dict[str, int]
    resampled: Bootstrap | None
    why: str

    @cached_property
    def metrics(self) -> dict[str, list[dict[str, float]]]:
        """variant → of each seed the `METRICS` that there are; there is no gap of one language."""
        found = {}
        for name, own in self.variants.items():
            seeds = [run_metrics(cell.predictions(), self.setting.reference) for cell in own]
            found[name] = [
                {metric: one["macro"][metric] for metric in METRICS if metric != "gap"}
                | ({"gap": one["parity"]["gap"]} if len(one["per_language"]) > 1 else {})
                for one in seeds
            ]
        return found

    def value(self, variant: str, metric: str) -> Value:
        return over_seeds(
            [one[metric] for one in self.metrics[variant]],
            self.sources(variant),
            interval=self.resampled.interval(variant, metric) if self.resampled else None,
        )

    def difference(self, variant: str, other: str, metric: str) -> Value:
        """A metric's mean over seeds, minus that of another variant."""
        pairs = zip(self.metrics[variant], self.metrics[other], strict=True)
        return Value(
            fmean(one[metric] - two[metric] for one, two in pairs),
            interval=self.resampled.difference(variant, other, metric)[0] if self.resampled else None,
            sources=self.sources(variant) + self.sources(other),
        )

    @property
    def described(self) -> str:
        return f"{self.setting.label(self.method)}, {shots_in_words(self.shots)}"

    def sources(self, variant: str) -> tuple[str, ...]:
        return tuple(cell.source for cell in self.variants[variant])


def ablations(setting: Setting) -> list[Ablation]:
    """Of each method with two variants or more of governance at as many shots."""
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
            bootstrap = resample(predictions, METRICS, setting.reference)
            found.append(Ablation(setting, method, shots, paired, kept, *bootstrap))
    return found


def ablation_table(found: Ablation) -> Table:
    """Variants × rows kept and metrics."""
    metrics = _metrics(found)
    columns = [Column("Rows kept", "", 0), *(_COLUMNS[metric] for metric in metrics)]
    rows = [
        Row(
            name,
            [
                Value(found.kept[name], sources=found.sources(name)),
                *(found.value(name, metric) for metric in metrics),
            ],
        )
        for name in found.variants
    ]
    seeds = len(next(iter(found.variants.values())))
    return Table(
        f"governance_{found.method}_{found.shots}",
        f"Governance of the training rows: {found.described}",
        "Variant",
        columns,
        with_best(columns, rows),
        f"{seeds} seed{'s' * (seeds != 1)}. “only-” has one step on, “without-” all but one. Rows kept: before the "
        f"choice of shots. {_intervals(found)}",
    )


def difference_table(found: Ablation) -> Table | None:
    """Variants × differences to no governance and to all of it; None where neither was trained."""
    others = [name for name in ("none", "all") if name in found.variants]
    if not others:
        return None
    metrics = _metrics(found)
    columns = [
        replace(_COLUMNS[metric], better=None, signed=True, top=f"Minus “{other}”", unit=_unit(metric))
        for other in others
        for metric in metrics
    ]
    rows = [
        Row(
            name,
            [
                Value(None) if name == other else found.difference(name, other, metric)
                for other in others
                for metric in metrics
            ],
        )
        for name in found.variants
    ]
    note = (
        "In brackets: 95 % intervals of the paired bootstrap, not corrected for their number; a difference whose "
        "interval holds 0 is not distinguishable from none."
        if found.resampled
        else _intervals(found)
    )
    return Table(
        f"governance_{found.method}_{found.shots}_differences",
        f"Differences that governance makes: {found.described}",
        "Variant",
        columns,
        rows,
        note,
    )


def rejection_tables(run: Run) -> list[Table]:
    """Of the run's own policy: rows rejected by step and reason, and by language."""
    summary = run.results.governance
    if summary is None:
        return []
    sources = (str(run.folder / "governance" / run.main_variant),)
    steps = [
        Row(
            step,
            [
                Value(counts.rejected, sources=sources),
                Value("; ".join(f"{reason}: {n:,}" for reason, n in counts.reasons.items()) or None),
            ],
        )
        for step, counts in summary.by_step.items()
    ]
    languages = [
        Row(
            name_and_code(code),
            [Value(n, sources=sources) for n in (counts.rows, counts.kept, counts.rejected)],
        )
        for code, counts in summary.by_language.items()
    ]
    return [
        Table(
            "rejected_steps",
            f"Rows rejected: {summary.rejected:,} of {summary.rows:,}",
            "Step",
            [Column("Rejected", "", 0), Column("Reasons")],
            steps,
            "A row counts for the first step that rejects it. No label was looked at.",
        ),
        Table(
            "rejected_languages",
            "Rows rejected, by language",
            "Language",
            [Column("Rows", "", 0), Column("Kept", "", 0), Column("Rejected", "", 0)],
            languages,
            folded=True,
        ),
    ]


def _metrics(found: Ablation) -> list[str]:
    return [metric for metric in METRICS if metric in next(iter(found.metrics.values()))[0]]


def _intervals(found: Ablation) -> str:
    return f"In brackets: 95 % intervals. {CHANCE}" if found.resampled else f"No intervals: {found.why}."


def _unit(metric: str) -> str:
    return "points" if _COLUMNS[metric].unit == "%" else _COLUMNS[metric].unit
