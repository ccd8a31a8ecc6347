"""A case small enough to be measured in a blink."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

import hybrid_kernels as hk
from hybrid_kernels.benchmarking.session import Options
from hybrid_kernels.cases.base import PASSES, BenchmarkCase, Side

CPU = torch.device("cpu")
QUICK = Options(rounds=3, seconds_each=0.01)
FLOOR, OURS = "plain product", "ours"
ROWS, FEATURES, RANK = 8, 16, 2


def toy_case(
    name: str = "toy",
    sides: Mapping[str, Callable[[], Side]] | None = None,
    passes: tuple[str, ...] = PASSES,
    drawn: Callable[[], Any] = lambda: None,
) -> BenchmarkCase:
    """`low_rank_linear` of this package against the product alone, and other sides; ``drawn`` is told of the inputs."""

    def builders() -> dict[str, Callable[[], Side]]:
        drawn()
        x = torch.randn(ROWS, FEATURES, requires_grad=True)
        weight, gradient = torch.randn(FEATURES, FEATURES), torch.randn(ROWS, FEATURES)
        down, up = (torch.randn(*shape, requires_grad=True) for shape in ((RANK, FEATURES), (FEATURES, RANK)))
        return {
            FLOOR: lambda: Side(lambda: x @ weight.T, [x], [gradient]),
            OURS: lambda: Side(
                lambda: hk.functional.low_rank_linear(x, weight, None, down, up),
                [x, down, up],
                [gradient],
                parameters=2 * RANK * FEATURES,
            ),
            **(sides or {}),
        }

    shape = {"m": ROWS, "k": FEATURES}
    return BenchmarkCase(
        "operator", name, shape, torch.float32, CPU, builders, OURS, floor=FLOOR, passes=passes
    )


def side(forward: Callable[[], Any]) -> Side:
    """One without a backward of its own."""
    leaf = torch.ones(1, requires_grad=True)
    return Side(lambda: (forward(), leaf * 1)[1], [leaf], [torch.ones(1)])


def out_of_memory() -> Any:
    """What really happens on a CPU that has less than an exbibyte."""
    return torch.empty(2**60, dtype=torch.uint8)
