import math
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from hybrid_kernels import _extension
from hybrid_kernels.benchmarking import against, processes, revisions
from hybrid_kernels.benchmarking.session import Options
from tests.benchmarking import toy_cases
from tests.benchmarking.trees import ROOT, changed_tree

SLOWER = "import time; time.sleep(2e-4)"


@pytest.fixture(scope="module")
def definitions(tmp_path_factory):
    """The folders that say what is measured, with the toy cases among the others."""
    folder = tmp_path_factory.mktemp("definitions")
    for name in ("cases", "benchmarking"):
        shutil.copytree(ROOT / "hybrid_kernels" / name, folder / name)
    shutil.copy(toy_cases.__file__, folder / "cases")
    return folder


@pytest.fixture(scope="module")
def slower(tmp_path_factory):
    return changed_tree(tmp_path_factory.mktemp("slower"), "cayley_packed", SLOWER)


@pytest.fixture
def measure(definitions):
    """Measures the toy cases on two trees: {(name of the case, pass): outcome}."""

    def call(
        new: Path, old: Path, passes=("forward",), done=lambda outcome: None, without=("ours, ",), **arguments
    ):
        arguments = {"passes": passes, **arguments}
        outcomes = {}

        def keep(outcome):
            assert outcome.side != "a peer"  # is not compared
            outcomes[
                (outcome.case.name, outcome.part, outcome.side)[: 2 if outcome.side == "ours" else 3]
            ] = outcome
            done(outcome)

        against.run(
            toy_cases.cases(**arguments),
            processes.Selection("cases.toy_cases", "cases", arguments),
            {"the working tree": new, "the old one": old},
            Options(passes=passes, rounds=12, seconds_each=1.0, without=without),
            keep,
            lambda what: None,
            definitions,
        )
        return outcomes

    return call


@pytest.fixture
def started(monkeypatch):
    """The processes that were started, to see what became of them."""
    found = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(self)
            self.environment = kwargs["env"]

    monkeypatch.setattr(subprocess, "Popen", Popen)
    yield found
    assert found and all(process.poll() is not None for process in found)


@pytest.mark.parametrize("n", [8, 9, 12, 25, 100])
def test_interval_is_the_narrowest_of_order_statistics_that_has_its_level(n):
    values = torch.randperm(n).tolist()
    low, high = against.interval(values)
    assert low + high == n - 1

    def missed(left_out: int) -> float:
        """The probability that as many or fewer of n fall on one side of the median, or on the other."""
        return 2 * sum(math.comb(n, k) for k in range(left_out + 1)) / 2**n

    assert missed(low) <= 1 - against.LEVEL < missed(low + 1)


def test_interval_of_few_is_all_of_them():
    assert against.interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_noise_is_how_far_the_old_ones_differ_either_way():
    once = {"new": [1.1] * 8, "old": [1.0] * 8}
    for again in ([0.8] * 8, [1.25] * 8, [1.0] * 7 + [1.25]):
        ratio = against.Ratio.of({**once, "again": again})
        assert ratio.noise == pytest.approx(1.25) and ratio.median == pytest.approx(1.1)
        assert ratio.beyond(ratio.noise) is None and ratio.beyond(1.05) == "slower"
    assert against.Ratio.of({**once, "new": [0.7] * 8, "again": [0.8] * 8}).beyond(1.25) == "faster"
    # One round that is not slower leaves it open.
    assert against.Ratio.of({**once, "new": [1.1] * 7 + [1.0], "again": [1.0] * 8}).beyond(1.0) is None


def outcome(first, second):
    def ratio(change, noise):
        return against.Ratio(change, (change, change), noise)

    (case,) = toy_cases.cases()
    return against.Outcome(case, "forward", "ours", first=ratio(*first), second=second and ratio(*second))


@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        ((1.2, 1.1), (1.2, 1.1), "slower"),
        ((1.2, 1.1), None, None),
        ((1.2, 1.1), (1.0, 1.1), None),
        ((1.2, 1.1), (0.8, 1.1), None),
        ((1.2, 1.1), (1.4, 1.3), None),  # the second time's noise counts for the first too
        ((1.4, 1.3), (1.2, 1.1), None),
        ((0.8, 1.1), (0.8, 1.1), "faster"),
    ],
)
def test_what_is_seen_twice_beyond_the_noise_of_both_times_has_changed(first, second, change):
    assert outcome(first, second).change == change


def test_too_few_rounds(measure):
    with pytest.raises(ValueError, match="rounds is 7; another commit needs 8 or more"):
        against.run([], processes.Selection("", "", {}), {}, Options(rounds=7), print, print)


