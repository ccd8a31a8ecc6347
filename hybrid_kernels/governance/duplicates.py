"""Near-duplicate rows: MinHash LSH finds candidates, exact Jaccard similarity of the shingle sets decides.

A row is its *tuple* of texts. In natural language inference one premise comes with several hypotheses, and
two of these may differ in a negation alone ("Kuna haki za kupiga kura", "Hakuna haki za kupiga kura"; the
shingle sets are equal). So no column may stand for the row: an LSH band joins the signatures of all columns,
every column must reach the threshold, and rows with the same first column are duplicates only if they are
equal throughout.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.policy import DuplicatePolicy
from hybrid_kernels.governance.text import normalise, shingles

_MISS = 0.005


@dataclass(frozen=True)
class Duplicate:
    """A row to drop: the kept row it duplicates and the smallest Jaccard similarity over the columns."""

    row: int
    duplicate_of: int
    similarity: float
    exact: bool


def rows_per_band(policy: DuplicatePolicy, columns: int) -> int:
    """Signature values per band and column.

    `bands` bands of r values each join two rows of similarity J with probability 1 − (1 − Jʳ)^bands (Leskovec
    et al., *Mining of Massive Datasets*, §3.4.2), and values of independent columns multiply. This is the
    largest r that misses a row exactly at the threshold in every column with probability 0.005 at most.
    """
    if policy.threshold == 1.0:
        return 8
    joined = 1 - _MISS ** (1 / policy.bands)
    return max(1, int(math.log(joined) / math.log(policy.threshold)) // columns)


def exact_keys(columns: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Per row, its normalised texts (equal keys: exact duplicates); `columns` as in `band_keys`."""
    return list(zip(*([normalise(text) for text in column] for column in columns), strict=True))


def band_keys(columns: Sequence[Sequence[str]], policy: DuplicatePolicy) -> NDArray[np.uint64]:
    """LSH keys (rows, bands): two rows that share the key of any band are candidates.

    Args:
        columns: one sequence of texts per text column, all of the same length.
    """
    width = rows_per_band(policy, len(columns))
    signatures = [
        np.array(
            [_signature(text, width * policy.bands, policy) for text in column], dtype=np.uint64
        ).reshape(-1, policy.bands, width)
        for column in columns
    ]
    values = np.concatenate(signatures, axis=-1)
    # Multilinear hash modulo 2⁶⁴; a collision costs one verification and never a wrong decision.
    weights = np.random.default_rng(policy.seed).integers(0, 2**63, values.shape[-1], dtype=np.uint64)
    return (values * (2 * weights + 1)).sum(axis=-1, dtype=np.uint64)


def _signature(text: str, length: int, policy: DuplicatePolicy) -> list[int]:
    from rensa import RMinHash

    # One text at a time: rensa's batch functions start threads, and a worker forked later waits for them forever.
    signature = RMinHash(num_perm=length, seed=policy.seed)
    signature.update(list(shingles(text, policy.shingle_size)))
    return signature.digest()


def pair_similarity(
    first: Sequence[str], second: Sequence[str], policy: DuplicatePolicy
) -> tuple[float, bool]:
    """(similarity, whether it makes the rows duplicates) of two rows' texts.

    The similarity is the smallest Jaccard similarity over the columns and must reach `threshold`. Rows of
    several columns that share the first are no near-duplicates, however alike the others (module docstring).
    """
    similarities = []
    for a, b in zip(first, second, strict=True):
        left, right = _shingles(a, policy.shingle_size), _shingles(b, policy.shingle_size)
        common = len(left & right)
        similarities.append(common / (len(left) + len(right) - common))
    similarity = min(similarities)
    shared = len(first) > 1 and normalise(first[0]) == normalise(second[0])
    return similarity, similarity >= policy.threshold and not shared


_shingles = lru_cache(maxsize=16384)(shingles)


def find_duplicates(
    exact: Sequence[tuple[str, ...]],
    bands: NDArray[np.uint64],
    groups: Sequence[str],
    texts: Callable[[int], Sequence[str]],
    policy: DuplicatePolicy,
) -> list[Duplicate]:
    """Rows to drop, in order; rows are compared within a group (a language) only.

    In input order, a row is dropped if it duplicates a row that is kept; so the first row of a group of
    duplicates is its representative, every dropped row has itself been verified against the row it names, and
    a chain of small edits does not merge rows that differ.

    Args:
        exact: `exact_keys` of the rows.
        bands: (rows, bands) `band_keys` of the rows.
        groups: per row, what it may only be compared within.
        texts: row → its texts, read for candidates alone.
    """
    duplicates: list[Duplicate] = []
    first_with: dict[tuple[str, tuple[str, ...]], int] = {}
    distinct = []
    for row, key in enumerate(zip(groups, exact, strict=True)):
        first = first_with.setdefault(key, row)
        if first == row:
            distinct.append(row)
        else:
            duplicates.append(Duplicate(row, first, 1.0, exact=True))

    # A kept row may turn out to be a near-duplicate below; its exact copies then follow it.
    replaced: dict[int, Duplicate] = {}
    colliding = _colliding(bands[distinct])
    kept: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for position in np.flatnonzero(colliding.any(axis=1)).tolist():
        row = distinct[position]
        keys = [
            (groups[row], band, int(bands[row, band]))
            for band in np.flatnonzero(colliding[position]).tolist()
        ]
        for candidate in sorted({other for key in keys for other in kept.get(key, ())}):
            similarity, duplicate = pair_similarity(texts(candidate), texts(row), policy)
            if duplicate:
                replaced[row] = Duplicate(row, candidate, similarity, exact=False)
                duplicates.append(replaced[row])
                break
        else:
            for band_key in keys:
                kept[band_key].append(row)

    followed = (
        replace(replaced[d.duplicate_of], row=d.row) if d.duplicate_of in replaced else d for d in duplicates
    )
    return sorted(followed, key=lambda d: d.row)


def _colliding(bands: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(rows, bands): whether another row has the same key in that band; no other entry needs an index."""
    shared = np.zeros(bands.shape, dtype=bool)
    for band in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = counts[inverse] > 1
    return shared
