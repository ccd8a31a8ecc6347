"""What is seen of a stage that takes long: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_INTERVAL = 10.0


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0.0
        return Text(f"{int(task.completed):,} {self._unit}  {speed:,.0f}/s")


class Reporter:
    """Shows how far a stage is; silent without a console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    @contextmanager
    def track(self, description: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Yields a function to call with how much more is done; `total` None: not known yet."""
        if self.console is None:
            yield lambda _: None
        elif self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), _Rate(unit), TimeRemainingColumn())
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(description, total=total)
                yield lambda more: progress.advance(task, more)
        else:
            yield self._lines(description, total, unit)

    def _lines(self, description: str, total: int | None, unit: str) -> Callable[[int], None]:
        done, started = 0, time.monotonic()
        shown = started

        def advance(more: int) -> None:
            nonlocal done, shown
            done += more
            now = time.monotonic()
            if now - shown >= _INTERVAL and self.console is not None:
                shown = now
                of = "" if total is None else f" of {total:,}"
                line = f"{description}: {done:,}{of} {unit}, {done / (now - started):,.0f}/s"
                self.console.print(line, markup=False, highlight=False)

        return advance
