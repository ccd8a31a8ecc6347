"""Engines: the same results in any process, errors as they were raised, nothing left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rich.console import Console

from hybrid_kernels.governance import engine as engine_module
from hybrid_kernels.governance.engine import InProcess, LocalEngine, RayEngine
from hybrid_kernels.governance.progress import Reporter


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(first)


def square(task):
    return task * task


def process(task):
    return os.getpid(), os.environ["OMP_NUM_THREADS"]


def fail(task):
    if task == 3:
        raise ValueError("shard 3: no such column")
    return task


def fail_strangely(task):
    raise Unpicklable("strange", task)


def die(task):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(task):
    time.sleep(task)


@pytest.fixture(scope="module")
def local():
    engine = LocalEngine(2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    engine = RayEngine(workers=2)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", ["local", "ray"])
def test_results_are_those_of_one_process(name, request):
    engine = request.getfixturevalue(name)
    expected = dict(InProcess().map(square, range(40), "squares"))
    found = list(engine.map(square, range(40), "squares"))
    assert dict(found) == expected and len(found) == 40
    assert dict(engine.map(square, [], "none")) == {}
    pids, threads = zip(*dict(engine.map(process, range(20), "processes")).values(), strict=True)
    assert os.getpid() not in pids and set(threads) == {"1"}


@pytest.mark.parametrize("name", ["local", "ray"])
def test_an_error_arrives_as_it_was_raised(name, request):
    engine = request.getfixturevalue(name)
    with pytest.raises(ValueError, match="shard 3: no such column") as caught:
        list(engine.map(fail, range(6), "failing"))
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="Unpicklable: strange"):
        list(engine.map(fail_strangely, [1], "failing"))
    assert dict(engine.map(square, [2], "again")) == {0: 4}


def test_tasks_are_drawn_while_others_run(local):
    drawn = []

    def tasks():
        for i in range(20):
            drawn.append(i)
            yield i

    results = local.map(square, tasks(), "squares")
    next(results)
    assert len(drawn) < 10
    assert len(list(results)) == 19


def test_a_worker_that_is_killed_is_an_error():
    engine = LocalEngine(2)
    with pytest.raises(ChildProcessError, match=r"killed, for want of memory perhaps: try fewer workers"):
        list(engine.map(die, range(4), "dying"))
    assert dict(engine.map(square, [3], "again")) == {0: 9}
    engine.close()


def test_an_abandoned_map_stops_its_workers():
    engine = LocalEngine(2)
    results = engine.map(sleep, [0, 600, 600], "sleeping")
    next(results)
    workers = [worker.process for worker in engine._busy.values()]
    with pytest.raises(RuntimeError, match="not yet through"):
        next(engine.map(square, [1], "between"))
    results.close()
    assert workers and not any(worker.is_alive() for worker in workers)


SCRIPT = """
import os, sys
from hybrid_kernels.governance.engine import LocalEngine
from tests.governance.test_engine import process, sleep
if __name__ == "__main__":
    engine = LocalEngine(2)
    pids = {pid for _, (pid, _) in engine.map(process, range(8), "processes")}
    try:
        for number, _ in engine.map(sleep, [0, 600, 600, 600], "sleeping"):
            print(*pids, flush=True)  # one worker at least is in the middle of a task
    except KeyboardInterrupt:
        sys.exit(130)
"""


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_workers_end_with_their_process(tmp_path, number, code):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    script = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(pid) for pid in script.stdout.readline().split()]
    # As a terminal does it: the signal goes to the workers too, who leave it to their parent.
    (os.killpg if number == signal.SIGINT else os.kill)(script.pid, number)
    _, errors = script.communicate(timeout=60)
    assert script.returncode == code and errors == ""
    deadline = time.monotonic() + 60
    while any(map(running, workers)) and time.monotonic() < deadline:
        os.sched_yield()
    assert workers and not any(map(running, workers))


def test_ctrl_c_while_a_worker_starts_is_not_lost(monkeypatch):
    started = []

    def start(self):
        os.kill(os.getpid(), signal.SIGINT)
        ordinary(self)
        started.append(self)

    ordinary = multiprocessing.context.SpawnProcess.start
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start)
    with pytest.raises(KeyboardInterrupt):
        list(LocalEngine(1).map(square, [1], "interrupted"))
    assert len(started) == 1 and not started[0].is_alive()


@pytest.mark.parametrize(
    ("workers", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_workers_are_checked(workers, error):
    with pytest.raises(error, match="workers must be"):
        LocalEngine(workers)


def test_ray_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hybrid-kernels\[ray\]'"):
        RayEngine()


def test_progress_is_a_line_now_and_then(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("hybrid_kernels.governance.progress.time.monotonic", lambda: next(clock))
    with (tmp_path / "shown").open("w") as file:
        engine = InProcess(Reporter(Console(file=file, width=100)))
        list(engine.map(square, [1000] * 6, "measure", rows=lambda task: task, total=6000))
        list(InProcess().map(square, [1000] * 6, "silent"))
    # Four seconds a task, at most a line each ten.
    assert (tmp_path / "shown").read_text().splitlines() == [
        "measure: 3,000 of 6,000 rows, 250/s",
        "measure: 6,000 of 6,000 rows, 250/s",
    ]


def test_progress_on_a_terminal_shows_rows_and_rate(tmp_path):
    with (tmp_path / "shown").open("w") as file:
        console = Console(file=file, width=100, force_terminal=True)
        engine = InProcess(Reporter(console))
        list(engine.map(square, [1000] * 6, "measure", rows=lambda task: task, total=6000))
    shown = (tmp_path / "shown").read_text()
    assert "measure" in shown and "6,000 rows" in shown and "/s" in shown


def test_module_has_no_thread_settings_left(local):
    dict(local.map(square, [1], "one"))
    assert engine_module._ONE_THREAD.keys() & os.environ.keys() <= {"OMP_NUM_THREADS"}
