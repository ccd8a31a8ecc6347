"""Building with and without a compiler, and loading what was or was not built."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybrid_kernels import _extension

ROOT = Path(__file__).parents[2]
pytest.importorskip("setuptools")


def _write_build_info(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    path = folder / "_build_info.json"
    path.write_text(text)
    monkeypatch.setattr(_extension, "_BUILD_INFO", path)


def test_never_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_extension, "_BUILD_INFO", tmp_path / "absent.json")
    assert _extension.build_info()["cpp"] is False
    assert "setup.py build_ext --inplace" in str(_extension.load.__wrapped__())


@pytest.mark.parametrize("text", ["", "{", '{"cpp": tru'])
def test_damaged_build_info(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    _write_build_info(monkeypatch, tmp_path, text)
    assert "not built" in str(_extension.load.__wrapped__())


def test_built_for_another_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _write_build_info(monkeypatch, tmp_path, json.dumps({"cpp": True, "torch": "1.0.0+cpu"}))
    reason = str(_extension.load.__wrapped__())
    assert "1.0.0+cpu" in reason and torch.__version__ in reason


def test_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _write_build_info(monkeypatch, tmp_path, json.dumps({"cpp": True, "torch": torch.__version__}))
    monkeypatch.setitem(
        sys.modules, "hybrid_kernels._C", None
    )  # the import system's way to say "cannot be imported"
    assert "cannot be loaded" in str(_extension.load.__wrapped__())


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the build needs, without anything already built."""
    for folder in ("csrc", "triton_ops"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "hybrid_kernels").mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "hybrid_kernels/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").touch()
    return tmp_path


