"""Training curves, from the trained.json of the cells of the main results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_kernels.evaluation.tables.study import Cell, Setting


@dataclass(frozen=True, eq=False)
class Curve:
    """Values by step of one method: `steps` (n,), `mean` (n,) over seeds, and `low`, `high` (n,) among them."""

    method: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Mixing:
    """λ of one method's layers in its first seed: `values` (layers, steps)."""

    method: str
    layers: list[str]
    steps: list[int]
    values: np.ndarray


def loss_curves(setting: Setting) -> list[Curve]:
    return _curves(setting, lambda entry: entry["loss"])


def gradient_curves(setting: Setting) -> list[Curve]:
    """Norm of all gradients before they are clipped."""
    return _curves(setting, lambda entry: entry.get("grad_norm"))


def branch_curves(setting: Setting) -> dict[str, list[Curve]]:
    """branch → curves of the norm of its gradients; see `training.diagnostics.branch_gradient_norms`."""
    branches = dict.fromkeys(
        branch
        for cells in setting.by_method().values()
        for cell in cells
        for entry in cell.trained.get("history", [])
        for branch in entry.get("branch_gradient_norms") or {}
    )
    return {
        branch: _curves(setting, lambda entry, b=branch: (entry.get("branch_gradient_norms") or {}).get(b))  # type: ignore[misc]
        for branch in branches
    }


def defect_curves(setting: Setting) -> list[Curve]:
    """The greatest ‖QᵀQ − I‖_F of a method's layers."""
    return _curves(
        setting, lambda entry: max((entry.get("orthogonality_defect") or {}).values(), default=None)
    )


def mixing(setting: Setting) -> list[Mixing]:
    """Of each method with a λ."""
    found = []
    for name, cells in setting.by_method().items():
        history = cells[0].trained.get("mixing_history") or []
        layers = list(dict.fromkeys(layer for entry in history for layer in entry["values"]))
        if layers:
            values = [[entry["values"].get(layer, np.nan) for entry in history] for layer in layers]
            found.append(Mixing(name, layers, [entry["step"] for entry in history], np.array(values)))
    return found


def _curves(setting: Setting, value: Callable[[dict[str, Any]], float | None]) -> list[Curve]:
    return [
        curve
        for name, cells in setting.by_method().items()
        if (curve := _curve(name, cells, value)) is not None
    ]


def _curve(name: str, cells: list[Cell], value: Callable[[dict[str, Any]], float | None]) -> Curve | None:
    """Over the steps that all seeds have: a seed's choice of rows may make its training longer."""
    seeds = []
    for cell in cells:
        read = {entry["step"]: value(entry) for entry in cell.trained.get("history", [])}
        own = {step: number for step, number in read.items() if number is not None}
        if own:
            seeds.append(own)
    if not seeds:
        return None
    steps = sorted(set.intersection(*(set(own) for own in seeds)))
    if not steps:
        return None
    values = np.array([[own[step] for step in steps] for own in seeds])
    return Curve(name, np.array(steps), values.mean(0), values.min(0), values.max(0))
