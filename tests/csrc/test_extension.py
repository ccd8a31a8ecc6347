"""Building with and without a compiler, and loading what was or was not built."""

import json
import os
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


def _setup(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
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
