"""What the layers of a model need in every forward, made for all of them together before it begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hybrid_kernels.adapters.layer import HybridLayer
from hybrid_kernels.nn.adapter import HybridAdapter
from hybrid_kernels.nn.hybrid_linear import has_plain_weight
from hybrid_kernels.nn.rotations import cayley_of_many, skew_shape
from hybrid_kernels.ops import householder
from hybrid_kernels.ops.backend import current_backend
from hybrid_kernels.ops.cayley_many import is_plain


class PreparedFactors:
    """Makes the factors of the reflections, on Triton, and the Cayley transforms of all layers in one launch each.

    Hooks on the model, however it is called. Only values are made together: each layer differentiates its own, so that
    data parallelism sees nothing of it, nor does checkpointing, which makes them again a layer at a time: to the same
    bits by the compiled and the Triton kernels, to rounding by torch.linalg and where several threads share a large
    block. A gradient in one launch would be had by differentiating what was joined, at the price of gradients that all
    come at the end of the backward, and of a graph that checkpointed layers do not find again when they run anew.
    Where the model is compiled as a whole, that is what
    the rotations do; where layers in it are compiled by themselves, they do not take what was made for them. Sharded
    parameters are left alone, and evaluation has its cache.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[HybridLayer] = []
        self._holding: list[HybridAdapter] = []
        self._handles = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]

    @classmethod
    def of(cls, model: nn.Module) -> PreparedFactors:
        """The one that is on the model, or a new one: Transformers' add_adapter makes a tuner for each adapter."""
        owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
        return next((owner for owner in owners if isinstance(owner, cls)), None) or cls(model)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, model: nn.Module, args: Any) -> None:
        if getattr(
            model, "_is_replica", False
        ):  # of DataParallel: it runs in a thread, its layers are others
            return
        self._drop()  # a forward that KeyboardInterrupt ended, or a compiled one that raised, ran no hook after it
        compiling = torch.compiler.is_compiling()
        if not compiling and not torch.is_grad_enabled():
            return
        if not compiling:
            self._prepare_reflections()
        if current_backend() != "reference":
            with torch.set_grad_enabled(compiling and torch.is_grad_enabled()):
                self._prepare_rotations()

    def _after(self, model: nn.Module, args: Any, output: Any) -> None:
        if not getattr(model, "_is_replica", False):
            self._drop()

    def _drop(self) -> None:
        for adapter in self._holding:
            adapter.drop_prepared()
        self._holding = []

    def _prepare_reflections(self) -> None:
        if not any(
            a.reflections and householder.prepares(a.householder_u)
            for layer in self.layers[:1]
            for a in layer.applied()
        ):
            return
        adapters = [
            adapter
            for layer in self.layers
            if has_plain_weight(layer.get_base_layer())
            for adapter in layer.applied()
            if adapter.reflections and adapter.householder_u.shape == (layer.in_features, adapter.reflections)
        ]
        prepared = householder.prepare([adapter.householder_u for adapter in adapters])
        for adapter, factors in zip(adapters, prepared or (), strict=False):
            adapter.prepared_reflections = factors
        self._holding += adapters

    def _prepare_rotations(self) -> None:
        adapters, kinds = [], []
        for layer in self.layers:
            for adapter in layer.applied():
                if adapter.unitary_block_size is None:
                    continue
                kind = adapter.unitary_block_size, adapter.unitary_complex
                skew = adapter.cayley_skew
                # A shard, or what stands in for a parameter that is elsewhere, becomes whole when its layer runs.
                if is_plain(skew) and not skew.is_meta and skew.shape == skew_shape(layer.in_features, *kind):
                    adapters.append(adapter)
                    kinds.append(kind)
        prepared = cayley_of_many([adapter.cayley_skew for adapter in adapters], kinds)
        for adapter, q in zip(adapters, prepared, strict=True):
            if torch.compiler.is_compiling():
                adapter.traced_rotation = q
            else:
                adapter.prepared_rotation = q
        self._holding += adapters
