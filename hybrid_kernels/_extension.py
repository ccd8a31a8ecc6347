"""The compiled library ``hybrid_kernels._C``: loading it, and what is known about how it was built."""

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import torch

#: The largest block whose Cayley transform is left to the compiled CPU operator by default; it takes any size.
#: A matrix is computed by one thread there, and the lead over torch.linalg shrinks with the size. Forward and
#: backward against autograd through torch.linalg.solve, float32, one interleaved run on one core of an AMD EPYC
#: (Zen 5), torch 2.13, batch × block: 4096×4 12×, 4096×8 16×, 2048×16 12×, 1024×32 9.8×, 512×64 7.9×, 128×128 6.0×,
#: 32×256 4.7×, 4×512 3.2×. The smallest lead over float64, complex64 and complex128: 2.3×, at 16×128 in complex128.
CAYLEY_CPU_MAX_BLOCK = 256

_BUILD_INFO = Path(__file__).with_name("_build_info.json")


def build_info() -> dict[str, Any]:
    """What ``setup.py`` recorded: ``cpp`` and ``cuda`` (were they built), ``reason`` and ``cuda_reason`` (why not,
    or None), and of a finished build ``compiler``, ``debug``, ``torch`` and ``python``."""
    try:
        return json.loads(_BUILD_INFO.read_text())
    except (OSError, ValueError):
        reason = "the package was never built here (run `python setup.py build_ext --inplace` or install it)"
        return {"cpp": False, "cuda": False, "reason": reason, "cuda_reason": reason}


@functools.cache
def load() -> str | None:
    """Loads the library, which registers the operators ``torch.ops.hybrid_kernels_cpp.*``.

    Returns None when they are available, else a sentence that says why they are not. Never raises.
    """
    info = build_info()
    if not info["cpp"]:
        return f"the compiled operators are not built: {info['reason']}"
    # C++ libraries of different torch releases do not mix, and loading one can end the process.
    if _release(info["torch"]) != _release(torch.__version__):
        return (
            f"the compiled operators were built for torch {info['torch']}, this is torch {torch.__version__}: "
            "install hybrid-kernels again with --no-build-isolation"
        )
    try:
        importlib.import_module("hybrid_kernels._C")
    except (ImportError, OSError) as error:
        return f"the compiled operators, built for torch {info['torch']}, cannot be loaded: {error}"
    return None


def _release(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]
