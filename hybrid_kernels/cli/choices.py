"""What `hybrid-kernels info` adds to `hk.info()`: which backends run, found by running, and whether all is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hybrid_kernels.ops.backend import Choices

DTYPES = ("float32", "bfloat16", "float16", "float64")
#: Chosen as with more rows, and products of half types are slow on most CPUs.
CPU_ROWS = 128
COMPLEX_DTYPES = ("complex64", "complex128")
REBUILD = (
    "in a clone of the repository: pip install --no-build-isolation . "
    "(python setup.py build_ext --inplace shows what the compiler says)"
)


def devices_here(names: Sequence[str] = ()) -> list[torch.device]:
    """The devices of those names, or the CPU and the GPU that torch sees; ValueError for another."""
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for name in names:
        if name not in here:
            why = ", and torch sees no GPU" if name == "cuda" else ""
            raise ValueError(f"--device is {name!r}{why}; it may be {' or '.join(map(repr, here))}")
    return [torch.device(name) for name in dict.fromkeys(names or here)]


def dtypes_of(names: Sequence[str] = ()) -> list[torch.dtype]:
    known = DTYPES + COMPLEX_DTYPES
    for name in names:
        if name not in known:
            raise ValueError(f"--dtype is {name!r}; it may be one of {', '.join(map(repr, known))}")
    return [getattr(torch, name) for name in dict.fromkeys(names or DTYPES)]


def choices(devices: Sequence[torch.device], dtypes: Sequence[torch.dtype]) -> Iterator[tuple[str, Any]]:
    """For each function of `hk.functional` that computes something, ("device dtype function", what ran).

    What ran, of a forward and a backward at the first shape that the function is measured at, on a CPU with fewer
    rows: {"shape",
    "forward": {operator: backend}, "backward": …, "declined": {"operator: backend": why}}, both empty for one that goes
    through no operator of ours; or {"shape", "failed": why}. Functions that do not take the dtype are left out.
    """
    from hybrid_kernels.cases.base import dtype_name, shape_name
    from hybrid_kernels.cases.operators import OPERATORS

    for device in devices:
        for dtype in dtypes:
            for name, case in OPERATORS.items():
                if dtype in case.dtypes:
                    shape = case.measured[device.type][0]
                    if device.type == "cpu" and "m" in shape:
                        shape = {**shape, "m": CPU_ROWS}
                    found = _ran(case, shape, dtype, device)
                    yield f"{device.type} {dtype_name(dtype)} {name}", {"shape": shape_name(shape), **found}


def _ran(case: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    from hybrid_kernels.cases.base import flattened
    from hybrid_kernels.cases.operator_peers import gradients_like, trained

    # On the device: how long the drawing takes is no matter elsewhere.
    drawn = case.draw(shape, dtype, device, torch.Generator(device).manual_seed(0))
    arguments, leaves = trained(drawn)
    try:
        with Choices() as forward:
            outputs = flattened(case.fast(**arguments))
        with Choices() as backward:
            torch.autograd.grad(outputs, leaves, gradients_like(outputs), allow_unused=True)
    except Exception as error:  # one operator that fails is what this is to find; the others go on
        return {"failed": f"{type(error).__name__}: {error}"}
    reasons = forward.reasons | backward.reasons
    return {
        "forward": dict(sorted(forward.made)),
        "backward": dict(sorted(backward.made)),
        "declined": {f"{operator}: {backend}": why for (operator, backend), why in sorted(reasons.items())},
    }


def verdict(found: dict[str, Any], ran: dict[str, Any]) -> dict[str, Any]:
    """{"ok", "message", "commands": what puts it right} of `hk.info()` and `choices`."""
    problems, commands = [], []
    extension, gpus = found["extension"], found["gpus"]
    if not extension["loaded"]:
        problems.append(extension["reason"])
        commands.append(REBUILD)
    elif gpus and not extension["cuda"]:
        problems.append(f"the CUDA kernels are not built: {extension['cuda_reason']}")
        commands.append(REBUILD)
    elif extension["debug"]:
        problems.append("the compiled operators were built without optimisation (HYBRID_KERNELS_DEBUG)")
        commands.append(REBUILD)
    if gpus and "triton" in found["installing"]:
        problems.append("there is a GPU, and triton is not installed")
        commands.append(found["installing"]["triton"])
    failing = {name: each["failed"] for name, each in ran.items() if "failed" in each}
    if failing:
        name, why = next(iter(failing.items()))
        more = f" (and {len(failing) - 1} more)" if len(failing) > 1 else ""
        problems.append(f"{name} fails: {why}{more}")
    if problems:
        return {"ok": False, "message": "; ".join(problems), "commands": commands}
    kernels = [f"C++ kernels with {extension['instruction_set']}"]
    if gpus:
        kernels += ["CUDA kernels", f"Triton on {gpus[0]['name']}"]
    return {
        "ok": True,
        "message": f"{', '.join(kernels)}; all {len(ran)} operators tried ran",
        "commands": [],
    }
