"""What `hybrid_kernels.info()` reports: versions, devices, the compiled extension, and what would run where."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from hybrid_kernels import __version__, _extension
from hybrid_kernels.ops.backend import BACKENDS, OPERATORS, current_backend, current_variant, unavailable
from triton_ops import selection

#: What the package, its commands and its benchmarks make use of where it is there.
_PACKAGES = (
    "triton",
    "peft",
    "transformers",
    "accelerate",
    "datasets",
    "safetensors",
    "matplotlib",
    "jinja2",
    "bitsandbytes",
    "torchao",
    "trl",
    "pytest-benchmark",
    "liger-kernel",
    "unsloth",
    "torch-householder",
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installing() -> dict[str, str]:
    """{package that is missing: what installs it}, by the extra of this package that brings it, if one does."""
    try:
        required = importlib.metadata.requires("hybrid-kernels") or []
    except importlib.metadata.PackageNotFoundError:  # a clone that was never installed
        required = []
    extras: dict[str, str] = {}
    for requirement in required:
        found = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", requirement)
        if found:
            extras.setdefault(found[1].lower(), f"hybrid-kernels[{found[2]}]")
    return {
        package: f"pip install '{extras.get(package, package)}'"
        for package in _PACKAGES
        if _version(package) is None
    }


def _gpus() -> list[dict[str, Any]]:
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return gpus


def _operators() -> dict[str, dict[str, str]]:
    """{operator: {backend: "available" or why not}}, in order of preference; the last one takes everything."""
    reasons = {backend: unavailable(backend) for backend in BACKENDS}
    return {
        name: {
            implementation.backend: reasons[implementation.backend] or "available"
            for implementation in operator.implementations
        }
        for name, operator in OPERATORS.items()
    }


def _selection() -> dict[str, dict[str, int]]:
    """{whose: {GPU: measured rows}} behind the choice of Triton variants: the package's, and the user's own."""
    files = {"package": selection.COMMITTED, "user": selection.cache_file()}
    return {
        whose: {device: len(found["rows"]) for device, found in selection.read(path).items()}
        for whose, path in files.items()
    }


def collect() -> dict[str, Any]:
    """A JSON-able dict; `hk.info` documents its keys."""
    return {
        "hybrid_kernels": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"processor": _processor(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip},
        "packages": {package: _version(package) for package in _PACKAGES},
        "installing": _installing(),
        "gpus": _gpus(),
        "extension": {
            **_extension.build_info(),
            "loaded": _extension.load() is None,
            "reason": _extension.load(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
        },
        "backend_requested": current_backend(),
        "variant_requested": current_variant(),
        "selection": _selection(),
        "variants_run": sorted(
            f"{operation}: {variant}, {str(dtype).removeprefix('torch.')} on {device}, "
            + ("tiles of the table" if tiles is None else f"tiles {'x'.join(map(str, tiles[:3]))}")
            for operation, variant, tiles, device, dtype in selection.RAN
        ),
        "operators": _operators(),
    }


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
