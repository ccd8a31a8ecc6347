"""Running a plan's cells: one after the other, or several at a time in processes of this machine.

A cell that fails is recorded with its traceback in `error.txt` of its folder, and the rest goes on; so does a cell
whose process dies. Only Ctrl-C, and an error among processes that train together, stop everything.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from rich.console import Console

from hybrid_kernels._files import write_file
from hybrid_kernels.training import distributed
from hybrid_kernels.training.cells import Cell, source_of
from hybrid_kernels.training.display import Display, outcome
from hybrid_kernels.training.plan import Plan, run_cell


def execute(plan: Plan, *, workers: int, console: Console) -> dict[str, str]:
    """Runs every cell that is not done yet.

    Args:
        workers: cells at a time; the machine's cores and GPUs are divided among them.

    Returns:
        Why each cell without a result has none, by name.

    Raises:
        ValueError: `workers` is less than 1, or more than 1 where processes share a cell (torchrun).
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    if workers > 1 and distributed.world_size() > 1:
        raise ValueError(f"workers is {workers}; it must be 1 under torchrun, whose processes share a cell")
    done = distributed.from_first(lambda: {cell for cell in plan.cells if plan.result(cell) is not None})
    for cell in done:
        (plan.folder_of(cell) / "error.txt").unlink(missing_ok=True)
    for cell in (cell for cell in plan.cells if cell in done):
        console.print(f"{plan.describe(cell)}: done before", markup=False, highlight=False)
    todo = [cell for cell in plan.cells if cell not in done]
    if not todo:
        return {}
    failures: dict[str, str] = {}
    with Display(console, len(plan.cells), len(done), workers) as display:
        if workers == 1:
            _one_by_one(plan, todo, display, failures)
        else:
            _in_processes(plan, todo, min(workers, len(todo)), display, failures)
    return failures


def _without_source(plan: Plan, cell: Cell, failures: dict[str, str]) -> str | None:
    """Why a cell cannot be run: that it starts from has failed."""
    source = source_of(plan.config, cell)
    return (
        None
        if source is None or source.name not in failures
        else f"{source.name} failed, it starts from that"
    )


def _fail(plan: Plan, cell: Cell, error: str, display: Display, failures: dict[str, str]) -> None:
    write_file(plan.folder_of(cell) / "error.txt", error)
    failures[cell.name] = error.strip().splitlines()[-1]
    display.fail(cell.name, plan.describe(cell), failures[cell.name])


def _one_by_one(plan: Plan, cells: list[Cell], display: Display, failures: dict[str, str]) -> None:
    from hybrid_kernels.training.methods import load_tokenizer

    tokenizer = load_tokenizer(plan.config.model.name)
    for cell in cells:
        if reason := _without_source(plan, cell, failures):
            _fail(plan, cell, reason, display, failures)
            continue
        display.start(cell.name, plan.describe(cell))
        try:
            result = run_cell(plan, cell, tokenizer, _reporter(display, cell))
        except Exception:
            if distributed.world_size() > 1:
                # The other processes wait for this one in the middle of a step: none can go on.
                raise
            _fail(plan, cell, traceback.format_exc(), display, failures)
            continue
        (plan.folder_of(cell) / "error.txt").unlink(missing_ok=True)
        display.finish(cell.name, plan.describe(cell), outcome(result))


def _reporter(display: Display, cell: Cell) -> Any:
    return lambda what, done, total: display.step(cell.name, what, done, total)


# --- processes


@dataclass
class _Worker:
    process: Any
    connection: Connection
    cell: Cell | None = None


def _in_processes(
    plan: Plan, cells: list[Cell], count: int, display: Display, failures: dict[str, str]
) -> None:
    waiting, under_way, places = list(cells), set[str](), list(range(count))
    workers: dict[int, _Worker] = {}

    def next_cell() -> Cell | None:
        """The first cell that can start; those whose source failed fail on the way."""
        for cell in list(waiting):
            if reason := _without_source(plan, cell, failures):
                waiting.remove(cell)
                _fail(plan, cell, reason, display, failures)
                continue
            source = source_of(plan.config, cell)
            unfinished = under_way | {other.name for other in waiting}
            if source is None or source.name not in unfinished:
                return cell
        return None

    try:
        while waiting or under_way:
            for place in places:
                if (cell := next_cell()) is None:
                    break
                worker = workers.get(place)
                # One that died with a cell is found below, where the cell fails.
                if worker is None or (worker.cell is None and not worker.process.is_alive()):
                    worker = workers[place] = _start_worker(plan, place, count)
                if worker.cell is None:
                    waiting.remove(cell)
                    under_way.add(cell.name)
                    worker.cell = cell
                    with contextlib.suppress(OSError):  # it died just now; its end of the connection says so
                        worker.connection.send(cell)
                    display.start(cell.name, plan.describe(cell))
            busy = [worker.connection for worker in workers.values() if worker.cell is not None]
            for ready in wait(busy) if busy else ():  # none where all that waited failed with its source
                place, worker = next((p, w) for p, w in workers.items() if w.connection is ready)
                assert worker.cell is not None
                cell = worker.cell
                try:
                    kind, *content = worker.connection.recv()
                except (EOFError, OSError):  # OSError: in the middle of a message
                    worker.process.join()
                    kind, content = "failed", [f"its process died ({_exit(worker.process.exitcode)})"]
                    del workers[place]
                if kind == "step":
                    display.step(cell.name, *content)
                    continue
                worker.cell = None
                under_way.discard(cell.name)
                if kind == "failed":
                    _fail(plan, cell, content[0], display, failures)
                else:
                    (plan.folder_of(cell) / "error.txt").unlink(missing_ok=True)
                    display.finish(cell.name, plan.describe(cell), outcome(content[0]))
        for worker in workers.values():
            with contextlib.suppress(OSError):  # it died idle
                worker.connection.send(None)
    except BaseException:
        for worker in workers.values():
            worker.process.terminate()
        raise
    finally:
        for worker in workers.values():
            worker.process.join()


def _exit(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _start_worker(plan: Plan, place: int, count: int) -> _Worker:
    import torch

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    threads = max(1, torch.get_num_threads() // count)
    gpus = torch.cuda.device_count()
    settings = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        settings["CUDA_VISIBLE_DEVICES"] = visible[place % gpus]
    process = context.Process(target=_work, args=(plan, theirs, threads), daemon=True)
    with _environment(settings):
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """The process started meanwhile has these variables; this one has its own again afterwards."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(plan: Plan, connection: Connection, threads: int) -> None:
    """Runs the cells that come through the connection, until None does."""
    # Ctrl-C reaches every process of a terminal; the first one ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    tokenizer: Any = None
    while (cell := connection.recv()) is not None:

        def report(what: str, done: int, total: int) -> None:
            connection.send(("step", what, done, total))

        try:
            if tokenizer is None:
                from hybrid_kernels.training.methods import load_tokenizer

                tokenizer = load_tokenizer(plan.config.model.name)
            result = run_cell(plan, cell, tokenizer, report)
        except Exception:
            connection.send(("failed", traceback.format_exc()))
        else:
            connection.send(("done", result))
