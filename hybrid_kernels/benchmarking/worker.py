"""A process that measures the cases of one tree on the package of another, for `against`.

    python worker.py TREE DEFINITIONS

TREE is a folder with the `hybrid_kernels` and `triton_ops` to measure. DEFINITIONS is the `hybrid_kernels` folder
whose ``cases`` and ``benchmarking`` say what is measured: it becomes the package ``definitions``, whose own
``__init__`` never runs, so that its modules, which import each other relatively, meet TREE's package. Requests and
replies are JSON, one a line, over stdin and stdout; what else the process prints goes to stderr. It ends with its
stdin, and leaves Ctrl-C to the process that started it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: How the names begin of the sides that are this package's, which another commit of it can be compared on.
OURS = ("ours", "hybrid", "accelerated")


class Measuring:
    """The requests: each method is one, its arguments and result JSON."""

    def __init__(self, tree: Path, definitions: Path) -> None:
        sys.path.insert(0, str(tree))
        package = types.ModuleType("definitions")
        package.__path__ = [str(definitions)]
        sys.modules["definitions"] = package
        self.timing = importlib.import_module("definitions.benchmarking.timing")
        self.cases: dict[str, Any] = {}
        self.steps: dict[str, tuple[Any, Any]] = {}

    def describe(self) -> dict[str, Any]:
        """Where the package is from, and why it has no compiled operators, if it has none."""
        import hybrid_kernels
        import hybrid_kernels.functional  # what does not import is to be found now

        try:
            from hybrid_kernels import _extension

            reason = _extension.load()
        except (ImportError, AttributeError) as error:
            reason = str(error)
        return {"package": str(Path(hybrid_kernels.__file__).parent), "not_compiled": reason}

    def select(self, module: str, function: str, arguments: dict[str, Any]) -> list[str]:
        """The names of the cases that a function of the definitions gives for these arguments."""
        chosen = getattr(importlib.import_module(f"definitions.{module}"), function)(**arguments)
        self.cases = {case.id: case for case in chosen}
        return list(self.cases)

    def build(
        self, case: str, part: str, side: str | None = None, without: Sequence[str] = ()
    ) -> dict[str, str | None]:
        """Makes and warms up our sides of a case's pass, or one: {side: null or why it cannot run}.

        Those whose names begin with one of ``without`` are left out, but never the package's own choice.
        """
        chosen = self.cases[case]
        device = chosen.device
        self.steps = {}
        self.timing.free(device)
        outcome: dict[str, str | None] = {}
        for name, builder in chosen.builders().items():
            wanted = name == chosen.ours or (name.startswith(OURS) and not name.startswith(tuple(without)))
            if side not in (None, name) or not wanted:
                continue
            try:
                step = builder().step(part)
                self.timing.warm_up(step, device)
                self.steps[name], outcome[name] = (step, device), None
            except Exception as error:  # the other sides are measured all the same
                outcome[name] = self.timing.reason(error)
                self.timing.free(device)
        return outcome

    def repeats(self, side: str) -> tuple[int, float]:
        """Steps that one timing of this side takes, for the clock, and its seconds."""
        repeats, seconds = self.timing.repeats_of(*self.steps[side])
        return repeats, seconds

    def time(self, side: str, repeats: int, timings: int) -> float:
        """Seconds of a step: the shortest of several timings. Cold caches and other processes only ever add to them."""
        step, device = self.steps[side]
        return min(self.timing.seconds(step, device, repeats) for _ in range(timings))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    measuring = Measuring(Path(sys.argv[1]), Path(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"done": getattr(measuring, request.pop("do"))(**request)}
        except Exception as error:
            reply = {"failed": measuring.timing.reason(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    # As a script: the folder of this file is no place to import from.
    sys.path.pop(0)
    main()
