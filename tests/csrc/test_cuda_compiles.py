"""The CUDA sources compiled for the GPUs they are meant for: whatever a thread keeps stays in its registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NVCC = shutil.which("nvcc")
SOURCES = sorted(Path(__file__).parents[2].glob("csrc/*.cu"))
pytestmark = pytest.mark.skipif(NVCC is None, reason="no CUDA toolkit: nvcc is not on the PATH")


def outside_registers(source: Path, architecture: str, folder: Path) -> list[str]:
    """The kernels of ``source`` that spill registers, have a stack frame or static shared memory, as ptxas says it."""
    command = [str(NVCC), "-std=c++17", "-O3", "-cubin", f"-arch={architecture}", "-Xptxas", "-v"]
    command += ["-o", str(folder / "kernels.cubin"), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    kernels = re.findall(
        r"Compiling entry function '(\w+)'.*?\n.*?\n(.*stack frame.*)\n.*?(Used .*)", run.stderr
    )
    assert len(kernels) == run.stderr.count("Compiling entry function") > 0, run.stderr
    wanted = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    return [
        f"{name}: {memory.strip()}; {used}"
        for name, memory, used in kernels
        if memory.strip() != wanted or "smem" in used
    ]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_stays_in_registers(source: Path, architecture: str, tmp_path: Path) -> None:
    known = subprocess.run([str(NVCC), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    if architecture not in known.split():
        pytest.skip(f"this CUDA toolkit does not know {architecture}")
    assert outside_registers(source, architecture, tmp_path) == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("x[0] = x[1];", 0),
        ("float y[64]; for (int i = 0; i < n; ++i) y[i] = x[i * n]; x[0] = y[int(x[1])];", 1),
        ("__shared__ float y[64]; y[threadIdx.x] = x[n]; __syncthreads(); x[0] = y[n];", 1),
    ],
)
def test_what_is_found(body: str, found: int, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cu"
    source.write_text(f"__global__ void kernel(float* x, int n) {{ {body} }}")
    assert len(outside_registers(source, "sm_80", tmp_path)) == found
