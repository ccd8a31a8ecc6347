"""The folder of a result while a run is at work in it: it is one of ours, one run at a time, no halves of files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hybrid_kernels._files import write_file
from hybrid_kernels.governance.manifest import KEPT, MANIFEST, REJECTED, SUMMARY, VERDICTS

WORK, DRY_RUN = "work", "dry-run"
_LOCK = f"{WORK}/lock"


@contextlib.contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """Takes the folder `out` for a run, and makes it if needed; yields its work folder.

    Raises:
        FileExistsError: it has files, and none is of a result of governance.
        NotADirectoryError: it is a file.
        BlockingIOError: another run is at work in it.
    """
    import fcntl

    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is to be the folder of the result, and is a file")
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out):
        raise FileExistsError(f"{out} is not empty and holds no result of governance; name another folder")
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    path = out / _LOCK
    with path.open("a+", encoding="utf-8") as file:
        # The system gives the lock back when the process ends, however it ends: what is left is never in the way.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise BlockingIOError(
                f"process {file.read().strip()} is at work in {out}; wait for it, or end it"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        for partial in out.rglob(".*.partial"):
            partial.unlink()
        yield work
        file.truncate(0)


def _is_ours(out: Path) -> bool:
    """By more than a common name: others have a folder `work` and a manifest.json too."""
    if any((out / name).exists() for name in (_LOCK, f"{DRY_RUN}/{SUMMARY}")):
        return True
    try:
        return "result_id" in json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def remove_result(out: Path, names: Sequence[str]) -> None:
    """Removes what an earlier run has written, the manifest first, so that no mixture passes for a result.

    `names`: the files of rows that this run writes; noted, since one that does not finish leaves no manifest.
    """
    manifest, note = out / MANIFEST, out / WORK / "outputs.json"
    written = [REJECTED, VERDICTS]
    for path in (manifest, note):
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            written += [file["name"] for file in json.loads(path.read_text(encoding="utf-8"))["outputs"]]
    manifest.unlink(missing_ok=True)
    inside = out.resolve()
    for name in written:
        path = (out / name).resolve()
        if path.parent in (inside, inside / KEPT):
            path.unlink(missing_ok=True)
    write_file(note, json.dumps({"outputs": [{"name": name} for name in names]}))
