"""How much memory a step takes above what is in use before it, by torch's own count."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from .profile import profiled
from .timing import Step, free


def peak_bytes(step: Step, device: torch.device) -> int:
    """Bytes of torch's allocator at the highest during ``step()`` above those in use before it.

    On a CPU they are the profiler's memory events: exact for every tensor, without what a library or an extension
    allocates by itself; what the step frees of earlier memory is not subtracted there.
    """
    if device.type != "cuda":
        return _cpu_peak(step)
    free(device)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(step: Step) -> int:
    profiler = profiled(step, torch.device("cpu"), profile_memory=True)
    # Not `profiler.events()`: those belong to operators, and within one of them the order is lost.
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    changes: list[Any] = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in changes), initial=0))
