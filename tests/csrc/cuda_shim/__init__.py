"""Runs the CUDA kernels of csrc without a GPU: the same sources, compiled for the host, their threads as fibers.

`cuda_shim()` builds the library and returns a `CudaShim`, whose methods are the functions of csrc/cayley_cuda.h on CPU
tensors. Whatever a kernel must not do (see scheduler.cpp), a read or write outside its arrays included as far as it
shows, raises `ShimError`; an error that the launcher returns raises `CudaError`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Array", "CudaError", "CudaShim", "ShimError", "compile_library", "cuda_shim", "why_no_shim"]

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CSRC = ROOT / "csrc"
CACHE = ROOT / ".pytest_cache" / "cuda_shim"
COMPILER = os.environ.get("CXX", "g++").split()
# Fused multiply-adds as nvcc has them; arrays and vectors are checked where they are used.
FLAGS = ["-std=c++20", "-O1", "-march=native", "-ffp-contract=fast", "-fPIC", "-U_FORTIFY_SOURCE"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas", "-fsanitize=alignment,bounds,null", f"-I{HERE}", f"-I{CSRC}"]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
ORDERS = ["ascending", "descending", "random"]
STREAM = 0x5EED  # never looked into, only passed on
MARGIN = 256  # elements around every array, which must stay as they are
FILL = 0xFF  # a NaN of any type; as a bool it is neither


class ShimError(AssertionError):
    """A kernel has done what no kernel may do."""


class CudaError(RuntimeError):
    """A launcher has returned this error code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"CUDA error {code}")
        self.code = code


def why_no_shim() -> str | None:
    """Why the library cannot be built here, or None."""
    if os.name != "posix":
        return "the fibers need POSIX's ucontext"
    if shutil.which(COMPILER[0]) is None:
        return f"no C++ compiler: {COMPILER[0]!r} was not found (set CXX)"
    return None


def _run(command: list[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{run.stderr}")


def compile_library(sources: list[Path]) -> ctypes.CDLL:
    """The shared library of ``sources``. What is compiled is kept, under a name that depends on all it is made of."""
    headers = sorted([*CSRC.glob("*.h"), *CSRC.glob("*.cuh"), *HERE.glob("*.h")])
    common = b"".join(path.read_bytes() for path in headers) + " ".join([*COMPILER, *FLAGS]).encode()
    CACHE.mkdir(parents=True, exist_ok=True)

    def build(name: str, content: bytes, *arguments: str) -> Path:
        path = CACHE / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}")
            _run([*COMPILER, *FLAGS, "-o", str(partial), *arguments])
            partial.rename(path)
        return path

    objects = [
        build(source.name, source.read_bytes() + common, "-c", "-x", "c++", str(source)) for source in sources
    ]
    # Linked without the sanitizer's runtime: the scheduler is its runtime.
    names = [str(path) for path in objects]
    library = build("library", " ".join(names).encode(), "-shared", "-fno-sanitize=all", *names)
    loaded = ctypes.CDLL(str(library))
    loaded.shim_fault.restype = ctypes.c_char_p
    loaded.shim_launches.restype = ctypes.c_int64
    return loaded


class Array:
    """A copy of ``tensor`` that lies in the middle of an array of NaN."""

    def __init__(self, tensor: Tensor, offset: int) -> None:
        first, count = MARGIN + offset, tensor.numel()
        self.storage = torch.empty(count + first + MARGIN, dtype=tensor.dtype)
        self.storage.view(torch.uint8).fill_(FILL)
        self.value = self.storage[first : first + count].view(tensor.shape)
        self.value.copy_(tensor)
        self.outside = [
            self.storage[:first].view(torch.uint8),
            self.storage[first + count :].view(torch.uint8),
        ]

    @property
    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.value.data_ptr())

    def check(self, what: str) -> None:
        if not all(bool((part == FILL).all()) for part in self.outside):
            raise ShimError(f"wrote outside {what}")


