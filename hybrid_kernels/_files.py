"""Files that are whole, or are not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_file(path: Path, content: str | bytes) -> None:
    """Such that readers see the old content or the new, never a part. Text is UTF-8; the folder is made if needed.

    OSError says which file could not be written. Nothing partial is left, after Ctrl-C neither.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OSError(f"{path} could not be written: {error.strerror or error}") from error
        raise
