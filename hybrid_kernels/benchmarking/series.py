"""What charts and tables show of a result file: which records, in which families, as which figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..cases.base import Shape
from .records import Record

#: The pass that is drawn is the first of these that was measured.
PASSES = {"both": "forward + backward", "backward": "backward", "forward": "forward"}
#: Cases of one kind whose names begin alike, such as accelerate-LoRA and accelerate-HRA, are drawn in one chart.
TOGETHER = re.compile(r"(.*\baccelerate)-.")
#: The quantities of bars, and what their axes say.
QUANTITIES = ("time", "memory", "roofline")


#: The fields without which a record cannot be shown.
SHOWN = ("kind", "name", "shape", "dtype", "device", "ours")


def newest(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Of each case, pass and machine the commit that was measured last, of each side the last record.

    Also how many records of other commits that leaves out. Those of ``--against`` are left out uncounted: their ratios
    are to another commit, not to other sides. ValueError for a record that says too little to be shown.
    """
    records = [record for record in records if not record.get("against")]
    for record in records:
        times = () if "failed" in record else ("median_seconds", "quartiles_seconds")
        missing = [repr(name) for name in (*SHOWN, *times) if name not in record]
        if missing:
            raise ValueError(
                f"the measurement of {record['case']!r}, {record['side']!r} has no {', '.join(missing)}"
            )
    groups: dict[tuple[str, str, str], dict[str, dict[str, Record]]] = {}
    for record in records:
        commits = groups.setdefault((record["case"], record["pass"], machine_key(record)), {})
        commit = json.dumps(record.get("commit"))
        sides = commits.pop(commit, {})  # and back at the end: the last one measured is last
        sides[record["side"]] = record
        commits[commit] = sides
    # A shape may be measured again as a point of a sweep.
    alone = {record["case"] for record in records if not record.get("sweep")}
    kept = [
        {**record, "sweep": None} if record["case"] in alone else record
        for commits in groups.values()
        for record in commits[list(commits)[-1]].values()
    ]
    older = sum(len(sides) for commits in groups.values() for sides in list(commits.values())[:-1])
    return kept, older


def machine_key(record: Record) -> str:
    return json.dumps([record.get("device"), record.get("machine")], sort_keys=True)


def failure(record: Record) -> str | None:
    """Why it was not measured, in one line."""
    failed = record.get("failed")
    return None if failed is None else " ".join(str(failed).split())


@dataclass(frozen=True)
class Family:
    """The records of one kind and name of case, pass, dtype and machine; ``cases`` by their ids, in order."""

    kind: str
    name: str
    part: str
    dtype: str
    device: str
    cases: dict[str, list[Record]]

    @property
    def records(self) -> list[Record]:
        return [record for records in self.cases.values() for record in records]

    @property
    def slug(self) -> str:
        """layer-hybrid.cpu.float32: the beginning of a file's name."""
        return ".".join(
            re.sub(r"[^\w-]+", "-", part).strip("-")
            for part in (f"{self.kind}-{self.name}", self.device, self.dtype)
        )

    @property
    def on_gpu(self) -> bool:
        """Whether absolute times say something about us, not only about the machine."""
        return self.device.startswith("cuda")

    def of(self, cases: Iterable[str]) -> Family:
        wanted = set(cases)
        left = {case: records for case, records in self.cases.items() if case in wanted}
        return replace(self, cases=left)

    @property
    def base(self) -> str:
        """The side that ratios are to: the floor where each case has it, else ours."""
        floors = {record.get("floor") for record in self.records}
        floor = floors.pop() if len(floors) == 1 else None
        measured = all(
            any(record["side"] == floor and failure(record) is None for record in records)
            for records in self.cases.values()
        )
        return floor if floor is not None and measured else self.records[0]["ours"]

    def fixed(self) -> dict[str, int]:
        """The sizes that are the same in all cases."""
        shapes = [record["shape"] for record in self.records]
        return {
            name: size for name, size in shapes[0].items() if all(shape.get(name) == size for shape in shapes)
        }


def families(records: Iterable[Record]) -> list[Family]:
    """All families, in the order of their first records."""
    grouped: dict[tuple[str, ...], Family] = {}
    for record in records:
        kind, name, part, dtype, device = (record[n] for n in ("kind", "name", "pass", "dtype", "device"))
        key = (kind, name, part, dtype, machine_key(record))
        family = grouped.setdefault(key, Family(kind, name, part, dtype, device, {}))
        family.cases.setdefault(record["case"], []).append(record)
    return list(grouped.values())


def drawn(found: Sequence[Family]) -> list[Family]:
    """Of families that differ in nothing but the pass the one to draw."""
    chosen: dict[tuple[str, str], Family] = {}
    for family in sorted(found, key=lambda family: list(PASSES).index(family.part)):
        chosen.setdefault((family.slug, machine_key(family.records[0])), family)
    return [family for family in found if family in chosen.values()]


def together(found: Iterable[Family]) -> list[Family]:
    """Those whose names begin alike (`TOGETHER`) as one, with the sides of all in each shape."""
    result: dict[tuple[str, ...], Family] = {}
    for family in found:
        alike = TOGETHER.match(family.name)
        name = alike[1] if alike else family.name
        key = (family.kind, name, family.part, family.dtype, machine_key(family.records[0]))
        whole = result.setdefault(key, replace(family, name=name, cases={}))
        for case, records in family.cases.items():
            at = case if alike is None else sizes(records[0]["shape"])
            whole.cases.setdefault(at, []).extend(_new(records, whole.cases.get(at, ())))
    return list(result.values())


