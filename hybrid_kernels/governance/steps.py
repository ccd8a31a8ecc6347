"""The steps that judge every row by itself, and what of a shard they compute: features, then objections.

Features lie beside the shard, a file a step, under a key of all that they depend on; so a run that goes on, or a policy
with other thresholds, finds them there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch, Bounds, Columns, Features, Objection
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.storage import read_table, write_table


@dataclass(frozen=True)
class Step:
    """A module with `fields`, `measure`, `objections` and `MEASURED` (see `hybrid_kernels.governance.batch`).

    Attributes:
        name: as its objections call it.
        section: the policy's section that switches it.
        module: imported where it is needed, so that a step that is off costs nothing.
    """

    name: str
    section: str
    module: str

    def load(self) -> Any:
        return importlib.import_module(self.module)

    def is_on(self, policy: GovernancePolicy) -> bool:
        return bool(getattr(policy, self.section).enabled)


_PACKAGE = "hybrid_kernels.governance"
#: In the order in which they reject.
STEPS = (
    Step("quality", "quality", f"{_PACKAGE}.quality"),
    Step("language", "language", f"{_PACKAGE}.language"),
    Step("personal data", "personal_data", f"{_PACKAGE}.personal"),
    Step("perplexity", "perplexity", f"{_PACKAGE}.perplexity"),
)


@dataclass(frozen=True)
class Shard:
    """Some rows of a source, on disk.

    Attributes:
        part: its file, within any folder that has a file for each shard.
        source: number of its source.
        evaluation: its rows are never judged.
        rows: how many.
        first: the running number of its first row, over all sources.
    """

    part: str
    source: int
    evaluation: bool
    rows: int
    first: int


@dataclass(frozen=True)
class Job:
    """What every task has to know; small, and cheap to pickle.

    Attributes:
        work: the work folder.
        columns, languages, policy: as asked for.
        steps: those that are on.
        keys: step → key of its features.
    """

    work: Path
    columns: Columns
    languages: tuple[str, ...]
    policy: GovernancePolicy
    steps: tuple[Step, ...]
    keys: Mapping[str, str] = field(default_factory=dict)

    def rows(self, shard: Shard) -> Path:
        return self.work / "rows" / shard.part

    def features(self, step: Step, shard: Shard) -> Path:
        folder = f"{step.name.replace(' ', '-')}-{self.keys[step.name]}"
        return self.work / "features" / folder / shard.part

    def steps_of(self, shard: Shard) -> tuple[Step, ...]:
        """Of evaluation rows only the language is asked."""
        return tuple(step for step in self.steps if not shard.evaluation or step.name == "language")


def content_key(*values: Any) -> str:
    """A digest of JSON-able values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def make_job(
    work: Path,
    columns: Columns,
    languages: Sequence[str],
    policy: GovernancePolicy,
    revision: Any,
    steps: Sequence[Step] = STEPS,
) -> Job:
    """`revision`: JSON-able, of the code and libraries that compute features.

    A module's `check`, where it has one, returns what its features depend on beside the policy, JSON-able, and raises
    what would otherwise fail in the middle of the work.
    """
    on = tuple(step for step in steps if step.is_on(policy))
    keys = {}
    for step in on:
        module = step.load()
        outside = module.check(policy) if hasattr(module, "check") else None
        measured = [measured_fields(policy, module.MEASURED), outside]
        texts = [columns.texts, columns.expected, columns.kind]
        keys[step.name] = content_key(revision, step.name, texts, list(languages), measured)
    return Job(work, columns, tuple(languages), policy, on, keys)


def measured_fields(policy: GovernancePolicy, paths: Sequence[str]) -> dict[str, Any]:
    """Path ("quality.min_shingles", or a whole section) → what the policy has there."""
    values = {}
    for path in paths:
        values[path] = policy.model_dump(mode="json")
        for name in path.split("."):
            values[path] = values[path][name]
    return values


def masks(policy: GovernancePolicy) -> bool:
    return policy.personal_data.enabled and policy.personal_data.action == "mask"


def masked_batch(batch: Batch, objections: Sequence[Objection], policy: GovernancePolicy) -> Batch:
    """The batch, without the personal data that `objections` are about, where the policy masks it."""
    if not masks(policy):
        return batch
    from hybrid_kernels.governance import personal

    texts = tuple(list(column) for column in batch.texts)
    for objection in objections:
        if objection.step == personal.STEP:
            number = batch.columns.texts.index(str(objection.column))
            column, claims = texts[number], batch.expected[number]
            for row in objection.rows.tolist():
                column[row] = personal.masked(column[row] or "", policy, claims[row])
    return replace(batch, texts=texts)


