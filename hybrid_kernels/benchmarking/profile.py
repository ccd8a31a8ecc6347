"""Where the time of a step goes: kernels on a GPU, operators on a CPU, by the time spent in them alone."""

from __future__ import annotations

import inspect
import os
import pkgutil
from collections import defaultdict
from importlib import import_module
from typing import Any

import torch

from .timing import Step

TOP = 15


def profiled(step: Step, device: torch.device, profile_memory: bool = False) -> torch.profiler.profile:
    """The profiler after one step under it."""
    # Its library writes a line to stderr at each start and stop, at the level above that of errors.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, profile_memory=profile_memory) as profiler:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return profiler


def profile(step: Step, device: torch.device, top: int = TOP) -> list[dict[str, Any]]:
    """The ``top`` kernels (operators on a CPU) of one step by their own time, without that of what they call.

    Rows are {"name", "calls", "share", "own"}: the part of the whole step's time, and whether it is this package's.
    """
    profiler = profiled(step, device)
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    if device.type == "cuda":
        for event in profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                total[event.name] += event.time_range.elapsed_us()
                calls[event.name] += 1
    else:
        for average in profiler.key_averages():
            total[average.key], calls[average.key] = average.self_cpu_time_total, average.count
    everything, own = sum(total.values()) or 1.0, _triton_kernels() | _operators()
    return [
        {
            "name": name[:120],
            "calls": calls[name],
            "share": total[name] / everything,
            "own": "hybrid_kernels" in name or name.removesuffix("Backward") in own,
        }
        for name in sorted(total, key=lambda name: -total[name])[:top]
    ]


def _operators() -> set[str]:
    """The package's operators, which in eager mode run under these names and not through torch's dispatcher."""
    try:
        from hybrid_kernels.ops.backend import OPERATORS
    except ImportError:
        return set()
    return {*OPERATORS}


def _triton_kernels() -> set[str]:
    """The names of the package's Triton kernels, where Triton is installed."""
    try:
        import triton_ops
    except ImportError:
        return set()
    if triton_ops.unavailable() is not None:
        return set()
    names = set()
    for module in pkgutil.iter_modules(triton_ops.__path__):
        members = inspect.getmembers(import_module(f"triton_ops.{module.name}"))
        names |= {name for name, _ in members if name.endswith("_kernel")}
    return names
