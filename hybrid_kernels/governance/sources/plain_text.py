"""Text: a row a line, blank lines too, since files of one corpus are often aligned by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid_kernels.governance.sources.base import Content, check_columns
from hybrid_kernels.governance.sources.lines import Lines
from hybrid_kernels.governance.sources.record_file import RecordFile, split_ending


class PlainText(RecordFile):
    """Its one column has the name of the text column. Lines end in `\\n` or `\\r\\n`, and nowhere else."""

    format = "text"
    can_add_columns = False

    def _open(self, lines: Lines) -> bytes:
        if len(self.columns.texts) > 1:
            raise ValueError(
                f"{self.name}: a text file has one column, and {list(self.columns.texts)} are asked for; "
                "name one text column, or use TSV or JSONL"
            )
        check_columns(self.name, self._asked, self._names())
        return b""

    def _names(self) -> list[str]:
        return list(self.columns.texts)

    def _is_blank(self, line: bytes) -> bool:
        return False

    def _record(self, line: bytes, lines: Lines) -> tuple[bytes, Content]:
        try:
            return line, {self.columns.texts[0]: self._decode(split_ending(line)[0])}
        except UnicodeDecodeError as error:
            return line, self._undecodable(error)

    def _changed(self, raw: bytes, changes: Mapping[str, Any], added: list[str]) -> bytes:
        text = changes[self.columns.texts[0]]
        if "\n" in text:
            raise ValueError(f"{self.name}: a line of a text file cannot hold a newline: {text!r:.80}")
        return self._encode(text) + split_ending(raw)[1]
