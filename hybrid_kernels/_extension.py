"""The compiled library ``hybrid_kernels._C``: loading it, and what is known about how it was built."""

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import torch

#: in_features × reflections² up to which the compiled Householder factors and their gradient are the default; they
#: take any size, on one thread, where ATen's products use several. Forward / backward against the eager formulas,
#: float32, one interleaved run on two cores of an AMD EPYC (Zen 5), torch 2.13, calls repeated: 64×4 11× / 9.6×,
#: 768×16 3.7× / 3.5×, 768×32 3.7× / 2.4×, 2048×16 3.2× / 2.3×, 4096×16 2.5× / 1.6×, 4096×32 1.8× / 1.2×,
#: 4096×64 1.6× / 0.9×; with the caches evicted before each call: 6.1× / 4.6×, 6.0× / 3.7×, 4.7× / 2.9×, 4.9× / 3.3×,
#: 3.6× / 2.7×, 2.9× / 1.4×, 1.9× / 1.0×.
HOUSEHOLDER_CPU_MAX_WORK = 4096 * 32**2

#: The ranks and the fewest rows for which the compiled skinny products are the default, where they have AVX2 or
#: AVX-512. The update alone, forward and backward, without the base products, against ATen with MKL: medians of 41
#: interleaved calls, CPU time of one thread, a shared AMD EPYC (Zen 5), torch 2.13, 768 → 768 features, float32.
#: AVX-512, 512 rows: rank 1 0.5×, 8 2.2×, 16 2.0×, 64 2.4×, 128 2.1×, 256 2.0×; at rank 32, rows 1 0.9×, 2 1.0×,
#: 4 1.1×, 8 1.2×, 16 1.4×, 128 2.0×. Held to AVX2, two runs, 512 rows: rank 2 1.1–1.1×, 8 1.2–1.7×, 16 1.1–1.4×,
#: 32 0.9–1.3×, 64 1.2–1.2×, 256 1.2–1.2×: a small lead there, within the noise at rank 32. MKL on Intel processors
#: was not measured.
SKINNY_CPU_RANKS = range(2, 257)
SKINNY_CPU_MIN_ROWS = 8

#: The largest blocks and the fewest rows for which the compiled rotation by blocks is the default. Forward / gradient
#: of the input / of the blocks, against at::bmm with MKL: medians of interleaved calls, CPU time of one thread, an AMD
#: EPYC (Zen 5) that is shared, torch 2.13, float32. AVX-512, 512 rows × 768 features: block 4 3.2× / 3.7× / 2.4×, 8
#: 3.1× / 4.0× / 3.4×, 16 2.0× / 2.0× / 2.2×, 32 2.4× / 2.3× / 2.6×, 64 2.3× / 2.2× / 2.3×, 128 2.1× / 1.9× / 2.2×, 256
#: 2.0× / 1.8× / 2.0×; 64 rows: 8 2.4× / 2.6× / 2.2×, 32 1.9× / 1.4× / 1.6×, 128 2.0× / 1.2× / 1.8×, 256
#: 2.1× / 0.9× / 1.8× (the blocks are transposed first); 32 rows: 128 2.0× / 0.9× / 1.5×; 1 row: 32 1.0× / 0.4× / 0.9×.
#: Held to AVX2, 512 rows: 8 3.0× / 2.6× / 3.1×, 32 1.5× / 2.9× / 1.6×, 128 1.3× / 1.2× / 1.2×; 64 rows: 128
#: 1.2× / 0.8× / 1.1×. Butterflies, forward / both gradients, AVX-512, against the same of one transposition a level:
#: 512 × 768, 2 levels of 32 4.1× / 2.1×, 3 of 8 2.8× / 2.3×; 2048 × 2048, 4 of 4 2.2× / 1.9×.
BLOCK_ROTATION_CPU_MAX_BLOCK = 128
BLOCK_ROTATION_CPU_MIN_ROWS = 64

