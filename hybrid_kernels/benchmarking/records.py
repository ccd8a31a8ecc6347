"""The result file: one JSON object a line for each measurement, appended as they are made.

What is in the file is whole: the records of one run of a case and pass are written at once and reach the disk before
the next ones are measured, a last line torn by a crash is ignored, and removed before more is appended.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]

REQUIRED = ("case", "pass", "side")
#: What two measurements of the same case and pass must share for one to stand for the other.
CIRCUMSTANCES = ("commit", "machine", "versions", "rounds")


def probe(path: Path) -> None:
    """Raises OSError where a result file cannot be made or added to, a full disk included; leaves nothing behind."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, b" " * 4095 + b"\n", keep=False)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; nothing was measured", str(path)) from error
    finally:
        if new:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def append(path: Path, records: Iterable[Record]) -> None:
    """Adds the records: all of them, on the disk, or, where that raises OSError, none."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _append(path, lines.encode(), keep=True)
    except OSError as error:
        what = f"{error.strerror}; what was written before is kept"
        raise OSError(error.errno, what, str(path)) from error


def _append(path: Path, data: bytes, keep: bool) -> None:
    # Unbuffered: a buffer would try again when the file is closed.
    with path.open("a+b", buffering=0) as file:
        size = _mended(file)
        try:
            view = memoryview(data)
            while view:  # a disk that fills up takes a part first
                view = view[file.write(view) or 0 :]
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more
                file.truncate(size)
            raise
        if not keep:
            file.truncate(size)


def _mended(file: Any) -> int:
    """The size of a file of whole lines, after the repair of its last one if that has no end."""
    size: int = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = file.read()
    if size == 0 or content.endswith(b"\n"):
        return size
    begin = content.rfind(b"\n") + 1
    if _parsed(content[begin:]) is not None:  # someone's editor leaves out the last line's end
        file.write(b"\n")
        return size + 1
    file.truncate(begin)
    return begin


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read(path: Path) -> list[Record]:
    """The records of a result file, oldest first; none if there is no such file.

    ValueError, with the number of the line, for what is no record, and for a folder or a device. A last line without
    its end, which an interrupted run may leave, is ignored.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"{path} is no file; results are added to a file of one JSON object a line")
    content = path.read_bytes()
    lines = content.split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parsed(line)
        if record is None and number == len(lines):
            break
        missing = [name for name in REQUIRED if record is None or name not in record]
        if record is None or missing:
            what = "it is no JSON object" if record is None else f"it has no {', '.join(map(repr, missing))}"
            raise ValueError(f"{path}, line {number}: {what}; a result file has one measurement a line")
        records.append(record)
    return records


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


class Done:
    """What has been measured already under the same circumstances: commit, machine, versions and number of rounds.

    Where the commit is not known, the versions stand for it.
    """

    def __init__(self, records: Iterable[Record], circumstances: Mapping[str, Any]) -> None:
        wanted = {name: _text(circumstances[name]) for name in CIRCUMSTANCES}
        self._runs: dict[tuple[str, str], dict[str, dict[str, Record]]] = {}
        for record in records:
            if not record.get("against") and all(
                _text(record.get(name)) == value for name, value in wanted.items()
            ):
                runs = self._runs.setdefault((record["case"], record["pass"]), {})
                # Ratios are within a run; all its records have one date.
                runs.setdefault(record.get("date", ""), {})[record["side"]] = record

    def run(self, case: str, part: str, sides: Iterable[str], profiled: bool = False) -> list[Record]:
        """The records of the latest run of a case and pass that has all of these sides; [] if there is none.

        ``profiled``: they must say where the time went.
        """
        wanted = set(sides)
        for run in reversed(self._runs.get((case, part), {}).values()):
            if wanted <= run.keys() and (
                not profiled or any(record.get("profile") is not None for record in run.values())
            ):
                return [record for side, record in run.items() if side in wanted]
        return []
