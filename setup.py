"""Builds csrc as ``hybrid_kernels._C``: C++ always, CUDA where csrc has CUDA sources and torch and toolkit allow it.

Environment variables: ``HYBRID_KERNELS_SKIP_CUDA=1`` leaves CUDA out, ``HYBRID_KERNELS_DEBUG=1`` builds without
optimisation and with debug information; ``CXX``, ``CUDA_HOME``, ``MAX_JOBS`` and ``TORCH_CUDA_ARCH_LIST`` mean what
they mean to torch. Without the last, the CUDA kernels are built for the GPUs of this machine or, where there is none,
for `ARCHITECTURES`.

Installing without a working compiler is no error: the package runs on its other backends. What was built, or why
not, is written to ``hybrid_kernels/_build_info.json``, which ``hybrid-kernels info`` reads. Naming the step, as in
``python setup.py build_ext --inplace``, makes a failure an error.
"""

from __future__ import annotations

import json
import os
import platform
import re
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


#: What the CUDA kernels are built for where no GPU is seen: A100, H100 and H200, B200, and PTX for newer ones.
ARCHITECTURES = "8.0;9.0;10.0+PTX"
#: The same by toolkits before 12.8, which do not know B200.
OLDER_ARCHITECTURES = "8.0;9.0+PTX"


def toolkit_version() -> tuple[int, int] | None:
    """That of the CUDA toolkit, or None where nvcc does not say it."""
    assert CUDA_HOME is not None
    command = [Path(CUDA_HOME, "bin", "nvcc"), "--version"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    return None if found is None else (int(found[1]), int(found[2]))


def why_no_cuda() -> str | None:
    """The reason for leaving the CUDA sources out, or None."""
    if os.environ.get("HYBRID_KERNELS_SKIP_CUDA", "0") == "1":
        return "HYBRID_KERNELS_SKIP_CUDA is set"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if CUDA_HOME is None:
        return f"no CUDA toolkit found (nvcc on PATH, or CUDA_HOME); torch needs CUDA {torch.version.cuda}"
    try:
        toolkit = toolkit_version()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the CUDA toolkit in {CUDA_HOME} does not work: {error}"
    # Within a major version toolkit and runtime are compatible.
    if toolkit is None or toolkit[0] != int(torch.version.cuda.split(".")[0]):
        found = "of unknown version" if toolkit is None else f"{toolkit[0]}.{toolkit[1]}"
        return (
            f"the CUDA toolkit in {CUDA_HOME} is {found}, but torch {torch.__version__} was built with CUDA "
            f"{torch.version.cuda}: set CUDA_HOME to a toolkit of that major version, or install a torch for this one"
        )
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
        extra_compile_args={"cxx": [*cxx, "-DHYBRID_KERNELS_CUDA"], "nvcc": nvcc},
        py_limited_api=True,
    )


class Build(BuildExtension):
    """``BuildExtension`` that records its outcome instead of failing the installation."""

    def run(self) -> None:
        self.force = (
            True  # sources alone do not say whether a library is up to date: headers and settings change too
        )
        no_cuda = why_no_cuda()
        info: dict[str, Any] = {
            "cpp": False,
            "cuda": False,
            "reason": None,
            "cuda_reason": no_cuda,
            "compiler": None,
            "flags": None,
            "cuda_architectures": None,
            "debug": DEBUG,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        package = ROOT if self.inplace or getattr(self, "editable_mode", False) else Path(self.build_lib)
        path = package / "hybrid_kernels" / "_build_info.json"
        try:
            if no_cuda is None:
                self._run_with_cuda(info)
            else:
                if torch.version.cuda is not None:
                    print(f"hybrid-kernels is built without its CUDA kernels: {no_cuda}", file=sys.stderr)
                super().run()
            info.update(cpp=True, compiler=self._compiler())
            info["flags"] = extension(info["cuda"]).extra_compile_args  # afresh: torch adds its own
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

    def _run_with_cuda(self, info: dict[str, Any]) -> None:
        """Build everything; where the CUDA part fails in an installation, the C++ part alone."""
        if not torch.cuda.is_available():
            newest = (toolkit_version() or (0, 0)) >= (12, 8)
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES if newest else OLDER_ARCHITECTURES)
        given = self.compiler, self.inplace  # run() replaces both, and puts neither back where it fails
        try:
            super().run()
            # None: the GPUs of this machine.
            info.update(cuda=True, cuda_architectures=os.environ.get("TORCH_CUDA_ARCH_LIST"))
        except Exception as error:
            info["cuda_reason"] = self._reason(error)
            if "build_ext" in sys.argv:
                raise
            print(f"hybrid-kernels is built without its CUDA kernels: {info['cuda_reason']}", file=sys.stderr)
            cpp = vars(extension(with_cuda=False))
            (planned,) = self.extensions
            for name in ("sources", "include_dirs", "libraries", "library_dirs", "extra_compile_args"):
                setattr(planned, name, cpp[name])
            self.compiler, self.inplace = given
            super().run()

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
