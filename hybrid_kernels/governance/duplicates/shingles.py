"""Shingles of many texts at once, as integers; `text.shingles` says what they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.text import script

# The first block of Unicode with characters whose script is CJK.
_FIRST_IDEOGRAPH = 0x2E80
# Bits of a shingle beside which the number of a text or a pair fits into 64.
_BITS = 42


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection: the finaliser of SplitMix64 (Steele et al. 2014, *Fast splittable pseudorandom number generators*).

    Neighbours come out far apart.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _points(texts: Sequence[str]) -> NDArray[np.uint32]:
    return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)


def ideographic(texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether ideographs make up more than half of each normalised text, whose shingles are shorter then."""
    result = np.zeros(len(texts), bool)
    points = _points(texts)
    high = points >= _FIRST_IDEOGRAPH
    if high.any():
        distinct = np.unique(points[high])
        ideographs = [point for point in distinct.tolist() if script(chr(point)) == "CJK"]
        counts = np.concatenate([[0], np.cumsum(np.isin(points, ideographs))])
        ends = np.cumsum([len(text) for text in texts])
        starts = np.concatenate([[0], ends[:-1]])
        result = 2 * (counts[ends] - counts[starts]) > ends - starts
    return result


def window_hashes(texts: Sequence[str], size: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Hashes of all windows of `size` characters, text after text, and where each text's start.

    Three characters of 21 bits are one integer exactly. A text that is shorter than a window fills it up with NULs,
    which no normalised text holds.
    """
    points = _points([text if len(text) >= size else text.ljust(size, "\0") for text in texts])
    lengths = np.array([max(len(text), size) for text in texts])
    count = len(points) - size + 1
    codes = points[:count].astype(np.uint64)
    for i in range(1, size):
        if i % 3 == 0:
            codes = mix(codes)
        codes ^= points[i : i + count].astype(np.uint64) << np.uint64(21 * (i % 3))
    inside = np.ones(len(points), bool)
    for i in range(1, size):
        inside[np.cumsum(lengths) - i] = False
    starts = np.concatenate([[0], np.cumsum(lengths - size + 1)[:-1]])
    return (mix(codes)[inside[:count]] >> np.uint64(32)).astype(np.uint32), starts


class ShingleSets:
    """The sets of shingles of some normalised texts, exactly."""

    def __init__(self, texts: Sequence[str], size: int) -> None:
        self.ideographic = ideographic(texts)
        widths = np.where(self.ideographic, (size + 1) // 2, size)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        counts = np.maximum(lengths - widths + 1, 1)
        # NULs, which no normalised text holds, fill up texts and shingles that are shorter.
        points = _points([text + "\0" * size for text in texts])
        starts = np.cumsum(lengths + size) - lengths - size
        places = spans(starts, counts)
        numbers = np.repeat(np.arange(len(texts)), counts)
        codes, self._bits = _codes(points, places, widths[numbers], size)
        keys = np.sort((numbers.astype(np.uint64) << np.uint64(self._bits)) | codes)
        keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
        self._codes = keys & np.uint64((1 << self._bits) - 1)
        #: Shingles of each text.
        self.sizes = np.bincount((keys >> np.uint64(self._bits)).astype(np.int64), minlength=len(texts))
        self._starts = np.cumsum(self.sizes) - self.sizes

    def similarity(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Jaccard similarity of each pair of texts, given by their positions."""
        sizes = self.sizes[left] + self.sizes[right]
        pairs = np.arange(len(left), dtype=np.uint64) << np.uint64(self._bits)
        keys = np.concatenate(
            [
                np.repeat(pairs, self.sizes[side]) | self._codes[spans(self._starts[side], self.sizes[side])]
                for side in (left, right)
            ]
        )
        keys.sort()
        both = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(self._bits)
        common = np.bincount(both.astype(np.int64), minlength=len(left))
        return common / (sizes - common)


def _codes(
    points: NDArray[np.uint32], places: NDArray[np.int64], widths: NDArray[np.int64], size: int
) -> tuple[NDArray[np.uint64], int]:
    """An integer for each shingle, equal for equal ones alone, and the number of bits it needs."""
    seen = np.zeros(int(points.max(initial=0)) + 1, bool)
    seen[points] = True
    ranks = (np.cumsum(seen) - 1).astype(np.uint64)[points]
    width = int(seen.sum()).bit_length()
    codes, bits = ranks[places], width
    for i in range(1, size):
        if bits + width > _BITS:
            distinct, inverse = np.unique(codes, return_inverse=True)
            codes, bits = inverse.astype(np.uint64), len(distinct).bit_length()
        codes <<= np.uint64(width)
        codes |= np.where(widths > i, ranks[places + i], np.uint64(0))
        bits += width
    return codes, bits


def spans(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, … of each span, one after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())
