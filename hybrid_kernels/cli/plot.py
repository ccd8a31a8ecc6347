"""bench plot: charts and a page of what was measured."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated

import typer

from hybrid_kernels._files import write_file
from hybrid_kernels.cli import base as cli
from hybrid_kernels.cli.bench import group

PAGE = "bench.html"


@group.command()
def plot(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Result files of bench, such as of a CPU and of a GPU."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; 'charts' beside the first file if left out.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Only the charts of these names or patterns, with commas, and no page: 'layer-*.time'."
        ),
    ] = None,
) -> None:
    """Draw result files: a PNG for each chart, and bench.html, one page with all charts and tables in it.

    Of each case, pass and machine the commit that was measured last is shown. The same measurements give the same
    files, byte by byte.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"charts need the package {error.name!r}: pip install 'hybrid-kernels[plots]'", name=error.name
        ) from error
    from hybrid_kernels.benchmarking import charts, page, records, series
    from hybrid_kernels.chart_style import png

    found = []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"there is no result file {file}")
        found += records.read(file)
    if not found:
        raise ValueError(
            f"nothing is measured in {', '.join(map(str, files))}; hybrid-kernels bench measures"
        )
    shown, older = series.newest(found)
    beside = sum(1 for record in found if record.get("against"))
    if not shown:
        raise ValueError("all measurements are of --against, which has a table and no charts")
    drawable = charts.charts(shown)
    wanted = drawable
    if only is not None:
        patterns = cli.names(only)
        names = [chart.name for chart in drawable]
        unmet = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
        if unmet or not patterns:
            listed = ", ".join(names) or "none"
            raise ValueError(f"--only has {', '.join(unmet) or 'no name'}; the charts are: {listed}")
        wanted = [c for c in drawable if any(fnmatch.fnmatchcase(c.name, pattern) for pattern in patterns)]
    folder = out or files[0].parent / "charts"
    folder.mkdir(parents=True, exist_ok=True)
    if older:
        cli.console.print(f"{older} records of other commits than the one measured last are left out")
    if beside:
        cli.console.print(f"{beside} records of --against are left out")
    for chart in wanted:
        _write(folder / f"{chart.name}.png", png(chart.figure()))
    if only is None:
        text = page.page(shown, drawable, [file.name for file in files], older)
        _write(folder / PAGE, text.encode("utf-8", errors="replace"))
    if not drawable:
        cli.console.print("no side was measured, so there is no chart; the page has the reasons")


def _write(path: Path, content: bytes) -> None:
    write_file(path, content)
    cli.console.print(str(path), markup=False, highlight=False, soft_wrap=True)
