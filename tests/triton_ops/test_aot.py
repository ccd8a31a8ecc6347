import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import aot

ROOT = Path(aot.__file__).parents[1]


def run_aot(*arguments, **environment):
    """`python -m triton_ops.aot` in a process of its own, where kernels are compiled, not interpreted."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "triton_ops.aot", *arguments]
    return subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)


@pytest.mark.parametrize("target", aot.TARGETS)
def test_every_kernel_compiles_without_spills_and_fits(target):
    done = run_aot("--json", "--target", target)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r for r in records if r["spills"] or r["shared"] > r["shared_limit"]] == [], done.stderr
    assert done.returncode == 0, done.stderr
    assert {r["target"] for r in records} == {target}
    assert all(0 < r["registers"] <= 512 for r in records)
    kernels = {r["kernel"] for r in records}
    assert kernels == {
        "skinny_matmul_kernel",
        "matmul_low_rank_kernel",
        "householder_gram_kernel",
        "householder_factors_kernel",
        "householder_backward_sums_kernel",
        "householder_backward_kernel",
        "householder_rotate_kernel",
        "rotate_kernel",
        "rotate_project_kernel",
        "block_gradient_kernel",
        "output_gradient_kernel",
        "sum_partials_kernel",
        "one_pass_kernel",
        "dropout_kernel",
        "join_factors_kernel",
        "split_gradient_kernel",
        "vector_gradient_kernel",
        "scale_gradients_kernel",
    }
