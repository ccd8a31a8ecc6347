"""Records into tables of `storage.row_schema`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from hybrid_kernels.governance import storage
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources.base import Content, constant
from hybrid_kernels.governance.sources.encodings import decode_problem


def tables(
    columns: Columns, records: Iterable[tuple[Content, int]], record: int, offset: int
) -> Iterator[tuple[pa.Table, dict[str, int]]]:
    """Tables, each with the position behind it; that of the last says so, and what is damaged there is read once.

    Args:
        records: content and the offset at which the next record begins.
        record, offset: number and offset of the first of them.
    """
    table = _Table(columns)
    for content, end in records:
        texts, problem, size = _texts(content, columns.texts)
        if table.rows == storage.MAX_ROWS or (table.rows and table.size + size > storage.MAX_BYTES):
            yield table.finish(), {"record": record, "offset": offset}
            table = _Table(columns)
        table.add(record, content if isinstance(content, dict) else {}, texts, problem, size)
        record, offset = record + 1, end
    if table.rows:
        yield table.finish(), {"record": record, "offset": offset, "end": True}


def encodable(text: str) -> str:
    """`text` with lone surrogates written as `\\udXXX`."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def _texts(content: Content, names: tuple[str, ...]) -> tuple[list[str] | None, str | None, int]:
    """(texts, None, their bytes) or (None, what is wrong, 0)."""
    if isinstance(content, str):
        return None, content, 0
    texts, size = [], 0
    for name in names:
        value = content.get(name)
        if not isinstance(value, str):
            return None, _not_text(name, value, name in content), 0
        if "\0" in value:
            return None, f"{name} holds a NUL character at character {value.index(chr(0)) + 1}", 0
        try:
            size += len(value) if value.isascii() else len(value.encode())
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            return None, f"{name} holds a lone surrogate, U+{code:04X}, at character {error.start + 1}", 0
        texts.append(value)
    return texts, None, size


def _not_text(name: str, value: Any, there: bool) -> str:
    if value is None:
        return f"no text: {name} is {'null' if there else 'missing'}"
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError as error:
            return f"{name}: {decode_problem(error, None)}"
    shown = f", {value!r}" if isinstance(value, (bool, float)) else ""
    return f"no text: {name} is {type(value).__name__}{shown}"


class _Table:
    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._texts = len(columns.texts)
        sides = columns.expected * self._texts if len(columns.expected) == 1 else columns.expected
        self._languages = [(constant(side), side) for side in sides] or [(None, "")] * self._texts
        self._claims = bool(columns.expected)
        self._lists: dict[str, list[Any]] = {field.name: [] for field in storage.row_schema(columns)}
        self.rows = self.size = 0

    def add(
        self, record: int, row: dict[str, Any], texts: list[str] | None, problem: str | None, size: int
    ) -> None:
        lists, columns = self._lists, self._columns
        lists["record"].append(record)
        lists["problem"].append(problem)
        lists["id"].append(None if columns.id is None else _string(row.get(columns.id)))
        for i in range(self._texts):
            lists[f"text_{i}"].append(texts[i] if texts else None)
            fixed, name = self._languages[i]
            lists[f"expected_{i}"].append(fixed if fixed or not self._claims else _string(row.get(name)))
        self.rows += 1
        self.size += size

    def finish(self) -> pa.Table:
        schema = storage.row_schema(self._columns)
        return pa.table([_array(self._lists[field.name], field.type) for field in schema], schema=schema)


def _string(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    try:
        return str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists in lists
        return None


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # an id or a language: texts have been checked
        return pa.array([None if value is None else encodable(value) for value in values], kind)
