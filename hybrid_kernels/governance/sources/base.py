"""What a source of rows is, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Columns

#: Of a record: its columns, or why it could not be read.
Content: TypeAlias = dict[str, Any] | str
#: Columns to set or to add, by the number of a record.
Changes: TypeAlias = Callable[[int], Mapping[str, Any]]


#: Of a source's columns, how many an error lists.
_SHOWN = 20


def constant(column: str) -> str | None:
    """The language that `=en` in place of a column's name claims for every row; None: it is a column's name."""
    return column[1:] if column.startswith("=") else None


def asked_columns(columns: Columns, *, texts_only: bool) -> dict[str, str]:
    """name → what it is for, of the columns that must be there."""
    asked = dict.fromkeys(columns.texts, "text column")
    if not texts_only:
        named = [name for name in columns.expected if constant(name) is None]
        asked = dict.fromkeys(named, "column of the expected language") | asked
        if columns.id is not None:
            asked = {columns.id: "id column"} | asked
    return asked


def check_columns(source: str, asked: dict[str, str], there: list[str], hint: str = "") -> None:
    """ValueError: a column is missing, or its name stands for several.

    `hint`: what to say besides of one that is missing.
    """
    for name, use in asked.items():
        if name not in there:
            shown = ", ".join(f"{column!r:.60}" for column in there[:_SHOWN])
            more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
            raise ValueError(f"{source}: no {use} {name!r}; its columns are [{shown}]{more}{hint}")
        if there.count(name) > 1:
            raise ValueError(
                f"{source}: {use} {name!r} is there {there.count(name)} times; rename all but one"
            )


class Source(ABC):
    """Rows of one file or data set, read in order. Cheap to pickle; no file is open between calls.

    Every record of the source is one row, numbered from 0, a malformed one too; blank lines of JSONL, CSV and TSV are
    no records, and share the fate of the record before them. Ids are handed on as strings; whether they are unique is
    not looked at.

    Attributes:
        name: as the user knows it.
        output_name: file name for what is kept of it, unique among the sources opened together.
        evaluation: its rows are what training rows must not duplicate.
        format: `jsonl`, `csv`, `tsv`, `text`, `parquet` or `dataset`.
        can_add_columns: `write_kept` may add columns, not only set those that are there.
    """

    format: str
    can_add_columns = True

    def __init__(self, name: str, output_name: str, columns: Columns, *, evaluation: bool) -> None:
        self.name, self.output_name, self.columns, self.evaluation = name, output_name, columns, evaluation
        self._asked = asked_columns(columns, texts_only=evaluation)

    @abstractmethod
    def batches(self, start: dict[str, int] | None = None) -> Iterator[tuple[pa.Table, dict[str, int]]]:
        """Tables of `storage.row_schema`, each with the position behind it, as JSON has it: `start` of a call that
        goes on there.

        A table has at most `storage.MAX_ROWS` rows and, unless it is one row, `storage.MAX_BYTES` of text.

        OSError: the source has changed since it was opened.
        """

    @abstractmethod
    def records(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any] | bytes]]:
        """(record, all its columns) of the records in `wanted`, ascending, by streaming the source once.

        A record that is malformed as a whole is its bytes as they lie in the file, with its line ending; of one larger
        than `lines.MAX_RECORD` the first MiB. Strings can be encoded in UTF-8; other values are what the format has
        (Parquet: dates, decimals, bytes).
        """

    @abstractmethod
    def write_kept(
        self, kept: NDArray[np.bool_], path: Path, changes: Changes | None = None
    ) -> dict[str, Any]:
        """Write the records for which `kept` is true, in their order, in the source's format and compression.

        They are byte for byte as in the source, except those that `changes` gives columns for: a mapping of the columns
        to set or to add, empty where the record stays as it is. It is called more than once for a record. The file is
        whole or not there.

        Returns: path, rows, bytes and sha256 of the file.
        Raises: OSError: the source has changed since it was opened, or `path` cannot be written. ValueError: `kept` has
            another length than the source, or a column cannot be added or set.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What tells this content from any other, for a manifest."""
