"""What a measurement was made on: the machine, the versions and the commit of the package."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hybrid_kernels as hk

if TYPE_CHECKING:
    import torch

COMMIT_VARIABLE = "HYBRID_KERNELS_COMMIT"
#: What runs when something is measured, beside the package in its repository.
SOURCES = ("hybrid_kernels", "triton_ops", "csrc", "setup.py")


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """{"processor", "cores", "threads", "gpu", "platform"}: JSON-able, the same from run to run.

    ``gpu`` is the name of ``device``, or of the first GPU that torch sees, or None.
    """
    import torch

    gpu = None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name(device if device is not None and device.type == "cuda" else 0)
    return {
        "processor": hk.info()["cpu"]["processor"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "platform": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """{"hybrid_kernels", "torch", "triton", "peft", "transformers", "python"}; None for what is not installed."""
    import torch

    found: dict[str, str | None] = {"hybrid_kernels": hk.__version__, "torch": torch.__version__}
    for package in ("triton", "peft", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return {**found, "python": platform.python_version()}


def commit() -> str | None:
    """The commit of the `hybrid_kernels` that runs, such as "abc1234", or "abc1234+changes.0123abcd".

    The latter carries a digest of the changes to the tracked files that run. HYBRID_KERNELS_COMMIT names the commit of
    a copy without its history. None for a package that is in no repository, or without git.
    """
    named = os.environ.get(COMMIT_VARIABLE)
    if named:
        return named
    package = Path(hk.__file__).parent
    try:
        # A package in an environment inside some repository is not of that repository.
        _git("ls-files", "--error-unmatch", "--", package / "__init__.py", folder=package)
        head = _git("rev-parse", "--short", "HEAD", folder=package).decode().strip()
        sources = [package.parent / name for name in SOURCES]
        changes = _git("diff", "--no-ext-diff", "--binary", "HEAD", "--", *sources, folder=package)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changes.{hashlib.sha256(changes).hexdigest()[:8]}" if changes else head


def _git(*arguments: str | Path, folder: Path) -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True).stdout
