"""What the benchmarks share: interleaved timing, capture in a CUDA graph, the machine's own limits, the result file."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import hybrid_kernels as hk

Step = Callable[[], Any]
#: {side: {round: seconds}}
Times = dict[str, dict[int, float]]
#: {side: why it could not be measured}
Failures = dict[str, str]

MIN_ROUNDS = 5


def reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def free(device: torch.device) -> None:
    """Give memory back between shapes, and after a side that ran out of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def seconds(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def working(
    builders: Mapping[str, Callable[[], Step]], device: torch.device
) -> tuple[dict[str, Step], Failures]:
    """The steps that can be built and warmed up, and why the others cannot."""
    steps, failures = {}, {}
    for name, build in builders.items():
        try:
            step = build()
            for _ in range(3):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            steps[name] = step
        except Exception as error:  # a peer may fail in any way; the others are measured all the same
            failures[name] = reason(error)
        if name in failures:
            free(device)
    return steps, failures


def interleaved(
    steps: Mapping[str, Step],
    rounds: int,
    device: torch.device,
    seconds_each: float,
    before: Step | None = None,
) -> Times:
    """Times of all steps, run in turn within each round, in an order drawn anew each round.

    A step that would take more than ``seconds_each`` in all sits out rounds, spread evenly, but runs in `MIN_ROUNDS` at
    least. ``before`` runs untimed before each.
    """
    every = {}
    for name, step in steps.items():
        fitting = max(int(seconds_each / max(seconds(step, device), 1e-9)), MIN_ROUNDS)
        every[name] = max(math.ceil(rounds / fitting), 1)
    order, shuffle = list(steps), random.Random(0)
    times: Times = {name: {} for name in steps}
    for number in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            if number % every[name] == 0:
                if before is not None:
                    before()
                times[name][number] = seconds(steps[name], device)
    return times


def summarised(times: Times, floor: str, ratio: str = "ratio_to_frozen") -> dict[str, dict[str, Any]]:
    """Median, ratio of medians to that of the side ``floor``, and the quartiles of the ratio within a round.

    ``ratio`` is the name that the ratio of medians gets in the result.
    """
    base = times[floor]
    floor_median = statistics.median(base.values())
    table = {}
    for name, mine in times.items():
        ratios = [t / base[number] for number, t in mine.items() if number in base]
        # Of two, `quantiles` would go beyond both.
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 2 else (min(ratios), 0, max(ratios))
        median = statistics.median(mine.values())
        table[name] = {
            "median_seconds": median,
            ratio: median / floor_median,
            "ratio_quartiles": [low, high],
            "rounds": len(mine),
        }
    return table


def on_backend(backend: str, step: Step, variant: str | None = None) -> Step:
    """The step on a backend asked for by name; where it cannot run, the step raises."""

    def run() -> Any:
        with hk.use_backend(backend, variant=variant):
            return step()

    return run


def captured(steps: Mapping[str, Step]) -> tuple[dict[str, Step], Failures]:
    """Replays of the steps captured in CUDA graphs, so that the launches are out of their times; the steps must have
    been warmed up. Those that cannot be captured, such as steps that wait for the device, come with the reason."""
    replays, failures = {}, {}
    stream = torch.cuda.Stream()
    for name, step in steps.items():
        graph = torch.cuda.CUDAGraph()
        try:
            # What a step keeps for each stream, such as cuBLAS's workspace, is made before the capture.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, stream=stream):
                step()
            graph.replay()
            torch.cuda.synchronize()
            replays[name] = graph.replay
        except Exception as error:
            failures[name] = reason(error)
    return replays, failures


def cache_bytes(device: torch.device) -> int:
    """The L2 cache of a GPU; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 64 * 2**20


def cache_flush(device: torch.device) -> Step:
    """Overwrites the cache: what is timed next finds its inputs in memory, as in a model that has other layers."""
    filler = torch.empty(2 * cache_bytes(device), dtype=torch.uint8, device=device)
    return filler.zero_


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy within the device's memory: what no kernel here can pass by much."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(10)]
    return 2 * size / statistics.median(times)


def commit() -> str | None:
    """HYBRID_KERNELS_COMMIT, for a copy of the tree without its history; else what git says; else None."""
    named = os.environ.get("HYBRID_KERNELS_COMMIT")
    if named:
        return named
    root = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True
        )
    except OSError:
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "") or None


def head(benchmark: str, device: torch.device, **options: Any) -> dict[str, Any]:
    """What every result file begins with."""
    return {
        "benchmark": benchmark,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "device": str(device),
        **options,
        "info": hk.info(),
    }


def shapes_of(text: str, form: str = "MxKxN") -> list[tuple[int, ...]]:
    """Shapes of the given form with commas between them; ValueError for anything else."""
    try:
        shapes = [tuple(int(size) for size in shape.split("x")) for shape in text.split(",")]
        if any(len(shape) != len(form.split("x")) or min(shape) < 1 for shape in shapes):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--shapes is {text!r}; it must be {form}[,{form}…] of whole numbers from 1"
        ) from None
    return shapes


def write(result: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1, default=str) + "\n")
        temporary.replace(path)