#: The largest blocks for which the compiled Cayley–Neumann series is the default. Forward and backward, five terms,
#: against PEFT 0.21.2, measured in the same way, batch × block: 16×32 2.6×, 64×32 2.8×, 4096×8 3.1×, 32×64 3.1×,
#: 4096×4 2.4×, 16×128 2.3×, 4×256 2.3×; held to AVX2 2.2×, 2.3×, 3.4×, 2.1×, 2.4×, 1.7× and 1.5×. The factor form in
#: plain PyTorch: 1.0×, 1.0×, 1.0×, 1.1×, 1.0×, 1.1× and 1.2×. Larger blocks were not measured.
NEUMANN_CPU_MAX_BLOCK = 256

_BUILD_INFO = Path(__file__).with_name("_build_info.json")


def build_info() -> dict[str, Any]:
    """What ``setup.py`` recorded: ``cpp`` and ``cuda`` (were they built), ``reason`` and ``cuda_reason`` (why not,
    or None), and of a finished build ``compiler``, ``flags`` (by compiler, without those that torch adds),
    ``cuda_architectures`` (None for the GPUs of the machine it was built on), ``debug``, ``torch`` and ``python``."""
    try:
        return json.loads(_BUILD_INFO.read_text())
    except (OSError, ValueError):
        reason = "the package was never built here (run `python setup.py build_ext --inplace` or install it)"
        return {"cpp": False, "cuda": False, "reason": reason, "cuda_reason": reason}


@functools.cache
def load() -> str | None:
    """Loads the library, which registers the operators ``torch.ops.hybrid_kernels_cpp.*``.

    Returns None when they are available, else a sentence that says why they are not. Never raises.
    """
    info = build_info()
    if not info["cpp"]:
        return f"the compiled operators are not built: {info['reason']}"
    # C++ libraries of different torch releases do not mix, and loading one can end the process.
    if _release(info["torch"]) != _release(torch.__version__):
        return (
            f"the compiled operators were built for torch {info['torch']}, this is torch {torch.__version__}: "
            "install hybrid-kernels again with --no-build-isolation"
        )
    try:
        importlib.import_module("hybrid_kernels._C")
    except (ImportError, OSError) as error:
        return f"the compiled operators, built for torch {info['torch']}, cannot be loaded: {error}"
    return None


@functools.cache
def cuda_unavailable() -> str | None:
    """None where the compiled CUDA operators can run, else a sentence that says why not. Never raises."""
    reason = load()
    if reason is not None:
        return reason
    info = build_info()
    if not info["cuda"]:
        return f"the CUDA kernels are not built: {info['cuda_reason']}"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def unsupported_floating(x: torch.Tensor) -> str | None:
    """None, or why no compiled operator of real numbers can take ``x``."""
    reason = load()
    if reason is not None:
        return reason
    if x.device.type != "cpu":
        return f"the C++ kernels run on the CPU, the input is on {x.device}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"the C++ kernels take float32 and float64, the input is {x.dtype}"
    return None


def skinny_preferred(rows: int, rank: int, like: torch.Tensor) -> bool:
    """Whether the compiled skinny products are to be chosen by themselves for tensors like this one."""
    return rank in SKINNY_CPU_RANKS and rows >= SKINNY_CPU_MIN_ROWS and _wide_registers(like)


def block_rotation_preferred(x: torch.Tensor, block_size: int) -> bool:
    """Whether the compiled rotation by blocks is to be chosen by itself for x (..., features)."""
    rows = x.numel() // max(1, x.shape[-1])
    return (
        block_size <= BLOCK_ROTATION_CPU_MAX_BLOCK
        and rows >= BLOCK_ROTATION_CPU_MIN_ROWS
        and _wide_registers(x)
    )


def neumann_preferred(packed: torch.Tensor, block_size: int) -> bool:
    """Whether the compiled Cayley–Neumann series is to be chosen by itself for blocks of that size."""
    return block_size <= NEUMANN_CPU_MAX_BLOCK and _wide_registers(packed)


def _wide_registers(like: torch.Tensor) -> bool:
    """Whether the kernels take tensors like this one, and have AVX2 or AVX-512 for them."""
    return (
        like.device.type == "cpu"
        and like.dtype in (torch.float32, torch.float64)
        and _cpu_capability() in ("AVX2", "AVX512")
    )


@functools.cache
def _cpu_capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _release(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]
