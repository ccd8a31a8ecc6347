"""The GPU session with a stand-in for Python: what it runs, and that the command line takes it."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from hybrid_kernels import cli
from hybrid_kernels.cases.base import shape_name
from tests.benchmarks.test_summary import summary

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_session.sh"
# Python that notes its arguments and succeeds, but for what {fails} matches.
STAND_IN = """#!/bin/bash
printf '%q ' "$@" >> {log}
echo >> {log}
[[ "$*" == {fails} ]] && exit 3
exit 0
"""


@pytest.fixture
def session(tmp_path):
    """Runs a copy of the script: (exit status, output, the arguments of each Python)."""

    def call(fails="nothing"):
        folder, log, python = tmp_path / "benchmarks", tmp_path / "log", tmp_path / "python"
        folder.mkdir()
        shutil.copy(SCRIPT, folder)
        python.write_text(STAND_IN.format(log=log, fails=fails))
        python.chmod(0o755)
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(tmp_path / "out")}
        done = subprocess.run(
            ["bash", folder / SCRIPT.name], env=environment, capture_output=True, text=True, timeout=60
        )
        return (
            done.returncode,
            done.stdout + done.stderr,
            [shlex.split(line) for line in log.read_text().splitlines()],
        )

    return call


def measured(calls, capsys):
    """{result file: ids of the cases} of the calls of bench, with the CPU in the GPU's place."""
    found = {}
    for call in calls:
        if call[:3] == ["-m", "hybrid_kernels", "bench"] and call[3] != "tune":
            arguments = ["cpu" if argument == "cuda" else argument for argument in call[2:]]
            with pytest.raises(SystemExit) as caught:
                cli.main([*arguments, "--list"])
            out = capsys.readouterr().out
            assert not caught.value.code, call
            ids = [line.split("  ")[0] for line in out.splitlines() if line.count("/") >= 4]
            found.setdefault(Path(call[call.index("--output") + 1]).name, []).extend(ids)
    return found


def test_what_the_session_measures_has_all_targets_of_the_gpu(session, capsys, monkeypatch):
    # To name the sides the inputs would be drawn, of a GPU's sizes.
    monkeypatch.setattr("hybrid_kernels.benchmarking.session.sides", lambda case, options: ["a side"])
    status, said, calls = session()
    assert status == 0, said
    found = measured(calls, capsys)
    assert set(found) == {summary.GPU, summary.GPU_FLOAT32}
    for target in summary.TARGETS:
        if target.file == summary.GPU:
            assert any(case.startswith(f"{target.case}/bfloat16/") for case in found[target.file]), target
    # The operator's own shapes, which on a CPU are others.
    from hybrid_kernels.cases.operator_shapes import MEASURED

    shapes = {shape_name(shape) for shape in MEASURED["cuda"]["cayley_packed"]}
    wanted = {t.case.rsplit("/", 1)[1] for t in summary.TARGETS if t.file == summary.GPU_FLOAT32}
    assert wanted <= shapes and any("cayley_packed" in case for case in found[summary.GPU_FLOAT32])
    for methods in ("layer/accelerate-BOFT", "model/llama-medium-accelerate-HRA", "model/llama-1b/"):
        assert any(case.startswith(methods) for case in found[summary.GPU]), methods
    order = [" ".join(call) for call in calls]
    build = next(i for i, call in enumerate(order) if "build_ext" in call)
    validate = next(i for i, call in enumerate(order) if "validate --quick --device cuda" in call)
    tests = next(i for i, call in enumerate(order) if "pytest" in call)
    assert build < validate < tests


def test_a_step_that_fails_is_named_and_the_others_are_run(session):
    status, said, calls = session('*"bench --device cuda --dtype float32"*')
    assert status == 1
    assert "step failed: the Cayley transform: exit status 3" in said
    assert "step failed: one layer, float32: exit status 3" in said
    assert said.count("step failed") == 2
    assert any("benchmarks/products.py" in call for call in calls)


def test_the_header_has_the_limits_of_the_steps(session):
    _, said, _ = session()
    limits = [
        int(line.rsplit("at most ", 1)[1].split()[0]) for line in said.splitlines() if "(at most" in line
    ]
    header = [line.split() for line in SCRIPT.read_text().splitlines() if line.startswith("#   ")]
    listed = [int(words[1]) for words in header if words[1:2] and words[1].isdigit()]
    assert limits == listed[:-1]
    assert sum(limits) < 600
