"""Where tasks run: this process, worker processes of this machine, or Ray.

Tasks name files and results are small, so that nothing large passes between processes. Every engine runs the same
function on the same task; which one it is decides nothing.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Protocol, TypeVar

from hybrid_kernels.governance.progress import Reporter

Task = TypeVar("Task")
Result = TypeVar("Result")

# Parallel are the tasks; threads of a library inside of one would only take each other's cores.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)


class Engine(Protocol):
    """Runs a function on each of some tasks, in parallel; function, tasks and results can be pickled.

    Attributes:
        workers: how many tasks run at once.
        seconds: processor time that tasks have taken so far, all workers together.
    """

    workers: int
    seconds: float

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        description: str,
        *,
        rows: Callable[[Task], int] | None = None,
        total: int | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """(number of the task, result) as they get ready, in any order.

        Shows progress under `description`: tasks, or with `rows` their rows, of `total`. The first exception of a task
        ends it. Nothing may depend on the order or on where a task runs.
        """

    def close(self) -> None:
        """Ends what was started."""


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Shown:
    """What the engines share: how progress is counted."""

    def __init__(self, reporter: Reporter | None = None) -> None:
        self.reporter = reporter or Reporter()
        self.seconds = 0.0

    @contextlib.contextmanager
    def _progress(
        self, tasks: Iterable[Any], description: str, rows: Callable[[Any], int] | None, total: int | None
    ) -> Iterator[Callable[[Any], None]]:
        if total is None and rows is None and isinstance(tasks, Sized):
            total = len(tasks)
        with self.reporter.track(description, total, "rows" if rows else "parts") as advance:
            yield lambda task: advance(rows(task) if rows else 1)


class InProcess(_Shown):
    """One task after another in this process; for few rows and for tests."""

    workers = 1

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        description: str,
        *,
        rows: Callable[[Task], int] | None = None,
        total: int | None = None,
    ) -> Iterator[tuple[int, Result]]:
        with self._progress(tasks, description, rows, total) as done:
            for number, task in enumerate(tasks):
                started = time.process_time()
                result = function(task)
                self.seconds += time.process_time() - started
                done(task)
                yield number, result

    def close(self) -> None:
        pass


class LocalEngine(_Shown):
    """Worker processes of this machine, started when first needed and kept.

    They are spawned, never forked (threads of this process would be missing in a fork), end with this process however
    it ends, and leave Ctrl-C to it.

    Args:
        workers: how many; by default one for each core.
        reporter: shows progress.
    """

    def __init__(self, workers: int | None = None, reporter: Reporter | None = None) -> None:
        super().__init__(reporter)
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
            raise TypeError(f"workers must be a whole number, got {workers!r}")
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers or cores()
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        description: str,
        *,
        rows: Callable[[Task], int] | None = None,
        total: int | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """As in `Engine`; `tasks` are drawn while others run, a few ahead of the workers."""
        if self._busy:
            raise RuntimeError("map was called while another map of this engine was not yet through")
        with self._progress(tasks, description, rows, total) as done:
            source, ahead, more = enumerate(tasks), deque[tuple[int, Task]](), True
            try:
                while more or ahead or self._busy:
                    while ahead and len(self._busy) < self.workers:
                        self._start(function, *ahead.popleft())
                    if more and len(ahead) < self.workers:
                        try:
                            ahead.append(next(source))
                        except StopIteration:
                            more = False
                        ready = wait(list(self._busy), 0)
                    else:
                        ready = wait(list(self._busy))
                    for connection in ready:
                        number, task, result, seconds = self._finish(connection)
                        self.seconds += seconds
                        done(task)
                        yield number, result
            except BaseException:
                self._kill()
                raise

    def close(self) -> None:
        self._kill()

    def _start(self, function: Callable[[Any], Any], number: int, task: Any) -> None:
        worker = self._idle.pop() if self._idle else _Worker()
        self._busy[worker.connection] = worker
        worker.number, worker.task = number, task
        # A worker that has just died is found out by the end of its connection.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.connection.send((function, task))

    def _finish(self, connection: Any) -> tuple[int, Any, Any, float]:
        worker = self._busy[connection]
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            raise worker.lost() from None
        del self._busy[connection]
        self._idle.append(worker)
        return worker.number, worker.task, *_opened(message)

    def _kill(self) -> None:
        workers = [*self._idle, *self._busy.values()]
        self._idle, self._busy = [], {}
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


class _Worker:
    number: int
    task: Any

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        try:
            with _settings_of_workers():
                self.process.start()
        except BaseException:
            if self.process.pid is not None:
                self.process.kill()
                self.process.join()
            raise
        theirs.close()

    def lost(self) -> ChildProcessError:
        """What to say of a worker that is gone in the middle of a task."""
        self.process.join(10)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            why = "it was killed, for want of memory perhaps: try fewer workers"
        else:
            why = (
                f"exit code {code}; a script that starts workers has to guard its own work with "
                "if __name__ == '__main__':"
            )
        return ChildProcessError(f"a worker process ended in the middle of its work ({why})")


@contextlib.contextmanager
def _settings_of_workers() -> Iterator[None]:
    """Inherited by processes started meanwhile: one thread each, and deaf to Ctrl-C from their first moment.

    A Ctrl-C that this process receives meanwhile is raised at the end.
    """
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        with _interrupts_later():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    # Started within, it would unblock what is blocked here.
    resource_tracker.ensure_running()
    received: list[tuple[int, FrameType | None]] = []
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda *got: received.append(got)) if in_main else None
    # The mask is inherited, a handler is not; and another thread of this process may get the signal all the same.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGINT, handler)
    if received and callable(handler):
        handler(*received[0])


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ends when the other end is closed by the engine.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, task = connection.recv()
            connection.send_bytes(_outcome(function, task))


def _end_with_parent() -> None:
    """In the middle of a task too: what it was to write is written whole or not at all."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _outcome(function: Callable[[Any], Any], task: Any) -> bytes:
    """Pickled: (result, None, seconds), or (None, (exception, its traceback), seconds)."""
    started = time.process_time()
    try:
        result = function(task)
        return pickle.dumps((result, None, time.process_time() - started))
    except Exception as error:
        text = traceback.format_exc()
        try:
            kept: Exception = pickle.loads(pickle.dumps(error))
        except Exception:  # many exceptions of libraries cannot be pickled
            kept = RuntimeError(f"{type(error).__name__}: {error}")
        return pickle.dumps((None, (kept, text), time.process_time() - started))


