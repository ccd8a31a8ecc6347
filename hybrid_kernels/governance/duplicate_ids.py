"""Ids that name more than one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from hybrid_kernels.governance.pipeline import Judgement
from hybrid_kernels.governance.storage import read_table


def duplicate_ids(judgement: Judgement) -> dict[str, Any]:
    """{"ids": those that several judged rows have, "rows": rows with one of them, "first": the first few}."""
    job = judgement.decisions.job
    parts = []
    for shard in judgement.shards:
        if not shard.evaluation:
            ids = read_table(job.rows(shard))["id"].combine_chunks().drop_null()
            values = ids.to_numpy(zero_copy_only=False)
            parts.append(pd.util.hash_array(values, categorize=False))
    hashes = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    again = counts > 1
    places = np.sort(first[again])[:5].tolist()
    ends = np.cumsum([len(part) for part in parts])
    found = []
    judged = [shard for shard in judgement.shards if not shard.evaluation]
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        ids = read_table(job.rows(judged[number]))["id"].combine_chunks().drop_null()
        found.append(ids[place - int(ends[number]) + len(parts[number])].as_py())
    return {"ids": int(again.sum()), "rows": int(counts[again].sum()), "first": found}
