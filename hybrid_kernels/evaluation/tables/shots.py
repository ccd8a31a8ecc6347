"""Accuracy against the number of examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hybrid_kernels.evaluation.tables.quality import Quality, quality
from hybrid_kernels.evaluation.tables.study import Setting, Shots
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value, with_best


@dataclass(frozen=True, eq=False)
class FewShot:
    """`by_shots`: shots → the `Quality` of its cells, ascending."""

    setting: Setting
    by_shots: dict[Shots, Quality]


def few_shot(setting: Setting, main: Quality) -> FewShot | None:
    """None of one number of shots. `main` is that of `Setting.main_shots`."""
    if len(setting.all_shots) < 2:
        return None
    return FewShot(
        setting,
        {
            shots: main
            if shots == setting.main_shots
            else quality(setting, setting.by_method(shots), ("accuracy",))
            for shots in setting.all_shots
        },
    )


def shots_table(found: FewShot) -> Table:
    """Methods × shots: accuracy; and below, this project's methods minus the baseline that is best there."""
    setting = found.setting
    columns = [Column(shots_name(shots), "%", 1, "higher") for shots in found.by_shots]
    rows = []
    for name in setting.methods:
        values = [
            one.value(name, "accuracy") if name in one.cells else Value(None)
            for one in found.by_shots.values()
        ]
        # The marks belong to the main table, where they are corrected for its comparisons.
        unmarked = [replace(value, mark=None, p=None) for value in values]
        rows.append(Row(setting.label(name), unmarked, setting.place(name)))
    rows = with_best(columns, rows)
    if setting.own and setting.baselines != list(setting.methods):
        rows += [
            Row(
                f"{setting.label(name)} − best baseline",
                [_difference(one, name) for one in found.by_shots.values()],
                group=name,
                signed=True,
            )
            for name in setting.own
        ]
    note = (
        "Accuracy, mean over languages. The best baseline is found for each column. In brackets: 95 % intervals, not "
        "corrected for their number; a difference whose interval holds 0 is not distinguishable from none."
    )
    return Table("shots", "Accuracy against examples a language, %", "Method", columns, rows, note)


def shots_name(shots: Shots) -> str:
    return "all rows" if shots == "all" else f"{shots} shots"


def _difference(found: Quality, method: str) -> Value:
    baselines = [name for name in found.setting.baselines if name in found.cells]
    if method not in found.cells or not baselines or found.resampled is None:
        return Value(None)
    best = found.resampled.best(baselines, "accuracy")
    interval, _ = found.resampled.difference(method, best, "accuracy")
    return Value(
        interval.estimate,
        interval=interval,
        detail=f"to {found.setting.label(best)}",
        sources=found.sources(method) + found.sources(best),
    )
