"""What results are made on: the commit of this package, the machine, the versions."""

from __future__ import annotations

from typing import Any

import hybrid_kernels
from hybrid_kernels.benchmarking.machine import commit, versions


def circumstances() -> dict[str, Any]:
    """`commit`, `machine` and `versions`, as `evaluation.results.Made` has them."""
    return {"commit": commit(), "machine": machine(), "versions": versions()}


def machine() -> dict[str, Any]:
    import psutil

    info = hybrid_kernels.info()
    return {
        "cpu": info["cpu"]["processor"],
        "cores": info["cpu"]["cores"],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": info["gpus"][0]["name"] if info["gpus"] else None,
        "platform": info["platform"],
    }
