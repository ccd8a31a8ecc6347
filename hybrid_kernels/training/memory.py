"""How much memory a function takes above what is in use before it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch


def peak_rise(function: Callable[[], None], device: torch.device) -> int:
    """Bytes at the highest during ``function()`` above those in use before it.

    On a CPU that is the resident set size of the whole process, sampled every millisecond, so only the first run in a
    fresh process tells what it takes: freed memory may stay with a process. On a GPU it is torch's count of allocated
    bytes.
    """
    if device.type != "cuda":
        return _resident_rise(function)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_rise(function: Callable[[], None]) -> int:
    import psutil

    process = psutil.Process()
    before = peak = process.memory_info().rss
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        finished.set()
        watcher.join()
    return max(peak, process.memory_info().rss) - before
