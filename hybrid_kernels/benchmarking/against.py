"""`bench --against REV`: the same cases on another commit of this repository in the same run, to see a slowdown.

Three processes measure: the working tree (new), the commit REV (old), and REV once more (old again). In each round
each of them, in an order drawn anew, times the same side of the same case, never two at once. A round gives two ratios:
new/old, and old again/old, which differs from 1 by noise alone.

The rule. Of each ratio we take the median over the rounds, and the interval of order statistics that holds the true
median with a probability of at least `LEVEL`, whatever the distribution of the times. The *noise* is how far the
interval of old again/old reaches from 1, upwards or downwards. A side is beyond the noise if its interval of new/old
lies wholly outside [1/noise, noise]. Memory is laid out anew in every process, which is no noise between rounds, so
what is beyond the noise is measured again, in fresh processes: it is *slower* (or *faster*) only if it is so both
times, the noise being the larger of both times.

Threads of idle processes sleep (`processes.ENVIRONMENT`) where they would spin by default: the ratios are not affected,
as it is the same for all.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cases.base import BenchmarkCase
from . import timing
from .processes import Refused, Selection, WorkerDied, Workers
from .records import Record
from .session import Options, head

#: Where the cases are, for the processes.
DEFINITIONS = Path(__file__).resolve().parents[1]
LEVEL = 0.99
#: The fewest rounds of which the smallest and the largest ratio are such an interval: 2 × 2⁻⁸ ≤ 1 − LEVEL.
MIN_ROUNDS = 8
#: A round's time of a side is the shortest of timings that take this long together, or of one that takes longer.
SECONDS_EACH_ROUND = 2.5e-2
NEW, OLD, AGAIN = "new", "old", "again"

Times = dict[str, list[float]]


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Order statistics that hold the median of the distribution between them with probability `LEVEL` or more.

    The outermost ones where there are fewer than `MIN_ROUNDS`.
    """
    n, below = len(ratios), 0.0
    rank = 0  # as many are left out on either side
    while rank < (n - 1) // 2:
        below += math.comb(n, rank) / 2**n
        if 2 * (below + math.comb(n, rank + 1) / 2**n) > 1 - LEVEL:
            break
        rank += 1
    ordered = sorted(ratios)
    return ordered[rank], ordered[n - 1 - rank]


@dataclass(frozen=True)
class Ratio:
    """new/old of one side, and the noise that was measured beside it."""

    median: float
    interval: tuple[float, float]
    noise: float

    @classmethod
    def of(cls, times: Times) -> Ratio:
        """``times``: {NEW, OLD and AGAIN: seconds in each round}."""
        change = [new / old for new, old in zip(times[NEW], times[OLD], strict=True)]
        low, high = interval([again / old for again, old in zip(times[AGAIN], times[OLD], strict=True)])
        return cls(statistics.median(change), interval(change), max(high, 1 / low))

    def beyond(self, noise: float) -> str | None:
        """ "slower" or "faster" where the interval lies wholly beyond this noise, else None."""
        low, high = self.interval
        return "slower" if low > noise else "faster" if high < 1 / noise else None


@dataclass
class Outcome:
    """What is known of a side of a case's pass: a ratio, a second one if the first was beyond its noise; or failures.

    ``times`` and ``failed`` are by process (`NEW`, `OLD`, `AGAIN`).
    """

    case: BenchmarkCase
    part: str
    side: str
    times: Times = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    first: Ratio | None = None
    second: Ratio | None = None

    @property
    def suspected(self) -> bool:
        return self.first is not None and self.first.beyond(self.first.noise) is not None

    @property
    def noise(self) -> float:
        return max(ratio.noise for ratio in (self.first, self.second) if ratio is not None)

    @property
    def change(self) -> str | None:
        """ "slower" or "faster", seen twice; "broken" where only the old one runs; else None."""
        if NEW in self.failed and not self.failed.keys() & {OLD, AGAIN}:
            return "broken"
        if self.first is None or self.second is None:
            return None
        seen = self.first.beyond(self.noise)
        return seen if seen == self.second.beyond(self.noise) else None


def records(outcome: Outcome, made_on: Mapping[str, Any], short: str) -> list[Record]:
    """One of the working tree and one of the other commit, of that short hash; a side that failed there says so.

    ``made_on``: the fields machine, versions and commit, of the working tree, and date. The field ``against`` of both
    names the other commit; that of the working tree's has besides ``ratio``, ``interval``, ``noise``, ``level``,
    ``measured``, the second time for what was beyond the noise, and ``change``.
    """
    found = []
    for role, commit in ((NEW, made_on["commit"]), (OLD, short)):
        against: Record = {"commit": short}
        record = {**head(outcome.case, outcome.part), "side": outcome.side, **made_on, "commit": commit}
        if role in outcome.failed:
            reason = outcome.failed[role]
            record["failed"] = f"not at {short}: {reason}" if role == OLD else reason
        elif outcome.times:
            rounds = dict(enumerate(outcome.times[role]))
            record |= timing.summary({outcome.side: rounds}, outcome.side, ())
            record |= {"seconds": outcome.times[role], "rounds": len(rounds)}
        else:
            continue
        ratio = outcome.second or outcome.first
        if role == NEW and ratio is not None:
            against |= {
                "ratio": ratio.median,
                "interval": ratio.interval,
                "noise": outcome.noise,
                "level": LEVEL,
            }
            against |= {"measured": 1 if outcome.second is None else 2, "change": outcome.change}
        found.append(record | {"against": against})
    return found


