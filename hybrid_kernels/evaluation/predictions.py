"""Predictions of a classifier: their checks, and one run's rows together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

ROW_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one trained model says on the evaluation rows.

    Args:
        probabilities: (n, classes) floating point, as `check_predictions` wants them.
        labels: (n,) integers in [0, classes).
        languages: (n,) non-empty codes.
        ids: (n,) unique names of the rows; runs on the same data share them, in any order.
        clusters: (n,) what rows that are not independent have in common, `ids` if None. Translations of one item are
            such rows, and in XNLI so are the three items that share a premise: give the premise's name.

    Raises:
        ValueError: an argument is malformed; the message says which.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    languages: np.ndarray
    ids: np.ndarray
    clusters: np.ndarray | None = None

    def __post_init__(self) -> None:
        p, y = check_predictions(self.probabilities, self.labels)
        languages = check_languages(self.languages, len(y))
        ids = np.asarray(self.ids).astype(str)
        clusters = ids if self.clusters is None else np.asarray(self.clusters).astype(str)
        for name, values in (("ids", ids), ("clusters", clusters)):
            if values.shape != (len(y),):
                raise ValueError(
                    f"{name} has shape {values.shape}, labels has {len(y)} entries; one is needed a row"
                )
        names, counts = np.unique(ids, return_counts=True)
        if len(names) < len(ids):
            raise ValueError(
                f"ids must be unique, {str(names[counts.argmax()])!r} occurs {counts.max()} times"
            )
        fields = {"probabilities": p, "labels": y, "languages": languages, "ids": ids, "clusters": clusters}
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def to_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, without importing torch
        values = values.detach().cpu()
        # numpy has no bfloat16.
        values = values.double() if values.is_floating_point() else values
        return values.numpy()
    return np.asarray(values)


def check_scores(name: str, scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """`scores` (n, classes) as float64 and `labels` (n,) as int64; ValueError unless they fit together."""
    p, y = to_numpy(scores), to_numpy(labels)
    if p.ndim != 2 or p.shape[0] == 0 or p.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n ≥ 1, classes ≥ 1), got {p.shape}")
    if not np.issubdtype(p.dtype, np.floating):
        raise ValueError(f"{name} must be floating point, got {p.dtype}")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels must be integers of shape (n,), got {y.dtype} of shape {y.shape}")
    if len(y) != len(p):
        raise ValueError(f"labels has {len(y)} entries, {name} has {len(p)} rows; they must be equally many")
    out = (y < 0) | (y >= p.shape[1])
    if out.any():
        row = int(out.argmax())
        raise ValueError(f"labels must be in [0, {p.shape[1]}), row {row} has {y[row]}")
    return p.astype(np.float64), y.astype(np.int64)


def check_predictions(
    probabilities: np.ndarray | torch.Tensor, labels: Sequence[int] | np.ndarray | torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The same for probabilities: each row is finite, not negative and sums to 1 within `ROW_SUM_TOLERANCE`."""
    p, y = check_scores("probabilities", probabilities, labels)
    check_rows(p)
    return p, y


def check_rows(p: np.ndarray) -> None:
    reject_row(~np.isfinite(p).all(axis=1), p, "probabilities must be finite")
    reject_row((p < 0).any(axis=1), p, "probabilities must not be negative (are these logits?)")
    off = np.abs(p.sum(axis=1) - 1) > ROW_SUM_TOLERANCE
    reject_row(off, p, f"each row of probabilities must sum to 1 within {ROW_SUM_TOLERANCE}")


def check_languages(languages: Sequence[str] | np.ndarray, rows: int) -> np.ndarray:
    codes = np.asarray(list(languages), dtype=object)
    if len(codes) != rows:
        raise ValueError(f"languages has {len(codes)} entries, labels has {rows}; they must be equally long")
    strange = [code for code in codes if not isinstance(code, str) or not code]
    if strange:
        raise ValueError(f"languages must be non-empty language codes, found {strange[0]!r}")
    return codes.astype(str)


def reject_row(bad: Any, p: np.ndarray, rule: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{rule}; row {row} is {np.array2string(p[row], precision=4, threshold=8)}")