def _new(records: Iterable[Record], before: Iterable[Record]) -> list[Record]:
    """Without the sides that are there already, such as the floor."""
    known = {record["side"] for record in before}
    return [record for record in records if record["side"] not in known]


def ratio(record: Record, base: str) -> tuple[float, Sequence[float] | None] | None:
    """Median time over that of the side ``base``, with quartiles; None where one of both was not measured."""
    if failure(record) is not None:
        return None
    if record["side"] == base:
        return 1.0, None
    found = (record.get("ratios") or {}).get(base)
    return None if found is None else (found["median"], found["quartiles"])


def role(record: Record) -> str:
    """ "ours", "variant" (this package, asked for by name), "floor" or "peer"."""
    if record["side"] == record.get("ours"):
        return "ours"
    if record["side"] == record.get("floor"):
        return "floor"
    return "variant" if record.get("ran") else "peer"


class Bar(NamedTuple):
    """A side's value, with quartiles, and its label; or, with value None, why there is none."""

    side: str
    value: float | None
    quartiles: Sequence[float] | None
    label: str
    role: str


def bar(record: Record, quantity: str, base: str) -> Bar | None:
    """The bar of a record for one of `QUANTITIES`; None where that was not recorded."""
    side, kind = record["side"], role(record)
    why = failure(record)
    if why is not None:
        return Bar(side, None, None, why, kind)
    if quantity == "memory":
        peak = record.get("peak_bytes")
        return None if peak is None else Bar(side, peak / 2**20, None, f"{number(peak / 2**20)} MiB", kind)
    if quantity == "roofline":
        found = record.get("roofline")
        if not found:
            return None
        return Bar(side, 100 * found["share"], None, f"{100 * found['share']:.0f} %, {found['bound']}", kind)
    found = ratio(record, base)
    if found is None:
        return Bar(side, None, None, f"{base} was not measured beside it", kind)
    label = f"{number(found[0])}×"
    if record["device"].startswith("cuda"):
        label += f"  {duration(record['median_seconds'])}"
    return Bar(side, *found, label, kind)


def sweeps(family: Family) -> dict[str, Family]:
    """{what varies: the cases of that sweep}, of two sizes or more.

    A case of the family outside the sweep is a point of it where nothing but the one size that varies is different.
    """
    names = {case: records[0].get("sweep") for case, records in family.cases.items()}
    found = {}
    for name in dict.fromkeys(filter(None, names.values())):
        own = [case for case in names if names[case] == name]
        fixed = family.of(own).fixed()
        if len(own) > 1:
            found[name] = family.of(
                case
                for case, records in family.cases.items()
                if case in own or _differs_in_one(records[0]["shape"], fixed)
            )
    return found


def _differs_in_one(shape: Shape, fixed: Shape) -> bool:
    """Whether it has the ``fixed`` sizes and one other, or others that are equal, as of a square layer."""
    others = [size for name, size in shape.items() if name not in fixed]
    return all(shape.get(name) == size for name, size in fixed.items()) and len(set(others)) == 1


def abscissa(sweep: str, family: Family) -> tuple[str, dict[str, tuple[int, str]]]:
    """What varies, in words, and of each case the size and what its tick says."""
    fixed = family.fixed()
    names = [name for name in family.records[0]["shape"] if name not in fixed]
    chosen = sweep if sweep in names else names[0]
    shapes = {case: records[0]["shape"] for case, records in family.cases.items()}
    if all(len({shape[name] for name in names}) == 1 for shape in shapes.values()):
        letters, ticks = " = ".join(names), {case: str(shape[chosen]) for case, shape in shapes.items()}
    else:
        letters = " × ".join(names)
        ticks = {case: "×".join(str(shape[name]) for name in names) for case, shape in shapes.items()}
    title = sweep if letters == sweep else f"{sweep} ({letters})"
    return title, {case: (shape[chosen], ticks[case]) for case, shape in shapes.items()}


def bars(family: Family) -> Family | None:
    """The cases that are in no sweep, or all where no sweep has two sizes; None where there is none."""
    swept = sweeps(family)
    alone = [case for case, records in family.cases.items() if records[0].get("sweep") not in swept]
    return family.of(alone) if alone else None


def number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    return f"{number(seconds * 1e3)} ms" if seconds >= 1e-3 else f"{number(seconds * 1e6)} µs"


def sizes(shape: Shape) -> str:
    return ", ".join(f"{name} {size}" for name, size in shape.items())


def place(family: Family) -> str:
    """float32 on one NVIDIA H100, or on a CPU with its name and threads."""
    machine: dict[str, Any] = family.records[0].get("machine") or {}
    if family.on_gpu:
        return f"{family.dtype} on {machine.get('gpu') or 'a GPU'}"
    return (
        f"{family.dtype} on CPU ({machine.get('processor') or 'unknown'}, {machine.get('threads')} threads)"
    )


def origin(family: Family) -> str:
    """The versions, the commit and the rounds behind a chart."""
    records = family.records
    versions: dict[str, str | None] = next(
        (record["versions"] for record in records if record.get("versions")), {}
    )
    commits = sorted({str(record.get("commit") or "not recorded") for record in records})
    rounds = sorted({record["rounds"] for record in records if "rounds" in record})
    parts = [f"{name.replace('_', '-')} {version}" for name, version in versions.items() if version]
    parts.append(f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}")
    if rounds:
        span = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        parts.append(f"medians of {span} interleaved rounds")
    # Lines are not broken within a part.
    return " · ".join(part.replace(" ", "\u00a0") for part in parts)


def notes(family: Family) -> list[str]:
    """What the cases say that a reader has to know."""
    return list(dict.fromkeys(note for record in family.records for note in record.get("notes") or ()))