@dataclasses.dataclass(frozen=True)
class CudaShim:
    """The functions of csrc/cayley_cuda.h. Derive one with other settings by ``shim.having(order="random")``."""

    library: ctypes.CDLL
    order: str = "ascending"  # of the threads and blocks: one of ORDERS
    seed: int = 0  # of the random order
    shared_bytes: int = 227 * 1024  # that the device grants a block; 163 KiB on sm_80, 99 KiB on sm_86
    offset: int = 1  # elements by which arrays miss the alignment of an allocation, as slices of tensors do
    failing_launch: int = -1  # this one of a call's launches, from 0, returns launch_error
    launch_error: int = 701  # cudaErrorLaunchOutOfResources
    pending_error: int = 0  # what cudaGetLastError finds after a launch
    device_error: int = 0  # what a question to the device returns

    def having(self, **settings: Any) -> CudaShim:
        return dataclasses.replace(self, **settings)

    @property
    def launches(self) -> int:
        """How many kernels the last call launched."""
        return self.library.shim_launches()

    def call(self, function: str, *arguments: Any, restype: Any = ctypes.c_int) -> int:
        """Calls ``function`` and returns what it does; faults raise."""
        self.library.shim_configure(
            ORDERS.index(self.order),
            ctypes.c_int64(self.seed),
            ctypes.c_int64(self.shared_bytes),
            ctypes.c_int64(self.failing_launch),
            self.launch_error,
            self.pending_error,
            self.device_error,
            ctypes.c_void_p(STREAM),
        )
        entry = getattr(self.library, function)
        entry.restype = restype
        code = entry(*(ctypes.c_int64(x) if type(x) is int else x for x in arguments))
        fault = self.library.shim_fault().decode()
        if fault:
            raise ShimError(fault)
        return code

    def _launch(self, function: str, dtype: torch.dtype, *arguments: Any) -> None:
        plain = [x.pointer if isinstance(x, Array) else x for x in arguments]
        code = self.call(function, ctypes.c_int(DTYPES.index(dtype)), *plain, ctypes.c_void_p(STREAM))
        for index, argument in enumerate(arguments):
            if isinstance(argument, Array):
                argument.check(f"array {index} of {function}")
        if code != 0:
            raise CudaError(code)

    def _input(self, tensor: Tensor) -> Array:
        return Array(tensor.resolve_conj().resolve_neg(), self.offset)

    def _output(self, *shape: int, dtype: torch.dtype) -> Array:
        array = Array(torch.empty(shape, dtype=dtype), self.offset)
        array.storage.view(torch.uint8).fill_(FILL)
        return array

    def forward_max_block(self, dtype: torch.dtype) -> int:
        return self.call("forward_max_block", ctypes.c_int(DTYPES.index(dtype)), restype=ctypes.c_int64)

    def backward_max_block(self, dtype: torch.dtype) -> int:
        return self.call("backward_max_block", ctypes.c_int(DTYPES.index(dtype)), restype=ctypes.c_int64)

    def forward(self, skew: Tensor, packed: bool, block_size: int) -> Tensor:
        """Q (batch, b, b) of ``skew`` (batch, b(b−1)/2) or (batch, b, b)."""
        q = self._output(len(skew), block_size, block_size, dtype=skew.dtype)
        source = self._input(skew)
        self._launch("forward", skew.dtype, source, ctypes.c_int(packed), len(skew), block_size, q)
        return q.value

    def backward(self, grad_q: Tensor, q: Tensor, packed: bool) -> Tensor:
        batch, b, _ = q.shape
        grad = self._output(*((batch, b * (b - 1) // 2) if packed else q.shape), dtype=q.dtype)
        sources = self._input(grad_q), self._input(q)
        self._launch("backward", q.dtype, *sources, ctypes.c_int(packed), batch, b, grad)
        return grad.value

    def expand(self, skew: Tensor, packed: bool, block_size: int) -> tuple[Tensor, Tensor]:
        """A (batch, b, b) and whether an entry is above the limit, as uint8 (batch,): 0, 1 or what was there before."""
        a = self._output(len(skew), block_size, block_size, dtype=skew.dtype)
        beyond = self._output(len(skew), dtype=torch.uint8)
        source = self._input(skew)
        self._launch("expand", skew.dtype, source, ctypes.c_int(packed), len(skew), block_size, a, beyond)
        return a.value, beyond.value

    def shifted_inverse(self, c: Tensor) -> Tensor:
        """(I + C)⁻¹ − I for a view ``c`` (batch, n, n) with neighbouring columns; what lies between is checked."""
        whole = torch.empty(0, dtype=c.dtype).set_(c.untyped_storage())
        array = self._input(whole)
        first = array.value.storage_offset() + c.storage_offset()
        view = array.value.as_strided(c.shape, c.stride(), first)
        pointer = ctypes.c_void_p(view.data_ptr())
        assert c.stride(2) == 1 or c.shape[2] == 1
        self._launch("shifted_inverse", c.dtype, pointer, len(c), c.shape[1], c.stride(1), c.stride(0))
        array.check("the storage of c")
        expected = whole.clone()
        expected.as_strided(c.shape, c.stride(), c.storage_offset()).copy_(view)
        if not torch.equal(expected.view(torch.uint8), array.value.view(torch.uint8)):
            raise ShimError("wrote between the rows or matrices of c")
        return view

    def pivoted(self, skew: Tensor, packed: bool, beyond: Tensor, q: Tensor) -> Tensor:
        """``q`` (batch, b, b) with the matrices marked by ``beyond`` (batch,) replaced."""
        result = self._input(q)
        sources = self._input(skew), self._input(beyond.to(torch.uint8))
        self._launch(
            "pivoted",
            skew.dtype,
            sources[0],
            ctypes.c_int(packed),
            len(q),
            q.shape[-1],
            sources[1],
            result,
        )
        return result.value

    def project(self, d: Tensor, packed: bool) -> Tensor:
        batch, b, _ = d.shape
        grad = self._output(*((batch, b * (b - 1) // 2) if packed else d.shape), dtype=d.dtype)
        self._launch("project", d.dtype, self._input(d), ctypes.c_int(packed), batch, b, grad)
        return grad.value


@functools.cache
def cuda_shim() -> CudaShim:
    """The kernels of csrc. Built once; only what has changed is compiled again."""
    return CudaShim(compile_library([*sorted(CSRC.glob("*.cu")), HERE / "entry.cpp", HERE / "scheduler.cpp"]))
