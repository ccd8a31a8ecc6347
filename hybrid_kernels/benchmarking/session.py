"""The loop over cases and passes: build, warm up, measure in turn, record."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cases.base import PASSES, BenchmarkCase, Side, dtype_name
from . import machine, memory, profile, roofline, timing
from .records import Done, Record

#: Their graphs would each hold all activations, and their launches are part of what is asked.
NOT_IN_GRAPHS = ("model",)


@dataclass(frozen=True)
class Options:
    """How to measure. ``seconds_each`` bounds a side's time in one case and pass; after ``limit`` seconds no other is
    begun. Sides whose names begin with one of ``without`` are left out, but never the package's own choice."""

    passes: tuple[str, ...] = ("both",)
    rounds: int = 25
    seconds_each: float = 2.0
    limit: float = math.inf
    without: tuple[str, ...] = ()
    profile: bool = False

    def __post_init__(self) -> None:
        unknown = [part for part in self.passes if part not in PASSES]
        if unknown or not self.passes:
            raise ValueError(f"passes is {self.passes!r}; it may have {', '.join(map(repr, PASSES))}")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be at least 1")
        if not self.seconds_each > 0:
            raise ValueError(f"seconds_each is {self.seconds_each}; it must be greater than 0")


class Progress:
    """What is told while a session runs; this one tells nobody."""

    def begin(self, case: BenchmarkCase, part: str, number: int, of: int) -> None:
        """A pass of a case, the ``number``-th of all, from 1."""

    def doing(self, what: str) -> None:
        """Such as the side that is built now."""

    def round(self, number: int, of: int) -> None:
        """A round of timing, from 1, is over."""

    def finished(self, records: list[Record], before: bool) -> None:
        """The records of the pass; ``before``: from an earlier run."""


@dataclass
class Outcome:
    """The ids of the passes of cases, such as "operator/…/cpu both", by what became of them."""

    measured: list[str] = field(default_factory=list)
    measured_before: list[str] = field(default_factory=list)
    not_begun: list[str] = field(default_factory=list)


def circumstances(options: Options, device: torch.device) -> dict[str, Any]:
    """The fields of a record that say what it was measured on, and how often."""
    return {
        "machine": machine.machine(device),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "rounds": options.rounds,
    }


def run(
    cases: Iterable[BenchmarkCase],
    options: Options,
    write: Callable[[list[Record]], Any],
    progress: Progress | None = None,
    earlier: Sequence[Record] = (),
) -> Outcome:
    """Measures each pass of each case and gives its records to ``write``, all sides of it at once.

    A side that fails is recorded with the reason. What ``earlier`` records have under the same circumstances is not
    measured again. What ``write`` raises, and KeyboardInterrupt, end the session.
    """
    progress = progress or Progress()
    begin = time.monotonic()
    work = [(case, [part for part in options.passes if part in case.passes]) for case in cases]
    total = sum(len(parts) for _, parts in work)
    known: dict[torch.device, tuple[dict[str, Any], Done]] = {}
    outcome, number = Outcome(), 0
    for case, parts in work:
        if case.device not in known:
            made_on = circumstances(options, case.device)
            known[case.device] = made_on, Done(earlier, made_on)
        made_on, done = known[case.device]
        sides = Sides(case, options)
        for part in parts:
            number += 1
            name = f"{case.id} {part}"
            if time.monotonic() - begin > options.limit:
                outcome.not_begun.append(name)
                continue
            progress.begin(case, part, number, total)
            records = done.run(case.id, part, sides.names, options.profile)
            if records:
                progress.finished(records, before=True)
                outcome.measured_before.append(name)
                continue
            records = measured(sides, part, options, made_on, progress)
            progress.finished(records, before=False)
            write(records)
            outcome.measured.append(name)
        del sides
        timing.free(case.device)
    return outcome


def sides(case: BenchmarkCase, options: Options) -> list[str]:
    """The names of the sides that would be measured; what makes them is not run."""
    return Sides(case, options).names


class Sides:
    """The sides of a case, each built when it is first needed; ``failures`` has those that cannot be."""

    def __init__(self, case: BenchmarkCase, options: Options) -> None:
        self.case = case
        self.failures: timing.Failures = {}
        self._left_out = options.without
        self._makers: Mapping[str, Callable[[], Side]] | None = None
        self._built: dict[str, Side] = {}

    def _prepared(self) -> Mapping[str, Callable[[], Side]]:
        if self._makers is None:
            try:
                self._makers = {
                    name: make
                    for name, make in self.case.builders().items()
                    if name == self.case.ours or not name.startswith(self._left_out)
                }
            except Exception as error:
                self._makers, self.failures[self.case.ours] = {}, timing.failure(error)
                timing.free(self.case.device)
        return self._makers

    @property
    def names(self) -> list[str]:
        return [*self._prepared()] or [self.case.ours]

    def __getitem__(self, name: str) -> Side | None:
        """None for one that cannot be built."""
        if name not in self._built and name not in self.failures:
            try:
                self._built[name] = self._prepared()[name]()
            except Exception as error:
                self.failures[name] = timing.failure(error)
            if name in self.failures:
                timing.free(self.case.device)
        return self._built.get(name)


