"""What is checked: operators, backends, dtypes, shapes and layouts, in the order in which they run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hybrid_kernels.cases.base import OperatorCase, Shape, dtype_name
from hybrid_kernels.ops.backend import BACKENDS, unavailable
from hybrid_kernels.validation.layouts import LAYOUTS, QUICK, Layout


@dataclass(frozen=True)
class Check:
    """One function on one backend, in one dtype, shape and layout."""

    case: OperatorCase
    backend: str
    dtype: torch.dtype
    shape: Shape
    layout: Layout


@dataclass(frozen=True)
class Plan:
    """``groups``: checks that share their inputs and truths, a backend each."""

    groups: tuple[tuple[Check, ...], ...]
    device: torch.device
    seed: int
    draws: int
    #: What the float64 reference of a shape takes, where that may be too much.
    reference_bytes: Callable[[Shape], int] = lambda shape: 0

    @property
    def total(self) -> int:
        return sum(map(len, self.groups))


def interpreted(device: torch.device) -> bool:
    """Whether Triton kernels run in its interpreter on this device."""
    return device.type == "cpu"


def available_bytes(device: torch.device) -> int:
    """Memory that is free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def cannot_run(backend: str, device: torch.device) -> str | None:
    """None, or why the backend runs nothing on this device."""
    reason = unavailable(backend)
    if reason is not None:
        return reason
    if backend in ("cpp", "cuda") and device.type != ("cpu" if backend == "cpp" else "cuda"):
        return f"it does not run on {device.type}"
    if backend == "triton" and interpreted(device):
        import triton

        if not triton.knobs.runtime.interpret:
            return "on a CPU Triton kernels run in its interpreter alone: set TRITON_INTERPRET=1"
    return None


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else the GPU, else the CPU; ValueError where it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}; it may be 'cpu', 'cuda' or such as 'cuda:1'") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {str(device)!r}; it may be 'cpu', 'cuda' or such as 'cuda:1'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {str(device)!r}, and torch sees {torch.cuda.device_count()} GPUs")
    return chosen


def chosen_backends(backends: Iterable[str] | None, device: torch.device) -> list[str]:
    """Those asked for, else all that run on the device; ValueError, with the reason, for one that does not."""
    if backends is None:
        return [backend for backend in BACKENDS if cannot_run(backend, device) is None]
    chosen = list(dict.fromkeys(backends))
    for backend in chosen:
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; it may be one of {', '.join(map(repr, BACKENDS))}")
        reason = cannot_run(backend, device)
        if reason is not None:
            raise ValueError(f"backend {backend!r} cannot be validated here: {reason}")
    return chosen


def chosen_cases(names: Iterable[str] | None, cases: Mapping[str, OperatorCase]) -> list[OperatorCase]:
    """Those asked for, else all; ValueError for a name that is none."""
    if names is None:
        return list(cases.values())
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in cases:
            raise ValueError(f"operator is {name!r}; it may be one of {', '.join(map(repr, cases))}")
    return [cases[name] for name in chosen]


def chosen_dtypes(names: Iterable[str] | None, cases: Sequence[OperatorCase]) -> list[torch.dtype]:
    """Those asked for, else all that a case takes; ValueError for a name that none of the cases takes."""
    known = {dtype_name(dtype): dtype for case in cases for dtype in case.dtypes}
    if names is None:
        return list(known.values())
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise ValueError(f"dtype is {name!r}; it may be one of {', '.join(map(repr, known))}")
    return [known[name] for name in chosen]


def _emptied(shape: Shape) -> Shape | None:
    """With no rows, or no blocks where there are none; None where there is no such size."""
    name = next((name for name in ("m", "blocks") if name in shape), None)
    return None if name is None else {**shape, name: 0}


def variants(case: OperatorCase, quick: bool, of_model: bool) -> list[tuple[Shape, Layout]]:
    """The shapes and layouts of a case.

    Quick: the first shape, which is an odd one, in a few layouts. Else every shape contiguous, the first two in every
    layout, but with offsets past 2³¹ the first alone. Of a model: every shape contiguous.
    """
    if of_model:
        return [(shape, LAYOUTS["contiguous"]) for shape in case.shapes]
    found: list[tuple[Shape, Layout]] = []
    for index, shape in enumerate(case.shapes[:1] if quick else case.shapes):
        for layout in LAYOUTS.values():
            if layout.name not in QUICK if quick else (index > 1 and layout.name != "contiguous"):
                continue
            if layout.far and index > 0:
                continue
            if layout.name == "frozen weights" and layout.needs(case.differentiable) == case.differentiable:
                continue  # it has none
            tried = _emptied(shape) if layout.empty else shape
            if tried is not None:
                found.append((tried, layout))
    return found


def plan(
    cases: Sequence[OperatorCase],
    backends: Sequence[str],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    seed: int,
    quick: bool,
    of_model: bool,
) -> Plan:
    """The checks of some cases; those of a model's layers, which are large, on one draw."""
    groups = [
        tuple(Check(case, backend, dtype, shape, layout) for backend in backends)
        for case in cases
        for dtype in case.dtypes
        if dtype in dtypes
        for shape, layout in variants(case, quick, of_model)
    ]
    return Plan(tuple(groups), device, seed, draws=1 if of_model else 3)
