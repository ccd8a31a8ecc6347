"""Tables in LaTeX, for the packages booktabs and graphicx; with the folders behind each line as a comment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from textwrap import wrap

from hybrid_kernels.evaluation.report.rendering import NOTHING, heading, interval_of, text_of, tops
from hybrid_kernels.evaluation.tables import Column, Row, Table, Value

#: in one tabular; with intervals, more do not fit beside each other
COLUMNS = 5
#: in one tabular; more, with caption and note, are higher than a page
LINES = 36
#: characters in a line of a heading, and of a row's label
HEAD, LABEL = 20, 36
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
    """`table*` environments of at most `COLUMNS` columns and `LINES` lines; the note is under the last one.

    They are one table to LaTeX: of one number, and with the label `tab:NAME`. What is wider than the text is made
    smaller.
    """
    starts = range(0, len(table.columns), COLUMNS) or range(1)
    parts = [(slice(start, start + COLUMNS), rows) for rows in _pages(table) for start in starts]
    lines = ["% needs \\usepackage{booktabs,graphicx}"]
    for number, (columns, rows) in enumerate(parts, 1):
        caption = escape(table.caption)
        lines += ["\\begin{table*}[tp]", "\\centering\\small\\setlength{\\tabcolsep}{4pt}"]
        if len(parts) > 1:
            caption += f" ({number} of {len(parts)})"
        if number > 1:
            lines.append("\\addtocounter{table}{-1}")
        lines.append(f"\\caption{{{caption}.}}")
        if number == 1:
            lines.append(f"\\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', table.name)}}}")
        lines.append("\\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%")
        lines += [*_tabular(table, columns, rows), "}"]
        if table.note and number == len(parts):
            note = f"\\footnotesize {escape(table.note)}"
            lines.append(f"\\par\\medskip\\begin{{minipage}}{{\\textwidth}}{note}\\end{{minipage}}")
        lines.append("\\end{table*}")
    return "\n".join([*lines, ""])


def _pages(table: Table) -> list[list[Row]]:
    """The rows, parted where a page would be too short for them."""
    pages: list[list[Row]] = [[]]
    height = 0
    for row in table.rows:
        cells = [_lines(value, column, row) for value, column in zip(row.values, table.columns, strict=True)]
        own = max(map(len, (wrap(row.label, LABEL), *cells)))
        if height + own > LINES and pages[-1]:
            pages.append([])
            height = 0
        pages[-1].append(row)
        height += own
    return pages


def _tabular(table: Table, part: slice, rows: list[Row]) -> list[str]:
    """Some columns of some rows, and the rows' labels before them."""
    columns = table.columns[part]
    lines = [f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", "\\toprule"]
    if upper := tops(columns):
        cells, rules, place = [""], [], 2
        for top, span in upper:
            cells.append(f"\\multicolumn{{{span}}}{{c}}{{{escape(top)}}}")
            if top:
                rules.append(f"\\cmidrule(lr){{{place}-{place + span - 1}}}")
            place += span
        lines += [" & ".join(cells) + r" \\", "".join(rules)]
    heads = [_stack(map(escape, wrap(heading(column), HEAD)), "b") for column in columns]
    lines += [" & ".join([escape(table.first), *heads]) + r" \\", "\\midrule"]
    group = rows[0].group if rows else ""
    for row in rows:
        if row.group != group:
            lines.append("\\midrule")
            group = row.group
        own = row.values[part]
        values = [_stack(_lines(value, column, row), "t") for value, column in zip(own, columns, strict=True)]
        sources = dict.fromkeys(" ".join(source.split()) for value in own for source in value.sources)
        label = _stack(map(escape, wrap(row.label, LABEL)), "t", "l")
        lines.append(f"{' & '.join([label, *values])} \\\\ % {'; '.join(sources)}")
    return [*lines, "\\bottomrule", "\\end{tabular}"]


def _lines(value: Value, column: Column, row: Row) -> list[str]:
    """The number, and below it in small print its interval and detail."""
    text = text_of(value, column, row)
    lines = [escape(line) for line in wrap(text, LABEL)] if isinstance(value.value, str) else [escape(text)]
    if value.best and text != NOTHING:
        lines = [f"\\textbf{{{line}}}" for line in lines]
    small = [part for part in (interval_of(value, column, row), *wrap(value.detail, HEAD)) if part]
    return [*lines, *(f"{{\\scriptsize {escape(part)}}}" for part in small)]


def _stack(lines: Iterable[str], position: str, side: str = "r") -> str:
    """Lines below one another in one cell."""
    first, *others = lines
    if not others:
        return first
    body = r" \\[-2pt] ".join([first, *others])
    return f"\\begin{{tabular}}[{position}]{{@{{}}{side}@{{}}}}{body}\\end{{tabular}}"
