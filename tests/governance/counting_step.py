"""A step that says what it computes: it counts letters, and notes each shard in the file that COUNTING_LOG names."""

import os

import numpy as np
import pyarrow as pa

from hybrid_kernels.governance.batch import Objection

MEASURED = ("quality.min_shingles",)


def note(kind, batch):
    with open(os.environ["COUNTING_LOG"], "a") as file:  # noqa: PTH123
        file.write(f"{kind} {batch.texts[0][0]}\n")


def fields(columns, policy):
    return {f"letters_{i}": pa.int64() for i in range(len(columns.texts))}


def measure(batch, policy):
    note("measure", batch)
    return {
        f"letters_{i}": np.array([sum(map(str.isalpha, text or "")) for text in texts])
        for i, texts in enumerate(batch.texts)
    }


def objections(batch, features, policy, bounds):
    note("judge", batch)
    found = []
    for i, column in enumerate(batch.columns.texts):
        letters = features[f"letters_{i}"]
        there = np.array([text is not None for text in batch.texts[i]])
        rows = np.flatnonzero((letters < policy.quality.min_letters) & there)
        bound = np.full(len(rows), float(policy.quality.min_letters))
        detail = [f"{n} letters" for n in letters[rows]]
        found.append(
            Objection("quality", "too short", column, rows, letters[rows].astype(float), bound, detail)
        )
    return found
