"""What became of the rows of a shard: every objection to them, kept beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Objection
from hybrid_kernels.governance.storage import read_table, write_table
from hybrid_kernels.governance.summary import STEPS

#: (objection, place in it): one of the reasons of a row.
Reason = tuple[Objection, int]

_OBJECTED = pa.schema(
    [
        ("objection", pa.int32()),
        ("row", pa.int64()),
        ("score", pa.float64()),
        ("bound", pa.float64()),
        ("detail", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class Verdict:
    """Of the rows of a shard.

    Attributes:
        languages: of each text column, each row's language; None where it has none.
        confidence: in these, 0 to 1; NaN where nothing was identified.
        objections: to the rows, in the order of the steps.
    """

    languages: tuple[list[str | None], ...]
    confidence: NDArray[np.float64]
    objections: list[Objection]

    @property
    def kept(self) -> NDArray[np.bool_]:
        kept = np.ones(len(self.confidence), bool)
        for objection in self.objections:
            if objection.rejects:
                kept[objection.rows] = False
        return kept

    def reasons(self) -> dict[int, list[Reason]]:
        """Position → its reasons, of the rows that have any; those that reject first, in the order of the steps."""
        found: dict[int, list[Reason]] = {}
        order = sorted(self.objections, key=lambda one: (not one.rejects, STEPS.index(one.step)))
        for objection in order:
            for place, row in enumerate(objection.rows.tolist()):
                found.setdefault(row, []).append((objection, place))
        return found


def write_verdict(path: Path, verdict: Verdict, seconds: Mapping[str, float]) -> None:
    """`seconds`: of each step. The file at `path` is the last of two."""
    parts = verdict.objections
    heads = [[one.step, one.reason, one.column, one.rejects] for one in parts]
    columns = [
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(one.rows) for one in parts]),
        *(
            np.concatenate([getattr(one, name) for one in parts] or [[]])
            for name in ("rows", "score", "bound")
        ),
        [detail for one in parts for detail in one.detail],
    ]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _OBJECTED, strict=True)]
    schema = _OBJECTED.with_metadata({"objections": json.dumps(heads)})
    write_table(pa.table(arrays, schema=schema), _objected(path))
    rows = {f"language_{i}": pa.array(names, pa.string()) for i, names in enumerate(verdict.languages)}
    rows |= {"confidence": pa.array(verdict.confidence), "alive": pa.array(verdict.kept)}
    write_table(pa.table(rows).replace_schema_metadata({"seconds": json.dumps(dict(seconds))}), path)


def read_verdict(path: Path) -> Verdict:
    table, objected = read_table(path), read_table(_objected(path))
    heads = json.loads(objected.schema.metadata[b"objections"])
    numbers, rows, scores, limits = (
        objected[name].to_numpy() for name in ("objection", "row", "score", "bound")
    )
    details = objected["detail"].to_pylist()
    ends = np.searchsorted(numbers, np.arange(len(heads) + 1))
    objections = [
        Objection(step, reason, column, rows[a:b], scores[a:b], limits[a:b], details[a:b], rejects)
        for (step, reason, column, rejects), a, b in zip(heads, ends, ends[1:], strict=False)
    ]
    names = [name for name in table.column_names if name.startswith("language_")]
    languages = tuple(table[name].to_pylist() for name in names)
    return Verdict(languages, table["confidence"].to_numpy(), objections)


def alive(path: Path) -> NDArray[np.bool_]:
    """Which rows nothing speaks against so far."""
    return read_table(path)["alive"].to_numpy()


def seconds_of(path: Path) -> dict[str, float]:
    """What each step's objections took."""
    return json.loads(read_table(path).schema.metadata[b"seconds"])


def _objected(path: Path) -> Path:
    return path.with_suffix(".objections.arrow")
