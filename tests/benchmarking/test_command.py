import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_kernels.benchmarking import records
from tests.benchmarking.support import FLOOR, OURS, out_of_memory, side, toy_case

ROOT = Path(__file__).parents[2]
FEW = ("--rounds", "2", "--seconds-each", "0.01")


def test_it_measures_prints_a_table_and_says_where_the_results_are(bench, tmp_path):
    path = tmp_path / "results" / "bench.jsonl"
    code, out, err = bench(*FEW, "--pass", "forward,both", "--output", path)
    assert code == 0, err
    assert f"results go to {path}" in out and f"2 of 2 measured, written to {path}" in out
    for text in (
        "operator/toy/m8-k16/float32/cpu forward",
        "× floor",
        "× ours",
        "peak MiB",
        "low_rank_linear: ",
    ):
        assert text in out
    assert " ms" not in out  # absolute times are for GPUs
    assert [record["side"] for record in records.read(path)] == [FLOOR, OURS] * 2


def test_a_second_run_goes_on_where_the_first_stopped_and_fresh_measures_anew(bench, tmp_path):
    path = tmp_path / "bench.jsonl"
    arguments = (*FEW, "--output", path)
    bench(*arguments, cases=[toy_case("first")])
    code, out, _ = bench(*arguments, cases=[toy_case("first"), toy_case("second")])
    assert code == 0 and "1 of 2 measured already" in out and "1 of 2 measured, written to" in out
    assert "operator/first/m8-k16/float32/cpu both, measured already on 2" in out
    assert [record["name"] for record in records.read(path)] == ["first"] * 2 + ["second"] * 2
    _, out, _ = bench(*arguments, "--fresh", cases=[toy_case("first")])
    assert "1 of 1 measured, written" in out and len(records.read(path)) == 6


def test_without_an_output_the_file_is_named_after_the_machine(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = bench(*FEW)
    (path,) = tmp_path.iterdir()
    assert code == 0 and path.match("bench-*.jsonl") and f"results go to {path.name}" in out


def test_reasons_of_failures_are_printed_and_an_out_of_memory_side_costs_nothing_else(bench, tmp_path):
    def absent():
        raise ImportError("the peer is not installed")

    case = toy_case(sides={"peer": absent, "too large": lambda: side(out_of_memory)})
    code, out, _ = bench(*FEW, "--output", tmp_path / "a.jsonl", cases=[case, toy_case("next")])
    assert code == 0 and "peer: not measured: ImportError: the peer is not installed" in out
    assert "too large: not measured: RuntimeError: " in out and "2 of 2 measured" in out
    found = {record["side"]: record for record in records.read(tmp_path / "a.jsonl")}
    assert found["too large"]["failure"] == "memory" and "ratios" in found[OURS]


def test_ctrl_c_keeps_what_is_measured_and_exits_130(bench, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    path = tmp_path / "bench.jsonl"
    cases = [toy_case("first"), toy_case("second", {"stopped": lambda: side(interrupt)}), toy_case("third")]
    code, out, err = bench(*FEW, "--output", path, cases=cases)
    assert code == 130 and "interrupted" in err
    assert "operator/first/m8-k16/float32/cpu both" in out
    assert [record["name"] for record in records.read(path)] == ["first", "first"]
    assert path.read_bytes().endswith(b"\n")


def test_a_disk_that_fills_up_ends_it_with_the_table_and_an_error(bench, tmp_path, monkeypatch):
    def full(path, found):
        raise OSError(28, "No space left on device; what was written before is kept", str(path))

    monkeypatch.setattr(records, "append", full)
    code, out, err = bench(
        *FEW, "--output", tmp_path / "a.jsonl", cases=[toy_case("first"), toy_case("next")]
    )
    assert code == 2 and "No space left on device" in err and "a.jsonl" in err
    assert "operator/first/" in out and "operator/next/" not in out


def no_case():
    return toy_case(drawn=lambda: pytest.fail("nothing may be measured"))


def test_a_full_disk_is_found_before_the_work(bench, tmp_path, small_disk):
    small_disk(1000)
    code, _, err = bench("--output", tmp_path / "a.jsonl", cases=[no_case()])
    assert code == 2 and f"nothing was measured: '{tmp_path / 'a.jsonl'}'" in err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_no_file_is_refused(bench, tmp_path):
    for path in (tmp_path, "/dev/null"):
        code, _, err = bench("--output", path, cases=[no_case()])
        assert code == 2 and f"{path} is no file" in err


def test_a_folder_that_cannot_be_written_is_found_before_the_work(bench, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = bench("--output", tmp_path / "file" / "bench.jsonl", cases=[no_case()])
    assert code == 2 and str(tmp_path / "file") in err and "Traceback" not in err


def test_a_file_that_holds_something_else_is_found_before_the_work(bench, tmp_path):
    (tmp_path / "notes.txt").write_text("my notes\n")
    code, _, err = bench("--output", tmp_path / "notes.txt", cases=[no_case()])
    assert code == 2 and "notes.txt, line 1: it is no JSON object" in err
    assert (tmp_path / "notes.txt").read_text() == "my notes\n"


def test_list_names_cases_and_sides_and_measures_nothing(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = toy_case(sides={"peer": lambda: pytest.fail("nothing may be built")})
    code, out, _ = bench("--list", cases=[case])
    assert code == 0 and out.strip() == f"{case.id}  {FLOOR} | {OURS} | peer"
    code, out, _ = bench("--list", "--without", "pe", cases=[case])
    assert "peer" not in out and not list(tmp_path.iterdir())


def test_after_the_limit_it_says_what_was_not_begun(bench, tmp_path):
    code, out, _ = bench("--limit", "-1", "--output", tmp_path / "a.jsonl")
    assert code == 0 and "1 of 1 not begun" in out and "operator/toy/m8-k16/float32/cpu both" in out


def test_a_profile_is_printed(bench, tmp_path):
    code, out, _ = bench(*FEW, "--profile", "--output", tmp_path / "a.jsonl")
    assert code == 0 and "share of the step, calls" in out and "aten::" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pass", "sideways"], "'forward', 'backward', 'both'"),
        (["--rounds", "0"], "rounds is 0; it must be at least 1"),
    ],
)
def test_it_says_what_is_wrong(bench, arguments, message):
    code, _, err = bench(*arguments)
    assert code == 2 and message in err


def test_the_same_cases_are_tests_of_pytest_benchmark(tmp_path):
    pytest.importorskip("pytest_benchmark")
    arguments = ["benchmarks", "-q", "-n", "0", "-p", "no:cacheprovider", "-rs", "--quick", "--op", "cayley"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "-k", "ours or solve", "--benchmark-disable"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "failed" not in done.stdout


def without_xdist() -> dict[str, str]:
    """The environment without what tells pytest-benchmark that it runs beside others, and so measures nothing."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}


def test_pytest_benchmark_groups_by_case_and_keeps_commit_and_machine(tmp_path):
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "benchmark.json"
    arguments = [
        "benchmarks",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--op",
        "scale_features",
        "--no-compile",
    ]
    quick = ["--benchmark-max-time=0.01", "--benchmark-min-rounds=1", f"--benchmark-json={path}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *quick, "--shapes", "m8-n16"],
        cwd=ROOT,
        env={**without_xdist(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())["benchmarks"]
    assert {each["group"] for each in found} == {"operator/scale_features/m8-n16/float32/cpu both"}
    assert {"ours", "copy"} <= {each["extra_info"]["side"] for each in found}
    assert all({"commit", "machine", "versions", "peak_bytes"} <= each["extra_info"].keys() for each in found)
