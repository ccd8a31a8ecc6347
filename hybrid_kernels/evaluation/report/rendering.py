"""How numbers, tables and figures are written: as text, in HTML and in Markdown."""

from __future__ import annotations

import base64
import re
from typing import Any

from hybrid_kernels.chart_style import colour
from hybrid_kernels.evaluation.significance import Mark
from hybrid_kernels.evaluation.tables import Column, Row, Value
from hybrid_kernels.evaluation.tables.table import number

NOTHING = "–"
EXAMPLE_LENGTH = 320
MARKS: dict[Mark, str] = {
    "significantly better": "▲",
    "significantly worse": "▼",
    "not distinguishable": "",
}


def text_of(value: Value, column: Column, row: Row) -> str:
    """The number with its deviation and mark; without its interval."""
    if value.value is None:
        return NOTHING
    if isinstance(value.value, str):
        return value.value
    text = number(value.value, column, signed=row.signed)
    if value.std is not None:
        text += f" ± {number(value.std, Column('', column.unit, column.decimals))}"
    return f"{text} {MARKS[value.mark]}" if value.mark and MARKS[value.mark] else text


def interval_of(value: Value, column: Column, row: Row) -> str:
    """[low, high], or nothing."""
    if value.interval is None:
        return ""
    low, high = (number(end, column, signed=row.signed) for end in (value.interval.low, value.interval.high))
    return f"[{low}, {high}]"


def below(value: Value, column: Column, row: Row) -> str:
    """What stands under a number in small print."""
    interval = interval_of(value, column, row).replace(" ", "\u00a0")
    return " ".join(part for part in (interval, value.detail) if part)


def title_of(value: Value) -> str:
    """For a tooltip: the corrected p-value, and the folders of the cells."""
    p = "" if value.p is None else f"{p_value(value.p)}, corrected; "
    return p + "; ".join(value.sources)


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def heading(column: Column) -> str:
    return f"{column.name}, {column.unit}" if column.unit else column.name


def tops(columns: list[Column]) -> list[tuple[str, int]]:
    """(heading, number of columns under it) of the upper line of a table's head; empty where no column has one."""
    found: list[tuple[str, int]] = []
    for column in columns:
        if found and found[-1][0] == column.top:
            found[-1] = (column.top, found[-1][1] + 1)
        else:
            found.append((column.top, 1))
    return found if any(top for top, _ in found) else []


def shade(value: Value, row: Row, rows: list[Row]) -> str:
    """A cell's place between the table's least and greatest number, from 0 to 1, for a table of one kind of number."""
    numbers = [v.value for one in rows for v in one.values if isinstance(v.value, (int, float))]
    if not isinstance(value.value, (int, float)) or max(numbers) == min(numbers):
        return "0"
    return f"{(value.value - min(numbers)) / (max(numbers) - min(numbers)):.2f}"


def environment(*, html: bool) -> Any:
    import jinja2
    import yaml

    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("hybrid_kernels.evaluation"), jinja2.PackageLoader("hybrid_kernels")]
        ),
        undefined=jinja2.StrictUndefined,
        autoescape=html,
        finalize=None if html else _markdown_cell,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "text_of": text_of,
        "below": below,
        "title_of": title_of,
        "heading": heading,
        "tops": tops,
        "shade": shade,
        "colour": colour,
        "counted": counted,
    }
    made.filters |= {
        "data_uri": _data_uri,
        "excerpt": _excerpt,
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True),
    }
    return made


def _markdown_cell(value: Any) -> Any:
    """One line without active Markdown or HTML, so that no datum breaks out of its table cell."""
    return re.sub(r"([\\`*\[\]|<>])", r"\\\1", " ".join(str(value).split()))


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _excerpt(text: str) -> str:
    """The beginning of a text; control characters, which HTML forbids, are shown as �."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "�", text)
    return text if len(text) <= EXAMPLE_LENGTH else text[: EXAMPLE_LENGTH - 1] + "…"
