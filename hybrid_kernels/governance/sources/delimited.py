"""CSV and TSV.

CSV is RFC 4180: a field in quotes may hold commas, newlines and doubled quotes. Python's reader is used within a line
only, because it does not say at which byte a record ends and because a quote that is never closed takes the rest of the
file with it; here it costs one line.

TSV has two dialects that no header tells apart: without quoting (XNLI, most corpora), and quoted as CSV (pandas,
Excel). A line is first read without: if it has as many fields as the header, it is a record. Else a quoted field may
hold the tabs and newlines. Either way a field that is quoted as a whole, quotes in it doubled, loses its quotes, and
any other quote is a character.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

from hybrid_kernels.governance.sources.base import Content, check_columns
from hybrid_kernels.governance.sources.lines import Lines
from hybrid_kernels.governance.sources.record_file import RecordFile, split_ending

_QUOTE = b'"'


class Csv(RecordFile):
    """A header and records of as many fields; blank lines are passed over.

    Without a header the columns are "0", "1", …: where every asked column is such a number and none stands in the first
    row.
    """

    format = "csv"
    delimiter = b","

    def _open(self, lines: Lines) -> bytes:
        self._fields: list[str] = []
        skipped = b""
        while (line := lines.next()) is not None and not line[1] and self._is_blank(line[0]):
            skipped += line[0]
        if line is None:
            return skipped
        if line[1]:
            raise ValueError(f"{self.name}: its first line cannot be read: {line[1]}")
        raw, fields = self._split(line[0], lines)
        try:
            first = [self._value(field) for field in fields] if isinstance(fields, list) else []
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.name}: its first line cannot be read: {self._undecodable(error)}"
            ) from None
        if isinstance(fields, str):
            raise ValueError(f"{self.name}: its first line cannot be read: {fields}")
        if not set(self._asked) & set(first) and all(name.isdecimal() for name in self._asked):
            self._fields, self.can_add_columns = [str(i) for i in range(len(first))], False
            check_columns(self.name, self._asked, self._fields)
            return skipped
        check_columns(self.name, self._asked, first, self._other_delimiter(first))
        self._fields = [name if first.index(name) == i else f"{name}_{i}" for i, name in enumerate(first)]
        return skipped + raw

    def _other_delimiter(self, header: list[str]) -> str:
        """What to say where the header, split at another delimiter, has the columns that are asked for."""
        here = self.delimiter.decode()
        for other in ",;\t|".replace(here, ""):
            if set(self._asked) <= {name.strip(' "') for name in here.join(header).split(other)}:
                known = {",": "name it .csv", "\t": "name it .tsv"}
                advice = known.get(other, f"convert it: csvformat -d '{other}' FILE > NEW.csv")
                return (
                    f"; {self.format} is split at {here!r}, and this file looks split at {other!r}: {advice}"
                )
        return ""

    def _names(self) -> list[str]:
        return self._fields

    def _is_blank(self, line: bytes) -> bool:
        return line in (b"\n", b"\r\n")

    def _record(self, line: bytes, lines: Lines) -> tuple[bytes, Content]:
        raw, values = line, self._quick(line)
        if values is None:
            raw, fields = self._split(line, lines)
            if isinstance(fields, str):
                return raw, fields
            try:
                self._decode(raw)
            except UnicodeDecodeError as error:
                return raw, self._undecodable(error)
            values = [self._value(field) for field in fields]
        if len(values) != len(self._fields):
            return raw, f"{len(values)} fields instead of {len(self._fields)}"
        return raw, dict(zip(self._fields, values, strict=True))

    def _quick(self, line: bytes) -> list[str] | None:
        """What `_split` and `_value` would return where the record is simple; None: it may not be."""
        try:
            text = self._decode(split_ending(line)[0])
        except UnicodeDecodeError:
            return None
        return self._quick_quoted(text) if _QUOTE in line else text.split(self.delimiter.decode())

    def _quick_quoted(self, text: str) -> list[str] | None:
        try:
            return None if "\r" in text else next(csv.reader([text], strict=True))
        except csv.Error:  # a quote that is not closed, say, or a field larger than Python's reader takes
            return None

    def _split(self, line: bytes, lines: Lines) -> tuple[bytes, list[bytes] | str]:
        """(the record's bytes, its fields as they lie there or why they cannot be told apart)."""
        if _QUOTE not in line:
            return line, split_ending(line)[0].split(self.delimiter)
        return quoted_fields(
            line, lines, self.delimiter, 2 * len(self._fields) + 16 if self._fields else len(line)
        )

    def _value(self, field: bytes) -> str:
        return self._decode(field[1:-1].replace(b'""', _QUOTE) if _is_quoted(field) else field)

    def _field(self, value: Any) -> bytes:
        raw = self._encode("" if value is None else str(value))
        if any(special in raw for special in (self.delimiter, _QUOTE, b"\n", b"\r")):
            return _QUOTE + raw.replace(_QUOTE, b'""') + _QUOTE
        return raw

    def _header(self, added: list[str]) -> bytes:
        body, ending = split_ending(self._preamble)
        return self.delimiter.join([body, *map(self._field, added)]) + ending

    def _changed(self, raw: bytes, changes: Mapping[str, Any], added: list[str]) -> bytes:
        _, ending = split_ending(raw)
        lines = raw.split(b"\n", 1)
        first = lines[0] + b"\n" if len(lines) == 2 else raw
        rest = Lines(iter((raw[len(first) :], b"")).__next__)
        fields = self._split(first, rest)[1]
        assert isinstance(fields, list)
        for name in changes.keys() - set(added):
            fields[self._fields.index(name)] = self._field(changes[name])
        fields += [self._field(changes.get(name)) for name in added]
        # A line without anything is no record.
        return (self.delimiter.join(fields) or _QUOTE + _QUOTE) + ending


class Tsv(Csv):
    format = "tsv"
    delimiter = b"\t"

    def _quick_quoted(self, text: str) -> list[str] | None:
        return None

    def _split(self, line: bytes, lines: Lines) -> tuple[bytes, list[bytes] | str]:
        plain = split_ending(line)[0].split(self.delimiter)
        wanted = len(self._fields) or len(plain)
        last_opens = plain[-1].startswith(_QUOTE) and not _is_quoted(plain[-1])
        if _QUOTE not in line or (len(plain) == wanted and not last_opens):
            return line, plain
        raw, fields = super()._split(line, lines)
        further = raw[len(line) :]
        if len(fields) != wanted or isinstance(fields, str) or self._swallows(line, further):
            lines.unread(further)
            return line, plain
        return raw, fields

    def _swallows(self, first: bytes, further: bytes) -> bool:
        """Whether a line behind the first is a record by itself, so that the quote before it is a mere character."""
        needed = len(self._fields) - 1
        tabs = first.count(self.delimiter)
        if not further or (needed and tabs + further.count(self.delimiter) == needed):
            return False
        lines = further.removesuffix(b"\n").split(b"\n")
        if tabs != needed:  # then the fields behind the quoted one are in the last line
            lines.pop()
        return any(line.count(self.delimiter) >= needed for line in lines)


def quoted_fields(first: bytes, lines: Lines, delimiter: bytes, most: int) -> tuple[bytes, list[bytes] | str]:
    """The fields of the record that begins with the line `first`, quotes included, by RFC 4180.

    With an error the record is `first` alone, and the lines behind it are unread. `most` fields bound how often the
    same lines are read in vain.
    """
    buffer, fields, at = bytearray(first), [], 0
    end = len(split_ending(first)[0])
    problem = None
    while problem is None:
        stop = -1
        if buffer.startswith(_QUOTE, at):
            closing = _closing_quote(buffer, at + 1, lines)
            end = len(split_ending(bytes(buffer[-2:]))[0]) + max(0, len(buffer) - 2)
            stop = closing + 1
            if closing < 0:
                problem = "a quote is opened and not closed"
            elif stop != end and not buffer.startswith(delimiter, stop):
                problem = "text stands behind a closing quote"
        else:
            stop = buffer.find(delimiter, at)
            stop = end if stop < 0 else stop
        fields.append(bytes(buffer[at:stop]))
        if stop == end and problem is None:
            return bytes(buffer), fields
        if len(fields) > most:
            problem = f"more than {most} fields"
        at = stop + 1
    lines.unread(buffer[len(first) :])
    return first, problem


def _closing_quote(buffer: bytearray, at: int, lines: Lines) -> int:
    """Where the quote is that closes the field, further lines being added as needed; -1: nowhere."""
    while True:
        at = buffer.find(_QUOTE, at)
        if at >= 0:
            if not buffer.startswith(_QUOTE, at + 1):
                return at
            at += 2
            continue
        at = len(buffer)
        line = lines.next()
        if line is None:
            return -1
        buffer += line[0]
        if line[1] or len(buffer) > lines.limit:
            return -1


def _is_quoted(field: bytes) -> bool:
    return (
        len(field) >= 2
        and field.startswith(_QUOTE)
        and field.endswith(_QUOTE)
        and _QUOTE not in field[1:-1].replace(b'""', b"")
    )
