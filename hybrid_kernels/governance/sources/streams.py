"""Files, compressed or not, as streams of their content; and files written whole or not at all."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_CHUNK = 1 << 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def reading(path: Path, compression: str, offset: int = 0) -> Iterator[tuple[Callable[[], bytes], int]]:
    """A function that returns the next bytes of the content, b"" at its end; how many of them lie before `offset`.

    Of compressed content the calls return the same from run to run, damage or not: they always begin at its start.
    """
    if compression == ".zst":
        with pa.input_stream(str(path), compression="zstd") as stream:
            yield lambda: stream.read(_CHUNK), offset
        return
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    with openers.get(compression, Path.open)(path, "rb") as file:
        if not compression:
            file.seek(min(offset, path.stat().st_size))
        # read1: what lies before the damage is handed out, where read would lose up to a chunk of it.
        yield lambda: file.read1(_CHUNK), offset - file.tell()


@contextmanager
def compressing(file: IO[bytes], compression: str) -> Iterator[Any]:
    """A stream whose content ends up in `file`; the same content gives the same bytes."""
    if compression == ".zst":
        with pa.CompressedOutputStream(pa.PythonFile(file, "w"), "zstd") as stream:
            yield stream
    elif compression == ".gz":
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as stream:
            yield stream
    elif compression:
        opener: Any = {".bz2": bz2.open, ".xz": lzma.open}[compression]
        with opener(file, "wb") as stream:
            yield stream
    else:
        yield file


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends, and is gone when it fails. Makes the folder.

    OSError of a full disk says which file was written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno in _FULL:
            raise OSError(f"{path} could not be written: {os.strerror(error.errno)}") from error
        raise


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def written(path: Path, rows: int) -> dict[str, Any]:
    """What `Source.write_kept` returns of a file."""
    return {"path": str(path), "rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}


class Stamp:
    """Size and time of change of a file, to notice that it is no longer what was read."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._state = self._look()

    def check(self) -> None:
        """OSError: the file has changed, or is gone."""
        if self._look() != self._state:
            raise OSError(f"{self.name} has changed while it was being read; start again")

    def _look(self) -> tuple[int, int]:
        state = self.path.stat()
        return state.st_size, state.st_mtime_ns
