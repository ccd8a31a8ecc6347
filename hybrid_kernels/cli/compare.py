"""bench compare: what has changed between two result files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from hybrid_kernels.cli import base as cli
from hybrid_kernels.cli import bench

if TYPE_CHECKING:
    from hybrid_kernels.benchmarking.comparison import Change


@bench.group.command()
def compare(
    a: Annotated[
        str, typer.Argument(metavar="A.jsonl", help="A result file, or FILE@COMMIT for one commit in it.")
    ],
    b: Annotated[str, typer.Argument(metavar="B.jsonl", help="Likewise; what is new.")],
    json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compare two result files of bench, or two commits in one: the largest change first.

    What is compared is each side's ratio to the floor of its own run, or to our own side where there is no floor; its
    time too, where machine and versions are the same. A change is marked if the quartiles of the two lie apart.
    """
    from hybrid_kernels.benchmarking import comparison

    found = comparison.compare(comparison.load(a), comparison.load(b))
    if json_output:
        typer.echo(json.dumps(found.as_json(), indent=2))
        return
    for warning in found.warnings:
        cli.errors.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    table = Table(
        title="B / A: of ratios, times, peak memory; * beyond the spread of both",
        title_justify="left",
        box=None,
    )
    for name in ("", "relative to"):
        table.add_column(name, overflow="fold")
    for name in ("A", "B", "B / A", "time", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        relative = ["", "", ""] if row.relative is None else _cells(row.relative)
        time = "" if row.seconds is None else _cells(row.seconds)[-1]
        memory = (
            ""
            if not (row.peak_bytes and row.peak_bytes[0])
            else f"{row.peak_bytes[1] / row.peak_bytes[0]:.3f}"
        )
        style = "bold" if row.change is not None and row.change.beyond else ""
        names = Text(f"{row.case} {row.part}, {row.side}"), Text(row.basis or "")
        table.add_row(*names, *relative, time, memory, style=style)
    if found.rows:
        cli.console.print(table)
    else:
        cli.console.print("no measurement is in both")
    for key, reasons in found.failed.items():
        for name, reason in zip("AB", reasons, strict=True):
            if reason is not None:
                _line(f"failed in {name}: {' '.join(key)}: {reason}")
    for name, keys in (("A", found.only_a), ("B", found.only_b)):
        for key in keys:
            _line(f"only in {name}: {' '.join(key)}")


def _cells(change: Change) -> list[str]:
    mark = "*" if change.beyond else " "
    return [f"{change.a:.3f}", f"{change.b:.3f}", f"{change.ratio:.3f}{mark}"]


def _line(text: str) -> None:
    cli.console.print(text, markup=False, highlight=False, soft_wrap=True)
