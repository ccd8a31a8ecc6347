"""What a session shows: progress while it measures, and a table of each pass of a case."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..cases.base import BenchmarkCase
from . import session
from .records import Record


def table(records: Sequence[Record], note: str = "") -> Group:
    """The records of one pass of a case: ratios, memory, what ran, and why what did not.

    Times are shown for a GPU only: on a CPU they say more about the machine than about the code.
    """
    first = records[0]
    floor, ours, on_gpu = first["floor"], first["ours"], first["device"].startswith("cuda")
    measured = [record for record in records if "failed" not in record]
    shown = Table(box=None, pad_edge=False)
    shown.add_column("", overflow="fold")
    for name in (
        *(["× floor", "quartiles"] if floor else []),
        "× ours",
        *([] if floor else ["quartiles"]),
        "peak MiB",
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("ran")
    for record in measured:
        cells = [*(_ratio(record, floor, True) if floor else []), *_ratio(record, ours, floor is None)]
        cells.append(_mebibytes(record["peak_bytes"]))
        backends = {text.rpartition(": ")[2].partition(" ")[0] for text in record["ran"]}
        style = "bold" if record["side"] == ours else ""
        shown.add_row(record["side"], *cells, ", ".join(sorted(backends)), style=style)
    title = Text(f"{first['case']} {first['pass']}{note}", style="bold", overflow="fold")
    lines = (Text(line, style="dim", overflow="fold") for line in _explanations(records))
    tables = [shown, *([_times(measured)] if on_gpu else [])] if measured else []
    return Group(title, *tables, *lines, "")


def _times(measured: Sequence[Record]) -> Table:
    """A table of its own: in one with the ratios, 80 columns would leave nothing to the names of the sides."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("", overflow="fold")
    for name in ("time", "graph", "roofline"):
        shown.add_column(name, justify="right", no_wrap=True)
    for record in measured:
        graph = record["graph"] or {}
        shown.add_row(
            record["side"],
            _milliseconds(record["median_seconds"]),
            _milliseconds(graph.get("median_seconds")),
            _share(record["roofline"]),
            style="bold" if record["side"] == record["ours"] else "",
        )
    return shown


def _explanations(records: Sequence[Record]) -> list[str]:
    first = records[0]
    lines = [
        f"floor: {first['floor']}; ours: {first['ours']}" if first["floor"] else f"ours: {first['ours']}"
    ]
    for record in records:
        side = record["side"]
        if "failed" in record:
            lines.append(f"{side}: not measured: {record['failed']}")
            continue
        if "failed" in (record["graph"] or {}):
            lines.append(f"{side}: no CUDA graph: {record['graph']['failed']}")
        if side == record["ours"]:
            lines += _why(record)
    return [*lines, *first["notes"]]


def _why(record: Record) -> list[str]:
    """What ran of the package's own choice, why nothing faster did, and where the time went."""
    lines = [f"ran: {', '.join(record['ran'])}"] if record["ran"] else []
    lines += [f"not {name}: {why}" for name, why in record["declined"].items()]
    if record["profile"]:
        lines.append("share of the step, calls; * is this package's own")
    for row in record["profile"] or []:
        lines.append(f"{row['share']:7.1%} {row['calls']:6} {'*' if row['own'] else ' '} {row['name']}")
    return lines


def _ratio(record: Record, other: str, spread: bool) -> list[str]:
    found = record["ratios"].get(other)
    if found is None:
        return ["", ""] if spread else [""]
    low, high = found["quartiles"]
    return [f"{found['median']:.3f}", *([f"{low:.3f}–{high:.3f}"] if spread else [])]


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3f} ms"


def _share(roofline: dict[str, Any] | None) -> str:
    return "" if roofline is None else f"{roofline['share']:.0%} {roofline['bound']}"


class Live(session.Progress):
    """A line of progress at the bottom of the console, and above it the table of each pass that is over."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[where]}", markup=False),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, case: BenchmarkCase, part: str, number: int, of: int) -> None:
        if self._task is None:
            self._task = self._progress.add_task("", total=of, where="")
        self._progress.update(
            self._task, completed=number - 1, where=f"{number} of {of}", description=f"{case.id} {part}"
        )
        self._name = f"{case.id} {part}"

    def doing(self, what: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, description=f"{self._name}: {what}")

    def round(self, number: int, of: int) -> None:
        self.doing(f"round {number} of {of}")

    def finished(self, records: list[Record], before: bool) -> None:
        note = f", measured already on {records[0]['date'][:10]}" if before else ""
        self._progress.console.print(table(records, note))
