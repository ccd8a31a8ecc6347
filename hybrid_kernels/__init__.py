"""hybrid-kernels: fast hybrid adapters for large language models, and the governed multilingual study around them.

    hk.functional, hk.reference     the operations, fast and as plain PyTorch
    hk.nn                           HybridLinear, HouseholderRotation, CayleyRotation, unitary layers and their training
    hk.accelerate, hk.restore       PEFT layers that a model has already, onto these operators and back
    hk.adapters                     the PEFT method, its initialisation, mixing, regulariser and export
    hk.governance, hk.evaluation, hk.training    the study
    hk.use_backend, hk.info         which implementation runs
    hk.validation                   every function on every backend against the reference, on this machine

All are imported at first use: importing this package costs nothing, and what needs no torch does not load it, as the
worker processes of `hk.governance` do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_kernels import functional, reference
    from hybrid_kernels.ops.backend import use_backend

__version__ = "0.1.0"
__all__ = [
    "accelerate",
    "adapters",
    "evaluation",
    "functional",
    "governance",
    "info",
    "nn",
    "reference",
    "restore",
    "training",
    "use_backend",
    "validation",
]

# Subpackages and the extra that brings what they import.
_SUBPACKAGES = {
    "adapters": "peft",
    "evaluation": "study",
    "functional": "",
    "governance": "study",
    "nn": "",
    "reference": "",
    "training": "study",
    "validation": "",
}


def info() -> dict[str, Any]:
    """What is installed and what could run; `hybrid-kernels info` adds what would, and whether that is right.

    Returns a JSON-able dict with the keys

    * ``hybrid_kernels``, ``python``, ``platform``: versions;
    * ``cpu``: ``processor``, ``cores``, ``torch_threads``;
    * ``torch``: ``version``, and the ``cuda`` and ``hip`` it was built with, or None;
    * ``packages``: {optional package: version or None}; ``installing``: {missing one: the command that installs it};
    * ``gpus``: a list of ``name``, ``capability``, ``memory_gib``, ``multiprocessors``;
    * ``extension``: ``cpp`` and ``cuda``, were they built; ``reason`` why not, or why it does not load, and
      ``cuda_reason``; ``loaded``; ``instruction_set`` that its CPU kernels use now; of the build ``compiler``,
      ``flags``, ``cuda_architectures``, ``debug``, ``torch``, ``python``;
    * ``backend_requested``, ``variant_requested``: by `use_backend` or the environment;
    * ``operators``: {operator: {backend: "available", or why not}}, in order of preference;
    * ``selection``: {"package" or "user": {GPU: measured rows}}; ``variants_run``: of Triton kernels in this process.
    """
    from hybrid_kernels._info import collect

    return collect()


def __getattr__(name: str) -> Any:
    if name in ("accelerate", "restore"):
        return getattr(__getattr__("adapters"), name)
    if name == "use_backend":
        from hybrid_kernels.ops.backend import use_backend

        return use_backend
    if name in _SUBPACKAGES:
        try:
            return importlib.import_module(f"hybrid_kernels.{name}")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"hybrid_kernels.{name} needs the package {error.name!r}: "
                f"pip install 'hybrid-kernels[{_SUBPACKAGES[name]}]'",
                name=error.name,
            ) from error
    raise AttributeError(f"module 'hybrid_kernels' has no attribute {name!r}")
