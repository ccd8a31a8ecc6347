"""The files of a result: kept rows as they were read, rejected rows with every reason, a verdict of every row."""

from __future__ import annotations

import bisect
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hybrid_kernels.governance.engine import Engine
from hybrid_kernels.governance.found import Copies
from hybrid_kernels.governance.manifest import KEPT, REJECTED, VERDICTS, describe
from hybrid_kernels.governance.pipeline import Decisions, Judgement
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.sources import Source
from hybrid_kernels.governance.sources.streams import partial_file
from hybrid_kernels.governance.steps import Job, Rows, Shard, content_key, masked_batch, masks
from hybrid_kernels.governance.storage import read_table, write_table
from hybrid_kernels.governance.verdicts import Reason, Verdict

_VERDICTS = pa.schema(
    [
        ("source", pa.string()),
        ("record", pa.int64()),
        ("id", pa.string()),
        ("kept", pa.bool_()),
        ("languages", pa.list_(pa.string())),
        ("confidence", pa.float64()),
        ("flags", pa.list_(pa.string())),
        ("reasons", pa.list_(pa.string())),
    ]
)


def write_rows(
    judgement: Judgement, sources: Sequence[Source], out: Path, engine: Engine
) -> list[dict[str, Any]]:
    """Write kept/, rejected.jsonl and verdicts.parquet; what `manifest.describe` says of each."""
    decisions = judgement.decisions
    changes = _changes(judgement, engine)
    judged = [number for number, source in enumerate(sources) if not source.evaluation]
    parts = [decisions.job.work / "rejected" / f"{number}.jsonl" for number in judged]
    tasks: list[Any] = []
    for number, part in zip(judged, parts, strict=True):
        source, kept, shards = sources[number], judgement.kept_of(number), judgement.shards_of(number)
        of_source = None if changes is None else ShardChanges(changes, tuple(shards))
        tasks.append(_Kept(source, kept, out / KEPT / source.output_name, of_source))
        tasks.append(_Rejected(source, np.flatnonzero(~kept), shards, decisions, part))
    shards = [shard for shard in judgement.shards if not shard.evaluation]
    tasks.append(_Verdicts(shards, decisions, out / VERDICTS))
    rows = dict(engine.map(_write, tasks, "write"))
    with partial_file(out / REJECTED) as partial, partial.open("wb") as file:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file, 1 << 20)
            part.unlink()
    names = [(task.path.relative_to(out), rows[i]) for i, task in enumerate(tasks) if isinstance(task, _Kept)]
    rejected = sum(rows[i] for i, task in enumerate(tasks) if isinstance(task, _Rejected))
    names += [(Path(REJECTED), rejected), (Path(VERDICTS), rows[len(tasks) - 1])]
    return [describe(out, name.as_posix(), count) for name, count in names]


def _write(task: _Kept | _Rejected | _Verdicts) -> int:
    return task.write()


@dataclass(frozen=True)
class _Kept:
    source: Source
    kept: NDArray[np.bool_]
    path: Path
    changes: ShardChanges | None

    def write(self) -> int:
        self.source.write_kept(self.kept, self.path, self.changes)
        return int(self.kept.sum())


@dataclass(frozen=True)
class _Rejected:
    source: Source
    records: NDArray[np.int64]
    shards: list[Shard]
    decisions: Decisions
    path: Path

    def write(self) -> int:
        with partial_file(self.path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
            for row in rejected_rows(self.source, self.records, self.shards, self.decisions):
                file.write(_as_json(row) + "\n")
        return len(self.records)


@dataclass(frozen=True)
class _Verdicts:
    shards: list[Shard]
    decisions: Decisions
    path: Path

    def write(self) -> int:
        with partial_file(self.path) as partial, pq.ParquetWriter(partial, _VERDICTS) as writer:
            for shard in self.shards:
                writer.write_table(_verdict_table(shard, self.decisions))
        return sum(shard.rows for shard in self.shards)


def _verdict_table(shard: Shard, decisions: Decisions) -> pa.Table:
    verdict, copies = decisions.of(shard)
    table = read_table(decisions.job.rows(shard))
    flags: list[list[str]] = [[] for _ in range(shard.rows)]
    reasons: list[list[str]] = [[] for _ in range(shard.rows)]
    for row, found in verdict.reasons().items():
        for objection, _ in found:
            chosen = reasons if objection.rejects else flags
            if (name := f"{objection.step}: {objection.reason}") not in chosen[row]:
                chosen[row].append(name)
    languages = [[name for name in row if name] for row in zip(*verdict.languages, strict=True)]
    columns = [
        [copies.places.sources[shard.source]] * shard.rows,
        table["record"].combine_chunks(),
        table["id"].combine_chunks(),
        verdict.kept,
        languages,
        pa.array(verdict.confidence, from_pandas=True),
        flags,
        reasons,
    ]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, _VERDICTS, strict=True)]
    return pa.table(arrays, schema=_VERDICTS)


def rejected_rows(
    source: Source, records: NDArray[np.int64], shards: Sequence[Shard], decisions: Decisions
) -> Iterator[dict[str, Any]]:
    """What rejected.jsonl has of the rejected `records` of a source, one after another."""
    begin, rest = 0, iter(source.records(records))
    for shard in shards:
        here = records[np.searchsorted(records, begin) : np.searchsorted(records, begin + shard.rows)]
        if len(here):
            verdict, copies = decisions.of(shard)
            reasons, table = verdict.reasons(), read_table(decisions.job.rows(shard))
            for record, content in (next(rest) for _ in here):
                position = record - begin
                yield {
                    "source": source.name,
                    "record": record,
                    "id": table["id"][position].as_py(),
                    "row": _shown(content, table, position, decisions.job),
                    **explained(reasons[position]),
                    **copied(copies, position),
                }
        begin += shard.rows


