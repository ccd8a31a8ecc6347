"""Files of records that lie one behind another as bytes: what JSONL, CSV, TSV and text have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources import lines as lines_module
from hybrid_kernels.governance.sources.base import Changes, Content, Source
from hybrid_kernels.governance.sources.encodings import decode_problem, likely_encoding, wide_encoding
from hybrid_kernels.governance.sources.lines import Lines
from hybrid_kernels.governance.sources.rows import encodable, tables
from hybrid_kernels.governance.sources.streams import (
    Stamp,
    compressing,
    partial_file,
    reading,
    sha256,
    written,
)

_HEAD = 1 << 16
_BOM = b"\xef\xbb\xbf"
#: Of a record that is too large, what `records` hands out.
_EXCERPT = 1 << 20


class Piece(Enum):
    """Bytes that are no record of their own."""

    BLANK = "a blank line"
    CONTINUED = "more of a record that is too large"


class RecordFile(Source):
    """A file whose records are found by their bytes, so that what is kept is copied and not written anew."""

    def __init__(
        self,
        path: Path,
        compression: str,
        name: str,
        output_name: str,
        columns: Columns,
        *,
        encoding: str,
        evaluation: bool,
    ) -> None:
        super().__init__(name, output_name, columns, evaluation=evaluation)
        self._path, self._compression, self._encoding = path, compression, encoding
        self._stamp = Stamp(path, name)
        with self._lines() as lines:
            head = lines.peek(_HEAD)
            if not head and (cut := lines.next()):
                raise OSError(f"{name} cannot be read: {cut[1]}")
            if wide := wide_encoding(head):
                raise ValueError(
                    f"{name} looks like {wide}, which is not read; convert it: iconv -f {wide} -t UTF-8 FILE > NEW"
                )
            if b"\n" not in head and b"\r" in head.rstrip(b"\r\x1a"):
                raise ValueError(
                    f"{name} has lines that end in a carriage return alone, which are not told apart; "
                    "convert it: tr '\\r' '\\n' < FILE > NEW"
                )
            self._likely = likely_encoding(head, encoding)
            bom = encoding == "utf-8" and head.startswith(_BOM)
            lines.skip(len(_BOM) if bom else 0)
            #: What lies before the first record and is copied always.
            self._preamble = (_BOM if bom else b"") + self._open(lines)

    @abstractmethod
    def _open(self, lines: Lines) -> bytes:
        """Check the asked columns at the file's beginning; returns the header as it lies there."""

    @abstractmethod
    def _record(self, line: bytes, lines: Lines) -> tuple[bytes, Content]:
        """The record that begins with `line`: its bytes and its content."""

    @abstractmethod
    def _is_blank(self, line: bytes) -> bool: ...

    @abstractmethod
    def _changed(self, raw: bytes, changes: Mapping[str, Any], added: list[str]) -> bytes:
        """The record with columns set, and with the columns `added` in every record of the file."""

    def _header(self, added: list[str]) -> bytes:
        """The preamble of a file in which every record has the columns `added` besides."""
        return self._preamble

    def batches(self, start: dict[str, int] | None = None) -> Iterator[tuple[pa.Table, dict[str, int]]]:
        self._stamp.check()
        if start and "end" in start:
            return
        offset = start["offset"] if start else len(self._preamble)
        record = start["record"] if start else 0
        with self._lines(offset) as lines:
            for table, position in tables(self.columns, self._contents(lines, offset), record, offset):
                self._stamp.check()
                yield table, position
        self._stamp.check()

    def records(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any] | bytes]]:
        self._stamp.check()
        left = iter(wanted.tolist())
        if (target := next(left, None)) is None:
            return
        record = -1
        with self._lines(len(self._preamble)) as lines:
            for raw, content in self._pieces(lines):
                if isinstance(content, Piece):
                    continue
                record += 1
                if record == target:
                    if isinstance(content, dict) and (b"\\u" not in raw or _is_encodable(content)):
                        yield record, content
                    else:
                        yield record, raw if len(raw) < lines.limit else raw[:_EXCERPT]
                    if (target := next(left, None)) is None:
                        break
        self._stamp.check()
        if target is not None:
            raise ValueError(f"{self.name} has {record + 1} records, and number {target} is asked for")

    def write_kept(
        self, kept: NDArray[np.bool_], path: Path, changes: Changes | None = None
    ) -> dict[str, Any]:
        self._stamp.check()
        added = self._added(kept, changes) if changes else []
        with partial_file(path) as partial:
            with partial.open("wb") as file, compressing(file, self._compression) as out:
                self._copy(kept, out, changes, added)
            self._stamp.check()
            return written(partial, int(kept.sum())) | {"path": str(path)}

    def fingerprint(self) -> dict[str, Any]:
        self._stamp.check()
        size = self._path.stat().st_size
        return {"name": self.name, "format": self.format, "bytes": size, "sha256": sha256(self._path)}

    def _names(self) -> list[str] | None:
        """The columns that every record has, where the format has such."""
        return None

    def _added(self, kept: NDArray[np.bool_], changes: Changes) -> list[str]:
        names = self._names()
        if names is None:
            return []
        there = set(names)
        added: dict[str, None] = {}
        for record in np.flatnonzero(kept).tolist():
            added.update(dict.fromkeys(name for name in changes(record) if name not in there))
        if added and not self.can_add_columns:
            raise ValueError(f"{self.name}: no columns can be added to it, and {list(added)} would be")
        return list(added)

    def _copy(
        self, kept: NDArray[np.bool_], out: IO[bytes], changes: Changes | None, added: list[str]
    ) -> None:
        out.write(self._header(added))
        keep = kept.tolist()
        record, keeping = -1, True
        with self._lines(len(self._preamble)) as lines:
            for raw, content in self._pieces(lines):
                # What is no record shares the fate of the record before it.
                if not isinstance(content, Piece):
                    record += 1
                    if record == len(keep):
                        raise ValueError(f"{self.name} has more records than kept has values, {len(keep)}")
                    keeping = keep[record]
                    if keeping and changes is not None and isinstance(content, dict):
                        new = changes(record)
                        raw = self._changed(raw, new, added) if new or added else raw
                if keeping:
                    out.write(raw)
        if record + 1 != len(keep):
            raise ValueError(f"{self.name} has {record + 1} records, and kept has {len(keep)} values")

    @contextmanager
    def _lines(self, offset: int = 0) -> Iterator[Lines]:
        with reading(self._path, self._compression, offset) as (read, rest):
            lines = Lines(read, lines_module.MAX_RECORD)
            if lines.skip(rest) < rest:
                raise OSError(
                    f"{self.name} ends before byte {offset}, where reading was to go on; start again"
                )
            yield lines

    def _pieces(self, lines: Lines) -> Iterator[tuple[bytes, Content | Piece]]:
        """All bytes of the stream in order."""
        inside = False
        while (line := lines.next()) is not None:
            raw, cut = line
            if inside:
                yield raw, Piece.CONTINUED
            elif cut is not None:
                yield raw, cut
            elif self._is_blank(raw):
                yield raw, Piece.BLANK
            else:
                yield self._record(raw, lines)
            inside = cut is not None

    def _contents(self, lines: Lines, offset: int) -> Iterator[tuple[Content, int]]:
        """Content of each record, and where the next begins."""
        waiting: Content | None = None
        for raw, content in self._pieces(lines):
            if not isinstance(content, Piece):
                if waiting is not None:
                    yield waiting, offset
                waiting = content
            offset += len(raw)
        if waiting is not None:
            yield waiting, offset

    def _decode(self, raw: bytes) -> str:
        return raw.decode(self._encoding)

    def _encode(self, text: str) -> bytes:
        """ValueError: the file's encoding has no such character."""
        try:
            return text.encode(self._encoding)
        except UnicodeEncodeError as error:
            raise ValueError(f"{self.name}: {error}; convert the file to UTF-8") from None

    def _undecodable(self, error: UnicodeDecodeError) -> str:
        return decode_problem(error, self._likely)


def split_ending(line: bytes) -> tuple[bytes, bytes]:
    """(a line without its ending, the ending)."""
    if line.endswith(b"\r\n"):
        return line[:-2], line[-2:]
    if line.endswith(b"\n"):
        return line[:-1], line[-1:]
    return line, b""


def _is_encodable(value: Any) -> bool:
    if isinstance(value, str):
        return encodable(value) == value
    if isinstance(value, dict):
        return all(_is_encodable(key) and _is_encodable(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(_is_encodable, value))
