"""Layers that read the same x (q, k and v; gate and up) share one projection of it, forward and backward.

A `Group` sits on the module that holds such layers. While that module's forward runs, the first of them that is called
computes all of them in one operator (`functional.low_rank_linear_many`), and the others, given the very same x, take
what is there. Nothing outlives the forward. A group whose members turn out to read different inputs is dissolved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer, Plain, Update, added, fits

SHARED_INPUTS = (
    ("q_proj", "k_proj", "v_proj"),  # Llama, Qwen, Gemma, Mistral
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),  # BERT
)


_numbers = itertools.count()


class Group:
    """Sibling layers of ``parent`` that are expected to read the same input."""

    def __init__(self, parent: nn.Module, members: dict[str, Any]) -> None:
        self.parent, self.members = parent, members
        self.dissolved: str | None = None
        self._open = False
        self._x: Tensor | None = None
        self._ready: dict[int, Tensor] = {}
        self._traced = f"_hybrid_kernels_shared_{next(_numbers)}"
        for layer in members.values():
            layer._acceleration.group = self
        self._handles = [
            parent.register_forward_pre_hook(self._begin),
            parent.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        """Take the group off its parent and its members."""
        for handle in self._handles:
            handle.remove()
        self._close()
        for layer in self.members.values():
            if isinstance(layer, AcceleratedLayer) and layer._acceleration.group is self:
                layer._acceleration.group = None

    def _begin(self, parent: nn.Module, args: Any) -> None:
        self._close()  # a forward that KeyboardInterrupt ended ran no hook after it
        # A replica of DataParallel runs in a thread of its own, with layers of its own. After a merge_and_unload the
        # members are no longer there.
        self._open = (
            self.dissolved is None
            and not getattr(parent, "_is_replica", False)
            and all(parent._modules.get(name) is layer for name, layer in self.members.items())
        )

    def _end(self, parent: nn.Module, args: Any, output: Any) -> None:
        if not getattr(parent, "_is_replica", False):
            self._close()

    def _close(self) -> None:
        self._open, self._x, self._ready = False, None, {}

    def forward(self, layer: AcceleratedLayer, x: Tensor) -> Tensor | None:
        """The layer's output, which all members' may be computed for; None where it has to be made alone."""
        if not self._open or getattr(layer, "_is_replica", False):
            return None
        if torch.compiler.is_compiling():
            # In checkpointed code a graph may change nothing but what it has made there itself: here, x.
            ready = getattr(x, self._traced, None)
            if not ready:
                ready = self._compute(x)
                setattr(x, self._traced, ready)
            return ready.pop(id(layer), None)
        if self._x is None:
            self._ready = self._compute(x)
            self._x = x
        elif self._x is not x:
            self.dissolved = "its layers were called with different inputs"
            self._close()
        return self._ready.pop(id(layer), None)

    def _compute(self, x: Tensor) -> dict[int, Tensor]:
        """Every member's output by its id; none where they have to be made alone."""
        inputs = self._inputs(x)
        if inputs is None:
            self._open = False  # as it is now, so it is for the others
            return {}
        plains, updates = inputs
        biases = [
            None if update.scale is not None else added(plain.bias, update.bias)
            for plain, update in zip(plains, updates, strict=True)
        ]
        ys = functional.low_rank_linear_many(
            x, [plain.weight for plain in plains], biases, [u.down for u in updates], [u.up for u in updates]
        )
        ready = {}
        for member, y, plain, update in zip(self.members.values(), ys, plains, updates, strict=True):
            if update.scale is not None:
                y = functional.scale_features(y, update.scale, added(plain.bias, update.bias))
            ready[id(member)] = y
        return ready

    def _inputs(self, x: Tensor) -> tuple[list[Plain], list[Update]] | None:
        plains, updates = [], []
        for member in self.members.values():
            plain = member.plain()
            if plain is None or not fits(x, plain):
                return None
            update = member.shared_update(plain)
            if update is None:
                return None
            plains.append(plain)
            updates.append(update)
        return plains, updates


def find_groups(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """(parent, members by name) where accelerated siblings are known to read the same input and are in no group."""
    for parent in model.modules():
        for names in SHARED_INPUTS:
            children = [parent._modules.get(child) for child in names]
            if all(_shares(child) for child in children):
                widths = {child.in_features for child in children}  # type: ignore[union-attr]
                if len(widths) == 1:
                    yield parent, dict(zip(names, children, strict=True))


def _shares(layer: nn.Module | None) -> bool:
    return (
        isinstance(layer, AcceleratedLayer)
        and hasattr(layer, "shared_update")
        and layer._acceleration.group is None
        and layer.plain() is not None
    )


def groups_on(model: nn.Module) -> Iterator[Group]:
    """The groups whose hooks are on a module of ``model``."""
    for parent in model.modules():
        for hook in list(parent._forward_pre_hooks.values()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Group):
                yield owner