def _shown(content: dict[str, Any] | bytes, table: pa.Table, position: int, job: Job) -> dict[str, Any] | str:
    """A rejected row, without the personal data that the policy masks: in the text columns, in all of a broken line."""
    row = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    if not masks(job.policy):
        return row
    from hybrid_kernels.governance import personal

    if isinstance(row, str):
        return personal.masked(row, job.policy)
    found = dict(row)
    for i, name in enumerate(job.columns.texts):
        if isinstance(text := row.get(name), str):
            found[name] = personal.masked(text, job.policy, table[f"expected_{i}"][position].as_py())
    return found


def explained(reasons: Sequence[Reason]) -> dict[str, Any]:
    """The deciding reason of a rejected row, and all of them."""
    listed = [
        {
            "step": one.step,
            "reason": one.reason,
            "column": one.column,
            "score": _finite(one.score[place]),
            "bound": _finite(one.bound[place]),
            "detail": one.detail[place],
            "rejects": one.rejects,
        }
        for one, place in reasons
    ]
    first = listed[0]
    detail = first["detail"] if first["column"] is None else f"{first['column']}: {first['detail']}"
    return {
        "rejected_by": first["step"],
        "reason": first["reason"],
        "detail": detail,
        "score": first["score"],
        "bound": first["bound"],
        "reasons": listed,
    }


def copied(copies: Copies, position: int) -> dict[str, Any]:
    """Of a copy which row is kept in its place, which it is similar to, and how much; else None for each."""
    link = copies.link(position)
    if link is None:
        return {"duplicate_of": None, "linked_to": None, "similarity": None}
    duplicate_of, linked_to, similarity = link
    return {
        "duplicate_of": copies.places.name(duplicate_of),
        "linked_to": copies.places.name(linked_to),
        "similarity": similarity,
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _as_json(row: dict[str, Any]) -> str:
    """In JSON itself, which has no NaN and no infinity: null, where a column of the input holds one."""
    try:
        return json.dumps(row, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        text = json.dumps(row, ensure_ascii=False, default=_plain)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)


def _plain(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _changes(judgement: Judgement, engine: Engine) -> Path | None:
    """The folder with what is changed in the kept rows of each shard; None: nothing is."""
    decisions = judgement.decisions
    policy = decisions.job.policy
    if not (policy.repair or policy.annotate or masks(policy)):
        return None
    copies = str(decisions.copies and decisions.copies.parent.name)
    key = content_key(decisions.verdicts.name, copies, policy.model_dump(mode="json"))
    folder = decisions.job.work / "changes" / key
    tasks = [(decisions, shard, folder) for shard in judgement.shards if not shard.evaluation]
    for _ in engine.map(_write_changes, tasks, "repair, mask, annotate", rows=lambda task: task[1].rows):
        pass
    return folder


def _write_changes(task: tuple[Decisions, Shard, Path]) -> None:
    decisions, shard, folder = task
    path = folder / shard.part
    if path.exists():
        return
    rows, (verdict, _) = Rows(decisions.job, shard), decisions.of(shard)
    changed = row_changes(rows, verdict, decisions.job.policy)
    texts = [
        json.dumps(changed[row], ensure_ascii=False) if row in changed else None for row in range(shard.rows)
    ]
    write_table(pa.table({"changes": pa.array(texts, pa.large_string())}), path)


def row_changes(rows: Rows, verdict: Verdict, policy: GovernancePolicy) -> dict[int, dict[str, Any]]:
    """Position → columns to set or to add, of the kept rows that are changed."""
    kept = np.flatnonzero(verdict.kept).tolist()
    changed: dict[int, dict[str, Any]] = {row: {} for row in kept}
    names = rows.batch.columns.texts
    batch = masked_batch(rows.batch, verdict.objections, policy)
    for name, before, texts in zip(names, rows.batch.texts, batch.texts, strict=True):
        for row in kept:
            if texts[row] is not before[row]:
                changed[row][name] = texts[row]
    if policy.repair:
        from hybrid_kernels.governance.repair import repaired

        for name, texts in zip(names, batch.texts, strict=True):
            for row in kept:
                changed[row][f"{name}_repaired"] = repaired(texts[row])
    if policy.annotate:
        flags = {row: found for row, found in verdict.reasons().items() if row in changed}
        for row in kept:
            changed[row] |= {
                "governance_language": verdict.languages[0][row],
                "governance_confidence": _finite(verdict.confidence[row]),
                "governance_flags": "; ".join(
                    dict.fromkeys(f"{one.step}: {one.reason}" for one, _ in flags.get(row, ()))
                ),
            }
    return {row: columns for row, columns in changed.items() if columns}


def added_columns(policy: GovernancePolicy, texts: Sequence[str]) -> list[str]:
    added = [f"{name}_repaired" for name in texts] if policy.repair else []
    names = ("governance_language", "governance_confidence", "governance_flags")
    return added + list(names if policy.annotate else ())


@dataclass(frozen=True)
class ShardChanges:
    """The `Changes` of a source: columns by record, from the files of its shards."""

    folder: Path
    shards: tuple[Shard, ...]

    def __call__(self, record: int) -> Mapping[str, Any]:
        position = record + self.shards[0].first
        shard = self.shards[bisect.bisect_right(self._firsts, position) - 1]
        text = read_table(self.folder / shard.part)["changes"][position - shard.first].as_py()
        return {} if text is None else json.loads(text)

    @cached_property
    def _firsts(self) -> list[int]:
        return [shard.first for shard in self.shards]
