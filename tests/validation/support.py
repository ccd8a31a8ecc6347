"""A tiny operator to validate, of which every part can be broken; it is taken away again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hybrid_kernels.cases import operators
from hybrid_kernels.cases.base import OperatorCase
from hybrid_kernels.ops import backend

REAL = (torch.float32, torch.bfloat16, torch.float64)


class Product:
    """y = x wᵀ and its backward, through implementations named "eager" and "cpp"; the latter is what tests break."""

    def __init__(self) -> None:
        self.forward: Callable[[Tensor, Tensor], Tensor] = lambda x, w: x @ w.mT
        self.backward: Callable[..., tuple[Tensor, Tensor]] = lambda x, w, dy: (dy @ w, dy.mT @ x)
        self.unsupported: Callable[..., str | None] = lambda *arguments: None

        def implementations(name: str) -> tuple[backend.Implementation, ...]:
            return (
                backend.Implementation(
                    "cpp",
                    lambda *arguments: getattr(self, name)(*arguments),
                    lambda *arguments: self.unsupported(*arguments),
                    automatic=lambda *arguments: False,
                ),
                backend.Implementation("eager", getattr(self, name)),
            )

        forward = backend.Operator("product", *implementations("forward"))
        backward = backend.Operator("product_backward", *implementations("backward"))

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w):
                ctx.save_for_backward(x, w)
                return forward(x, w)

            @staticmethod
            def backward(ctx, dy):
                return backward(*ctx.saved_tensors, dy)

        self.apply = Function.apply


def _draw(shape, dtype, device, generator):
    def make(*sizes):
        return torch.randn(*sizes, dtype=torch.float64, generator=generator).to(device, dtype)

    return {"x": make(shape["m"], shape["k"]), "w": make(shape["n"], shape["k"])}


@pytest.fixture
def product(monkeypatch) -> Iterator[Product]:
    """The only operator there is."""
    monkeypatch.setattr(backend, "OPERATORS", dict(backend.OPERATORS))
    broken = Product()
    case = OperatorCase(
        name="product",
        draw=_draw,
        fast=lambda x, w: broken.apply(x, w),
        reference=lambda x, w: x @ w.mT,
        differentiable=("x", "w"),
        shapes=({"m": 5, "k": 7, "n": 3}, {"m": 4, "k": 8, "n": 2}),
        dtypes=REAL,
    )
    monkeypatch.setattr(operators, "OPERATORS", {"product": case})
    yield broken


def reshaped(case: OperatorCase, *shapes: dict[str, int]) -> OperatorCase:
    return dataclasses.replace(case, shapes=shapes)
