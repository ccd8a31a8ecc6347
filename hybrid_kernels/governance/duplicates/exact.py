"""Rows that are equal in language and, after normalisation, in all texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.duplicates.candidates import members
from hybrid_kernels.governance.duplicates.files import EVALUATION, Rows, Search, read_array, write_array
from hybrid_kernels.governance.duplicates.verify import equal


@dataclass(frozen=True)
class Exact:
    """A task: the hashes that fall into a slice of their space."""

    search: Search
    slice: int
    slices: int

    @property
    def path(self) -> Path:
        return self.search.folder / f"copies-{self.slice}-of-{self.slices}.npy"


def find_copies(task: Exact) -> None:
    """(2, n) to a file: rows, and what each is a copy of.

    That is the first training row or the first evaluation row with these texts, as the row is one or the other; for the
    first training row itself it is the first evaluation row, if there is one.
    """
    state = read_array(task.search.folder / "state.npy")
    hashes, rows = members(task.search, "hash", state, task.slice, task.slices)
    words = hashes.view(np.uint64)
    order = np.lexsort((words[:, 0], words[:, 1]))
    words, rows = words[order], rows[order]
    new = np.ones(len(rows), bool)
    new[1:] = (words[1:] != words[:-1]).any(axis=1)
    group = np.cumsum(new) - 1
    evaluation = state[rows] == EVALUATION
    training_first = _first(group, rows, ~evaluation)
    evaluation_first = _first(group, rows, evaluation)
    others = np.where(evaluation, evaluation_first, training_first)
    others = np.where(others == rows, np.where(evaluation, -1, evaluation_first), others)
    found = np.flatnonzero(others >= 0)
    rows, others = rows[found], others[found]
    same = equal(task.search, rows, others)
    write_array(task.path, np.stack([rows[same], others[same]]))


def _first(group: Rows, rows: Rows, chosen: NDArray[np.bool_]) -> Rows:
    """Per row the first of the chosen rows of its group; −1 where none is chosen."""
    first = np.full(group[-1] + 1 if len(group) else 0, -1)
    # Rows ascend within a group: assigned backwards, the first is what stays.
    first[group[chosen][::-1]] = rows[chosen][::-1]
    return first[group]