def run(
    cases: Sequence[BenchmarkCase],
    selection: Selection,
    trees: Mapping[str, Path],
    options: Options,
    done: Callable[[Outcome], None],
    say: Callable[[str], None],
    definitions: Path = DEFINITIONS,
) -> None:
    """Measures the passes of ``cases``, which ``selection`` gives in the processes too.

    ``done`` gets each outcome, and gets it again when its second measurement is in; ``say`` what is done now.
    ``trees``: folders with the packages for `NEW` and `OLD`, in this order, by what messages call them. Of ``options``,
    a side is measured in ``rounds``, or in as many as fit into ``seconds_each``, but in `MIN_ROUNDS` at least; after
    ``limit`` seconds no other pass is begun. A process that dies costs the side that it measured: that fails, and
    names it.

    Raises ValueError for too few rounds, where a package or its cases cannot be imported, and where only the working
    tree has no compiled operators: its ratios would say nothing of its code.
    """
    if options.rounds < MIN_ROUNDS:
        raise ValueError(
            f"rounds is {options.rounds}; another commit needs {MIN_ROUNDS} or more, for an interval of {LEVEL:.0%}"
        )
    begin = time.monotonic()
    measuring = _Measuring(selection, trees, definitions, options)
    try:
        say("starting the processes")
        measuring.start()
        suspected = []
        for case in cases:
            for part in options.passes:
                if part in case.passes and time.monotonic() - begin <= options.limit:
                    say(f"{case.id} {part}")
                    for outcome in measuring.outcomes(case, part):
                        done(outcome)
                        if outcome.suspected:
                            suspected.append(outcome)
        measuring.stop()
        for outcome in suspected:
            say(f"again: {outcome.case.id} {outcome.part}")
            for again in measuring.outcomes(outcome.case, outcome.part, outcome.side):
                outcome.second, outcome.times, outcome.failed = again.first, again.times, again.failed
                done(outcome)
    finally:
        measuring.stop()


class _Measuring:
    """Asks the processes, and starts them anew after one has died."""

    def __init__(
        self, selection: Selection, trees: Mapping[str, Path], definitions: Path, options: Options
    ) -> None:
        new, old = trees.items()
        self._workers = Workers({NEW: new, OLD: old, AGAIN: old}, definitions, selection)
        self._options = options
        self._shuffle = random.Random(0)

    def start(self) -> None:
        uncompiled = {
            role: worker.ask("describe")["not_compiled"] for role, worker in self._workers.started().items()
        }
        if uncompiled[NEW] is not None and uncompiled[OLD] is None:
            raise ValueError(
                f"the other commit has compiled operators, the working tree has not: {uncompiled[NEW]} "
                "(run `python setup.py build_ext --inplace`)"
            )

    def stop(self) -> None:
        self._workers.kill()

    def outcomes(self, case: BenchmarkCase, part: str, only: str | None = None) -> Iterator[Outcome]:
        """Of each side of ours in turn, or of only that one."""
        built: dict[str, dict[str, str | None]] = {}
        failed: dict[str, str] = {}
        for role, worker in self._workers.started().items():
            try:
                built[role] = worker.ask(
                    "build", case=case.id, part=part, side=only, without=self._options.without
                )
            except (Refused, WorkerDied) as error:
                failed[role] = str(error)
        # Where no side could be built anywhere, the case's own stands for them.
        sides = list(dict.fromkeys(side for found in built.values() for side in found)) or [only or case.ours]
        for side in sides:
            if only is None and not self._workers.alive():
                # A process has died of another side, so this one is made in fresh ones.
                yield from self.outcomes(case, part, side)
                continue
            lacking = {role: found.get(side, "it has no such side") for role, found in built.items()}
            reasons = {role: reason for role, reason in lacking.items() if reason is not None}
            outcome = Outcome(case, part, side, failed=failed | reasons)
            if not outcome.failed:
                self._time(outcome)
            yield outcome

    def _time(self, outcome: Outcome) -> None:
        workers, side = self._workers.started(), outcome.side
        role = OLD
        try:
            repeats, once = workers[role].ask("repeats", side=side)
            timings = max(1, round(SECONDS_EACH_ROUND / once))
            fitting = int(self._options.seconds_each / (len(workers) * timings * once))
            order = list(workers)
            times: Times = {role: [] for role in order}
            for _ in range(max(MIN_ROUNDS, min(self._options.rounds, fitting))):
                self._shuffle.shuffle(order)
                for role in order:
                    times[role].append(workers[role].ask("time", side=side, repeats=repeats, timings=timings))
        except (Refused, WorkerDied) as error:
            outcome.failed[role] = str(error)
            return
        outcome.times, outcome.first = times, Ratio.of(times)
