"""The processes that measure for `against`, one for each tree: started, asked in turn, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Threads of an idle process sleep instead of spinning, the same for every tree: only one process works at a time.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


class WorkerDied(RuntimeError):
    """A process ended while it was measuring; the message says which, how, and what it last printed."""


class Refused(RuntimeError):
    """A request failed in its process, which goes on; the message is the reason."""


@dataclass(frozen=True)
class Selection:
    """What gives the cases: a function in a module of this package (such as "cases.operators"), and its arguments.

    The arguments are JSON: each process makes the cases itself.
    """

    module: str
    function: str
    arguments: Mapping[str, Any]


class Worker:
    """A process that measures on the package in ``tree``; ``name`` is what messages call it."""

    def __init__(self, name: str, tree: Path, definitions: Path) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(definitions / "benchmarking" / "worker.py"), str(tree), str(definitions)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **ENVIRONMENT},
            text=True,
        )

    def send(self, do: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def receive(self) -> Any:
        """The result of the request sent last; raises Refused or WorkerDied."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death()
        reply = json.loads(line)
        if "failed" in reply:
            raise Refused(reply["failed"])
        return reply["done"]

    def ask(self, do: str, **arguments: Any) -> Any:
        self.send(do, **arguments)
        return self.receive()

    def _death(self) -> WorkerDied:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        self._errors.seek(0)
        last = [line for line in self._errors.read().splitlines() if line.strip()][-3:]
        return WorkerDied(": ".join([f"the process that measures {self.name} ended ({how})", *last]))

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            try:
                assert pipe is not None
                pipe.close()
            except OSError:  # what was not sent to a process that died cannot be flushed
                pass


class Workers:
    """Processes by role, started when they are wanted, each with its cases.

    ``trees`` is {role: (what messages call it, folder of the package)}.
    """

    def __init__(
        self, trees: Mapping[str, tuple[str, Path]], definitions: Path, selection: Selection
    ) -> None:
        self._trees = trees
        self._definitions = definitions
        self._selection = selection
        self._workers: dict[str, Worker] = {}

    def started(self) -> dict[str, Worker]:
        """All of them; ValueError where a package or its cases cannot be imported."""
        if not self.alive():
            self.kill()
            try:
                for role, (name, tree) in self._trees.items():
                    self._workers[role] = Worker(name, tree, self._definitions)
                for role, worker in self._workers.items():
                    self._prepare(worker, self._trees[role][1])
            except BaseException:
                self.kill()
                raise
        return self._workers

    def _prepare(self, worker: Worker, tree: Path) -> None:
        chosen = self._selection
        try:
            found = Path(worker.ask("describe")["package"]).parent
            if found.resolve() != tree.resolve():
                raise RuntimeError(f"{worker.name} is measured on {found}, not on {tree}")
            worker.ask("select", module=chosen.module, function=chosen.function, arguments=chosen.arguments)
        except (Refused, WorkerDied) as error:
            raise ValueError(f"{worker.name} cannot be measured here: {error}") from None

    def alive(self) -> bool:
        """Whether all of them run."""
        return bool(self._workers) and all(worker.alive() for worker in self._workers.values())

    def kill(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        self._workers = {}
