"""A case that takes microseconds, for the tests of `bench --against`: they copy this file into a folder of cases."""

from __future__ import annotations

import torch

import hybrid_kernels as hk

from .base import BenchmarkCase, Side


def cases(function: str = "cayley_packed", passes: tuple[str, ...] = ("forward",)) -> list[BenchmarkCase]:
    packed = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) / 8

    def side() -> Side:
        print("what a case prints is no reply")
        leaf = packed.clone().requires_grad_()
        return Side(lambda: getattr(hk.functional, function)(leaf, 4), [leaf], [torch.ones(4, 4, 4)])

    return [
        BenchmarkCase(
            kind="operator",
            name=function,
            shape={"b": 4},
            dtype=torch.float32,
            device=torch.device("cpu"),
            builders=lambda: {"plain": side, "ours": side},
            ours="ours",
            passes=tuple(passes),
        )
    ]
