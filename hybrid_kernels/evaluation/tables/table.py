"""Tables as data: what a report renders as HTML, Markdown or LaTeX, and what tests compare with direct computation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from hybrid_kernels.evaluation.significance import Interval, Mark

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        name, unit: its heading; the unit is "%" or "points" where fractions are shown as 100 of themselves.
        decimals: shown, after that scaling.
        better: which numbers are; None: neither.
        signed: differences, shown with their sign.
        top: a heading over this column and its neighbours of the same one.
    """

    name: str
    unit: str = ""
    decimals: int = 1
    better: Direction | None = None
    signed: bool = False
    top: str = ""

    @property
    def scale(self) -> float:
        return 100.0 if self.unit in ("%", "points") else 1.0


@dataclass(frozen=True)
class Value:
    """One cell of a table.

    Attributes:
        value: the number, unscaled (an accuracy is a fraction), a text, or None where there is none.
        std: sample standard deviation over seeds; None with one seed, or where it means nothing.
        interval: with its confidence level as the table's note says.
        mark: of the comparison that the table's note names; p: its corrected p-value.
        best: the best of its column, whether or not others can be told from it.
        detail: a few words below the number.
        sources: the folders of the run's cells it was computed from.
    """

    value: float | str | None
    std: float | None = None
    interval: Interval | None = None
    mark: Mark | None = None
    p: float | None = None
    best: bool = False
    detail: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line: `label` is what it is about, `method` the index of the method in the order of the study, or None.

    Rows of one `group` compete for the best; the numbers of a `signed` one are differences.
    """

    label: str
    values: list[Value]
    method: int | None = None
    group: str = ""
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """`name` is the file's; `first` the heading over the rows' labels; rows of one `group` follow one another;
    `folded`: of little use at first sight."""

    name: str
    caption: str
    first: str
    columns: list[Column]
    rows: list[Row]
    note: str = ""
    folded: bool = False


def number(value: float, column: Column, *, signed: bool = False) -> str:
    """In the column's unit, with a true minus sign; what rounds to 0 has no sign."""
    # Adding 0 makes −0 a 0.
    scaled = round(column.scale * value, column.decimals) + 0.0
    sign = "+" if scaled and (signed or column.signed) else ""
    return f"{scaled:{sign},.{column.decimals}f}".replace("-", "−").replace("inf", "∞")


def over_seeds(values: Sequence[float], sources: Sequence[str] = (), **other: object) -> Value:
    """The mean over seeds, with the sample standard deviation (n − 1) where there are two or more.

    Args:
        sources: of each value; those of one source, as the pretrained model beside every seed, do not deviate.
    """
    distinct = tuple(dict.fromkeys(sources))
    std = stdev(values) if len(values) > 1 and len(distinct) != 1 else None
    return Value(fmean(values), std, sources=distinct, **other)  # type: ignore[arg-type]


def with_best(columns: Sequence[Column], rows: Sequence[Row]) -> list[Row]:
    """The rows with the best number of each column marked, within each group; none where all are the same."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.group, []).append(i)
    values = [list(row.values) for row in rows]
    for place, column in enumerate(columns):
        for members in groups.values() if column.better else ():
            numbers = {i: v for i in members if isinstance(v := values[i][place].value, (int, float))}
            for i, best in zip(numbers, _best(list(numbers.values()), column), strict=True):
                values[i][place] = replace(values[i][place], best=best)
    return [replace(row, values=own) for row, own in zip(rows, values, strict=True)]


def best_in_rows(columns: Sequence[Column], rows: Sequence[Row]) -> list[Row]:
    """The rows with the best number of each row marked; its columns are all of one kind."""
    found = []
    for row in rows:
        values = list(row.values)
        there = [i for i, v in enumerate(values) if isinstance(v.value, (int, float))]
        for i, best in zip(there, _best([values[i].value for i in there], columns[0]), strict=True):  # type: ignore[misc]
            values[i] = replace(values[i], best=best)
        found.append(replace(row, values=values))
    return found


def _best(numbers: Sequence[float], column: Column) -> list[bool]:
    """Which are the best; none where all are the same."""
    if len(set(numbers)) < 2:
        return [False] * len(numbers)
    best = (max if column.better == "higher" else min)(numbers)
    return [number == best for number in numbers]