class _WorkerTraceback(Exception):
    pass


def _opened(message: bytes) -> tuple[Any, float]:
    """(result, seconds); raises what the task raised."""
    result, failure, seconds = pickle.loads(message)
    if failure is not None:
        error, text = failure
        raise error from _WorkerTraceback(f"in a worker process:\n{text}")
    return result, seconds


class RayEngine(_Shown):
    """Ray Data, on one machine or a cluster; the work folder has to be on storage that all machines share.

    Args:
        address: of a cluster, such as "auto" or "ray://host:10001"; None starts Ray on this machine, for as long as
            the engine is open.
        workers: tasks that run at once; by default one for each core that Ray has.
        reporter: shows progress.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, reporter: Reporter | None = None
    ) -> None:
        super().__init__(reporter)
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ModuleNotFoundError(
                f"the engine 'ray' needs Ray Data ({error}): pip install 'hybrid-kernels[ray]'"
            ) from None
        self._own = not ray.is_initialized()
        if self._own:
            ray.init(
                address=address or "local",
                num_cpus=(workers or cores()) if address is None else None,
                # Tasks name files: next to nothing is kept in the object store.
                object_store_memory=128 << 20 if address is None else None,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": _ONE_THREAD},
            )
        self.workers = workers or int(ray.cluster_resources().get("CPU", 1))
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        description: str,
        *,
        rows: Callable[[Task], int] | None = None,
        total: int | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """As in `Engine`; all `tasks` are drawn before the first runs."""
        import ray.data

        drawn = list(tasks)
        if not drawn:
            return
        items = [
            {"number": number, "task": pickle.dumps((function, task))} for number, task in enumerate(drawn)
        ]
        with self._progress(drawn, description, rows, total) as done:
            results = ray.data.from_items(items, override_num_blocks=len(items)).map(
                _ray_outcome, concurrency=min(self.workers, len(items))
            )
            for row in results.iter_rows():
                result, seconds = _opened(row["outcome"])
                self.seconds += seconds
                done(drawn[row["number"]])
                yield row["number"], result

    def close(self) -> None:
        import ray

        if self._own:
            ray.shutdown()


def _ray_outcome(row: dict[str, Any]) -> dict[str, Any]:
    return {"number": row["number"], "outcome": _outcome(*pickle.loads(row["task"]))}