def batch_of(table: pa.Table, columns: Columns, languages: tuple[str, ...]) -> Batch:
    """The rows of a shard. A row with a problem has no texts."""
    texts = tuple(table[f"text_{i}"].to_pylist() for i in range(len(columns.texts)))
    expected = tuple(table[f"expected_{i}"].to_pylist() for i in range(len(columns.texts)))
    return Batch(texts, expected, columns, languages)


@dataclass
class Rows:
    """A shard as the steps see it; read as far as it is asked for."""

    job: Job
    shard: Shard

    def __post_init__(self) -> None:
        self.table = read_table(self.job.rows(self.shard))
        self._batch: Batch | None = None

    @property
    def batch(self) -> Batch:
        if self._batch is None:
            self._batch = batch_of(self.table, self.job.columns, self.job.languages)
        return self._batch

    def measure(self, step: Step) -> tuple[float, bool]:
        """Writes a step's features unless they are there: (seconds they took once, whether they took them now)."""
        path = self.job.features(step, self.shard)
        if path.exists():
            return _seconds(read_table(path)), False
        module, started = step.load(), time.process_time()
        fields = module.fields(self.job.columns, self.job.policy)
        features = module.measure(self.batch, self.job.policy)
        if features.keys() != fields.keys():
            raise RuntimeError(
                f"step {step.name} has {sorted(features)} measured, its fields are {sorted(fields)}"
            )
        seconds = time.process_time() - started
        write_features(path, features, fields, seconds)
        return seconds, True

    def features(self) -> Features:
        """Of all steps that are on, and each row's language: `row_language_i`."""
        features: Features = {}
        for step in self.job.steps_of(self.shard):
            features |= read_features(self.job.features(step, self.shard))
        for i, languages in enumerate(row_languages(self.batch, features, self.job.policy)):
            features[f"row_language_{i}"] = np.array(languages, dtype=object)
        return features

    def objections(self, features: Features, bounds: Bounds) -> tuple[list[Objection], dict[str, float]]:
        """(what speaks against rows, seconds of each step); what could not be read comes first."""
        found, seconds, policy = input_objections(self.table), {}, self.job.policy
        batch = self.batch
        if masks(policy):  # details quote texts
            from hybrid_kernels.governance import personal

            batch = masked_batch(batch, personal.objections(batch, features, policy, bounds), policy)
        for step in self.job.steps_of(self.shard):
            started = time.process_time()
            found += step.load().objections(batch, features, policy, bounds)
            seconds[step.name] = time.process_time() - started
        return [objection for objection in found if len(objection.rows)], seconds


def row_languages(batch: Batch, features: Features, policy: GovernancePolicy) -> tuple[list[str | None], ...]:
    """The claimed, else the assigned language of each text; without the language step the claimed one."""
    if not policy.language.enabled:
        return batch.expected
    from hybrid_kernels.governance import language

    return tuple(language.row_languages(batch, features, policy))


def write_features(
    path: Path, features: Mapping[str, Any], fields: Mapping[str, pa.DataType], seconds: float
) -> None:
    arrays = [pa.array(features[name], kind) for name, kind in fields.items()]
    schema = pa.schema(list(fields.items()), metadata={"seconds": repr(seconds)})
    write_table(pa.table(arrays, schema=schema), path)


def read_features(path: Path) -> Features:
    table = read_table(path)
    return {name: _numpy(table[name]) for name in table.column_names}


def _numpy(column: pa.ChunkedArray) -> NDArray[np.generic]:
    return column.combine_chunks().to_numpy(zero_copy_only=False)


def _seconds(table: pa.Table) -> float:
    return float((table.schema.metadata or {}).get(b"seconds", b"0"))


def input_objections(table: pa.Table) -> list[Objection]:
    """Rows that could not be read, by the kind of problem: "no text" where a text is not one, else "malformed"."""
    problems = table["problem"].to_pylist()
    by_reason: dict[str, list[int]] = {}
    for row, problem in enumerate(problems):
        if problem is not None:
            by_reason.setdefault("no text" if problem.startswith("no text") else "malformed", []).append(row)
    found = []
    for reason, rows in by_reason.items():
        none = np.full(len(rows), np.nan)
        detail = [problems[row].removeprefix("no text: ") for row in rows]
        found.append(Objection("input", reason, None, np.array(rows, np.int64), none, none, detail))
    return found
