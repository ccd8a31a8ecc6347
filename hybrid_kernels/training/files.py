"""Atomic files, those of predictions too, and stages that are skipped when their result is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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


def file_digest(path: Path) -> str:
    """Of a file's content; a gigabyte takes about a second."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def save_predictions(path: Path, parts: dict[str, dict[str, np.ndarray]]) -> None:
    """One file for all parts, whole or not there; its bytes depend on the arrays alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        entries: dict[str, Any] = {
            f"{part}|{name}": values for part, arrays in parts.items() for name, values in arrays.items()
        }
        np.savez(file, **entries)
    partial.replace(path)


def load_predictions(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each part ("test", "dev", "perturbed/RECIPE"): the task's own, `ids`, `items`, `languages`, and
    `clusters`, the group of rows that are not independent (`data.clusters`).

    Of labels they are `log_probabilities` (n, classes) float32 and `labels` (n,); of translations those of
    `tasks.translation.Translation.predict`.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for entry in file.files:
            part, name = entry.split("|")
            parts.setdefault(part, {})[name] = file[entry]
    return parts