def _setup(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++", **environment}
    command = [sys.executable, "setup.py", "-q", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_installs_without_a_compiler(sources: Path) -> None:
    run = _setup(sources, "build", "--build-lib", "built")
    assert run.returncode == 0, run.stderr
    assert "without its compiled operators" in run.stderr
    info = json.loads((sources / "built/hybrid_kernels/_build_info.json").read_text())
    assert info["cpp"] is False and "no C++ compiler: '/nonexistent/c++'" in info["reason"]
    assert (sources / "built/hybrid_kernels/__init__.py").exists()


def test_building_in_place_without_a_compiler_fails(sources: Path) -> None:
    (sources / "hybrid_kernels/_C.abi3.so").touch()
    run = _setup(sources, "build_ext", "--inplace")
    assert run.returncode != 0
    assert (
        "no C++ compiler" in json.loads((sources / "hybrid_kernels/_build_info.json").read_text())["reason"]
    )
    assert not (sources / "hybrid_kernels/_C.abi3.so").exists()  # of sources that may have been others


def _setup_with_cuda_torch(
    folder: Path, nvcc: str | None, *arguments: str, cuda: str = "13.0", **environment: str
) -> subprocess.CompletedProcess[str]:
    """setup.py under a torch that was, as far as it says, built with ``cuda``; ``nvcc`` is a script's text."""
    toolkit = folder / "toolkit"
    if nvcc is not None:
        (toolkit / "bin").mkdir(parents=True)
        (toolkit / "bin" / "nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
        (toolkit / "bin" / "nvcc").chmod(0o755)
    code = (
        "import runpy, sys, torch, torch.utils.cpp_extension as cpp_extension; "
        f"torch.version.cuda = {cuda!r}; torch.cuda.is_available = lambda: False; "
        f"cpp_extension.CUDA_HOME = {str(toolkit) if nvcc is not None else None!r}; "
        f"sys.argv = ['setup.py', '-q', *{list(arguments)!r}]; runpy.run_path('setup.py', run_name='__main__')"
    )
    variables = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("nvcc", "environment", "reason"),
    [
        (None, {}, "no CUDA toolkit found (nvcc on PATH, or CUDA_HOME); torch needs CUDA 13.0"),
        ("echo 'Cuda compilation tools, release 12.4, V12.4.1'", {}, "is 12.4, but torch"),
        ("echo something else", {}, "is of unknown version, but torch"),
        ("exit 1", {}, "does not work: "),
        ("echo 'release 13.2'", {"HYBRID_KERNELS_SKIP_CUDA": "1"}, "HYBRID_KERNELS_SKIP_CUDA is set"),
    ],
)
def test_why_cuda_is_left_out(
    sources: Path, nvcc: str | None, environment: dict[str, str], reason: str
) -> None:
    run = _setup_with_cuda_torch(sources, nvcc, "build", "--build-lib", "built", **environment)
    assert run.returncode == 0, run.stderr
    assert "hybrid-kernels is built without its CUDA kernels: " in run.stderr and reason in run.stderr
    info = json.loads((sources / "built/hybrid_kernels/_build_info.json").read_text())
    assert info["cuda"] is False and reason in info["cuda_reason"]
    assert "no C++ compiler" in info["reason"]  # the C++ part was tried all the same


def test_a_matching_toolkit_is_used_and_its_failure_costs_no_more_than_cuda(sources: Path) -> None:
    nvcc = "case $1 in --version) echo 'release 13.2';; *) echo refused >&2; exit 1;; esac"
    run = _setup_with_cuda_torch(sources, nvcc, "build", "--build-lib", "built", TORCH_CUDA_ARCH_LIST="9.0")
    assert run.returncode == 0, run.stderr
    assert "without its CUDA kernels: " in run.stderr and "without its compiled operators: " in run.stderr
    named = _setup_with_cuda_torch(sources, None, "build_ext", "--inplace", HYBRID_KERNELS_SKIP_CUDA="1")
    assert named.returncode != 0


def _compiler(folder: Path) -> str:
    """A compiler that says it is GCC, writes empty files and, to `log`, their names."""
    path = folder / "c++"
    path.write_text(
        "#!/bin/sh\n"
        "case $1 in -dump*) echo 12.2.0; exit;; -v) printf 'COLLECT_GCC=c++\\ngcc version 12.2.0\\n'; exit;; esac\n"
        f"while [ $# -gt 0 ]; do case $1 in -o | -MF) : > $2; echo $2 >> {folder}/log;; esac; shift; done\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (("build", "--build-lib", "built"), "built/hybrid_kernels"),
        (("editable_wheel", "--dist-dir", "dist"), "hybrid_kernels"),
    ],
)
def test_without_its_cuda_kernels_the_rest_is_installed(
    sources: Path, command: tuple[str, ...], package: str
) -> None:
    """An nvcc that fails, in an installation and in an editable one."""
    nvcc = "case $1 in --version) echo 'release 13.0';; *) echo refused >&2; exit 1;; esac"
    compiler = _compiler(sources)
    run = _setup_with_cuda_torch(
        sources, nvcc, *command, CC=compiler, CXX=compiler, TORCH_CUDA_ARCH_LIST="9.0"
    )
    assert run.returncode == 0 and "without its CUDA kernels: " in run.stderr, run.stderr
    info = json.loads((sources / package / "_build_info.json").read_text())
    assert info["cpp"] is True and info["cuda"] is False, info
    assert list(info["flags"]) == ["cxx"] and info["cuda_architectures"] is None  # those of what was built
    assert "-O3" in info["flags"]["cxx"] and not any(
        "CUDA" in flag or "TORCH" in flag for flag in info["flags"]["cxx"]
    )
    assert "Error compiling objects" in info["cuda_reason"] or "nvcc" in info["cuda_reason"]
    assert (sources / package / "_C.abi3.so").exists()


@pytest.mark.parametrize(
    ("toolkit", "newest"), [("12.6", "compute_90"), ("12.8", "compute_100"), ("13.2", "compute_100")]
)
def test_architectures_that_the_toolkit_knows(
    sources: Path, monkeypatch: pytest.MonkeyPatch, toolkit: str, newest: str
) -> None:
    """Where no GPU is seen."""
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    log = sources / "nvcc.log"
    nvcc = f"case $1 in --version) echo 'release {toolkit}';; *) echo $* >> {log}; exit 1;; esac"
    compiler = _compiler(sources)
    _setup_with_cuda_torch(
        sources, nvcc, "build", "--build-lib", "built", cuda=toolkit, CC=compiler, CXX=compiler
    )
    targets = set(re.findall(r"code=(\w+)", log.read_text()))
    assert newest in targets and {"sm_80", "sm_90"} <= targets
    assert ("sm_100" in targets) == (newest == "compute_100")


def test_everything_is_compiled_again_without_ninja(sources: Path) -> None:
    """Headers and flags may have changed, which setuptools does not see."""
    compiler = _compiler(sources)
    log, compiled = sources / "log", []
    for _ in range(2):
        # No ninja on this PATH.
        run = _setup(sources, "build_ext", "--inplace", CC=compiler, CXX=compiler, PATH=str(sources))
        assert run.returncode == 0, run.stderr
        compiled.append(log.read_text().splitlines())
        log.unlink()
    assert compiled[0] == compiled[1] and any("bindings" in name for name in compiled[0])


def test_cuda_kernels_that_were_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = json.dumps({"cpp": True, "cuda": False, "cuda_reason": "of a reason", "torch": torch.__version__})
    monkeypatch.setattr(_extension, "load", lambda: None)
    _write_build_info(monkeypatch, tmp_path, text)
    assert _extension.cuda_unavailable.__wrapped__() == "the CUDA kernels are not built: of a reason"
    _write_build_info(monkeypatch, tmp_path, text.replace('"cuda": false', '"cuda": true'))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _extension.cuda_unavailable.__wrapped__() == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _extension.cuda_unavailable.__wrapped__() is None
