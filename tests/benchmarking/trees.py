"""Trees that stand for other commits: copies of this one, with the extension as it is, changed on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]


def changed_tree(folder: Path, function: str, code: str) -> Path:
    """A copy of the packages in which the first thing that `hybrid_kernels.functional.<function>` does is ``code``."""
    for package in ("hybrid_kernels", "triton_ops"):
        if not (folder / package).exists():  # else it is changed once more
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "hybrid_kernels" / "functional" / "__init__.py"
    path.write_text(
        path.read_text()
        + f"\n\ndef _changed(_unchanged):\n    def changed(*args, **kwargs):\n        {code}\n"
        + f"        return _unchanged(*args, **kwargs)\n    return changed\n\n\n{function} = _changed({function})\n"
    )
    return folder