def head(case: BenchmarkCase, part: str) -> Record:
    """The fields of a record that say what is measured, but for the side."""
    return {
        "case": case.id,
        "kind": case.kind,
        "name": case.name,
        "shape": dict(case.shape),
        "dtype": dtype_name(case.dtype),
        "device": str(case.device),
        "pass": part,
        "sweep": case.sweep,
        "floor": case.floor,
        "ours": case.ours,
        "notes": list(case.notes),
    }


def measured(
    sides: Sides, part: str, options: Options, made_on: Mapping[str, Any], progress: Progress
) -> list[Record]:
    """The records of one pass of a case, one of each side."""
    case, device = sides.case, sides.case.device
    steps: dict[str, timing.Step] = {}
    found: dict[str, Record] = {}
    for name in sides.names:
        progress.doing(f"warming up {name}")
        side = sides[name]
        if side is None:
            found[name] = dict(sides.failures[name])
            continue
        try:
            with _choices() as ran:
                step = side.step(part)
                timing.warm_up(step, device)
            steps[name] = step
            found[name] = {"parameters": side.parameters, **ran(), "graph": None, "profile": None}
        except Exception as error:  # a peer may fail in any way; the others are measured all the same
            found[name] = timing.failure(error)
        if "failed" in found[name]:
            timing.free(device)

    flush = timing.cache_flush(device)

    def timed(steps: Mapping[str, timing.Step]) -> tuple[timing.Times, timing.Failures]:
        return timing.interleaved(
            steps,
            options.rounds,
            device,
            options.seconds_each,
            flush,
            lambda number: progress.round(number + 1, options.rounds),
        )

    others = (case.floor, case.ours)
    progress.doing("measuring")
    times, failures = timed(steps)
    for name in times:
        found[name] |= timing.summary(times, name, others)
        found[name]["seconds"] = [times[name].get(number) for number in range(options.rounds)]
    if device.type == "cuda" and case.kind not in NOT_IN_GRAPHS:
        progress.doing("measuring CUDA graphs")
        for name, graph in _graphs({n: sides[n] for n in times}, part, others, timed).items():
            found[name]["graph"] = graph
    progress.doing("memory")
    for name in times:
        try:
            found[name]["peak_bytes"] = memory.peak_bytes(steps[name], device)
            if options.profile:
                found[name]["profile"] = profile.profile(steps[name], device)
        except Exception as error:
            failures[name] = timing.failure(error)
        if name in failures:
            timing.free(device)
        found[name]["roofline"] = _roofline(case, part, found[name])
    tail = {**made_on, "date": datetime.datetime.now(datetime.timezone.utc).isoformat()}
    return [
        {**head(case, part), "side": name, **(failures.get(name) or record), **tail}
        for name, record in found.items()
    ]


@contextlib.contextmanager
def _choices() -> Iterator[Callable[[], Record]]:
    """Gives a function that tells, after the block, {"ran", "declined"}: the package's operators and what ran them.

    A package of another commit may not record its choices.
    """
    try:
        from hybrid_kernels.ops.backend import Choices
        from triton_ops.selection import RAN
    except ImportError:
        yield lambda: {"ran": [], "declined": {}}
        return
    RAN.clear()
    with Choices() as choices:
        yield lambda: {
            "ran": [
                *(f"{operator}: {backend}" for operator, backend in sorted(choices.made)),
                *sorted(
                    f"{operation}: Triton {variant}" + (f" {tuple(tiles)}" if tiles else "")
                    for operation, variant, tiles, *_ in RAN
                ),
            ],
            "declined": {f"{op}: {backend}": why for (op, backend), why in choices.reasons.items()},
        }


def _graphs(
    sides: Mapping[str, Side | None],
    part: str,
    others: tuple[str | None, ...],
    timed: Callable[[Mapping[str, timing.Step]], tuple[timing.Times, timing.Failures]],
) -> dict[str, Record]:
    """{side: the field "graph" of its record}."""
    replays, failures = timing.captured(
        {
            name: (lambda side=side: side.step(part))  # type: ignore[misc]
            for name, side in sides.items()
            if side is not None
        }
    )
    times, late = timed(replays)
    return {
        **failures,
        **late,
        **{name: timing.summary(times, name, others) for name in times},
    }


_rates: dict[tuple[torch.device, torch.dtype], roofline.Rates] = {}


def _roofline(case: BenchmarkCase, part: str, record: Record) -> Record | None:
    if case.device.type != "cuda" or case.work is None:
        return None
    key = case.device, case.dtype
    if key not in _rates:
        try:
            _rates[key] = roofline.rates(*key)
        except torch.OutOfMemoryError:
            return None
    graph = record.get("graph") or {}
    seconds = float(graph.get("median_seconds") or record["median_seconds"])
    return roofline.share(*case.work(part), seconds, _rates[key].flop_rate, _rates[key].copy_rate)
