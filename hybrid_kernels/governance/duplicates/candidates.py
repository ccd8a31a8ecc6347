"""Which rows are compared: equal hashes, and rows that share the key of a band.

A task looks at one slice of the space of hashes, or of the keys of one band, so that it holds a bounded number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.duplicates.files import (
    ABSENT,
    EVALUATION,
    Rows,
    Search,
    read_array,
    write_array,
)
from hybrid_kernels.governance.duplicates.signatures import Family

#: Rows of a bucket up to which each is compared with each.
FULL = 32
#: In a larger one, each is compared with the first row, and with that many that follow it in the order of the next
#: band's keys, where the most similar rows stand together.
NEXT = 3
#: Evaluation rows of a bucket that a training row is compared with: the nearest in that order.
NEAREST = 8

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Band:
    """A task: the keys of one band of a family that fall into a slice of the space of keys."""

    search: Search
    family: Family
    band: int
    slice: int
    slices: int

    @property
    def path(self) -> Path:
        return self.search.folder / f"pairs-{self.family.keys(self.band)}-{self.slice}-of-{self.slices}.npy"


def pack(rows: Rows, others: Rows) -> Keys:
    """A pair as one integer; they sort by row, then by the other."""
    return (rows.astype(np.uint64) << np.uint64(32)) | others.astype(np.uint64)


def unpack(pairs: Keys) -> tuple[Rows, Rows]:
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def band_pairs(task: Band) -> None:
    """Candidates of one band, to a file: each pair once, packed, ascending.

    A row comes with one before it, or a training row with an evaluation row.
    """
    search, family = task.search, task.family
    state = read_array(search.folder / "distinct.npy")
    keys, rows = members(search, family.keys(task.band), state, task.slice, task.slices)
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    shared = np.zeros(len(keys), bool)
    shared[1:] = keys[1:] == keys[:-1]
    shared[:-1] |= shared[1:].copy()
    keys, rows = keys[shared], rows[shared]
    evaluation = state[rows] == EVALUATION

    def next_keys(which: Rows) -> Keys:
        return search.gather(family.keys(task.band + 1), which)

    found = []
    if family.duplicates:
        found.append(_within(keys[~evaluation], rows[~evaluation], next_keys))
    if family.leakage and evaluation.any():
        found.append(_across(keys, rows, evaluation, next_keys))
    write_array(task.path, unique(found))


def unique(parts: Sequence[Keys]) -> Keys:
    """The values of all parts, once each and ascending; quicker than `np.unique` where most come more than once."""
    values = np.sort(np.concatenate([np.zeros(0, np.uint64), *parts]))
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def members(
    search: Search, name: str, state: NDArray[np.uint8], slice_: int, slices: int
) -> tuple[NDArray[Any], Rows]:
    """(values of a column of the signatures, rows) of the rows that take part and whose value falls into a slice."""
    values, rows = [], []
    for start, part in search.parts(name):
        first = part.view(np.uint64)[:, 0] if part.ndim == 2 else part
        chosen = state[start : start + len(part)] != ABSENT
        if slices > 1:
            chosen &= first % np.uint64(slices) == slice_
        positions = np.flatnonzero(chosen)
        values.append(part[positions])
        rows.append(positions + start)
    return np.concatenate(values), np.concatenate(rows)


def _buckets(keys: Keys) -> tuple[Rows, Rows]:
    """(start, size) of each row's run of equal keys."""
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(starts, len(keys)))
    return np.repeat(starts, sizes), np.repeat(sizes, sizes)


def _within(keys: Keys, rows: Rows, next_keys: Callable[[Rows], Keys]) -> Keys:
    """Pairs of training rows; `keys` ascend, and `rows` do within equal keys."""
    starts, sizes = _buckets(keys)
    ends, here = starts + sizes, np.arange(len(rows))
    found = []
    left = here[sizes <= FULL]
    for distance in range(1, FULL):
        left = left[left + distance < ends[left]]
        if not len(left):
            break
        found.append(pack(rows[left + distance], rows[left]))
    large = np.flatnonzero(sizes > FULL)
    later = large[large > starts[large]]
    found.append(pack(rows[later], rows[starts[later]]))
    order = large[np.lexsort((rows[large], next_keys(rows[large]), keys[large]))]
    for distance in range(1, NEXT + 1):
        near, far = order[:-distance], order[distance:]
        same = keys[near] == keys[far]
        a, b = rows[near[same]], rows[far[same]]
        found.append(pack(np.maximum(a, b), np.minimum(a, b)))
    return np.concatenate(found) if found else np.zeros(0, np.uint64)


def _across(keys: Keys, rows: Rows, evaluation: NDArray[np.bool_], next_keys: Callable[[Rows], Keys]) -> Keys:
    """Pairs of a training row and an evaluation row."""
    starts, sizes = _buckets(keys)
    counts = np.concatenate([[0], np.cumsum(evaluation)])
    mixed = counts[starts + sizes] - counts[starts]
    mixed = (mixed > 0) & (mixed < sizes)
    keys, rows, evaluation = keys[mixed], rows[mixed], evaluation[mixed]
    order = np.lexsort((rows, next_keys(rows), keys))
    keys, rows, evaluation = keys[order], rows[order], evaluation[order]
    starts, sizes = _buckets(keys)
    counts = np.concatenate([[0], np.cumsum(evaluation)])
    known = rows[evaluation]
    lowest, highest = counts[starts], counts[starts + sizes]
    first = np.clip(counts[:-1] - NEAREST // 2, lowest, np.maximum(lowest, highest - NEAREST))
    training = np.flatnonzero(~evaluation)
    found = []
    for i in range(NEAREST):
        inside = training[first[training] + i < highest[training]]
        found.append(pack(rows[inside], known[first[inside] + i]))
    return np.concatenate(found)
