"""Products that TF32 must not touch: the factorise stage, whatever torch allows elsewhere."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _on_gpu(args: tuple[Any, ...]) -> bool:
    return any(isinstance(argument, Tensor) and argument.device.type == "cuda" for argument in args)


_lock = threading.Lock()
_inside = 0
_before: Any = None


def _switch(entering: bool) -> None:
    """The first to enter turns TF32 off and the last to leave puts the setting back: autograd has a thread a device."""
    global _inside, _before
    matmul = torch.backends.cuda.matmul
    # The newer of torch's two interfaces where there is one: read and put back through it, the older stays usable.
    name, off = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    with _lock:
        _inside += 1 if entering else -1
        if entering and _inside == 1:
            _before = getattr(matmul, name)
            setattr(matmul, name, off)
        elif not entering and _inside == 0:
            setattr(matmul, name, _before)


def without_tf32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with TF32 off in torch's own float32 products on a GPU, for as long as it runs.

    The setting belongs to the process: products that another thread starts meanwhile are exact too.
    """

    @functools.wraps(function)
    def exact(*args: Any) -> Any:
        if not _on_gpu(args):
            return function(*args)
        _switch(entering=True)
        try:
            return function(*args)
        finally:
            _switch(entering=False)

    return exact
