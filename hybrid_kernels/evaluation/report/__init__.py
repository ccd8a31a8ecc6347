"""The report of one run or several: a self-contained HTML page, Markdown, and LaTeX tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def write_report(
    folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> Path:
    """Write `report.html`, `report.md` and `tables/*.tex`, and return the path of the first.

    The page loads nothing from anywhere. Each file is complete or untouched, also when writing is interrupted. LaTeX
    tables need the packages booktabs and graphicx; those of a former report that this one lacks are removed.

    Args:
        folders: of runs. Those with one task, model and evaluation rows share tables, others follow one another.
        output: a folder (made if absent); the run's own if None, which goes for one run only.

    Raises:
        FileNotFoundError: a folder has no results.json.
        ValueError: no folder, one twice, several without `output`; a results.json or a cell's file is malformed.
    """
    if output is None and len(folders) != 1:
        raise ValueError(f"output must be given for a report of {len(folders)} runs")
    from hybrid_kernels._files import write_file
    from hybrid_kernels.evaluation.report.latex import latex
    from hybrid_kernels.evaluation.report.rendering import environment
    from hybrid_kernels.evaluation.report.view import build
    from hybrid_kernels.evaluation.tables import load_study

    view = build(load_study(folders))
    target = Path(folders[0] if output is None else output)
    # All are rendered before the first is written.
    texts = {f"tables/{name}.tex": latex(table) for name, table in view.tables.items()}
    texts["report.md"] = environment(html=False).get_template("report.md").render(view=view)
    texts["report.html"] = environment(html=True).get_template("report.html").render(view=view)
    for name, text in texts.items():
        # A lone surrogate, which JSON can carry, has no UTF-8 form; it becomes "?".
        write_file(target / name, text.encode("utf-8", errors="replace"))
    for path in (target / "tables").glob("*.tex"):
        if f"tables/{path.name}" not in texts:
            path.unlink()
    return target / "report.html"
