"""What the search for duplicates keeps of a row: a hash of its texts, LSH keys, and a sketch of its MinHash values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch, Columns
from hybrid_kernels.governance.duplicates.shingles import ideographic, mix, window_hashes
from hybrid_kernels.governance.policy import GovernancePolicy, LeakagePolicy
from hybrid_kernels.governance.text import normalise

#: The fields of the policy that `sign` depends on.
MEASURED = ("duplicates", "leakage", "seed")

# A pair of rows exactly at the threshold is missed with this probability at most.
_MISS = 0.005
# A threshold near 1 would ask for hundreds of values a band; fewer only join more rows.
_MOST_ROWS = 16
# Windows that are hashed at once: what 120 passes read should stay in the cache.
_BLOCK = 1 << 15


@dataclass(frozen=True)
class Family:
    """LSH keys over some of the text columns, one per band.

    Attributes:
        name: its keys are the columns `name_0`, `name_1`, … of a table of signatures.
        columns: positions of the text columns that must all be similar.
        rows: MinHash values per band and column.
        bands: number of bands.
        duplicates, leakage: what it is for.
    """

    name: str
    columns: tuple[int, ...]
    rows: int
    bands: int
    duplicates: bool
    leakage: bool

    def keys(self, band: int) -> str:
        return f"{self.name}_{band % self.bands}"


def rows_per_band(threshold: float, bands: int, columns: int) -> int:
    """MinHash values per band and column.

    Bands of r values each join two rows of similarity J with probability 1 − (1 − Jʳ)^bands (Leskovec et al., *Mining
    of Massive Datasets*, §3.4.2), and values of independent columns multiply. This is the largest r, up to 16 in all
    columns, that misses a row exactly at the threshold in every column with probability 0.005 at most. A lower
    threshold makes for fewer values, and for more candidates that come to nothing unless there are more bands.
    """
    if threshold == 1.0:
        return max(1, _MOST_ROWS // columns)
    joined = 1 - _MISS ** (1 / bands)
    return max(1, min(int(math.log(joined) / math.log(threshold)), _MOST_ROWS) // columns)


def matches_any(columns: Columns, policy: LeakagePolicy) -> bool:
    """Whether one text column that matches an evaluation row makes a leak."""
    chosen = policy.match
    if chosen == "auto":
        chosen = "any" if columns.kind == "translation" else "all"
    return chosen == "any" and len(columns.texts) > 1


def families(columns: Columns, policy: GovernancePolicy, leakage: bool) -> list[Family]:
    """The families of keys that a policy asks for; `leakage`: evaluation rows exist."""
    bands, everything = policy.duplicates.bands, tuple(range(len(columns.texts)))

    def family(name: str, which: tuple[int, ...], threshold: float, near: bool, leak: bool) -> Family:
        return Family(name, which, rows_per_band(threshold, bands, len(which)), bands, near, leak)

    near = policy.duplicates.enabled and policy.duplicates.near
    leakage = leakage and policy.leakage.enabled
    thresholds = (policy.duplicates.threshold, policy.leakage.threshold)
    singly = leakage and matches_any(columns, policy.leakage)
    shared = near and leakage and not singly and thresholds[0] == thresholds[1]
    result = [family("row", everything, thresholds[0], True, shared)] if near else []
    if singly:
        result += [family(f"text_{i}", (i,), thresholds[1], False, True) for i in everything]
    elif leakage and not shared:
        result.append(family("leakage", everything, thresholds[1], False, True))
    return result


def sign(
    batch: Batch, row_languages: tuple[Sequence[str | None], ...], policy: GovernancePolicy, leakage: bool
) -> pa.Table:
    """One row a row, null where a text is missing. A function of the row, its languages and the policy alone.

    The columns: `hash`, 128 bits of all normalised texts and languages; `first`, of a pair, 64 bits of the first text;
    `length`, characters of the normalised texts; `language_i`, 64 bits of a text's language; `sketch_i`, a byte of
    each MinHash value; and the keys of each family, salted with the language, so that two rows with the same key in
    any band are candidates.

    Args:
        batch: the rows.
        row_languages: per text column the language of each text.
        policy: see `MEASURED`.
        leakage: there are evaluation rows, so the keys that find them are wanted too.
    """
    wanted = families(batch.columns, policy, leakage)
    complete = np.ones(len(batch), bool)
    for column in batch.texts:
        complete &= np.fromiter((text is not None for text in column), bool, len(batch))
    texts = [[normalise(text) if text else "" for text in column] for column in batch.texts]
    languages = [
        np.array([_hash(language or "") for language in column], np.uint64) for column in row_languages
    ]

    data: dict[str, pa.Array] = {}

    def add(name: str, values: NDArray[np.generic], kind: pa.DataType) -> None:
        validity = pa.array(complete).buffers()[1]
        buffers = [validity, pa.py_buffer(np.ascontiguousarray(values))]
        data[name] = pa.Array.from_buffers(kind, len(batch), buffers)

    add("hash", _row_hashes(texts, row_languages), pa.binary(16))
    if batch.columns.kind == "pair":
        add("first", np.array([_hash(text) for text in texts[0]], np.uint64), pa.uint64())
    lengths = np.array([[len(text) for text in column] for column in texts], np.int64)
    add("length", lengths.sum(axis=0), pa.int64())
    values = []
    for i, normalised in enumerate(texts):
        length = max((f.rows * f.bands for f in wanted if i in f.columns), default=0)
        values.append(minhash(normalised, policy.duplicates.shingle_size, length, policy.seed))
        add(f"language_{i}", languages[i], pa.uint64())
        if length:
            sketch = (values[i] * np.uint32(0x9E3779B1)) >> np.uint32(24)
            add(f"sketch_{i}", sketch.astype(np.uint8), pa.binary(length))
    for family in wanted:
        keys = _keys(family, values, languages, policy.seed)
        for band in range(family.bands):
            add(family.keys(band), keys[:, band], pa.uint64())
    return pa.table(data)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _row_hashes(
    texts: Sequence[Sequence[str]], languages: Sequence[Sequence[str | None]]
) -> NDArray[np.uint8]:
    # Normalised texts hold no control characters, so that a NUL parts them from each other.
    rows = zip(*texts, *([language or "" for language in column] for column in languages), strict=True)
    digests = (hashlib.blake2b("\0".join(row).encode(), digest_size=16).digest() for row in rows)
    return np.frombuffer(b"".join(digests), np.uint8)


def _keys(
    family: Family, values: Sequence[NDArray[np.uint32]], languages: Sequence[NDArray[np.uint64]], seed: int
) -> NDArray[np.uint64]:
    """(rows, bands). Multilinear hash modulo 2⁶⁴: a collision costs one comparison and never a wrong decision."""
    generator = np.random.default_rng(seed)
    keys = np.zeros((len(values[0]), family.bands), np.uint64)
    for i in family.columns:
        bands = values[i][:, : family.rows * family.bands].reshape(-1, family.bands, family.rows)
        for j in range(family.rows):
            keys += bands[:, :, j] * _odd(generator)
        keys += (languages[i] * _odd(generator))[:, None]
    return mix(keys)


def _odd(generator: np.random.Generator) -> np.uint64:
    return generator.integers(0, 2**64, dtype=np.uint64) | np.uint64(1)


def minhash(texts: Sequence[str], size: int, length: int, seed: int) -> NDArray[np.uint32]:
    """(texts, length) MinHash values of the shingles of normalised texts, as `text.shingles` defines these.

    The permutations are h ↦ a h + b modulo 2³² of 32-bit hashes, with a odd (Broder et al. 2000, *Min-wise independent
    permutations*, on linear ones). All in NumPy, from code points: for short texts this costs a fifth of what `rensa`
    and the lists of strings for it do, and its values do not change with the version of a library.
    """
    generator = np.random.default_rng(seed)
    factors = generator.integers(0, 2**32, length, dtype=np.uint32) | np.uint32(1)
    offsets = generator.integers(0, 2**32, length, dtype=np.uint32)
    result = np.zeros((len(texts), length), np.uint32)
    if not length:
        return result
    for block in _blocks([len(text) for text in texts]):
        part = texts[block]
        shorter = ideographic(part)
        for chosen, width in ((~shorter, size), (shorter, (size + 1) // 2)):
            positions = np.flatnonzero(chosen)
            if not len(positions):
                continue
            hashes, starts = window_hashes([part[i] for i in positions.tolist()], width)
            values = np.empty((length, len(positions)), np.uint32)
            permuted = np.empty_like(hashes)
            for i in range(length):
                np.multiply(hashes, factors[i], out=permuted)
                permuted += offsets[i]
                np.minimum.reduceat(permuted, starts, out=values[i])
            result[block.start + positions] = values.T
    return result


def _blocks(lengths: Sequence[int]) -> Iterator[slice]:
    start = total = 0
    for i, length in enumerate(lengths):
        if total and total + length > _BLOCK:
            yield slice(start, i)
            start, total = i, 0
        total += length
    if start < len(lengths):
        yield slice(start, len(lengths))
