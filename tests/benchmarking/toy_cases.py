"""Cases that take microseconds, for the tests of `bench --against`, which put this file into a folder of cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import hybrid_kernels as hk
from hybrid_kernels.cases.base import BenchmarkCase, Side

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cayley_packed": lambda x: hk.functional.cayley_packed(x, 4),
    "cayley": lambda x: hk.functional.cayley(x[:, :4] - x[:, :4].mT),
    "householder_factors": lambda x: hk.functional.householder_factors(x.mT)[0],
}


def case(name: str, passes: Sequence[str]) -> BenchmarkCase:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) / 8

    def side() -> Side:
        print("what a case prints is no reply")
        leaf = x.clone().requires_grad_()
        return Side(lambda: FUNCTIONS[name](leaf), [leaf], [torch.ones_like(FUNCTIONS[name](x))])

    return BenchmarkCase(
        kind="operator",
        name=name,
        shape={"b": 4},
        dtype=torch.float32,
        device=torch.device("cpu"),
        # The last calls nothing of this package.
        builders=lambda: {"a peer": side, "ours": side, "ours, doubled": lambda: Side(lambda: 2 * x, [], [])},
        ours="ours",
        passes=tuple(passes),
    )


def cases(
    functions: Sequence[str] = ("cayley_packed",), passes: Sequence[str] = ("forward",)
) -> list[BenchmarkCase]:
    return [case(name, passes) for name in functions]
