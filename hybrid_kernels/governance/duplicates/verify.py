"""What decides: the normalised texts themselves, and their sets of shingles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.duplicates.candidates import unique, unpack
from hybrid_kernels.governance.duplicates.files import EVALUATION, Rows, Search, read_array, write_array
from hybrid_kernels.governance.duplicates.shingles import ShingleSets
from hybrid_kernels.governance.duplicates.signatures import matches_any
from hybrid_kernels.governance.text import normalise

#: Candidates of a row, of either kind, that are verified: those with the most similar sketches.
MOST = 4
#: A verified pair: `row` duplicates `other`, which comes before it or is an evaluation row.
EDGE = np.dtype([("row", np.int64), ("other", np.int64), ("similarity", np.float64), ("exact", np.bool_)])

# The sketches of a pair at the threshold are beyond the bound with this probability.
_MISS = 1e-4
# Characters whose shingles are held at once, and pairs whose sketches are.
_CHARACTERS, _PAIRS = 1 << 20, 1 << 15

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Verify:
    """A task: the candidates of the rows from `low` to before `high`."""

    search: Search
    pairs: tuple[Path, ...]
    low: int
    high: int

    @property
    def path(self) -> Path:
        return self.search.folder / f"edges-{self.low}-{self.high}.npy"


def verify(task: Verify) -> None:
    """Verified pairs, an array of `EDGE`, to a file."""
    search = task.search
    rows, others = unpack(_pairs(task))
    state = read_array(search.folder / "distinct.npy")
    leakage = state[others] == EVALUATION
    estimate = np.empty(len(rows))
    for part in portions(np.ones(len(rows)), _PAIRS):
        estimate[part] = _estimate(search, rows[part], others[part], leakage[part])
    chosen = _best(rows, leakage, estimate)
    rows, others, leakage = rows[chosen], others[chosen], leakage[chosen]

    found = []
    for kind in (False, True):
        a, b = rows[leakage == kind], others[leakage == kind]
        for part in portions(_lengths(search, a, b), _CHARACTERS):
            found.append(_edges(search, a[part], b[part], kind))
    write_array(task.path, np.concatenate([np.zeros(0, EDGE), *found]))


def _pairs(task: Verify) -> NDArray[np.uint64]:
    parts = []
    for path in task.pairs:
        pairs = read_array(path)
        low, high = np.searchsorted(pairs, np.array([task.low, task.high], np.uint64) << np.uint64(32))
        parts.append(pairs[low:high])
    return unique(parts)


def portions(weights: NDArray[np.generic], limit: int) -> Iterator[slice]:
    """Slices of about `limit` in weight, or of one item that is heavier."""
    numbers = np.cumsum(weights) // limit
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    yield from (slice(low, high) for low, high in pairwise(cuts) if low < high)


@lru_cache(maxsize=64)
def _bound(values: int, threshold: float) -> float:
    """The share of equal values from which a pair may be at the threshold: equal values are binomially distributed."""
    if threshold == 1.0:
        return 1.0
    missed, chance, rival = 0.0, math.log(threshold), math.log1p(-threshold)
    for equal in range(values):
        ways = math.lgamma(values + 1) - math.lgamma(equal + 1) - math.lgamma(values - equal + 1)
        missed += math.exp(ways + equal * chance + (values - equal) * rival)
        if missed > _MISS:
            return equal / values
    return 1.0


def _estimate(search: Search, rows: Rows, others: Rows, leakage: Flags) -> Floats:
    """Similarity by the sketches; −1 where they, the languages or a first text in common rule a pair out."""
    policy, columns = search.policy, search.columns
    lowest, highest = np.full(len(rows), np.inf), np.full(len(rows), -1.0)
    for i in range(len(columns.texts)):
        sketches = search.gather(f"sketch_{i}", rows) == search.gather(f"sketch_{i}", others)
        share, values = sketches.mean(axis=1), sketches.shape[1]
        bounds = [_bound(values, part.threshold) for part in (policy.duplicates, policy.leakage)]
        passed = share >= np.where(leakage, bounds[1], bounds[0])
        passed &= _same_language(search, i, rows, others)
        share = np.where(passed, share, -1.0)
        lowest, highest = np.minimum(lowest, share), np.maximum(highest, share)
    if columns.kind == "pair":
        lowest[search.gather("first", rows) == search.gather("first", others)] = -1
    return np.where(leakage & matches_any(columns, policy.leakage), highest, lowest)


def _best(rows: Rows, leakage: Flags, estimate: Floats) -> Rows:
    """Positions, ascending, of at most `MOST` pairs a row and kind."""
    possible = np.flatnonzero(estimate >= 0)
    order = possible[np.lexsort((-estimate[possible], leakage[possible], rows[possible]))]
    new = np.ones(len(order), bool)
    new[1:] = (rows[order][1:] != rows[order][:-1]) | (leakage[order][1:] != leakage[order][:-1])
    place = np.arange(len(order))
    rank = place - np.maximum.accumulate(np.where(new, place, 0))
    return np.sort(order[rank < MOST])


def _edges(search: Search, rows: Rows, others: Rows, leakage: bool) -> NDArray[np.void]:
    policy = search.policy
    threshold = policy.leakage.threshold if leakage else policy.duplicates.threshold
    if leakage and matches_any(search.columns, policy.leakage):
        similarity, exact = _any_column(search, rows, others, threshold)
    else:
        similarity, exact = _all_columns(search, rows, others, threshold), np.zeros(len(rows), bool)
    found = similarity >= threshold
    edges = np.zeros(int(found.sum()), EDGE)
    edges["row"], edges["other"] = rows[found], others[found]
    edges["similarity"], edges["exact"] = similarity[found], exact[found]
    return edges


def _all_columns(search: Search, rows: Rows, others: Rows, threshold: float) -> Floats:
    """The smallest similarity over the columns; a column is read only where those before it reach the threshold."""
    result = np.ones(len(rows))
    for i in range(len(search.columns.texts)):
        left = np.flatnonzero(result >= threshold)
        similarity = _Pairs(search, i, rows[left], others[left]).similarity()
        result[left] = np.minimum(result[left], similarity)
    return result


def _any_column(search: Search, rows: Rows, others: Rows, threshold: float) -> tuple[Floats, Flags]:
    """The largest similarity over the columns that count, and whether the texts of one of these are equal.

    Where none counts it is the smallest similarity over all columns, as a row whose every text matches needs no length.
    """
    lowest, best, exact = np.ones(len(rows)), np.zeros(len(rows)), np.zeros(len(rows), bool)
    for i in range(len(search.columns.texts)):
        pairs = _Pairs(search, i, rows, others)
        similarity = np.where(_same_language(search, i, rows, others), pairs.similarity(), 0.0)
        counts = (similarity >= threshold) & pairs.enough(search.policy.leakage.min_shingles)
        best = np.maximum(best, np.where(counts, similarity, 0.0))
        exact |= counts & pairs.equal()
        lowest = np.minimum(lowest, similarity)
    return np.where(best > 0, best, lowest), exact


class _Pairs:
    """The texts of one column for some pairs of rows; each text is read once."""

    def __init__(self, search: Search, column: int, rows: Rows, others: Rows) -> None:
        distinct, places = np.unique(np.concatenate([rows, others]), return_inverse=True)
        self.left, self.right = places.reshape(2, -1)
        self.texts = [normalise(text) for text in search.texts(column, distinct)]
        self.size = search.policy.duplicates.shingle_size

    @cached_property
    def sets(self) -> ShingleSets:
        return ShingleSets(self.texts, self.size)

    def similarity(self) -> Floats:
        return self.sets.similarity(self.left, self.right)

    def equal(self) -> Flags:
        pairs = zip(self.left.tolist(), self.right.tolist(), strict=True)
        return np.fromiter((self.texts[a] == self.texts[b] for a, b in pairs), bool, len(self.left))

    def enough(self, shingles: int) -> Flags:
        """Whether both texts have that many; half of it where ideographs dominate, which say twice as much."""
        sufficient = self.sets.sizes >= np.where(self.sets.ideographic, (shingles + 1) // 2, shingles)
        return sufficient[self.left] & sufficient[self.right]


def equal(search: Search, rows: Rows, others: Rows) -> Flags:
    """Whether the rows of each pair have the same normalised texts in the same languages."""
    result = np.ones(len(rows), bool)
    for part in portions(_lengths(search, rows, others), _CHARACTERS):
        a, b = rows[part], others[part]
        for i in range(len(search.columns.texts)):
            result[part] &= _Pairs(search, i, a, b).equal() & _same_language(search, i, a, b)
    return result


def _lengths(search: Search, rows: Rows, others: Rows) -> NDArray[np.int64]:
    return 1 + search.gather("length", rows) + search.gather("length", others)


def _same_language(search: Search, column: int, rows: Rows, others: Rows) -> Flags:
    return search.gather(f"language_{column}", rows) == search.gather(f"language_{column}", others)
