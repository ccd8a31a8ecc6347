"""Builds csrc as ``hybrid_kernels._C``: C++ always, CUDA where csrc has CUDA sources and torch and toolkit allow it.

Environment variables: ``HYBRID_KERNELS_SKIP_CUDA=1`` leaves CUDA out, ``HYBRID_KERNELS_DEBUG=1`` builds without
optimisation and with debug information; ``CXX``, ``MAX_JOBS`` and ``TORCH_CUDA_ARCH_LIST`` mean what they mean to
torch.

Installing without a working compiler is no error: the package runs on its other backends. What was built, or why
not, is written to ``hybrid_kernels/_build_info.json``, which ``hybrid-kernels info`` reads. Naming the step, as in
``python setup.py build_ext --inplace``, makes a failure an error.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).parent
DEBUG = os.environ.get("HYBRID_KERNELS_DEBUG", "0") == "1"


def why_no_cuda() -> str | None:
    """The reason for leaving the CUDA sources out, or None."""
    if not any(ROOT.glob("csrc/*.cu")):
        return "csrc has no CUDA sources"
    if os.environ.get("HYBRID_KERNELS_SKIP_CUDA", "0") == "1":
        return "HYBRID_KERNELS_SKIP_CUDA is set"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if CUDA_HOME is None:
        return "no CUDA toolkit found (nvcc on PATH, or CUDA_HOME)"
    return None


def extension(with_cuda: bool) -> Extension:
    optimisation = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    # Multiplications and additions may fuse, nothing reads errno or floating-point flags; NaN and infinity keep their
    # meaning. -Wno-psabi: functions that take vectors are inlined, so their calling convention does not matter.
    cxx = [
        *optimisation,
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wno-psabi",
    ]
    if sys.platform == "linux":
        cxx.append("-fopenmp")  # at::parallel_for is a header; the OpenMP runtime is the one torch has loaded
    sources = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*.cpp"))
    if not with_cuda:
        return CppExtension(
            "hybrid_kernels._C", sources, extra_compile_args={"cxx": cxx}, py_limited_api=True
        )
    sources += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*.cu"))
    nvcc = ["-O0", "-G"] if DEBUG else ["-O3"]
    return CUDAExtension(
        "hybrid_kernels._C",
        sources,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        py_limited_api=True,
    )


class Build(BuildExtension):
    """``BuildExtension`` that records its outcome instead of failing the installation."""

    def run(self) -> None:
        no_cuda = why_no_cuda()
        info: dict[str, Any] = {
            "cpp": False,
            "cuda": False,
            "reason": None,
            "cuda_reason": no_cuda,
            "compiler": None,
            "debug": DEBUG,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        package = ROOT if self.inplace or getattr(self, "editable_mode", False) else Path(self.build_lib)
        path = package / "hybrid_kernels" / "_build_info.json"
        try:
            super().run()
            info.update(cpp=True, cuda=no_cuda is None, compiler=self._compiler())
        except Exception as error:
            info["reason"] = self._reason(error)
            for built in (package / "hybrid_kernels").glob("_C.*"):
                built.unlink()  # of an earlier build, whose sources may have been others
            if "build_ext" in sys.argv:
                raise
            print(
                f"hybrid-kernels is installed without its compiled operators: {info['reason']}",
                file=sys.stderr,
            )
        finally:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(info, indent=1) + "\n")

    def _compiler(self) -> str:
        command = self.compiler.compiler_cxx[0]
        version = subprocess.run(
            [command, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=False
        )
        return f"{command} {version.stdout.strip()}".strip()

    def _reason(self, error: Exception) -> str:
        command = os.environ.get("CXX") or "c++"
        if shutil.which(command.split()[0]) is None:
            return f"no C++ compiler: {command!r} was not found (set CXX, then install again)"
        return f"the build failed: {error} (install again with -v to see the compiler's output)"


setup(
    ext_modules=[extension(with_cuda=why_no_cuda() is None)],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