def test_a_slower_function_is_slower_and_another_is_not(measure, slower, started):
    functions = ("cayley_packed", "householder_factors")
    outcomes = measure(slower, ROOT, functions=functions)
    found = outcomes["cayley_packed", "forward"]
    assert found.change == "slower" and found.second is not None and found.first.median > 1.5
    same = outcomes["householder_factors", "forward"]
    assert same.first is not None and same.change is None
    made_on = {"commit": "abc1234+changes.0", "machine": {}, "versions": {}, "date": "now", "rounds": 12}
    new, old = against.records(found, made_on, "def5678")
    assert new["commit"] == "abc1234+changes.0" and old["commit"] == "def5678"
    assert new["case"] == old["case"] == found.case.id and new["pass"] == "forward" and new["side"] == "ours"
    assert new["median_seconds"] > 1.5 * old["median_seconds"] and len(new["seconds"]) == new["rounds"] == 12
    assert new["against"]["commit"] == old["against"]["commit"] == "def5678"
    assert new["against"]["change"] == "slower" and new["against"]["measured"] == 2
    assert new["against"]["ratio"] == found.second.median > new["against"]["noise"] >= 1


def test_a_function_that_the_other_commit_lacks_is_no_slowdown(measure, tmp_path):
    lacking = changed_tree(tmp_path, "cayley_packed", "raise AttributeError('no cayley_packed')")
    outcomes = measure(ROOT, lacking, functions=("cayley_packed", "householder_factors"))
    found = outcomes["cayley_packed", "forward"]
    assert found.failed.keys() == {"old", "again"} and found.change is None and found.first is None
    (record,) = against.records(found, {"commit": "abc1234"}, "def5678")
    assert (
        record["commit"] == "def5678"
        and record["failed"] == "not at def5678: AttributeError: no cayley_packed"
    )
    assert outcomes["householder_factors", "forward"].first is not None


@pytest.mark.parametrize(
    ("failed", "change"), [({"new"}, "broken"), ({"new", "old", "again"}, None), ({"old", "again"}, None)]
)
def test_what_only_the_other_commit_can_run_is_broken(failed, change):
    (case,) = toy_cases.cases()
    found = against.Outcome(case, "forward", "ours", failed=dict.fromkeys(failed, "why"))
    assert found.change == change


def test_a_process_that_dies_is_named_and_costs_only_its_side(measure, tmp_path, started):
    code = (
        "import os, sys; _unchanged.calls = getattr(_unchanged, 'calls', 0) + 1; "
        "_unchanged.calls > {} and (print('last words', file=sys.stderr, flush=True), os.kill(os.getpid(), 9))"
    )
    dying = changed_tree(tmp_path, "cayley_packed", code.format(0))  # while it is built
    changed_tree(tmp_path, "householder_factors", code.format(40))  # while it is timed
    outcomes = measure(ROOT, dying, without=(), functions=("householder_factors", "cayley_packed"))
    for name in ("householder_factors", "cayley_packed"):
        failed = outcomes[name, "forward"].failed
        assert failed.keys() <= {"old", "again"}
        for reason in failed.values():
            assert reason.startswith("the process that measures the old one ended (SIGKILL): ")
            assert reason.endswith(": last words")
        assert outcomes[name, "forward", "ours, doubled"].first is not None


def test_a_package_that_cannot_be_imported_is_an_error_that_names_it(measure, tmp_path):
    broken = changed_tree(tmp_path, "cayley_packed", "no Python")
    with pytest.raises(ValueError, match="the old one cannot be measured here: SyntaxError: invalid syntax"):
        measure(ROOT, broken)


@pytest.mark.skipif(_extension.load() is not None, reason="the extension is not built here")
def test_a_working_tree_without_extension_is_not_compared_with_a_tree_that_has_it(measure, tmp_path):
    bare = changed_tree(tmp_path, "cayley_packed", "pass")
    (bare / "hybrid_kernels" / "_build_info.json").unlink()
    with pytest.raises(ValueError, match=r"the working tree has not: .*setup\.py build_ext --inplace"):
        measure(bare, ROOT)


