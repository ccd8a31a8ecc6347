"""The whole search: copies, candidates, verification, leaks, groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.duplicates.candidates import Band, band_pairs
from hybrid_kernels.governance.duplicates.exact import Exact, find_copies
from hybrid_kernels.governance.duplicates.files import (
    ABSENT,
    EVALUATION,
    TRAINING,
    Rows,
    Search,
    read_array,
    write_array,
)
from hybrid_kernels.governance.duplicates.groups import representatives
from hybrid_kernels.governance.duplicates.signatures import families
from hybrid_kernels.governance.duplicates.verify import EDGE, Verify, verify
from hybrid_kernels.governance.engine import Engine
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.storage import RowStore, read_table

# Rows whose keys a task holds, and pairs, each counted once a band, that one verifies.
_ROWS, _PAIRS = 1 << 22, 1 << 18
# The finest range of rows that a task verifies, as a power of two.
_RANGE = 8


@dataclass(frozen=True)
class Found:
    """Rows to remove, ascending, and why.

    Attributes:
        row: their numbers.
        duplicate_of: the row that is kept instead, the representative of the group or an evaluation row.
        linked_to: the row that this one was compared with: of its group or equal to it, or the evaluation row.
        similarity: to `linked_to`: the smallest Jaccard similarity over the columns that had to match.
        exact: the texts of both are equal after normalisation (of a leak by one column: those of the column).
        kind: "duplicates" or "leakage".
    """

    row: Rows
    duplicate_of: Rows
    linked_to: Rows
    similarity: NDArray[np.float64]
    exact: NDArray[np.bool_]
    kind: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.row)


def find(
    store: RowStore,
    signatures: Sequence[Path],
    alive: NDArray[np.bool_],
    evaluation: NDArray[np.bool_],
    columns: Columns,
    policy: GovernancePolicy,
    engine: Engine,
    folder: Path,
) -> Found:
    """Duplicates among training rows and training rows that leak from evaluation rows; the package states the rules.

    Args:
        store: all rows.
        signatures: a file with `sign`'s table for each shard of `store`.
        alive: rows that may be kept; a training row that is not takes no part.
        evaluation: rows of evaluation files, which take part in any case.
        columns: which columns the rows have, as in the batches that were signed.
        policy: the policy they were signed with.
        engine: where the tasks run.
        folder: for what the tasks find. Those whose file is there are not run again, so that the folder must be another
            one for other arguments (another engine aside).

    Raises:
        ValueError: the arguments are not of the same rows, or the rows were signed for another policy.
    """
    _check(store, signatures, alive, evaluation)
    search = Search(store, tuple(signatures), columns, policy, folder)
    state = _state(search, alive, evaluation)
    if not state.any():
        return _decide(search, state, np.arange(len(store)), np.zeros(0, EDGE))
    write_array(folder / "state.npy", state)
    leaking = policy.leakage.enabled and bool((state == EVALUATION).any())

    slices = -(-len(store) // _ROWS) or 1
    tasks = [Exact(search, i, slices) for i in range(slices)]
    copies = _run(engine, find_copies, tasks, "exact duplicates")
    rows, others = np.concatenate([np.zeros((2, 0), np.int64), *map(read_array, copies)], axis=1)
    same_side = state[rows] == state[others]
    first = np.arange(len(store))
    first[rows[same_side]] = others[same_side]
    leaks = np.zeros(int((~same_side).sum()), EDGE)
    leaks["row"], leaks["other"] = rows[~same_side], others[~same_side]
    leaks["similarity"], leaks["exact"] = 1.0, True

    distinct = np.where(first == np.arange(len(store)), state, ABSENT).astype(np.uint8)
    distinct[leaks["row"]] = ABSENT
    write_array(folder / "distinct.npy", distinct)
    wanted = families(columns, policy, leaking)
    _check_keys(search, [family.keys(band) for family in wanted for band in range(family.bands)])
    bands = [Band(search, f, b, i, slices) for f in wanted for b in range(f.bands) for i in range(slices)]
    pairs = _run(engine, band_pairs, bands, "candidates")
    edges = _run(engine, verify, _verifications(search, pairs), "near-duplicates")
    verified = np.concatenate([leaks, *map(read_array, edges)])
    return _decide(search, state, first, verified)


def _check(
    store: RowStore, signatures: Sequence[Path], alive: NDArray[Any], evaluation: NDArray[Any]
) -> None:
    if len(signatures) != len(store.shards):
        raise ValueError(
            f"signatures: {len(signatures)} files for {len(store.shards)} shards; one each is needed"
        )
    for name, flags in (("alive", alive), ("evaluation", evaluation)):
        if flags.dtype != np.bool_ or flags.shape != (len(store),):
            raise ValueError(
                f"{name}: {flags.dtype} of shape {flags.shape}; a bool for each of {len(store)} rows is needed"
            )
    if len(store) >= 1 << 32:
        raise ValueError(f"store: {len(store)} rows; 2³² − 1 is the most")


def _check_keys(search: Search, keys: Sequence[str]) -> None:
    names = set(read_table(search.signatures[0]).column_names) if search.signatures else set(keys)
    missing = [key for key in keys if key not in names]
    if missing:
        raise ValueError(
            f"signatures: {search.signatures[0]} has no column {missing[0]}; sign the rows with this policy, and with"
            " leakage=True where there are evaluation rows"
        )


def _state(search: Search, alive: NDArray[np.bool_], evaluation: NDArray[np.bool_]) -> NDArray[np.uint8]:
    state = np.where(evaluation, EVALUATION, np.where(alive, TRAINING, ABSENT)).astype(np.uint8)
    policy = search.policy
    if not (policy.leakage.enabled and evaluation.any()):
        state[evaluation] = ABSENT
        if not policy.duplicates.enabled:
            state[:] = ABSENT
    starts = search.store.starts
    for start, end, path in zip(starts[:-1], starts[1:], search.signatures, strict=True):
        hashes = read_table(path).column("hash")
        if len(hashes) != end - start:
            raise ValueError(f"signatures: {path} has {len(hashes)} rows; its shard has {end - start}")
        if hashes.null_count:
            state[start:end][hashes.is_null().to_numpy()] = ABSENT
    return state


def _run(
    engine: Engine, function: Callable[[Any], None], tasks: Sequence[Any], description: str
) -> tuple[Path, ...]:
    """The files of all tasks; those that exist are not made again."""
    missing = [task for task in tasks if not task.path.exists()]
    for _ in engine.map(function, missing, description):
        pass
    return tuple(task.path for task in tasks)


def _verifications(search: Search, pairs: tuple[Path, ...]) -> list[Verify]:
    """Ranges of rows with about the same number of candidates."""
    counts = np.zeros((len(search.store) >> _RANGE) + 1, np.int64)
    for path in pairs:
        found = read_array(path)
        for start in range(0, len(found), _PAIRS):
            part = (found[start : start + _PAIRS] >> np.uint64(32 + _RANGE)).astype(np.int64)
            counts += np.bincount(part, minlength=len(counts))
    numbers = np.cumsum(counts) // _PAIRS
    cuts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])) << _RANGE
    ends = [*cuts[1:].tolist(), len(counts) << _RANGE]
    return (
        [Verify(search, pairs, low, high) for low, high in zip(cuts.tolist(), ends, strict=True)]
        if pairs
        else []
    )


def _decide(search: Search, state: NDArray[np.uint8], first: Rows, verified: NDArray[np.void]) -> Found:
    """Leaks, then groups of what is left, then the copies of both."""
    duplicate_of, linked_to = np.full(len(state), -1), np.full(len(state), -1)
    similarity, exact = np.zeros(len(state)), np.zeros(len(state), bool)

    def remove(edges: NDArray[np.void], instead: Rows) -> None:
        row = edges["row"]
        duplicate_of[row], linked_to[row] = instead, edges["other"]
        similarity[row], exact[row] = edges["similarity"], edges["exact"]

    leaks = _closest(verified[state[verified["other"]] == EVALUATION])
    remove(leaks, leaks["other"])
    leaked = duplicate_of >= 0

    edges = verified[state[verified["other"]] == TRAINING]
    edges = edges[~leaked[edges["row"]] & ~leaked[edges["other"]]]
    nodes = np.unique(np.concatenate([edges["row"], edges["other"]]))
    left, right = np.searchsorted(nodes, edges["other"]), np.searchsorted(nodes, edges["row"])
    shared = search.gather("first", nodes) if search.columns.kind == "pair" and len(nodes) else None
    stands = representatives(left, right, shared, len(nodes))
    links = _closest(_both_ways(edges[stands[left] == stands[right]]))
    instead = nodes[stands[np.searchsorted(nodes, links["row"])]]
    dropped = instead != links["row"]
    remove(links[dropped], instead[dropped])

    copies = np.flatnonzero((first != np.arange(len(first))) & (state == TRAINING))
    original = first[copies]
    of_leaks, others = copies[leaked[original]], copies[~leaked[original]]
    for values in (duplicate_of, linked_to, similarity, exact):
        values[of_leaks] = values[first[of_leaks]]
    if search.policy.duplicates.enabled:
        original = first[others]
        duplicate_of[others] = np.where(duplicate_of[original] >= 0, duplicate_of[original], original)
        linked_to[others], similarity[others], exact[others] = original, 1.0, True

    rows = np.flatnonzero(duplicate_of >= 0)
    leakage = state[duplicate_of[rows]] == EVALUATION
    kind = np.where(leakage, "leakage", "duplicates").astype(object)
    return Found(rows, duplicate_of[rows], linked_to[rows], similarity[rows], exact[rows], kind)


def _both_ways(edges: NDArray[np.void]) -> NDArray[np.void]:
    back = edges.copy()
    back["row"], back["other"] = edges["other"], edges["row"]
    return np.concatenate([edges, back])


def _closest(edges: NDArray[np.void]) -> NDArray[np.void]:
    """Of each row the edge of the highest similarity, an exact one before others, then to the first row."""
    order = np.lexsort((edges["other"], ~edges["exact"], -edges["similarity"], edges["row"]))
    edges = edges[order]
    return edges[np.append(True, edges["row"][1:] != edges["row"][:-1])[: len(edges)]]
