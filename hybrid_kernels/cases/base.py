"""The parts of a case: what goes into an operator, and the sides that are measured against each other."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import hybrid_kernels as hk

Step = Callable[[], Any]
#: Named sizes, such as {"m": 512, "k": 768, "n": 768, "r": 32}.
Shape = Mapping[str, int]
#: Arguments by name: tensors, lists of tensors, and constants.
Inputs = dict[str, Any]
PASSES = ("forward", "backward", "both")


def shape_name(shape: Shape) -> str:
    """m512-k768-n768: part of a case's name, and what messages say."""
    return "-".join(f"{name}{size}" for name, size in shape.items())


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def generator(seed: int, *names: object) -> torch.Generator:
    """Random numbers of one case, the same whichever other cases are run."""
    # The CPU's generator takes 32 bits of a seed and drops the others.
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, (seed, *names))).encode()))


def flattened(value: Any) -> list[Tensor]:
    """The tensors of a result or of arguments: a tensor, or nested tuples and lists of them; others are left out."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in flattened(part)] if isinstance(value, (tuple, list)) else []


@dataclass(frozen=True)
class OperatorCase:
    """A function of `hybrid_kernels.functional`, and how to call it.

    ``draw(shape, dtype, device, generator)`` makes the arguments by name. ``fast`` and ``reference`` take them by
    those names and give the same results, up to nesting (`flattened`). ``plain``, where given, is another way to write
    it in PyTorch, in which rounding errors add up otherwise than in the reference. ``differentiable`` names the
    arguments whose gradients are checked. ``shapes`` are for validation, odd ones among them; ``measured``, by device
    type, for benchmarks. ``floor`` and ``peers`` are other ways to compute it from the drawn arguments, for benchmarks.
    ``work`` gives (floating-point operations, least bytes moved) of a pass, for the roofline.
    """

    name: str
    draw: Callable[[Shape, torch.dtype, torch.device, torch.Generator], Inputs]
    fast: Callable[..., Any]
    reference: Callable[..., Any]
    differentiable: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...]
    measured: Mapping[str, tuple[Shape, ...]] = field(default_factory=dict)
    floor: tuple[str, Callable[[Inputs], Side]] | None = None
    peers: Mapping[str, Callable[[Inputs], Side]] = field(default_factory=dict)
    work: Callable[[Shape, torch.dtype, str], tuple[float, float]] | None = None
    plain: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Side:
    """One way to compute a case: ``forward()`` gives a tensor, or several, differentiable in ``leaves``.

    ``gradients`` are those of the outputs. The backend and variant, of this package, are asked for in both passes.
    """

    forward: Callable[[], Any]
    leaves: Sequence[Tensor]
    gradients: Sequence[Tensor]
    backend: str = "auto"
    variant: str | None = None
    #: Trainable numbers, where that says something.
    parameters: int | None = None

    def step(self, part: str) -> Step:
        """What is timed of one of `PASSES`; it raises where the backend asked for cannot run.

        The forward alone is that of training: it makes what the backward needs.
        """

        def forward() -> list[Tensor]:
            with hk.use_backend(self.backend, variant=self.variant):
                return flattened(self.forward())

        def backward(outputs: list[Tensor], keep: bool) -> None:
            with hk.use_backend(self.backend, variant=self.variant):
                torch.autograd.grad(
                    outputs, self.leaves, self.gradients, retain_graph=keep, allow_unused=True
                )

        if part == "forward":
            return forward
        if part == "both":
            return lambda: backward(forward(), keep=False)
        if part != "backward":
            raise ValueError(f"part is {part!r}; it may be one of {', '.join(map(repr, PASSES))}")
        outputs = forward()
        return lambda: backward(outputs, keep=True)


#: {side: what makes it}
Builders = dict[str, Callable[[], Side]]


@dataclass(frozen=True)
class BenchmarkCase:
    """Sides that are measured against each other, interleaved.

    ``builders()`` gives {side: what makes it}: inputs are drawn when the first is made. A builder raises where its side
    cannot run.
    ``floor`` names the side that nothing can beat, such as the frozen layer, and ``ours`` this package's own choice.
    ``sweep`` names the size that varies within a family of cases, if this is of one. ``notes`` say what a reader of the
    records has to know of the sides, such as what stands in for a peer's missing part.
    """

    kind: str  # "operator", "layer" or "model"
    name: str
    shape: Shape
    dtype: torch.dtype
    device: torch.device
    builders: Callable[[], Mapping[str, Callable[[], Side]]]
    ours: str
    floor: str | None = None
    passes: tuple[str, ...] = PASSES
    work: Callable[[str], tuple[float, float]] | None = None
    sweep: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """operator/householder_rotate/m512-k768-n16/float32/cpu"""
        return "/".join(
            (self.kind, self.name, shape_name(self.shape), dtype_name(self.dtype), self.device.type)
        )
