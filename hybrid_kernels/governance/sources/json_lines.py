"""JSON lines: an object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hybrid_kernels.governance.sources.base import Content, check_columns
from hybrid_kernels.governance.sources.lines import Lines
from hybrid_kernels.governance.sources.record_file import RecordFile, split_ending

#: Bytes and records of the beginning in which the asked columns must be found.
_LOOK_BYTES, _LOOK_RECORDS = 1 << 16, 100
#: Python's own limit depends on what else is on the stack, and decisions must not.
_MAX_DEPTH = 200
_TOO_DEEP = f"broken JSON: nested more than {_MAX_DEPTH} deep"


class JsonLines(RecordFile):
    """Blank lines are passed over. Of a key that an object has twice the last value counts."""

    format = "jsonl"

    def _open(self, lines: Lines) -> bytes:
        if lines.peek(1 << 10).lstrip().startswith(b"["):
            raise ValueError(
                f"{self.name} is one JSON array, not an object a line; convert it: jq -c '.[]' FILE > NEW"
            )
        there: dict[str, None] = {}
        size = records = 0
        for raw, content in self._pieces(lines):
            if isinstance(content, dict):
                there.update(dict.fromkeys(content))
                records += 1
            size += len(raw)
            if records == _LOOK_RECORDS or size > _LOOK_BYTES:
                break
        if records:
            check_columns(self.name, self._asked, list(there))
        return b""

    def _is_blank(self, line: bytes) -> bool:
        return line.isspace()

    def _record(self, line: bytes, lines: Lines) -> tuple[bytes, Content]:
        try:
            value = json.loads(self._decode(line))
        except UnicodeDecodeError as error:
            return line, self._undecodable(error)
        except json.JSONDecodeError as error:
            return line, f"broken JSON: {error.msg} at character {error.pos + 1}"
        except RecursionError:
            return line, _TOO_DEEP
        except ValueError as error:  # an integer of thousands of digits
            return line, f"broken JSON: {error}"
        if type(value) is not dict:
            return line, f"no JSON object but {type(value).__name__}"
        if line.count(b"[") + line.count(b"{") > _MAX_DEPTH and _is_deep(value):
            return line, _TOO_DEEP
        return line, value

    def _changed(self, raw: bytes, changes: Mapping[str, Any], added: list[str]) -> bytes:
        body, ending = split_ending(raw)
        row = json.loads(self._decode(body))
        if row and not changes.keys() & row.keys():
            # Behind what is there, which stays as it is: 1.10 and 1e400 would not survive a reading and a writing.
            return body.rstrip()[:-1] + b", " + self._dump(dict(changes))[1:] + ending
        return self._dump(row | dict(changes)) + ending

    def _dump(self, row: dict[str, Any]) -> bytes:
        try:
            return json.dumps(row, ensure_ascii=False).encode(self._encoding)
        except UnicodeEncodeError:  # a lone surrogate, or a character that the file's encoding lacks
            return json.dumps(row).encode()


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True
