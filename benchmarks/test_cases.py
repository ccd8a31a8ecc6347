"""The cases of `hybrid-kernels bench` as tests of pytest-benchmark, one for each side of a case's pass.

    pytest benchmarks --quick --benchmark-group-by=group --benchmark-autosave
    pytest benchmarks --quick --benchmark-compare

`hybrid-kernels bench` measures all sides of a case in turn, and its ratios are better than those of these times.
"""

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from hybrid_kernels.benchmarking import memory, session, timing
from hybrid_kernels.cases.base import BenchmarkCase


@pytest.fixture(scope="module")
def kept() -> Iterator[list[session.Sides]]:
    """The sides of the case that was measured last: the next test is most often of another side of it."""
    sides: list[session.Sides] = []
    yield sides
    sides.clear()


def test_case(
    benchmark: BenchmarkFixture, kept: list[session.Sides], case: BenchmarkCase, part: str, side: str
) -> None:
    if not kept or kept[0].case is not case:
        kept.clear()
        timing.free(case.device)
        kept.append(session.Sides(case, session.Options()))
    built = kept[0][side]
    if built is None:
        pytest.skip(kept[0].failures[side]["failed"])
    try:
        step = built.step(part)
        timing.warm_up(step, case.device)
    except Exception as error:  # a peer may fail in any way
        pytest.skip(timing.reason(error))
    benchmark.group = f"{case.id} {part}"
    benchmark.extra_info.update(session.circumstances(session.Options(), case.device))
    del benchmark.extra_info["rounds"]
    benchmark.extra_info.update(side=side, ours=case.ours, floor=case.floor, parameters=built.parameters)
    if not benchmark.disabled:
        benchmark.extra_info["peak_bytes"] = memory.peak_bytes(step, case.device)
    if case.device.type != "cuda":
        benchmark(step)
        return

    def waited_for() -> None:
        step()
        torch.cuda.synchronize()

    benchmark.pedantic(waited_for, setup=timing.cache_flush(case.device), rounds=session.Options().rounds)