def test_interrupted_it_leaves_no_process(measure, started):
    def interrupt(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(ROOT, ROOT, done=interrupt)
    assert len(started) == 3
    # Threads that wait for their next turn leave the cores to the process whose turn it is.
    assert all(process.environment["OMP_WAIT_POLICY"] == "passive" for process in started)


def test_a_process_ends_with_the_one_that_started_it(definitions):
    worker = processes.Worker("it", ROOT, definitions)
    worker.ask("describe")
    worker._process.stdin.close()
    assert worker._process.wait(20) == 0
    worker.kill()


def test_the_processes_print_apart_from_their_replies_and_ignore_an_interrupt(definitions):
    worker = processes.Worker("it", ROOT, definitions)
    assert Path(worker.ask("describe")["package"]) == ROOT / "hybrid_kernels"
    worker._process.send_signal(signal.SIGINT)
    (case,) = worker.ask("select", module="cases.toy_cases", function="cases", arguments={})
    assert worker.ask("build", case=case, part="forward") == {"ours": None, "ours, doubled": None}
    with pytest.raises(processes.Refused, match="KeyError: 'none'"):
        worker.ask("build", case="none", part="both")
    worker.kill()


def test_the_tree_goes_before_what_pythonpath_names_which_is_found_too(definitions, tmp_path, monkeypatch):
    changed_tree(tmp_path, "cayley_packed", "pass")
    (tmp_path / "only_there.py").write_text("def cases():\n    return []\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (definitions / "cases" / "needing.py").write_text("from only_there import cases")
    worker = processes.Worker("it", ROOT, definitions)
    try:
        assert Path(worker.ask("describe")["package"]) == ROOT / "hybrid_kernels"
        assert worker.ask("select", module="cases.needing", function="cases", arguments={}) == []
    finally:
        worker.kill()


def test_another_commit_is_measured_by_our_definitions(definitions, tmp_path):
    """A commit that knows nothing of cases has them too."""
    old = changed_tree(tmp_path, "cayley_packed", "pass")
    for folder in ("cases", "benchmarking"):
        shutil.rmtree(old / "hybrid_kernels" / folder)
    toy = definitions / "cases" / "older.py"
    toy.write_text(Path(toy_cases.__file__).read_text().replace("hybrid_kernels.cases.base", ".base"))
    worker = processes.Worker("it", old, definitions)
    (case,) = worker.ask("select", module="cases.older", function="cases", arguments={})
    assert worker.ask("build", case=case, part="forward", without=["ours"]) == {"ours": None}
    worker.kill()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that makes commits in a tiny repository, whose build is the code given: (repository, hash)."""
    monkeypatch.setenv("HYBRID_KERNELS_CACHE", str(tmp_path / "cache"))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b")
    root = tmp_path / "repository"
    root.mkdir()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, check=True, capture_output=True, text=True
        ).stdout

    def commit(setup: str) -> str:
        (root / "setup.py").write_text(setup)
        git("add", "-A")
        git("commit", "-qm", "a commit")
        return git("rev-parse", "HEAD").strip()

    git("init", "-q")
    return root, commit


def test_unknown_commits_and_folders_without_history_are_refused(repository, tmp_path):
    root, commit = repository
    full = commit("")
    assert revisions.find("HEAD", root) == revisions.Revision("HEAD", full, full[:7])
    for name in ("nonsense", "HEAD~1", "--all", "HEAD:setup.py"):
        with pytest.raises(ValueError, match=f"--against is '{name}', which names no commit of "):
            revisions.find(name, root)
    with pytest.raises(ValueError, match=r"--against 'HEAD' needs the repository .* not a git repository"):
        revisions.find("HEAD", tmp_path)
    (root / "inside").mkdir()
    with pytest.raises(ValueError, match="only a folder within the repository"):
        revisions.find("HEAD", root / "inside")


def test_a_tree_is_built_once_and_has_the_commit_s_files(repository, tmp_path):
    root, commit = repository
    commit("import sys; open('built', 'w').write(sys.argv[1])")
    (root / "setup.py").write_text("changed since")
    said = []
    revision = revisions.find("HEAD", root)
    tree = revisions.tree(revision, said.append, root)
    assert (tree / "built").read_text() == "build_ext" and tree.is_relative_to(tmp_path / "cache")
    (tree / "built").write_text("kept")
    assert revisions.tree(revision, said.append, root) == tree and (tree / "built").read_text() == "kept"
    assert said == [f"building the extension of HEAD ({revision.short}), once"]
    assert list(tree.parent.iterdir()) == [tree]


def test_a_build_that_fails_says_its_last_lines_and_is_tried_again(repository, tmp_path):
    root, commit = repository
    commit("print('x.cpp:1: error: no such thing')\nraise SystemExit(3)")
    revision = revisions.find("HEAD", root)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"cannot be built here \(exit 3\):\nx.cpp:1: error: no such thing"
        ):
            revisions.tree(revision, lambda what: None, root)
    assert list((tmp_path / "cache" / "revisions").iterdir()) == []


def test_an_interrupted_build_leaves_neither_compilers_nor_half_a_tree(repository, tmp_path):
    root, commit = repository
    pids = tmp_path / "pids"
    commit(
        "import os, signal, subprocess, sys, time\n"
        "compiler = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{compiler.pid}}')\n"
        "os.kill(os.getppid(), signal.SIGUSR1)\n"
        "time.sleep(60)\n"
    )

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            revisions.tree(revisions.find("HEAD", root), lambda what: None, root)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert list((tmp_path / "cache" / "revisions").iterdir()) == []
    for pid in map(int, pids.read_text().split()):
        deadline = time.monotonic() + 10
        while _runs(pid):
            assert time.monotonic() < deadline, f"process {pid} still runs"
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return state.strip()[:1] not in ("", "Z")
