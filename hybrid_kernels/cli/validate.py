"""validate: every operator against the float64 reference, on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid_kernels._files import write_file
from hybrid_kernels.cli import base as cli

if TYPE_CHECKING:
    from rich.console import Console

    from hybrid_kernels.validation.plan import Check
    from hybrid_kernels.validation.report import Run
    from hybrid_kernels.validation.run import Result

# A kernel that is wrong fails in most shapes and layouts.
FAILURES_SHOWN = 25


@cli.app.command()
def validate(
    quick: Annotated[bool, typer.Option("--quick", help="One shape, few layouts: under a minute.")] = False,
    op: Annotated[str | None, typer.Option(help="Functions of hk.functional, with commas; else all.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="auto, reference, eager, triton, cpp, cuda, with commas; else all that run here."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as float32,bfloat16; else all.")] = None,
    device: Annotated[str | None, typer.Option(help="The GPU, if there is one, else cpu.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A Transformers model, by name or folder: the sizes of its layers, and its layers."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="With --model: rows of activations.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the inputs.")] = 0,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write every result; - for standard output.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")
    ] = None,
) -> None:
    """Check every function, on every backend of this machine, against plain PyTorch in float64.

    Forward and each gradient, in odd, strided, transposed, empty and far apart tensors. The error may be at most
    twice (gradients three times) that of plain PyTorch in the same dtype. The exit code is 1 if anything fails or
    nothing was checked. Triton kernels are checked on a GPU, or with TRITON_INTERPRET=1 in its interpreter.
    """
    from hybrid_kernels.validation import report, run

    json_path = Path(json_file) if json_file is not None and json_file != "-" else None
    for path in (json_path, html_file):
        if path is not None:
            report.check_writable(path)
    planned = run.planned(_names(op), _names(backend), _names(dtype), device, seed, quick, model, rows)
    # With the JSON on standard output, everything else keeps off it.
    console = cli.errors if json_file == "-" else cli.console
    console.print(f"seed {seed}, {planned.device}, {planned.total} checks", highlight=False)
    results: list[Result] = []
    begin, done = time.monotonic(), 0
    try:
        with _progress(console, planned.total) as show:

            def on_progress(checks: int, total: int, check: Check) -> None:
                nonlocal done
                done = checks
                show(checks, check, results)

            for result in run.run(planned, on_progress):
                results.append(result)
    except KeyboardInterrupt:
        pass  # what there is is shown and written
    this = report.Run(
        str(planned.device), seed, quick, model, rows, done, planned.total, time.monotonic() - begin
    )
    _show(console, results, this)
    unwritten = []
    try:
        if json_file == "-":
            typer.echo(report.as_json(report.document(results, this)), nl=False)
        elif json_path is not None:
            write_file(json_path, report.as_json(report.document(results, this)))
    except OSError as error:
        unwritten.append(str(error))
    try:
        if html_file is not None:
            write_file(html_file, report.as_html(results, this))
    except OSError as error:
        unwritten.append(str(error))
    if unwritten:
        raise OSError("; ".join(unwritten))
    if this.interrupted:
        raise cli.Interrupted
    if not report.verdict(results, this)[0]:
        raise typer.Exit(1)


def _names(text: str | None) -> list[str] | None:
    """The parts of an option's value, None where it was not given; an empty one asks for nothing, which is an error."""
    if text is None:
        return None
    return cli.names(text) or [""]


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Any]:
    """``show(checks, check, results)``: a live bar on a terminal, elsewhere a line for each function."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hybrid_kernels.cases.base import dtype_name

    seen = failed = 0

    def count(results: list[Result]) -> int:
        nonlocal seen, failed
        failed += sum(result.failed for result in results[seen:])
        seen = len(results)
        return failed

    if not console.is_terminal:
        last = None

        def line(checks: int, check: Check, results: list[Result]) -> None:
            nonlocal last
            if check.case.name != last:
                last = check.case.name
                console.print(
                    f"{checks} of {total} checks, {count(results)} failures; now {last}", highlight=False
                )

        yield line
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)

        def bar(checks: int, check: Check, results: list[Result]) -> None:
            failures = count(results)
            text = f"{check.case.name} {check.backend} {dtype_name(check.dtype)}"
            text += f", [red]{failures} failures[/red]" if failures else ""
            progress.update(task, completed=checks, description=text)

        yield bar


def _show(console: Console, results: list[Result], this: Run) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from hybrid_kernels.cases.base import shape_name
    from hybrid_kernels.validation import report

    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,  # so that the longest names fit in 80 columns
        title="worst error / that of plain PyTorch in the same dtype",
    )
    for heading in ("function", "backend", "dtype"):
        table.add_column(heading, no_wrap=True)
    for heading in ("checks", "forward\n≤ 2", "gradients\n≤ 3"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    colours = {"passed": "green", "failed": "bold red"}
    above = None
    for row in report.summary(results):
        if above not in (None, row.operator):
            table.add_section()
        table.add_row(
            "" if row.operator == above else row.operator,
            row.backend,
            row.dtype,
            str(row.checks or ""),
            report.number(row.forward),
            report.number(row.gradients),
            f"[{colours[row.verdict]}]{row.verdict}[/]" if row.verdict in colours else row.verdict,
        )
        above = row.operator
    if table.row_count:
        console.print(table)
    left = report.not_run(results)
    if left:
        console.print("not run:")
    for entry in left:
        text = f"  {entry.outcome}: {entry.reason} ({entry.checks} checks: {'; '.join(entry.where)})"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    failures = report.failures(results)
    if failures:
        console.print("failures:", style="bold red")
    for result in failures[:FAILURES_SHOWN]:
        parts = (result.operator, result.backend, result.dtype, shape_name(result.shape), result.layout)
        text = f"{', '.join(parts)}{', ' if result.tensor else ''}{result.tensor}: {report.described(result)}"
        console.print(f"  [red]{escape(text)}[/red]", highlight=False, soft_wrap=True)
        console.print(
            f"    {report.reproduction(result, this)}", markup=False, highlight=False, soft_wrap=True
        )
    if len(failures) > FAILURES_SHOWN:
        console.print(f"  and {len(failures) - FAILURES_SHOWN} more; --json and --html have all")
    passed, text = report.verdict(results, this)
    console.print(
        text, style="green" if passed else "bold red", markup=False, highlight=False, soft_wrap=True
    )
