import json
import os
import subprocess

import pytest

from hybrid_kernels.benchmarking import against, records, revisions
from tests.benchmarking import toy_cases
from tests.benchmarking.test_comparison import record

REVISION = revisions.Revision("main", "def5678" * 5, "def5678")


@pytest.fixture
def bench(command, monkeypatch, tmp_path):
    """Runs bench --against on outcomes that are given, not measured: (exit code, stdout, stderr, records)."""
    monkeypatch.setattr(revisions, "find", lambda name: REVISION)
    monkeypatch.setattr(revisions, "tree", lambda revision, say: tmp_path)
    monkeypatch.setattr(revisions, "newer_sources", list)

    def call(outcomes, *options, end=None):
        def run(cases, selection, trees, measured, done, say):
            assert [case.id for case in cases] and list(trees.values()) == [revisions.ROOT, tmp_path]
            for outcome in outcomes:
                done(outcome)
            if end is not None:
                raise end

        monkeypatch.setattr(against, "run", run)
        path = tmp_path / "out" / "bench.jsonl"
        path.unlink(missing_ok=True)
        arguments = (
            "bench",
            "--op",
            "cayley_packed",
            "--device",
            "cpu",
            "--against",
            "main",
            "--output",
            str(path),
        )
        return *command(*arguments, *options), records.read(path)

    return call


def outcome(name, change=1.0, noise=1.1, second=True, failed=()):
    (case,) = toy_cases.cases([name])
    if failed:
        return against.Outcome(case, "forward", "ours", failed=dict.fromkeys(failed, "AttributeError: none"))
    ratio = against.Ratio(change, (change, change), noise)
    times = {"new": [change] * 8, "old": [1.0] * 8, "again": [1.0] * 8}
    suspected = ratio.beyond(noise) is not None
    return against.Outcome(case, "forward", "ours", times, {}, ratio, ratio if suspected and second else None)


def test_check_passes_where_nothing_is_slower(bench):
    outcomes = [
        outcome("cayley_packed", 1.05),
        outcome("householder_factors", 0.5),
        outcome("cayley", 1.2, second=False),
    ]
    code, out, err, found = bench(outcomes, "--check")
    assert code == 0 and not err
    assert "nothing is slower than at main (def5678)" in out and "faster" in out and "perhaps" in out
    assert len(found) == 6 and {r["commit"] for r in found if r["against"].get("ratio") is None} == {
        "def5678"
    }


def test_check_fails_naming_what_is_slower_or_broken(bench):
    outcomes = [
        outcome("cayley_packed", 1.5),
        outcome("cayley", failed=["new"]),
        outcome("householder_factors", 0.5),
    ]
    code, out, err, found = bench(outcomes, "--check")
    assert code == 1 and len(found) == 5
    assert err.splitlines() == [
        "slower: operator/cayley_packed/b4/float32/cpu forward, ours: 1.500 times as long as at main (def5678), "
        "noise 1.100",
        "broken: operator/cayley/b4/float32/cpu forward, ours: runs at main (def5678) only",
    ]
    code, out, err, _ = bench(outcomes)
    assert code == 0 and "slower" in out and "AttributeError: none" in out


def test_check_says_nothing_where_nothing_was_compared(bench):
    code, out, err, found = bench([outcome("cayley_packed", failed=["old", "again"])], "--check")
    assert code == 2 and "nothing could be compared with main" in err
    assert [r["failed"] for r in found] == ["not at def5678: AttributeError: none"]
    assert out.count("AttributeError: none") == 1


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_what_was_measured_before_the_end_is_kept_and_shown(bench, end, code):
    found_code, out, err, found = bench([outcome("cayley_packed", 1.05)], end=end)
    assert found_code == code and len(found) == 2 and "1.050" in out and "cayley_packed" in out
    assert "go on from" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--check"], "--check needs --against REV"),
        (["--against", "HEAD", "--profile"], "--profile cannot be combined with --against"),
        (["--against", "nonsense"], "--against is 'nonsense', which names no commit of "),
        (["--against", "HEAD", "--rounds", "7"], "rounds is 7; another commit needs 8 or more"),
    ],
)
def test_options_that_cannot_be_met(command, tmp_path, monkeypatch, options, said):
    monkeypatch.setattr(revisions, "tree", lambda revision, say: tmp_path)
    if "HEAD" in options:
        monkeypatch.setattr(revisions, "find", lambda name: REVISION)
    elif subprocess.run(["git", "rev-parse"], cwd=revisions.ROOT, capture_output=True).returncode:
        pytest.skip("this copy has no history")
    path = str(tmp_path / "bench.jsonl")
    code, _out, err = command("bench", "--op", "cayley_packed", "--device", "cpu", "--output", path, *options)
    assert code == 2 and said in err


def test_sources_newer_than_the_extension_are_named(bench, monkeypatch):
    monkeypatch.setattr(revisions, "newer_sources", lambda: ["csrc/lanes.h"])
    code, _, err, _ = bench([outcome("cayley_packed")])
    assert code == 0 and err.startswith("warning: csrc/lanes.h is newer than the built extension")


def test_newer_sources(tmp_path):
    for folder, name, written in (("hybrid_kernels", "_C.so", 2), ("csrc", "a.cpp", 1), ("csrc", "b.h", 3)):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (written, written))
    assert revisions.newer_sources(tmp_path) == [tmp_path / "csrc" / "b.h"]
    (tmp_path / "hybrid_kernels" / "_C.so").unlink()  # where nothing was built, nothing is out of date
    assert revisions.newer_sources(tmp_path) == []


@pytest.fixture
def files(tmp_path):
    paths = []
    for name, ratio in (("a", 0.5), ("b", 0.6)):
        path = tmp_path / f"{name}.jsonl"
        sides = [record(ratio=ratio), record("same"), record(f"only {name}")]
        sides.append(record("failed") | {"failed": "out of memory"})
        path.write_text("".join(json.dumps(side) + "\n" for side in sides))
        paths.append(str(path))
    return paths


def test_compare_prints_the_changes_and_what_is_in_one_only(command, files):
    code, out, err = command("bench", "compare", *files)
    assert code == 0 and not err
    first, second = (line for line in out.splitlines() if "both" in line and " floor " in line)
    assert "ours" in first and "0.500" in first and "0.600" in first and "1.200*" in first
    assert "same" in second and "*" not in second
    for name in "ab":
        assert f"only in {name.upper()}: operator/o/m1/float32/cpu both only {name}" in out
        assert f"failed in {name.upper()}: operator/o/m1/float32/cpu both failed: out of memory" in out


def test_compare_as_json(command, files):
    code, out, _ = command("bench", "compare", *files, "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"][0]["relative"]["ratio"] == pytest.approx(1.2)
    assert found["only_b"] == [{"case": "operator/o/m1/float32/cpu", "pass": "both", "side": "only b"}]
    assert found["failed"][0]["a"] == "out of memory"
    code, _, err = command("bench", "compare", files[0], "nothing.jsonl")
    assert code == 2 and "'nothing.jsonl' is no result file" in err
