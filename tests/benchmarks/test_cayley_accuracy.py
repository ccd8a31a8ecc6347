import importlib
import json
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

pytest.importorskip("peft")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BLOCKS, SIZE = 3, 5


@pytest.fixture(scope="module")
def cayley():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("cayley_accuracy")


def run(cayley, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cayley_accuracy.py", "--device", "cpu", *arguments])
    cayley.main()


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
    run(cayley, monkeypatch, "--dtype", "complex64", "--output", str(path))
    result = json.loads(path.read_text())
    assert [(row["block_size"], row["norm"]) for row in result["sizes"]] == [
        (size, norm) for size in (2, 3) for norm in cayley.NORMS
    ]
    out = capsys.readouterr().out
    assert out.count("\n     3") == len(cayley.NORMS)
    assert f"not measured: {cayley.PEFT_SERIES}: TypeError: PEFT's matrices" in out
