"""What a run shows of its cells: how many are done, how long the rest takes, and how far each one under way is."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn


class Display:
    """A context manager; lines of finished cells stay, bars go."""

    def __init__(self, console: Console, total: int, done: int, workers: int) -> None:
        self.console, self.workers = console, workers
        self.total, self.done = total, done
        self.seconds: list[float] = []
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        )
        self.overall = self.progress.add_task("cells", total=total, completed=done, note="")
        self.bars: dict[str, tuple[TaskID, float]] = {}

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def start(self, name: str, description: str) -> None:
        self.bars[name] = (self.progress.add_task(description, total=None, note=""), time.monotonic())

    def step(self, name: str, what: str, done: int, total: int) -> None:
        self.progress.update(self.bars[name][0], completed=done, total=total, note=what)

    def finish(self, name: str, description: str, outcome: str) -> None:
        """`outcome`: in a few words what came of it."""
        bar, started = self.bars.pop(name)
        self.progress.remove_task(bar)
        self.done += 1
        self.seconds.append(time.monotonic() - started)
        left = sum(self.seconds) / len(self.seconds) * (self.total - self.done) / self.workers
        note = f"about {duration(left)} left" if self.done < self.total else ""
        self.progress.update(self.overall, completed=self.done, note=note)
        self._line(
            f"[{self.done}/{self.total}] {description}: {outcome} ({duration(self.seconds[-1])})", note
        )

    def fail(self, name: str, description: str, reason: str) -> None:
        if name in self.bars:
            self.progress.remove_task(self.bars.pop(name)[0])
        self._line(f"{description}: failed: {reason}", "")

    def _line(self, text: str, note: str) -> None:
        self.console.print(text + (f"; {note}" if note else ""), markup=False, highlight=False)


def duration(seconds: float) -> str:
    """`8 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def outcome(result: dict[str, Any]) -> str:
    """A cell's result in a few words."""
    if "test" not in result["metrics"]:
        return f"training loss {result['train_loss']:.3f}"
    macro = result["metrics"]["test"]["macro"]
    name, value = next(iter(macro.items()))
    return f"{name} {value:.3f}"
