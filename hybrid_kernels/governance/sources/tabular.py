"""Sources with columns: Parquet files, data sets of Hugging Face, lists of dictionaries. What is kept is Parquet."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from numpy.typing import NDArray

from hybrid_kernels.governance import storage
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources.base import Changes, Content, Source, check_columns
from hybrid_kernels.governance.sources.rows import encodable, tables
from hybrid_kernels.governance.sources.streams import Stamp, partial_file, sha256, written

#: A row group that is written ends at the first of these.
_GROUP_ROWS, _GROUP_BYTES = 1 << 17, 64 << 20
#: Rows of a data set that are looked at together; where it lies on disk in order, nothing is copied.
_STEP = 1024
_Part: TypeAlias = tuple[pa.Table | None, int, str]


class TabularSource(Source):
    """Rows that come as Arrow tables."""

    @abstractmethod
    def _schema(self) -> pa.Schema: ...

    @abstractmethod
    def _parts(self, start: int, names: list[str] | None) -> Iterator[_Part]:
        """From row `start` on (table, its rows, ""), or (None, rows, why they cannot be read).

        `names`: the columns wanted; None: all.
        """

    def _check_unchanged(self) -> None:
        """OSError: this is no longer what was opened."""

    def _check_schema(self) -> None:
        check_columns(self.name, self._asked, self._schema().names)
        for name in self.columns.texts:
            kind = self._schema().field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (_is_string(kind) or pa.types.is_null(kind)):
                raise TypeError(f"{self.name}: text column {name!r} holds {kind}, not strings")

    def batches(self, start: dict[str, int] | None = None) -> Iterator[tuple[pa.Table, dict[str, int]]]:
        self._check_unchanged()
        if start and "end" in start:
            return
        first = start["record"] if start else 0
        for table, position in tables(self.columns, self._contents(first), first, first):
            self._check_unchanged()
            yield table, position

    def records(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any] | bytes]]:
        self._check_unchanged()
        begin = 0
        for table, rows, problem in self._parts(0, None):
            here = wanted[np.searchsorted(wanted, begin) : np.searchsorted(wanted, begin + rows)]
            if table is None:
                yield from ((record, problem.encode()) for record in here.tolist())
            elif len(here):
                lists = [_values(column) for column in table.take(pa.array(here - begin)).columns]
                for record, *values in zip(here.tolist(), *lists, strict=True):
                    yield (
                        record,
                        {name: _readable(v) for name, v in zip(table.column_names, values, strict=True)},
                    )
            begin += rows
            if not len(wanted) or wanted[-1] < begin:
                break
        self._check_unchanged()

    def write_kept(
        self, kept: NDArray[np.bool_], path: Path, changes: Changes | None = None
    ) -> dict[str, Any]:
        self._check_unchanged()
        schema = self._changed_schema(kept, changes) if changes else self._schema()
        with partial_file(path) as partial:
            with pq.ParquetWriter(partial, schema, compression=self._codec()) as writer:
                waiting: list[pa.Table] = []
                for table in self._kept_tables(kept, changes, schema):
                    waiting.append(table)
                    if (
                        sum(map(len, waiting)) >= _GROUP_ROWS
                        or sum(t.nbytes for t in waiting) >= _GROUP_BYTES
                    ):
                        writer.write_table(pa.concat_tables(waiting))
                        waiting = []
                if waiting:
                    writer.write_table(pa.concat_tables(waiting))
            self._check_unchanged()
            return written(partial, int(kept.sum())) | {"path": str(path)}

    def _codec(self) -> str:
        return "snappy"

    def _contents(self, start: int) -> Iterator[tuple[Content, int]]:
        names = [name for name in dict.fromkeys(self._read_columns()) if name in self._schema().names]
        for part, rows, problem in self._parts(start, names):
            if part is None:
                yield from ((problem, start + i) for i in range(1, rows + 1))
                start += rows
                continue
            for table in _bounded(part):
                lists = [_values(table[name]) for name in names]
                for values in zip(*lists, strict=True):
                    start += 1
                    yield dict(zip(names, values, strict=True)), start

    def _read_columns(self) -> list[str]:
        identity = [self.columns.id] if self.columns.id is not None else []
        return [*self.columns.texts, *self.columns.expected, *identity]

    def _kept_tables(
        self, kept: NDArray[np.bool_], changes: Changes | None, schema: pa.Schema
    ) -> Iterator[pa.Table]:
        begin = 0
        for table, rows, problem in self._parts(0, None):
            here = np.flatnonzero(kept[begin : begin + rows])
            if len(here):
                if table is None:
                    raise OSError(f"{self.name}: rows that are to be kept cannot be read: {problem}")
                table = table.take(pa.array(here))
                yield (
                    _changed(table, schema, [changes(i) for i in (here + begin).tolist()])
                    if changes
                    else table
                )
            begin += rows
        if begin != len(kept):
            raise ValueError(f"{self.name} has {begin} records, and kept has {len(kept)} values")

    def _changed_schema(self, kept: NDArray[np.bool_], changes: Changes) -> pa.Schema:
        """With the columns that any record adds, of the type that holds all their values."""
        old = self._schema()
        added = pa.schema([])
        rows = np.flatnonzero(kept)
        for begin in range(0, len(rows), storage.MAX_ROWS):
            values: dict[str, list[Any]] = {}
            for row in rows[begin : begin + storage.MAX_ROWS].tolist():
                for name, value in changes(row).items():
                    if name not in old.names:
                        values.setdefault(name, []).append(value)
            found = pa.schema([(name, pa.infer_type(column)) for name, column in values.items()])
            added = pa.unify_schemas([added, found], promote_options="permissive")
        return pa.schema([*old, *added], metadata=old.metadata)


class Parquet(TabularSource):
    """A Parquet file. A row group that cannot be read is as many malformed rows."""

    format = "parquet"

    def __init__(
        self, path: Path, name: str, output_name: str, columns: Columns, *, evaluation: bool
    ) -> None:
        super().__init__(name, output_name, columns, evaluation=evaluation)
        self._path, self._stamp = path, Stamp(path, name)
        try:
            with pq.ParquetFile(path) as file:
                self._arrow, metadata = file.schema_arrow, file.metadata
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
                self._groups = [(group.num_rows, group.total_byte_size) for group in groups]
                codec = (
                    groups[0].column(0).compression.lower() if groups and groups[0].num_columns else "snappy"
                )
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{name} cannot be read as Parquet: {error}") from None
        self._compression = {"uncompressed": "none"}.get(codec, codec)
        self._check_schema()

    def fingerprint(self) -> dict[str, Any]:
        self._stamp.check()
        size = self._path.stat().st_size
        return {"name": self.name, "format": self.format, "bytes": size, "sha256": sha256(self._path)}

    def _schema(self) -> pa.Schema:
        return self._arrow

    def _codec(self) -> str:
        return self._compression

    def _check_unchanged(self) -> None:
        self._stamp.check()

    def _parts(self, start: int, names: list[str] | None) -> Iterator[_Part]:
        with pq.ParquetFile(self._path, buffer_size=1 << 20) as file:
            begin = 0
            for group, (rows, size) in enumerate(self._groups):
                if start < begin + rows:
                    yield from self._group(file, group, max(0, start - begin), names, size)
                begin += rows

    def _group(
        self, file: pq.ParquetFile, group: int, skip: int, names: list[str] | None, size: int
    ) -> Iterator[_Part]:
        rows, begin = self._groups[group][0], 0
        step = max(1, min(storage.MAX_ROWS, storage.MAX_BYTES * rows // max(1, size)))
        try:
            for batch in file.iter_batches(step, row_groups=[group], columns=names):
                part = batch.slice(max(0, skip - begin))
                begin += len(batch)
                if len(part):
                    yield pa.Table.from_batches([part]), len(part), ""
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None):
                raise
            yield None, rows - max(skip, begin), f"row group {group} of the file cannot be read: {error}"


class InMemory(TabularSource):
    """A `Dataset`, memory-mapped or not, or a list of dictionaries.

    Attributes:
        dataset: the rows; in one made of a list, what is no text in a text column is null.
    """

    format = "dataset"

    def __init__(
        self,
        rows: Dataset | Sequence[Mapping[str, Any]],
        name: str,
        output_name: str,
        columns: Columns,
        *,
        evaluation: bool,
    ) -> None:
        super().__init__(name, output_name, columns, evaluation=evaluation)
        self.dataset = as_dataset(rows, name, columns.texts)
        self._rows = None if isinstance(rows, Dataset) else rows
        if len(self.dataset) == 0:
            raise ValueError(f"{name} has no rows")
        self._check_schema()

    def fingerprint(self) -> dict[str, Any]:
        rows = len(self.dataset)
        return {
            "name": self.name,
            "format": self.format,
            "rows": rows,
            "fingerprint": self.dataset._fingerprint,
        }

    def records(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any] | bytes]]:
        if self._rows is None:
            yield from super().records(wanted)
        else:
            for record in wanted.tolist():
                yield record, {name: _readable(value) for name, value in self._rows[record].items()}

    def _schema(self) -> pa.Schema:
        return self.dataset.features.arrow_schema

    def _contents(self, start: int) -> Iterator[tuple[Content, int]]:
        if self._rows is None:
            yield from super()._contents(start)
        else:
            for record in range(start, len(self._rows)):
                yield dict(self._rows[record]), record + 1

    def _parts(self, start: int, names: list[str] | None) -> Iterator[_Part]:
        rows = self.dataset.select_columns(names) if names is not None else self.dataset
        for table in rows.skip(start).with_format("arrow").iter(_STEP):
            yield table, len(table), ""


def as_dataset(
    rows: Dataset | Sequence[Mapping[str, Any]], name: str, text_columns: Sequence[str]
) -> Dataset:
    """`rows` as a Dataset; what cannot be stored as text in a text column is null there.

    TypeError: not rows, or a column of them mixes types. ValueError: there are none.
    """
    if isinstance(rows, Dataset):
        return rows.with_format(None)
    if not rows:
        raise ValueError(f"{name} has no rows")
    names: dict[str, None] = {}
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"{name}: row {index} is no dictionary but {type(row).__name__}: {row!r:.80}")
        names.update(dict.fromkeys(row))
    columns = {}
    for column in names:
        values = [row.get(column) for row in rows]
        is_text = column in text_columns
        if is_text:
            values = [
                value if isinstance(value, str) and encodable(value) == value else None for value in values
            ]
        try:
            columns[column] = pa.array(values, pa.string() if is_text else None)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
            raise TypeError(f"{name}: column {column!r} cannot be stored in one type: {error}") from None
    return Dataset(pa.table(columns))


def _bounded(table: pa.Table) -> Iterator[pa.Table]:
    """Slices that are small enough to be made Python objects of."""
    if len(table) > 1 and table.nbytes > storage.MAX_BYTES:
        yield from _bounded(table[: len(table) // 2])
        yield from _bounded(table[len(table) // 2 :])
    else:
        yield table


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """As Python has them; strings that are no UTF-8, which nothing has checked in a file, as bytes."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if not _is_string(column.type):
            return [None if value is None else "not UTF-8" for value in column.is_valid().to_pylist()]
    values: list[Any] = column.cast(pa.large_binary()).to_pylist()
    for i, value in enumerate(values):
        try:
            values[i] = None if value is None else value.decode()
        except UnicodeDecodeError:
            continue
    return values


def _readable(value: Any) -> Any:
    return encodable(value) if isinstance(value, str) else value


def _changed(table: pa.Table, schema: pa.Schema, changes: list[Mapping[str, Any]]) -> pa.Table:
    for field in schema:
        if not any(field.name in change for change in changes) and field.name in table.column_names:
            continue
        there = field.name in table.column_names
        values = table[field.name].to_pylist() if there else [None] * len(table)
        for i, change in enumerate(changes):
            values[i] = change.get(field.name, values[i])
        array = pa.array(values, field.type)
        at = table.column_names.index(field.name) if there else 0
        table = table.set_column(at, field, array) if there else table.append_column(field, array)
    return table.cast(schema)
