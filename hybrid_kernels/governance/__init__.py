"""Label-free data governance: languages, near-duplicates, leakage, quality, personal data; every rejection explained.

>>> from hybrid_kernels.governance import govern, govern_files
>>> result = govern(rows, ["en", "sw"], text_columns=["premise", "hypothesis"], language_column="language")
>>> result.kept, result.rejected, result.summary
>>> govern_files("data/*.jsonl.gz", ["en", "sw"], "cleaned/", text_columns=["text"], evaluation="test.jsonl")

`govern` is for a data set in memory or of Hugging Face `datasets`; `govern_files` for files of any size: parallel,
bounded in memory, resumed where it was stopped. Both run the same steps (`pipeline`) and decide the same.

What is named here is imported at first use, so that a worker process imports what its own tasks need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_kernels.governance.api import govern, govern_files
    from hybrid_kernels.governance.language import supported_languages
    from hybrid_kernels.governance.policy import GovernancePolicy
    from hybrid_kernels.governance.result import GovernanceResult

_MODULES = {
    "GovernancePolicy": "policy",
    "GovernanceResult": "result",
    "govern": "api",
    "govern_files": "api",
    "supported_languages": "language",
}
__all__ = ["GovernancePolicy", "GovernanceResult", "govern", "govern_files", "supported_languages"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
