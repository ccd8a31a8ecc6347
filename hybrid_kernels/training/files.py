"""Atomic files, and stages that are skipped when their result is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybrid_kernels._files import write_file


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1, ensure_ascii=False))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def content_key(*values: Any) -> str:
    """A digest of JSON-able values."""
    return hashlib.blake2b(
        json.dumps(values, sort_keys=True, ensure_ascii=False).encode(), digest_size=16
    ).hexdigest()


def stored_result(marker: Path, key: str) -> Any:
    """What `stage` stored under this key, or None."""
    if not marker.is_file():
        return None
    stored = read_json(marker)
    return stored["result"] if stored["key"] == key else None


def stage(marker: Path, key: str, compute: Callable[[], Any]) -> tuple[Any, bool]:
    """The result stored in `marker` if it was made with the same key, else `compute()`'s, stored last of all.

    Returns (result, whether it was there already). The result has to be JSON-able.
    """
    if (stored := stored_result(marker, key)) is not None:
        return stored, True
    result = compute()
    write_json(marker, {"key": key, "result": result})
    return result, False
