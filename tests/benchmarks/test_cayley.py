import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

import hybrid_kernels as hk

pytest.importorskip("peft")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BLOCKS, SIZE = 3, 5


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("cayley"), importlib.import_module("summary")


@pytest.fixture(scope="module")
def cayley(modules):
    return modules[0]


def run(cayley, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cayley.py", "--device", "cpu", *arguments])
    cayley.main()


def packed_matrices(dtype=torch.float64, scale=1.0):
    torch.manual_seed(0)
    return scale * torch.randn(BLOCKS, SIZE * (SIZE - 1) // 2, dtype=dtype)


def usable(cayley, sides):
    """Without those that this machine or this version of the package cannot run."""
    missing = {f"ours, {name}" for name in ("cpp",) if hk.ops.backend.unavailable(name)}
    return {name: make for name, make in sides.items() if name not in missing}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_every_side_has_the_same_q_and_gradient(cayley, dtype):
    packed = packed_matrices(dtype)
    grad_q = torch.randn(BLOCKS, SIZE, SIZE, dtype=dtype)
    leaf = packed.clone().requires_grad_()
    q = hk.reference.cayley_packed(leaf, SIZE)
    (gradient,) = torch.autograd.grad(q, leaf, grad_q)
    row, column = torch.triu_indices(SIZE, SIZE, offset=1)

    sides = usable(cayley, cayley.sides(packed, SIZE, False))
    for name in (cayley.PEFT_SERIES, *([cayley.PEFT_SOLVE] if dtype.is_complex else [])):
        sides.pop(name)
    for name, make in sides.items():
        side = make()
        torch.testing.assert_close(side.forward(), q, msg=lambda text, name=name: f"{name}: {text}")
        assert side.forward() is not side.forward(), f"{name} keeps Q"
        (mine,) = torch.autograd.grad(side.forward(), side.leaf, grad_q)
        if name == cayley.ORTHOGONAL:
            # X = −2 A, so an element below the diagonal is 2 p̄.
            mine = 2.0 * mine[:, column, row].conj_physical()
        torch.testing.assert_close(mine, gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_the_compiled_side_runs_every_part_again_and_again(cayley, monkeypatch):
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)
    packed = packed_matrices(torch.float32)
    side = cayley.sides(packed, SIZE, True)[cayley.COMPILED]()
    for part in cayley.PARTS:
        step = side.step(part, torch.ones(BLOCKS, SIZE, SIZE))
        for _ in range(2):
            step()


def test_the_series_is_near_the_transpose(cayley):
    packed = packed_matrices(scale=0.01)
    q = hk.reference.cayley_packed(packed, SIZE)
    series = cayley.sides(packed, SIZE, False)[cayley.PEFT_SERIES]().forward().mT
    assert 0.0 < (series - q).abs().max() < 1e-5 < (series.mT - q).abs().max()


def test_peft_takes_no_complex_matrices(cayley):
    with pytest.raises(TypeError, match=r"not skew-Hermitian for torch\.complex64"):
        cayley.sides(packed_matrices(torch.complex64), SIZE, False)[cayley.PEFT_SOLVE]()


def test_each_part_runs_what_it_says(cayley):
    calls = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls.append((hk.ops.backend.current_backend(), "forward"))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            calls.append((hk.ops.backend.current_backend(), "backward"))
            return gradient

    leaf = torch.ones(2, requires_grad=True)
    side = cayley.Side(lambda: Counted.apply(leaf), leaf, "eager")
    expected = {"sides": ["forward", "backward"], "forward": ["forward"], "backward": ["backward"]}
    assert set(expected) == set(cayley.PARTS)
    for part, kinds in expected.items():
        step = side.step(part, torch.ones(2))
        for _ in range(2):
            calls.clear()
            step()
            assert calls == [("eager", kind) for kind in kinds]


@pytest.mark.parametrize(("seconds", "quartiles"), [([2.0], [2.0, 2.0]), ([1.0, 3.0], [1.0, 3.0])])
def test_quartiles_of_few_rounds_lie_within_them(cayley, seconds, quartiles):
    times = {"ours": dict.fromkeys(range(len(seconds)), 1.0), "other": dict(enumerate(seconds))}
    assert cayley.measuring.summarised(times, "ours")["other"]["ratio_quartiles"] == quartiles


def test_times_from_graphs_stand_beside_the_eager_ones(cayley, monkeypatch, capsys):
    """Without a GPU: the capture is replaced, and what waits for the device must not be tried."""
    tried = []

    def captured(steps):
        tried.extend(steps)
        steps = dict(steps)
        del steps["other"]
        return steps, {"other": "RuntimeError: no"}

    monkeypatch.setattr(cayley.measuring, "captured", captured)
    flushed = []
    monkeypatch.setattr(cayley.measuring, "cache_flush", lambda device: lambda: flushed.append(1))

    def broken():
        raise RuntimeError("broken")

    builders = {name: (lambda: lambda: None) for name in (cayley.OURS, "other", cayley.PEFT_SOLVE)}
    options = argparse.Namespace(device="cpu", rounds=2, seconds_each=1.0)
    table = cayley.timed(builders | {"broken": broken}, True, options)
    assert tried == [cayley.OURS, "other"] and flushed
    assert table[cayley.OURS]["graph"]["ratio_to_ours"] == 1.0
    assert table["other"]["graph"] == {"failed": "RuntimeError: no"} and table["other"]["ratio_to_ours"] > 0
    assert table[cayley.PEFT_SOLVE]["graph"] == {"failed": cayley.WAITS}
    assert table["broken"] == {"failed": "RuntimeError: broken"}

    memory = {"median_seconds": table[cayley.OURS]["graph"]["median_seconds"] / 2}
    forward = table | {cayley.MEMORY: memory | {"graph": memory}}
    backward = table | {"other": {"failed": "RuntimeError: once"}}
    entry = {"blocks": 1, "block_size": 2, "sides": table, "forward": forward, "backward": backward}
    cayley.show(entry, True)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("  ours ")).endswith("2.00")
    assert any("broken" in line and "not measured: RuntimeError: broken" in line for line in lines)
    assert any(line.strip() == "backward not measured: RuntimeError: once" for line in lines)

    with pytest.raises(RuntimeError, match="our own transform cannot be measured: RuntimeError: broken"):
        cayley.timed({cayley.OURS: broken}, False, options)


def test_what_is_not_captured_is_among_the_sides(cayley):
    sides = cayley.sides(packed_matrices(), SIZE, True)
    assert set(cayley.NOT_CAPTURED) <= set(sides)


@pytest.mark.parametrize("norm", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_matrices_have_the_norm_and_their_transform_is_exact(cayley, dtype, norm):
    torch.manual_seed(0)
    packed = cayley.skew_matrices(2, SIZE, norm, dtype)
    a = cayley.unpack(packed, SIZE)
    largest = torch.linalg.matrix_norm(a, ord=2)
    torch.testing.assert_close(largest, torch.full_like(largest, norm))
    with mpmath.workdps(40):
        wide = mpmath.matrix(a[1].to(torch.complex128).tolist())
        truth = (mpmath.eye(SIZE) - wide) * mpmath.inverse(mpmath.eye(SIZE) + wide)
        mine = mpmath.matrix([[scalar(z) for z in row] for row in cayley.exact(packed, SIZE)[1]])
        error = float(mpmath.mnorm(mine - truth, "f"))
    # What the rounded residual of I + A costs.
    assert error <= 4 * SIZE * (1 + norm) * np.finfo(np.longdouble).eps


def scalar(number):
    """All digits of an extended number, which float() would round."""
    return mpmath.mpc(*(np.format_float_scientific(part) for part in (number.real, number.imag)))


def test_accuracy(cayley):
    exact = cayley.accuracy(4, 0.0, torch.device("cpu"), torch.float32)["sides"]
    assert exact[cayley.OURS] == {key: {"median": 0.0, "worst": 0.0} for key in ("error", "defect")}
    rows = cayley.accuracy(8, 1.0, torch.device("cpu"), torch.float32)["sides"]
    eps = torch.finfo(torch.float32).eps
    for name in (cayley.OURS, "torch.linalg.solve"):
        for key in ("error", "defect"):
            assert 0.0 < rows[name][key]["median"] < rows[name][key]["worst"] < 8 * eps, (name, key)
    rows = cayley.accuracy(8, 0.01, torch.device("cpu"), torch.float32)["sides"]
    assert 0.0 < rows[cayley.PEFT_SERIES]["error"]["worst"] < 8 * eps
    # A² = −I, so the series I + 2 A + 2 A² + 2 A³ + A⁴ is zero.
    rows = cayley.accuracy(2, 1.0, torch.device("cpu"), torch.float32)["sides"]
    for key in ("error", "defect"):
        assert rows[cayley.PEFT_SERIES][key]["worst"] == pytest.approx(1.0, rel=8 * eps)
    rows = cayley.accuracy(4, 1.0, torch.device("cpu"), torch.complex64)["sides"]
    assert "not skew-Hermitian" in rows[cayley.PEFT_SERIES]["failed"]
    assert rows[cayley.OURS]["defect"]["worst"] < 4 * eps


def test_the_accuracy_of_all_sizes_is_written(cayley, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cayley, "SIZES", (2, 3))
    path = tmp_path / "accuracy.json"
    run(cayley, monkeypatch, "--accuracy", "--dtype", "complex64", "--output", str(path))
    result = json.loads(path.read_text())
    assert [(row["block_size"], row["norm"]) for row in result["sizes"]] == [
        (size, norm) for size in (2, 3) for norm in cayley.NORMS
    ]
    out = capsys.readouterr().out
    assert out.count("\n     3") == len(cayley.NORMS)
    assert f"not measured: {cayley.PEFT_SERIES}: TypeError: PEFT's matrices" in out


def test_the_command_writes_what_the_summary_reads(modules, tmp_path):
    cayley, summary = modules
    path = tmp_path / summary.CAYLEY_CPU
    command = [sys.executable, str(BENCHMARKS / "cayley.py"), "--device", "cpu", "--shapes", "3x4,2x1"]
    done = subprocess.run(
        [*command, "--rounds", "2", "--seconds-each", "0.1", "--output", str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "3 blocks of 4" in done.stdout and "PEFT OFT, solve" in done.stdout
    result = json.loads(path.read_text())
    assert result["dtype"] == "float32" and result["info"]["packages"]["peft"]
    assert [summary.place(shape) for shape in result["shapes"]] == ["3x4", "2x1"]
    for part in cayley.PARTS:
        for peer in (summary.PEFT_SOLVE, summary.ORTHOGONAL):
            assert summary.ratio(result["shapes"][0][part], peer, summary.CAYLEY) > 0
    assert summary.MEMORY == cayley.MEMORY
    table = "\n".join(summary.ratio_table(result, summary.CAYLEY))
    assert "× ours, float32" in table and "3x4" in table


def test_the_targets_are_measured_by_default(modules):
    cayley, summary = modules
    for file, device in ((summary.CAYLEY_CPU, "cpu"), (summary.CAYLEY_GPU, "cuda")):
        shapes = {target.shape for target in summary.TARGETS if target.file == file}
        assert shapes and shapes <= set(cayley.SHAPES[device].split(","))


def test_no_shape_begins_after_the_limit(cayley, monkeypatch, tmp_path):
    path = tmp_path / "result.json"
    run(cayley, monkeypatch, "--shapes", "3x4", "--limit", "0", "--output", str(path))
    result = json.loads(path.read_text())
    assert result["shapes"] == [] and result["not_begun"] == ["3x4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "3x4x5"], "--shapes is '3x4x5'; it must be BLOCKSxSIZE[,BLOCKSxSIZE…]"),
        (["--shapes", "3x0"], "whole numbers from 1"),
        (["--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["--accuracy", "--shapes", "3x4"], "--accuracy measures sizes of its own: leave out --shapes"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--output", "."], "--output is '.', which is a folder"),
    ],
)
def test_bad_options(cayley, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run(cayley, monkeypatch, *arguments)
    assert message in f"{stopped.value}{capsys.readouterr().err}"


def test_a_gpu_that_is_not_there(cayley, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is visible to torch"):
        run(cayley, monkeypatch, "--device", "cuda")
