"""The adapted linear layer of a case: its constants, and the sides that are made over them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import hybrid_kernels as hk

from . import peers as peer
from .base import Builders, Shape, Side, generator, shape_name


class Holder(nn.Module):
    """The module around the layer, which PEFT needs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear


class Layer:
    """The constants of a case, each drawn once, when a side is made that needs it, and the sides made over them."""

    def __init__(self, name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self._key = "layer", name, shape_name(shape)
        self.m, self.k, self.n = (shape[size] for size in "mkn")
        self.seed, self.dtype, self.device = generator(0, *self._key).initial_seed(), dtype, device

    def _drawn(self, what: str, *sizes: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(*sizes, generator=generator(0, *self._key, what))
        return (drawn * scale).to(self.device, self.dtype)

    @functools.cached_property
    def x(self) -> Tensor:
        return self._drawn("x", self.m, self.k).requires_grad_()

    @functools.cached_property
    def dy(self) -> Tensor:
        return self._drawn("dy", self.m, self.n)

    @functools.cached_property
    def weight(self) -> nn.Parameter:
        weight = self._drawn("weight", self.n, self.k, scale=self.k**-0.5)
        return nn.Parameter(weight, requires_grad=False)

    @functools.cached_property
    def bias(self) -> nn.Parameter:
        return nn.Parameter(self._drawn("bias", self.n, scale=self.k**-0.5), requires_grad=False)

    def linear(self, bias: bool = True) -> nn.Linear:
        layer = nn.Linear(self.k, self.n, bias=bias, device="meta")
        layer.weight = self.weight
        if bias:
            layer.bias = self.bias
        return layer

    def side(self, module: nn.Module, backend: str = "auto", variant: str | None = None) -> Side:
        return self.side_of(module, peer.trained(module), backend, variant)

    def side_of(
        self,
        function: Callable[[Tensor], Tensor],
        leaves: Sequence[Tensor],
        backend: str = "auto",
        variant: str | None = None,
    ) -> Side:
        parameters = sum(leaf.numel() for leaf in leaves)
        return Side(lambda: function(self.x), [self.x, *leaves], [self.dy], backend, variant, parameters)

    def hybrid(self, rank: int, reflections: int, **options: Any) -> Any:
        """`hybrid_kernels.nn.HybridLinear`, the same parameters each time."""
        with peer.seeded(self.seed, self.device):
            adapter = {"rank": rank, "reflections": reflections, "alpha": peer.ALPHA, **options}
            return peer.moved(hk.nn.HybridLinear(self.linear(), **adapter))

    def under_peft(self, method: str, options: dict[str, Any] | None = None, bias: bool = True) -> Any:
        with peer.seeded(self.seed, self.device):
            model = peer.under_peft(Holder(self.linear(bias)), method, ["linear"], options)
        return model.base_model.model.linear

    def plain(self, hybrid: Any, compiled: bool = False) -> Side:
        """The hybrid's parameters under the same algebra in plain PyTorch."""
        adapter = hybrid.adapter
        leaves = [adapter.lora_A, adapter.lora_B, adapter.householder_u]
        function: Callable[..., Tensor] = peer.plain_hybrid
        if compiled:
            torch.compiler.reset()  # a compiled function counts its shapes, and gives up after a few
            function = torch.compile(function, dynamic=False)
        return self.side_of(
            lambda x: function(x, self.weight, self.bias, *leaves, adapter.mixing, adapter.scaling), leaves
        )

    def accelerated_pair(self, method: str) -> Builders:
        """Stock PEFT, and the same parameters accelerated, as the package chooses and on ATen calls alone."""
        under_peft = functools.cache(lambda: Holder(self.under_peft(method)))

        def fast(backend: str = "auto") -> Side:
            return self.side(peer.on_our_operators(under_peft()).linear, backend)

        return {
            peer.stock(method): lambda: self.side(under_peft().linear),
            peer.accelerated(method): fast,
            f"{peer.accelerated(method)}, eager": lambda: fast("eager"),
        }
