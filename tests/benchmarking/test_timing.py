import contextlib
import itertools
import statistics
import time
import types

import pytest
import torch

from hybrid_kernels.benchmarking import timing
from tests.benchmarking.support import CPU, out_of_memory


def test_a_ratio_is_of_medians_and_its_quartiles_are_within_rounds():
    # The machine is ten times as slow in the last two rounds: within a round the ratio is 2 all the same.
    floor = {0: 1.0, 1: 1.0, 2: 1.0, 3: 10.0, 4: 10.0}
    mine = {number: 2 * value for number, value in floor.items()}
    assert timing.ratio(mine, floor) == {"median": 2.0, "quartiles": [2.0, 2.0]}


def test_a_ratio_uses_the_rounds_that_both_ran():
    found = timing.ratio({0: 4.0, 2: 6.0}, {0: 1.0, 1: 1.0, 2: 2.0, 3: 1.0})
    assert found == {"median": 5.0, "quartiles": [3.0, 4.0]}
    assert timing.ratio({0: 1.0}, {1: 1.0}) is None


def test_quartiles():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert timing.quartiles(values) == (2.0, 6.0)
    assert timing.quartiles([3.0, 1.0]) == (1.0, 3.0)
    assert timing.quartiles([3.0]) == (3.0, 3.0)


def test_a_summary_has_ratios_to_the_sides_that_ran():
    times = {"a": {0: 2.0, 1: 2.0, 2: 4.0}, "b": {0: 1.0, 1: 1.0, 2: 1.0}}
    found = timing.summary(times, "a", ("b", None, "absent"))
    assert found["median_seconds"] == 2.0 and found["quartiles_seconds"] == [2.0, 4.0]
    assert found["ratios"] == {"b": {"median": 2.0, "quartiles": [2.0, 4.0]}}


@pytest.fixture
def clock(monkeypatch):
    """Steps are names, which take so many seconds; the order in which they run is kept."""
    taken, order = {"quick": 0.01, "slow": 0.1, "slowest": 9.0}, []

    def seconds(step, device, repeats=1):
        order.append(step)
        return taken[step]

    monkeypatch.setattr(timing, "seconds", seconds)
    return taken, order


def test_slow_sides_sit_out_rounds_spread_evenly(clock):
    taken, _ = clock
    times, failures = timing.interleaved({name: name for name in taken}, 20, CPU, seconds_each=1.0)
    assert failures == {}
    assert list(times["quick"]) == list(range(20))
    assert list(times["slow"]) == list(range(0, 20, 2))
    assert list(times["slowest"]) == [0, 4, 8, 12, 16] and len(times["slowest"]) == timing.MIN_ROUNDS


@pytest.mark.parametrize("rounds", [1, 5, 7, 8, 12, 25])
def test_of_two_sides_one_runs_in_all_rounds_of_the_other_and_each_often_enough(rounds):
    runs = [
        set(range(0, rounds, timing.every(rounds, taken, 2.0))) for taken in (1e-4, 0.1, 0.2, 0.25, 0.35, 9.0)
    ]
    assert all(more >= fewer for more, fewer in itertools.pairwise(runs)) and len(runs[0]) == rounds
    assert len(runs[-1]) >= min(rounds, timing.MIN_ROUNDS)


def test_the_order_is_drawn_anew_in_each_round(clock):
    taken, order = clock
    rounds, names = 30, list(taken)
    timing.interleaved({name: name for name in taken}, rounds, CPU, seconds_each=1e9)
    order = order[-3 * rounds :]
    drawn = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(each) == sorted(names) for each in drawn)
    assert len(set(drawn)) == 6


def test_what_runs_before_is_not_timed():
    times, _ = timing.interleaved({"a": lambda: None}, 3, CPU, 1.0, before=lambda: time.sleep(0.02))
    assert max(times["a"].values()) < 0.01


def test_a_side_that_fails_in_the_middle_is_left_out_and_the_others_go_on():
    calls = []

    def step():
        calls.append(0)
        time.sleep(2e-4)
        if len(calls) > 10:
            out_of_memory()

    times, failures = timing.interleaved({"fails": step, "goes on": lambda: None}, 10, CPU, 1.0)
    assert list(times) == ["goes on"] and len(times["goes on"]) == 10
    assert failures["fails"]["failure"] == "memory" and len(calls) == 11


def test_short_steps_are_timed_several_in_a_row_and_seconds_are_of_one():
    x = torch.ones(4)
    repeats, taken = timing.repeats_of(lambda: x + 1, CPU)
    assert repeats >= 5 and taken >= timing.MIN_SECONDS
    repeats, taken = timing.repeats_of(lambda: time.sleep(2e-3), CPU)
    assert repeats == 1 and taken >= 2e-3
    ten = statistics.median(timing.seconds(lambda: time.sleep(1e-3), CPU, 10) for _ in range(3))
    assert 1e-3 <= ten < 5e-3


def test_steps_that_take_long_are_run_no_more_often_than_they_must(monkeypatch):
    monkeypatch.setattr(timing, "LONG_SECONDS", 1e-3)
    calls = []

    def step():
        calls.append(0)
        time.sleep(2e-3)

    timing.warm_up(step, CPU)
    assert len(calls) == 2
    assert timing.repeats_of(step, CPU)[0] == 1 and len(calls) == 3
    monkeypatch.setattr(timing, "LONG_SECONDS", 1.0)
    timing.warm_up(step, CPU)
    assert len(calls) == 3 + timing.WARM_UP_STEPS


def test_what_waits_for_the_device_is_not_captured(monkeypatch):
    mode, tried = ["default"], []

    class Graph:
        def replay(self):
            pass

    def graph(graph, stream):
        tried.append(mode[-1])
        return contextlib.nullcontext()

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "Stream": lambda: stream,
        "stream": contextlib.nullcontext,
        "current_stream": lambda: stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "synchronize": lambda: None,
        "get_sync_debug_mode": lambda: mode[0],
        "set_sync_debug_mode": mode.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def waits():
        if mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    replays, failures = timing.captured({"waits": lambda: waits, "does not": lambda: lambda: None})
    assert list(replays) == ["does not"] and tried == ["default"] == mode[-1:]
    assert failures == {"waits": {"failed": "RuntimeError: called a synchronizing CUDA operation"}}


def test_running_out_of_memory_is_told_from_other_failures():
    with pytest.raises(RuntimeError) as caught:
        out_of_memory()
    assert timing.failure(caught.value)["failure"] == "memory"
    assert timing.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert timing.failure(RuntimeError("shapes differ\nby much")) == {"failed": "RuntimeError: shapes differ"}
    assert timing.failure(ValueError()) == {"failed": "ValueError"}
