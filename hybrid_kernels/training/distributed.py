"""One process or several that train one cell together, as `torchrun` and `accelerate launch` start them.

Every function also works in a process of its own, where it does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hybrid_kernels.training.files import stage, stored_result

T = TypeVar("T")
# The others wait while the first one governs and measures.
TIMEOUT = timedelta(hours=12)


def start() -> None:
    """Joins the process group that the environment names, by way of Accelerate, as the Trainer expects it."""
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def stop() -> None:
    if world_size() > 1:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def from_first(compute: Callable[[], T]) -> T:
    """What the first process computes, in all of them; its error is raised in all of them."""
    if world_size() == 1:
        return compute()
    import torch.distributed

    box: list[Any] = [None, None]
    if is_first():
        try:
            box[0] = compute()
        except Exception as error:
            box[1] = error
    torch.distributed.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    found: T = box[0]
    return found


def gathered(own: T) -> list[T]:
    """Each process's value, by rank, in all of them."""
    if world_size() == 1:
        return [own]
    import torch.distributed

    found: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def shared_stage(marker: Path, key: str, compute: Callable[[], Any]) -> tuple[Any, bool]:
    """`files.stage` where all processes compute together, or none does, and the first one reads and writes."""
    if (stored := from_first(lambda: stored_result(marker, key))) is not None:
        return stored, True
    result = compute()
    return from_first(lambda: stage(marker, key, lambda: result)[0]), False


def batch_size_per_process(batch_size: int) -> int:
    """ValueError unless the batch divides among the processes: the same batches whatever their number.

    But for the last of an epoch whose rows do not fill it: Accelerate fills that of several processes with the epoch's
    first rows, so that they count twice there, where one process takes a smaller batch.
    """
    if batch_size % world_size():
        raise ValueError(
            f"training.batch_size is {batch_size}; it must be a multiple of the {world_size()} processes"
        )
    return batch_size // world_size()
