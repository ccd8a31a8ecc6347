"""Shards of rows on disk: Arrow files that are memory-mapped, so that reading one row costs that row.

A shard of rows has the columns of `row_schema`. Rows of all shards are numbered through, in the order of the shards.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa

from hybrid_kernels._files import write_file
from hybrid_kernels.governance.batch import Columns

#: A shard ends at the first of these.
MAX_ROWS, MAX_BYTES = 8192, 16 << 20


def row_schema(columns: Columns) -> pa.Schema:
    """`record`: place within the source; `text_i`, `expected_i`: null where there is none; `problem`: why a record or a
    text of it could not be read, its texts are null then."""
    fields = [("record", pa.int64()), ("id", pa.string()), ("problem", pa.string())]
    for i in range(len(columns.texts)):
        fields += [(f"text_{i}", pa.large_string()), (f"expected_{i}", pa.string())]
    return pa.schema(fields)


def write_table(table: pa.Table, path: Path) -> None:
    """Atomically, as one uncompressed record batch: what is memory-mapped must lie as it is used."""
    buffer = io.BytesIO()
    batch = table.combine_chunks()
    with pa.ipc.new_file(buffer, batch.schema) as file:
        file.write_table(batch)
    write_file(path, buffer.getvalue())


@lru_cache(maxsize=64)
def read_table(path: Path) -> pa.Table:
    """Memory-mapped; a shard never changes once it is there."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


class RowStore:
    """The rows of all shards by their running number. Cheap to pickle."""

    def __init__(self, shards: Sequence[Path], counts: Sequence[int], texts: int) -> None:
        """`counts`: rows of each shard; `texts`: text columns."""
        self.shards, self.starts = list(shards), [0, *accumulate(counts)]
        self._texts = texts

    def __len__(self) -> int:
        return self.starts[-1]

    def place(self, row: int) -> tuple[int, int]:
        """(shard, position in it)."""
        shard = bisect.bisect_right(self.starts, row) - 1
        return shard, row - self.starts[shard]

    def texts(self, row: int) -> tuple[str | None, ...]:
        shard, position = self.place(row)
        table = read_table(self.shards[shard])
        return tuple(table[f"text_{i}"][position].as_py() for i in range(self._texts))
