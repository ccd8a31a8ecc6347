"""`bench compare A B`: what has changed between two result files, or two commits in them.

The files come from two runs, so a machine that was slower in one of them would pass for a change. What is compared
therefore is each side's ratio to another of its run: the floor, else our own side. Times are compared besides where
machine and versions are the same, dtypes always being: they are part of a case's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import records as results
from .records import Record

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """A value of A, one of B, and b/a. It is ``beyond`` the spreads if the quartiles of A and B lie apart."""

    a: float
    b: float
    ratio: float
    beyond: bool

    @classmethod
    def of(cls, a: float, b: float, quartiles_a: Sequence[float], quartiles_b: Sequence[float]) -> Change:
        apart = max(quartiles_a) < min(quartiles_b) or max(quartiles_b) < min(quartiles_a)
        return cls(a, b, b / a, apart)


@dataclass(frozen=True)
class Row:
    """A side of a case's pass that was measured in A and in B.

    ``relative``: its ratio to the side ``basis`` of the same run, None if there is none that both have. ``seconds``:
    None where machine or versions differ. ``peak_bytes``: (A, B), where both know it.
    """

    case: str
    part: str
    side: str
    basis: str | None
    relative: Change | None
    seconds: Change | None
    peak_bytes: tuple[int, int] | None

    @property
    def change(self) -> Change | None:
        return self.relative or self.seconds


@dataclass
class Comparison:
    """``rows``, the largest change first; ``failed``: {key: (why in A, why in B)}, None where it was measured."""

    rows: list[Row] = field(default_factory=list)
    only_a: list[Key] = field(default_factory=list)
    only_b: list[Key] = field(default_factory=list)
    failed: dict[Key, tuple[str | None, str | None]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        names = ("case", "pass", "side")

        def named(key: Key) -> dict[str, str]:
            return dict(zip(names, key, strict=True))

        rows = []
        for row in self.rows:
            values = asdict(row)
            rows.append(named((values.pop("case"), values.pop("part"), values.pop("side"))) | values)
        return {
            "rows": rows,
            "only_a": [named(key) for key in self.only_a],
            "only_b": [named(key) for key in self.only_b],
            "failed": [named(key) | {"a": a, "b": b} for key, (a, b) in self.failed.items()],
            "warnings": self.warnings,
        }


def load(text: str) -> list[Record]:
    """The records of FILE, or of FILE@COMMIT: those of that commit, whose name may be shortened.

    ValueError for a file that is not there, has no measurement, or none or several commits of that name.
    """
    path, commit = Path(text), ""
    if not path.exists() and "@" in text:
        name, commit = text.rsplit("@", 1)
        path = Path(name)
    if not path.is_file():
        raise ValueError(f"{text!r} is no result file; it may be FILE or FILE@COMMIT")
    found = results.read(path)
    if not found:
        raise ValueError(f"{path} holds no measurement")
    if not commit:
        return found
    commits = sorted({str(record.get("commit")) for record in found})
    matching = [name for name in commits if name == commit] or [n for n in commits if n.startswith(commit)]
    if len(matching) != 1:
        raise ValueError(f"{path} has {len(matching)} commits named {commit!r}; it has {', '.join(commits)}")
    return [record for record in found if str(record.get("commit")) == matching[0]]


def compare(records_a: Iterable[Record], records_b: Iterable[Record]) -> Comparison:
    """What is in both, in only one, and where one failed; of several measurements of the same thing the latest counts.

    Measurements of ``--against`` are left out: theirs are the ratios to the other commit, made within one run.
    """
    found_a, found_b = list(records_a), list(records_b)
    a, b = _latest(found_a), _latest(found_b)
    same, warnings = _circumstances(a.values(), b.values())
    left_out = sum(bool(record.get("against")) for record in (*found_a, *found_b))
    if left_out:
        warnings.append(
            f"{left_out} measurements of --against are left out; their ratios are in their own field"
        )
    comparison = Comparison(
        only_a=[key for key in a if key not in b],
        only_b=[key for key in b if key not in a],
        warnings=warnings,
    )
    for key in a:
        if key not in b:
            continue
        one, two = a[key], b[key]
        if "failed" in one or "failed" in two:
            comparison.failed[key] = one.get("failed"), two.get("failed")
        else:
            comparison.rows.append(_row(key, one, two, same))
    comparison.rows.sort(key=lambda row: -abs(math.log(row.change.ratio)) if row.change else 0.0)
    return comparison


def _latest(records: Iterable[Record]) -> dict[Key, Record]:
    return {(r["case"], r["pass"], r["side"]): r for r in records if not r.get("against")}


def _row(key: Key, a: Record, b: Record, same: bool) -> Row:
    case, part, side = key
    ratios_a, ratios_b = a.get("ratios") or {}, b.get("ratios") or {}
    candidates = (a.get("floor"), a.get("ours"))
    basis = next((s for s in candidates if s != side and s in ratios_a and s in ratios_b), None)
    relative = seconds = peak = None
    if basis is not None:
        of_a, of_b = ratios_a[basis], ratios_b[basis]
        relative = Change.of(of_a["median"], of_b["median"], of_a["quartiles"], of_b["quartiles"])
    if same:
        seconds = Change.of(
            a["median_seconds"], b["median_seconds"], a["quartiles_seconds"], b["quartiles_seconds"]
        )
    if a.get("peak_bytes") is not None and b.get("peak_bytes") is not None:
        peak = a["peak_bytes"], b["peak_bytes"]
    return Row(case, part, side, basis, relative, seconds, peak)


def _circumstances(a: Iterable[Record], b: Iterable[Record]) -> tuple[bool, list[str]]:
    """Whether times can be compared, and the warnings that say what differs."""
    in_a, in_b = list(a), list(b)
    warnings = []
    for name in ("machine", "versions"):
        values_a, values_b = _values(in_a, name), _values(in_b, name)
        fields = [f for f in dict.fromkeys([*values_a, *values_b]) if values_a.get(f) != values_b.get(f)]
        warnings += [
            f"{name}: {f} is {_listed(values_a.get(f))} in A and {_listed(values_b.get(f))} in B"
            for f in fields
        ]
        # Within one file too, measurements may be of several machines.
        warnings += [
            f"{name}: {f} is {_listed(values_a[f])}"
            for f in values_a
            if f not in fields and len(values_a[f]) > 1
        ]
    same = not warnings
    if not same:
        warnings.append("so only ratios within each run are compared, not times")
    dtypes = [sorted({record.get("dtype", "") for record in found}) for found in (in_a, in_b)]
    if dtypes[0] != dtypes[1]:
        warnings.append(f"dtypes are {', '.join(dtypes[0])} in A and {', '.join(dtypes[1])} in B")
    return same, warnings


def _values(records: Iterable[Record], name: str) -> Mapping[str, list[Any]]:
    """{field: its values}, of the records' machine or versions; the package's own version may differ."""
    values: dict[str, list[Any]] = {}
    for record in records:
        for field_name, value in (record.get(name) or {}).items():
            known = values.setdefault(field_name, [])
            if field_name != "hybrid_kernels" and value not in known:
                known.append(value)
    return {f: sorted(known, key=str) for f, known in values.items()}


def _listed(values: Sequence[Any] | None) -> str:
    return ", ".join(map(str, values)) if values else "unknown"
