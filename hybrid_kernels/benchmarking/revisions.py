"""Another commit of this repository, as a tree with its extension built, for `bench --against`.

A tree is made with ``git archive`` in the user's cache folder and kept there under the commit's full hash and the torch
release that its extension was built for. It gets that name once it is complete, so an interrupted build is never used.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from triton_ops.selection import cache_file

#: The working tree, or the folder that the package is installed in.
ROOT = Path(__file__).resolve().parents[2]
OPTION = "--against"


@dataclass(frozen=True)
class Revision:
    """A commit: what the user called it, its full and its short hash."""

    name: str
    commit: str
    short: str


def _git(root: Path, *arguments: str) -> str:
    """What git prints; OSError where there is no git, CalledProcessError where it refuses."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def find(name: str, root: Path = ROOT) -> Revision:
    """The commit of that name; ValueError where ``root`` has no history or no such commit."""
    needs = f"{OPTION} {name!r} needs the repository of hybrid-kernels with its history"
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
    except OSError as error:
        raise ValueError(f"{needs}, and git cannot be run: {error}") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{needs}; {root}: {error.stderr.strip()}") from None
    # An environment inside another repository is not a checkout of this one.
    if Path(top).resolve() != root.resolve():
        raise ValueError(f"{needs}; the package in {root} is only a folder within the repository {top}")
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except subprocess.CalledProcessError:
        raise ValueError(
            f"{OPTION} is {name!r}, which names no commit of {root}; it may be a hash, a branch, a tag or HEAD~1"
        ) from None
    return Revision(name, commit, _git(root, "rev-parse", "--short", commit))


def tree(revision: Revision, say: Callable[[str], None], root: Path = ROOT) -> Path:
    """The folder of the commit's tree, its extension built; made if it is not there yet, and ``say`` told so.

    OSError where the cache folder cannot be written to, ValueError, with the build's last lines, where it fails.
    """
    folder = cache_file().parent / "revisions"
    target = folder / f"{revision.commit}-torch-{torch.__version__}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as temporary:
        made = Path(temporary) / "tree"
        archive = Path(temporary) / "tree.tar"
        _git(root, "archive", f"--output={archive}", revision.commit)
        with tarfile.open(archive) as files:
            files.extractall(made, filter="data")
        if (made / "setup.py").exists():
            say(f"building the extension of {revision.name} ({revision.short}), once")
            _build(made, revision)
        if not target.is_dir():  # unless another process was faster
            made.rename(target)
    return target


def newer_sources(root: Path = ROOT) -> list[Path]:
    """Sources of the extension that were written after it was built."""
    built = max((path.stat().st_mtime for path in root.glob("hybrid_kernels/_C*")), default=math.inf)
    return [path for path in sorted(root.glob("csrc/*.*")) if path.stat().st_mtime > built]


def _build(folder: Path, revision: Revision) -> None:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the compilers too
            process.wait()
            raise
        if code != 0:
            output.seek(0)
            last = "\n".join(re.sub(r"\s+\n", "\n", output.read()).splitlines()[-15:])
            raise ValueError(
                f"{OPTION} {revision.name!r}: the extension of commit {revision.short} cannot be built here "
                f"(exit {code}):\n{last}"
            )
