"""Folders that other programs read: what is written into them is whole, or is not there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def files_into(target: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``target`` at the end, each atomically, once all of them are written.

    ``target`` is made if needed. Weights go before the configuration that describes them: from the end of the alphabet.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir(), reverse=True):
            file.replace(target / file.name)


def check_folder(name: str, target: Path) -> None:
    """Raise NotADirectoryError where a folder to be written is something else."""
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{name} is {str(target)!r}, which is a file; name a folder")
