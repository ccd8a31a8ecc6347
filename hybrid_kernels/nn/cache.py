"""Factors kept between forwards while nothing that made them changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


class FactorCache:
    """Remembers what a module factorised, in evaluation and without gradients, keyed on its tensors' versions.

    The tensors are held along with it: another in the place of one that is gone may have its address and version. So
    may other memory that ``tensor.data`` is set to; of that a weak reference is enough to tell them apart.

    In training, with gradients, under torch.compile, in a process group (where `fully_shard` gathers other values into
    the very same tensors, versions and all), and for tensors without a version counter (inference mode,
    subclasses such as DTensor) everything is computed afresh. ``tensor.data`` written in place escapes the version
    counter; `clear` is for that, and a training step clears.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[Any, ...], list[Any], Any]] = {}

    def get(
        self,
        name: str,
        sources: Callable[[], Iterable[Tensor | float]],
        compute: Callable[[], Any],
        training: bool,
    ) -> Any:
        """``compute()``, or what it returned last time for this ``name`` if nothing of ``sources()`` has changed."""
        if torch.compiler.is_compiling():
            return compute()
        if training or torch.is_grad_enabled() or _distributed():
            self.clear()
            return compute()
        held = list(sources())
        if not all(_has_version(source) for source in held if isinstance(source, Tensor)):
            return compute()
        kept = self._kept.get(name)
        if kept is None or kept[0] != _key(held):
            value = compute()
            kept = self._kept[name] = (_key(held), held, value)  # a computation may project its parameter
        return kept[2]

    def clear(self) -> None:
        self._kept.clear()

    def __reduce__(self) -> tuple[type[FactorCache], tuple[()]]:
        # A copied or unpickled module starts empty: its tensors are other tensors.
        return FactorCache, ()


def _key(sources: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(
        (id(s), s._version, s.data_ptr(), StorageWeakRef(s.untyped_storage())) if isinstance(s, Tensor) else s
        for s in sources
    )


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _has_version(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference()
