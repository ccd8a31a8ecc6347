"""Interleaved timing of steps: what is measured in one run, in turn, can be divided by each other.

All sides run within each round, in an order drawn anew each round, so that drifts of the machine hit them alike. Slow
sides sit out rounds. On a GPU CUDA events time each step from a cold cache, with its launches; `captured` steps are
replayed from CUDA graphs, which leaves the launches out.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

Step = Callable[[], Any]
#: {side: {round: seconds of one step}}
Times = dict[str, dict[int, float]]
#: {side: the fields of its record that say why it could not be measured}
Failures = dict[str, dict[str, str]]

MIN_ROUNDS = 5
WARM_UP_STEPS = 3
#: On a CPU a timing takes this long at least: a clock that is off by 0.1 µs is then off by 0.1 %.
MIN_SECONDS = 1e-4
#: A step that takes as long is not run more often than it must be.
LONG_SECONDS = 0.1


def reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out, on a GPU or on a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(text in str(error) for text in ("DefaultCPUAllocator", "can't allocate memory"))
    )


def failure(error: BaseException) -> dict[str, str]:
    """The fields of a record that say why its side could not be measured. The error itself would hold on to memory."""
    return {"failed": reason(error), **({"failure": "memory"} if out_of_memory(error) else {})}


def free(device: torch.device) -> None:
    """Give memory back between cases, and after a side that ran out of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def seconds(step: Step, device: torch.device, repeats: int = 1) -> float:
    """Seconds of one step: of ``repeats`` steps in a row on a CPU, divided by their number."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begin) / repeats


def repeats_of(step: Step, device: torch.device) -> tuple[int, float]:
    """Steps that one timing takes, more than one on a CPU where a step is too short for the clock; and its seconds."""
    repeats, taken = 1, seconds(step, device)
    if device.type == "cuda":
        return repeats, taken
    while taken < LONG_SECONDS:
        # The fastest of a few: one that the machine interrupted would pass for long enough.
        taken = repeats * min(seconds(step, device, repeats) for _ in range(3))
        if taken >= MIN_SECONDS:
            break
        repeats = max(2 * repeats, min(math.ceil(repeats * MIN_SECONDS / max(taken, 1e-9)), 10 * repeats))
    return repeats, taken


def warm_up(step: Step, device: torch.device) -> None:
    """Runs it a few times, and twice only if it takes long: what is made once is made in the first."""
    for number in range(WARM_UP_STEPS):
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number > 0 and time.perf_counter() - begin > LONG_SECONDS:
            break


def every(rounds: int, taken: float, seconds_each: float) -> int:
    """How many rounds apart a step of ``taken`` seconds runs, for ``seconds_each`` in all but in `MIN_ROUNDS` at least.

    A power of two, so that of two steps one runs in all rounds of the other: their ratios are within a round.
    """
    period = 1
    while rounds * taken > period * seconds_each and math.ceil(rounds / (2 * period)) >= MIN_ROUNDS:
        period *= 2
    return period


def interleaved(
    steps: Mapping[str, Step],
    rounds: int,
    device: torch.device,
    seconds_each: float,
    before: Step | None = None,
    after_round: Callable[[int], Any] = lambda number: None,
) -> tuple[Times, Failures]:
    """Times of all steps, run in turn within each round, in an order drawn anew each round; they must be warm.

    A step that would take more than ``seconds_each`` in all sits out rounds, spread evenly, but runs in `MIN_ROUNDS` at
    least (`every`). ``before`` runs untimed before each. A step that fails is left out from then on and comes with the
    reason.
    """
    times: Times = {}
    failures: Failures = {}
    repeats, periods = {}, {}
    for name, step in steps.items():
        try:
            repeats[name], taken = repeats_of(step, device)
        except Exception as error:
            failures[name] = failure(error)
            continue
        periods[name], times[name] = every(rounds, taken, seconds_each), {}
    order, shuffle = list(times), random.Random(0)
    for number in range(rounds):
        shuffle.shuffle(order)
        for name in list(order):
            if number % periods[name]:
                continue
            if before is not None:
                before()
            try:
                times[name][number] = seconds(steps[name], device, repeats[name])
            except Exception as error:  # a peer may fail in any way; the others are measured all the same
                failures[name] = failure(error)
                order.remove(name)
                del times[name]
            if name in failures:
                free(device)
        after_round(number)
    return times, failures


def quartiles(values: Iterable[float]) -> tuple[float, float]:
    """First and third; of two values these two."""
    known = list(values)
    if len(known) < 3:  # of two, `statistics.quantiles` would go beyond both
        return min(known), max(known)
    low, _, high = statistics.quantiles(known, n=4)
    return low, high


def ratio(mine: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any] | None:
    """The ratio of medians, and the quartiles of the ratio within a round; None if they share no round."""
    within = [value / other[number] for number, value in mine.items() if number in other]
    if not within:
        return None
    medians = statistics.median(mine.values()) / statistics.median(other.values())
    return {"median": medians, "quartiles": list(quartiles(within))}


def summary(times: Times, name: str, others: Iterable[str | None]) -> dict[str, Any]:
    """The timing fields of a side's record: medians, quartiles and, to each of ``others`` that ran, ratios."""
    mine = times[name]
    ratios = {other: ratio(mine, times[other]) for other in others if other in times and other is not None}
    return {
        "median_seconds": statistics.median(mine.values()),
        "quartiles_seconds": list(quartiles(mine.values())),
        "ratios": {other: found for other, found in ratios.items() if found is not None},
    }


@contextlib.contextmanager
def _waiting_refused() -> Iterator[None]:
    """A block in which what waits for the device raises RuntimeError: torch.linalg.solve does, to report errors."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def captured(makers: Mapping[str, Callable[[], Step]]) -> tuple[dict[str, Step], Failures]:
    """Replays of steps captured in CUDA graphs, so that the launches are out of their times.

    Each step is made on the stream of the capture: a backward runs on the stream of its forward. Those that cannot be
    captured come with the reason. Steps that wait for the device are not tried: a capture that fails half-way
    may leave memory behind.
    """
    replays: dict[str, Step] = {}
    failures: Failures = {}
    stream = torch.cuda.Stream()
    for name, make in makers.items():
        graph = torch.cuda.CUDAGraph()
        try:
            # What a step keeps for each stream, such as cuBLAS's workspace, is made before the capture.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step = make()
                step()
                with _waiting_refused():
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                step()
            graph.replay()
            torch.cuda.synchronize()
            # The graph reads what the step holds, so that lives as long.
            replays[name] = lambda graph=graph, step=step: graph.replay()  # type: ignore[misc]
        except Exception as error:
            failures[name] = failure(error)
    return replays, failures


def cache_bytes(device: torch.device) -> int:
    """The L2 cache of a GPU; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 64 * 2**20


def cache_flush(device: torch.device) -> Step | None:
    """Overwrites a GPU's cache: what is timed next finds its inputs in memory, as in a model that has other layers.

    It waits for the device: launches behind a flush that still runs would cost nothing. None for a CPU.
    """
    if device.type != "cuda":
        return None
    filler = torch.empty(2 * cache_bytes(device), dtype=torch.uint8, device=device)

    def flush() -> None:
        filler.zero_()
        torch.cuda.synchronize()

    return flush
