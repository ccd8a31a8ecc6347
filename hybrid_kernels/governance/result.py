"""What `govern` hands back: the rows of a data set in memory, kept and rejected."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Value

from hybrid_kernels.governance.arguments import VERDICT_COLUMNS
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.manifest import write_summary
from hybrid_kernels.governance.output import added_columns, explained, row_changes
from hybrid_kernels.governance.personal import masked
from hybrid_kernels.governance.pipeline import Judgement
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.sources.streams import partial_file
from hybrid_kernels.governance.steps import Rows, masks


@dataclass(frozen=True)
class GovernanceResult:
    """The rows kept and the rows rejected, each in input order with its original columns, and a summary.

    Personal data that the policy masks is masked in the text columns of both.

    `kept` gains a column `language` where languages were assigned, and what the policy has repaired or annotated;
    `rejected` gains `language` likewise and

    * `rejected_by`, `reason`, `detail`, `score`: of the step that rejected the row, the first to object;
    * `duplicate_of`: of a duplicate the id, or without an id column the index, of the row that is kept in its place; a
      leaked row has none, the evaluation row's text is in its `detail`;
    * `reasons`: everything that speaks against it, as JSON.

    `summary` is plain JSON.
    """

    kept: Dataset
    rejected: Dataset
    summary: dict[str, Any] = field(repr=False)  # pages of it would hide the data sets in a notebook

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write kept.jsonl, rejected.jsonl and summary.json (last) into `folder`, each file atomically."""
        folder = Path(folder)
        for name, rows in (("kept.jsonl", self.kept), ("rejected.jsonl", self.rejected)):
            with (
                partial_file(folder / name) as partial,
                partial.open("w", encoding="utf-8", newline="\n") as file,
            ):
                for row in _rows(rows):
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        write_summary(folder, self.summary)
        return folder


def result_of(rows: Dataset, judgement: Judgement, summary: dict[str, Any]) -> GovernanceResult:
    """What became of `rows`, the first source that was judged."""
    job = judgement.decisions.job
    judged = [shard for shard in judgement.shards if not shard.evaluation]
    names: list[str | None] = []
    verdicts: dict[str, list[Any]] = {name: [] for name in VERDICT_COLUMNS}
    changes: dict[int, dict[str, Any]] = {}
    ids = None if job.columns.id is None else rows[job.columns.id][:]
    for shard in judged:
        verdict, copies = judgement.decisions.of(shard)
        names += verdict.languages[0]
        reasons = verdict.reasons()
        for position in np.flatnonzero(~verdict.kept).tolist():
            told = explained(reasons[position])
            link = copies.link(position)
            first = None if link is None or link[0] >= len(rows) else link[0]
            told["duplicate_of"] = first if ids is None or first is None else ids[first]
            told["reasons"] = json.dumps(told["reasons"], ensure_ascii=False)
            for name, values in verdicts.items():
                values.append(told[name])
        changed = row_changes(Rows(job, shard), verdict, job.policy)
        changes |= {shard.first + position: columns for position, columns in changed.items()}
    if not job.columns.expected and job.policy.language.enabled:
        rows = rows.add_column("language", pa.array(names, pa.string()), feature=Value("string"))
    mask = judgement.kept[: len(rows)]
    kept, rejected = _selected(rows, mask), _masked(_selected(rows, ~mask), job.columns, job.policy)
    for name, values in verdicts.items():
        kind = {"score": pa.float64(), "duplicate_of": pa.int64()}.get(name, pa.string())
        if name == "duplicate_of" and job.columns.id is not None:
            rejected = rejected.add_column(name, values, feature=rows.features[job.columns.id])
        else:
            rejected = rejected.add_column(name, pa.array(values, kind))
    return GovernanceResult(_changed(kept, mask, changes, job.columns, job.policy), rejected, summary)


def _selected(rows: Dataset, mask: Any) -> Dataset:
    if not mask.any():  # no column could be added to what `select` has of no rows
        return Dataset.from_dict({name: [] for name in rows.column_names}, features=rows.features)
    return rows.select(np.flatnonzero(mask))


def _changed(
    kept: Dataset,
    mask: Any,
    changes: Mapping[int, Mapping[str, Any]],
    columns: Columns,
    policy: GovernancePolicy,
) -> Dataset:
    if not changes:
        return kept
    order = np.flatnonzero(mask).tolist()
    for name in columns.texts:
        if any(name in found for found in changes.values()):
            values = [
                changes.get(row, {}).get(name, text) for row, text in zip(order, kept[name][:], strict=True)
            ]
            kept = _with_texts(kept, name, values)
    for name in added_columns(policy, columns.texts):
        values = [changes.get(row, {}).get(name) for row in order]
        kind = pa.float64() if name.endswith("_confidence") else pa.string()
        kept = kept.add_column(name, pa.array(values, kind))
    return kept


def _masked(rejected: Dataset, columns: Columns, policy: GovernancePolicy) -> Dataset:
    if not masks(policy):
        return rejected
    claims = columns.expected * len(columns.texts) if len(columns.expected) == 1 else columns.expected
    for i, name in enumerate(columns.texts):
        sides = rejected[claims[i]][:] if claims else [None] * len(rejected)
        texts = zip(rejected[name][:], sides, strict=True)
        values = [
            None if text is None else masked(text, policy, None if claim is None else str(claim))
            for text, claim in texts
        ]
        rejected = _with_texts(rejected, name, values)
    return rejected


def _with_texts(rows: Dataset, name: str, texts: list[str | None]) -> Dataset:
    changed = rows.remove_columns(name).add_column(name, pa.array(texts, pa.string()))
    return changed.select_columns(rows.column_names)


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter(batch_size=1000):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
