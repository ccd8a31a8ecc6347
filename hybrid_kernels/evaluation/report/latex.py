"""Tables in LaTeX, for the package booktabs; with the folders behind each line as a comment."""

from __future__ import annotations

import re

from hybrid_kernels.evaluation.report.rendering import NOTHING, heading, interval_of, text_of, tops
from hybrid_kernels.evaluation.tables import Column, Row, Table, Value

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", '"': r"\textquotedbl{}",
    # Those of a report's own words that pdfLaTeX does not know as characters.
    "∞": r"$\infty$",
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "→": r"$\rightarrow$", "·": r"$\cdot$", "λ": r"$\lambda$",
    "▲": r"$^{\uparrow}$", "▼": r"$^{\downarrow}$", "√": r"$\surd$", "₂": "$_2$", "–": "--", "—": "---",
    "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\ldots{}", "½": r"$\frac12$",
}  # fmt: skip


def escape(text: str) -> str:
    """Text as LaTeX shows it, on one line."""
    # T1 quotes are not in the default encoding.
    escapes = _ESCAPES | {'"': "''"}
    return "".join(escapes.get(character, character) for character in " ".join(text.split()))


def latex(table: Table) -> str:
    """A `table*` environment with caption and label `tab:NAME`; the table's note is under it."""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}[t]",
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"\\caption{{{escape(table.caption)}.}}",
        f"\\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', table.name)}}}",
        f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        "\\toprule",
    ]
    if upper := tops(table.columns):
        cells, rules, place = [""], [], 2
        for top, span in upper:
            cells.append(f"\\multicolumn{{{span}}}{{c}}{{{escape(top)}}}")
            if top:
                rules.append(f"\\cmidrule(lr){{{place}-{place + span - 1}}}")
            place += span
        lines += [" & ".join(cells) + r" \\", "".join(rules)]
    lines.append(" & ".join(escape(one) for one in (table.first, *map(heading, table.columns))) + r" \\")
    lines.append("\\midrule")
    group = table.rows[0].group if table.rows else ""
    for row in table.rows:
        if row.group != group:
            lines.append("\\midrule")
            group = row.group
        values = [_cell(value, column, row) for value, column in zip(row.values, table.columns, strict=True)]
        sources = dict.fromkeys(" ".join(source.split()) for value in row.values for source in value.sources)
        lines.append(f"{' & '.join([escape(row.label), *values])} \\\\ % {'; '.join(sources)}")
    lines += ["\\bottomrule", "\\end{tabular}"]
    if table.note:
        lines.append(
            f"\\par\\medskip\\begin{{minipage}}{{\\textwidth}}\\footnotesize {escape(table.note)}\\end{{minipage}}"
        )
    return "\n".join([*lines, "\\end{table*}", ""])


def _cell(value: Value, column: Column, row: Row) -> str:
    text = escape(text_of(value, column, row))
    if value.best and text != NOTHING:
        text = f"\\textbf{{{text}}}"
    small = escape(" ".join(part for part in (interval_of(value, column, row), value.detail) if part))
    return f"{text} {{\\scriptsize {small}}}" if small else text
