"""Runs of `hybrid-kernels govern` for benchmarks/governance.py: decisions row by row, time and memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow.parquet as pq
from governance_noise import Corpus, Row

Json = dict[str, Any]

ROOT = Path(__file__).parents[1]
#: Seconds between two looks at the memory.
INTERVAL = 0.2


@dataclass(frozen=True)
class Verdict:
    """What became of a row.

    Attributes:
        languages: what it claimed or was assigned, of each text.
        reasons, flags: "step: reason" of all that reject it, and of all that flag it.
        linked_to: id of the row it is a copy of.
    """

    kept: bool
    languages: tuple[str, ...]
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    linked_to: str | None = None

    def rejected_by(self, step: str) -> bool:
        return any(reason.startswith(f"{step}: ") for reason in self.reasons)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        verdicts: id → verdict; empty where they were not asked for.
        summary: of the run.
        seconds: of the whole command, its start included.
        peak_rss, peak_pss: bytes of the process tree at the highest, as sampled: the sum of resident sets, which counts
            a page shared by processes once for each, and of proportional sets, which counts it once.
    """

    out: Path
    verdicts: dict[str, Verdict]
    summary: dict[str, Any]
    seconds: float
    peak_rss: int
    peak_pss: int


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def start(
    inputs: Sequence[Path], out: Path, languages: Iterable[str], *options: str
) -> subprocess.Popen[bytes]:
    """The command, of this working tree, in a session of its own, with its messages in a file beside `out`."""
    command = [sys.executable, "-m", "hybrid_kernels", "govern", *map(str, inputs), "--out", str(out)]
    command += ["--languages", ",".join(languages), "--id-column", "id", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log_of(out).open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def finish(process: subprocess.Popen[bytes], out: Path) -> tuple[float, int, int]:
    """(seconds, peak RSS, peak PSS) once it has ended; RuntimeError with its last words if it failed."""
    started, rss, pss = time.monotonic(), 0, 0
    while process.poll() is None:
        now = memory(process.pid)
        rss, pss = max(rss, now[0]), max(pss, now[1])
        time.sleep(INTERVAL)
    if process.returncode:
        raise RuntimeError(
            f"govern failed: {log_of(out).read_text(encoding='utf-8', errors='replace')[-2000:]}"
        )
    return time.monotonic() - started, rss, pss


def memory(pid: int) -> tuple[int, int]:
    """(sum of RSS, sum of PSS) in bytes of a process and all its descendants; PSS is 0 where the system has none."""
    rss = pss = 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                info = process.memory_full_info()
                rss, pss = rss + info.rss, pss + getattr(info, "pss", 0)
    return rss, pss


def govern(
    inputs: Sequence[Path], out: Path, languages: Iterable[str], *options: str, read: bool = True
) -> Run:
    """Runs the command to its end; `read`: the verdict of every row too."""
    seconds, rss, pss = finish(start(inputs, out, languages, *options), out)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return Run(out, verdicts_of(out) if read else {}, summary, seconds, rss, pss)


def verdicts_of(out: Path) -> dict[str, Verdict]:
    links: dict[str, str | None] = {}
    with (out / "rejected.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            links[row["id"]] = (row["linked_to"] or {}).get("id")
    table = pq.read_table(out / "verdicts.parquet", columns=["id", "kept", "languages", "reasons", "flags"])
    return {
        row["id"]: Verdict(
            row["kept"],
            tuple(row["languages"]),
            tuple(row["reasons"]),
            tuple(row["flags"]),
            links.get(row["id"]),
        )
        for row in table.to_pylist()
    }


def contents(out: Path) -> dict[str, bytes]:
    """What a run decided, file by file: the kept rows as they were written, the rejected ones, all verdicts."""
    kept = sorted(path for path in (out / "kept").rglob("*") if path.is_file())
    files = {str(path.relative_to(out)): path.read_bytes() for path in (*kept, out / "rejected.jsonl")}
    rows = pq.read_table(out / "verdicts.parquet").to_pylist()
    return {**files, "verdicts.parquet": json.dumps(rows).encode()}


def killed(
    inputs: Sequence[Path],
    out: Path,
    languages: Iterable[str],
    options: Sequence[str],
    longest: float,
    seed: int,
) -> float:
    """Starts the command and kills all of it with SIGKILL after up to `longest` seconds; how long it ran."""
    process = start(inputs, out, languages, *options)
    seconds = random.Random(seed).uniform(0.1, 1.0) * longest
    started = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return time.monotonic() - started


class Target(NamedTuple):
    """A figure and what it has to be."""

    name: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@dataclass(frozen=True)
class Bench:
    """What the sections share."""

    corpus: Corpus
    work: Path
    languages: tuple[str, ...]
    quick: bool
    seed: int
    workers: int

    def run(
        self, name: str, rows: Iterable[Row], *options: str, wanted: Sequence[str] = (), **more: Any
    ) -> Run:
        """Governs rows, in a folder that is deleted before."""
        path = write_rows(self.work / f"{name}.jsonl", (row.record() for row in rows))
        return self.run_files(name, [path], *options, wanted=wanted, **more)

    def run_files(
        self, name: str, inputs: Sequence[Path], *options: str, wanted: Sequence[str] = (), **more: Any
    ) -> Run:
        out = self.work / name
        shutil.rmtree(out, ignore_errors=True)
        return govern(inputs, out, wanted or self.languages, *self.common(*options), **more)

    def common(self, *options: str) -> tuple[str, ...]:
        text = () if "--text" in options else ("--text", "text")
        return (*text, "--workers", str(self.workers), *options)

    def policy(self, name: str, values: Json) -> tuple[str, str]:
        # JSON is YAML.
        return "--policy", str(write_rows(self.work / f"{name}.yaml", [values]))
