"""Layers that read the same x (q, k and v; gate and up) share one projection of it, forward and backward.

A `Group` sits on the module that holds such layers. While that module's forward runs, the first of them that is called
computes all of them in one operator (`functional.low_rank_linear_many`), and the others, given the very same x, take
what is there. Nothing outlives the forward. A group whose members turn out to read different inputs is dissolved (in
a checkpoint, closed for that forward alone); a call that autograd or autocast would treat otherwise than the first
(without gradient, in a checkpoint of its own, of an x written to in between) is computed alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels._arguments import autocast_dtype
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer, Plain, Update, added, fits

SHARED_INPUTS = (
    ("q_proj", "k_proj", "v_proj"),  # Llama, Qwen, Gemma, Mistral
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),  # BERT
)


_numbers = itertools.count()


class Pending(NamedTuple):
    """What the first layer's call left for the others."""

    x: Tensor
    reading: tuple[Any, ...]
    """How it read x, by `_reading`."""
    ys: dict[int, Tensor]
    """By the layer's id."""


class Group:
    """Sibling layers of ``parent`` that are expected to read the same input."""

    def __init__(self, parent: nn.Module, members: dict[str, Any]) -> None:
        self.parent, self.members = parent, members
        self.dissolved: str | None = None
        self._open = False
        self._surroundings: tuple[Any, ...] = ()
        self._pending: Pending | None = None
        self._traced = f"_hybrid_kernels_shared_{next(_numbers)}"
        self._take_in()
        self._handles = [
            parent.register_forward_pre_hook(self._begin),
            parent.register_forward_hook(self._end, always_call=True),
        ]

    def _take_in(self) -> None:
        for layer in self.members.values():
            layer._acceleration.group = self

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": False, "_surroundings": (), "_pending": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._take_in()

    def remove(self) -> None:
        """Take the group off its parent and its members."""
        for handle in self._handles:
            handle.remove()
        self._close()
        for layer in self.members.values():
            if isinstance(layer, AcceleratedLayer) and layer._acceleration.group is self:
                layer._acceleration.group = None

    def _begin(self, parent: nn.Module, args: Any) -> None:
        if getattr(parent, "_is_replica", False):
            return  # of DataParallel: it runs in a thread of its own, with layers of its own
        self._close()  # a forward that KeyboardInterrupt ended ran no hook after it
        if any(parent._modules.get(name) is not layer for name, layer in self.members.items()):
            self.remove()  # after a merge_and_unload
            return
        self._open, self._surroundings = self.dissolved is None, _surroundings()

    def _end(self, parent: nn.Module, args: Any, output: Any) -> None:
        if not getattr(parent, "_is_replica", False):
            self._close()

    def _close(self) -> None:
        # All of it as before the forward: a graph of checkpointed code may change nothing that outlives it.
        self._open, self._surroundings, self._pending = False, (), None

    def forward(self, layer: AcceleratedLayer, x: Tensor) -> Tensor | None:
        """The layer's output, which all members' may be computed for; None where it has to be made alone."""
        if not self._open or getattr(layer, "_is_replica", False):
            return None
        if torch.compiler.is_compiling():
            if _surroundings() != self._surroundings:
                return None
            # In checkpointed code a graph may change nothing but what it has made there itself: here, x.
            ready = getattr(x, self._traced, None)
            if not ready:
                ready = self._compute(x)
                setattr(x, self._traced, ready)
            return ready.pop(id(layer), None)
        pending, reading = self._pending, _reading(x)
        if _surroundings() != self._surroundings:
            self._open = pending is not None  # else the others would make this one again
            return None
        if pending is None:
            pending = self._pending = Pending(x, reading, self._compute(x))
        elif pending.x is not x:
            if self._surroundings[-1] is None:
                self.dissolved = "its layers were called with different inputs"
            # In a checkpoint only for now: the call that makes its tensors again has to save the same ones.
            self._close()
            return None
        return pending.ys.pop(id(layer), None) if pending.reading == reading else None

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
        outputs = functional.low_rank_linear_many(
            x, [plain.weight for plain in plains], biases, [u.down for u in updates], [u.up for u in updates]
        )
        ys = {}
        for member, y, plain, update in zip(self.members.values(), outputs, plains, updates, strict=True):
            if update.scale is not None:
                y = functional.scale_features(y, update.scale, added(plain.bias, update.bias))
            ys[id(member)] = y
        return ys

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


def _surroundings() -> tuple[Any, ...]:
    """What decides how autograd records a call."""
    if torch.compiler.is_compiling():
        return (torch.is_grad_enabled(),)
    # A checkpoint around one layer saves tensors, and makes them again, by hooks of its own.
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), hooks


def _reading(x: Tensor) -> tuple[Any, ...]:
    """What decides a layer's output for the very same x."""
    tracked = not torch.compiler.is_compiling() and not x.is_inference()
    return autocast_dtype(x), x._version if tracked else None


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
