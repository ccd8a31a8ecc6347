"""What `accelerate` did with each layer of a model."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from hybrid_kernels.adapters.acceleration.groups import Group


@dataclass(frozen=True)
class LayerReport:
    """One PEFT layer. ``backend`` is what its large operators run on for inputs of 1024 rows, None where it was left
    alone; ``reason`` is why it was, else None; ``shares`` names the layers it shares a projection of the input with."""

    name: str
    method: str
    backend: str | None = None
    reason: str | None = None
    shares: tuple[str, ...] = ()

    @property
    def accelerated(self) -> bool:
        return self.backend is not None


@dataclass
class Report:
    """The layers of a model and what became of them; a context manager that turns back, at its end, what this call did.

    Printed, it has a line for the layers of a kind, and one for those left alone for a reason; `layers` has each.
    """

    layers: list[LayerReport]
    _converted: list[weakref.ref[nn.Module]] = field(default_factory=list, repr=False)
    _groups: list[weakref.ref[Group]] = field(default_factory=list, repr=False)

    @property
    def accelerated(self) -> list[LayerReport]:
        return [layer for layer in self.layers if layer.accelerated]

    @property
    def left_alone(self) -> list[LayerReport]:
        return [layer for layer in self.layers if not layer.accelerated]

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from hybrid_kernels.adapters.acceleration.entry import revert

        for group in (reference() for reference in self._groups):
            if group is not None:
                group.remove()
        revert(module for module in (reference() for reference in self._converted) if module is not None)
        self._converted.clear()

    def __str__(self) -> str:
        lines = [f"{len(self.accelerated)} of {len(self.layers)} PEFT layers accelerated"]
        kinds = Counter(
            (layer.method, layer.backend, len(layer.shares) + 1 if layer.shares else 1)
            for layer in self.accelerated
        )
        for (method, backend, together), count in kinds.items():
            shared = f", {together} layers to a projection of their input" if together > 1 else ""
            lines.append(f"  {count} × {method}: {backend}{shared}")
        alike: dict[tuple[str, str | None], list[str]] = {}
        for layer in self.left_alone:
            alike.setdefault((layer.method, layer.reason), []).append(layer.name)
        for (method, reason), names in alike.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"  left alone: {names[0]}{more} ({method}): {reason}")
        return "\n".join(lines)
