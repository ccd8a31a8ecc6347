"""Where tasks run: worker processes of this machine, or Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs a function on each of some tasks, in parallel; function, tasks and results can be pickled."""

    workers: int

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], description: str
    ) -> Iterator[tuple[int, Result]]:
        """(number of the task, result) as they get ready, in any order. Shows progress under `description`.

        The first exception of a task ends it. Nothing may depend on the order or on where a task runs.
        """


class InProcess:
    """One task after another in this process; for few rows and for tests."""

    workers = 1

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], description: str
    ) -> Iterator[tuple[int, Result]]:
        for number, task in enumerate(tasks):
            yield number, function(task)
