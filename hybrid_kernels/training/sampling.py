"""The order of the training rows where a batch holds rows of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

POOL = (
    16  # batches that are sorted together; their lengths differ less the more there are, their rows mix less
)


class LengthBucketedSampler(Sampler[int]):
    """Random order, sorted by length within pools of `POOL` batches, the batches in random order again.

    So little is padded, and lengths come in no order over the training, as they do in Transformers'
    `LengthGroupedSampler`, whose batches grow shorter through each of its pools. The rows of a batch that is not full
    come last.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a step, over all processes.
        seed: of the order; each epoch has its own, the same after a resume.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self))
        whole = len(self) - len(self) % self.batch_size
        pool = POOL * self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, whole, pool):
            rows = order[start : min(start + pool, whole)]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            batches.extend(rows.reshape(-1, self.batch_size))
        for index in random.permutation(len(batches)):
            yield from batches[index].tolist()
        yield from order[whole:].tolist()
