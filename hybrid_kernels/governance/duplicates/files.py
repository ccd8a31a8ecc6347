"""What the tasks read and leave: the signatures of all shards as one table, arrays, the state of the rows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels._files import write_file
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.storage import RowStore, read_table

#: Row numbers.
Rows = NDArray[np.int64]

#: What a row is in a search: not part of it, a training row, an evaluation row.
ABSENT, TRAINING, EVALUATION = 0, 1, 2


@dataclass(frozen=True)
class Search:
    """What every task of one search is given.

    Attributes:
        store: the rows.
        signatures: a file of `sign`'s table for each shard of the rows.
        columns, policy: as `sign` had them.
        folder: where the results of tasks lie.
    """

    store: RowStore
    signatures: tuple[Path, ...]
    columns: Columns
    policy: GovernancePolicy
    folder: Path

    def parts(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """(number of its first row, values) of one column of the signatures, shard by shard."""
        for start, path in zip(self.store.starts, self.signatures, strict=False):
            yield start, _values(read_table(path), name)

    def gather(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The values of one column of the signatures for some rows, in any order."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        bounds = np.searchsorted(ordered, self.store.starts)
        pieces = []
        for shard in np.flatnonzero(np.diff(bounds)).tolist():
            inside = ordered[bounds[shard] : bounds[shard + 1]] - self.store.starts[shard]
            pieces.append(_values(read_table(self.signatures[shard]), name)[inside])
        if not pieces:
            return _values(read_table(self.signatures[0]), name)[:0]
        values = np.concatenate(pieces)
        result = np.empty_like(values)
        result[order] = values
        return result

    def texts(self, column: int, rows: NDArray[np.int64]) -> list[str]:
        """The texts of one column for some rows, ascending."""
        bounds = np.searchsorted(rows, self.store.starts)
        result: list[str] = []
        for shard in np.flatnonzero(np.diff(bounds)).tolist():
            inside = rows[bounds[shard] : bounds[shard + 1]] - self.store.starts[shard]
            table = read_table(self.store.shards[shard])
            result += table[f"text_{column}"].take(pa.array(inside)).to_pylist()
        return result


def _values(table: pa.Table, name: str) -> NDArray[Any]:
    """A column without a copy: integers, or a row of bytes for each binary value. Nulls read as zeros or anything."""
    column = table.column(name)
    if not len(column):
        return np.zeros(
            (0, column.type.byte_width) if pa.types.is_fixed_size_binary(column.type) else 0, np.uint8
        )
    (array,) = column.chunks
    buffer = array.buffers()[1]
    if pa.types.is_fixed_size_binary(array.type):
        values = np.frombuffer(buffer, np.uint8).reshape(-1, array.type.byte_width)
    else:
        values = np.frombuffer(buffer, array.type.to_pandas_dtype())
    return values[array.offset : array.offset + len(array)]


def write_array(path: Path, values: NDArray[np.generic]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_file(path, buffer.getvalue())


def read_array(path: Path) -> NDArray[Any]:
    return np.load(path, mmap_mode="r")
