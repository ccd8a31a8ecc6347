"""The stages over the rows of some sources, each resumed where it was stopped.

The work folder (it holds the texts, and may be deleted when no run is to go on from it):

    rows/SOURCE/N.arrow                 the rows as read
    features/STEP-KEY/SOURCE/N.arrow    what a step measured
    signatures/KEY/SOURCE/N.arrow       what duplicates are looked for by
    verdicts/KEY/SOURCE/N.arrow         what speaks against each row
    duplicates/SOURCES/KEY/             which rows are copies of which
    changes/KEY/SOURCE/N.arrow          what is changed in kept rows, and what is added

Every file is whole or not there, and its path has a key of all it depends on: content of the sources, columns,
languages, the fields of the policy that count, code and libraries. So what is there is right, and not computed again.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance import thresholds, verdicts
from hybrid_kernels.governance.batch import Bounds, Features
from hybrid_kernels.governance.engine import Engine, InProcess
from hybrid_kernels.governance.found import (
    Copies,
    Places,
    copies_in,
    copies_seconds,
    group_sizes,
    load_places,
    save_places,
    write_copies,
)
from hybrid_kernels.governance.ingest import Readable, shards_of, source_keys
from hybrid_kernels.governance.steps import (
    Job,
    Rows,
    Shard,
    content_key,
    masked_batch,
    masks,
    measured_fields,
)
from hybrid_kernels.governance.storage import RowStore, read_table
from hybrid_kernels.governance.summary import Tally
from hybrid_kernels.governance.verdicts import Verdict

# Fields of the policy that no objection depends on.
_LATER = {"duplicates", "leakage", "repair", "annotate", "seed"}


@dataclass(frozen=True)
class Decisions:
    """Where it is written what became of each row; cheap to pickle.

    Attributes:
        job: what was judged.
        verdicts: the folder with a verdict of each shard of rows that are judged.
        copies: the file that lists copies; None where none were looked for.
        places: the file of `Places`.
    """

    job: Job
    verdicts: Path
    copies: Path | None
    places: Path

    def of(self, shard: Shard) -> tuple[Verdict, Copies]:
        """(all that speaks against the rows of a shard, copies included; the copies)."""
        copies = copies_in(self.copies, load_places(self.places), shard)
        verdict = verdicts.read_verdict(self.verdicts / shard.part)
        return replace(verdict, objections=verdict.objections + copies.objections(self.job.policy)), copies


@dataclass
class Judgement:
    """What became of all rows.

    Attributes:
        decisions: where it is.
        shards: all, evaluation ones too.
        kept: of every row, evaluation rows too, whether it is kept.
        histograms, bounds: of the features.
        tally: counts and examples.
        stages: name → {"seconds", "rows"} of this run; rows that were not there from a run before.
    """

    decisions: Decisions
    shards: list[Shard]
    kept: NDArray[np.bool_]
    histograms: Any
    bounds: Bounds
    tally: Tally
    stages: dict[str, dict[str, float]]

    def shards_of(self, source: int) -> list[Shard]:
        return [shard for shard in self.shards if shard.source == source]

    def kept_of(self, source: int) -> NDArray[np.bool_]:
        """Of each record of a source whether it is kept."""
        parts = [self.kept[shard.first : shard.first + shard.rows] for shard in self.shards_of(source)]
        return np.concatenate(parts) if parts else np.zeros(0, bool)


class Pipeline:
    """Runs the stages.

    Args:
        sources: training sources, then evaluation ones.
        job: of `steps.make_job`.
        engine: where tasks run.
        revision: JSON-able, of the code and libraries.
    """

    def __init__(self, sources: Sequence[Readable], job: Job, engine: Engine, revision: Any) -> None:
        self.sources, self.job, self.engine, self.revision = list(sources), job, engine, revision
        self.stages: dict[str, dict[str, float]] = {}
        self.tally = Tally()

    def run(self) -> Judgement:
        """Raises ValueError if there are no rows to judge."""
        policy = self.job.policy
        with self.stage("read and measure") as count:
            shards, histograms = self._measure(count)
        judged = [shard for shard in shards if not shard.evaluation]
        if not judged:
            names = ", ".join(source.name for source in self.sources if not source.evaluation)
            raise ValueError(f"there are no rows in {names}")
        bounds = thresholds.bounds(histograms, policy)
        store = RowStore(
            [self.job.rows(shard) for shard in shards],
            [shard.rows for shard in shards],
            len(self.job.columns.texts),
        )
        with self.stage("judge") as count:
            folder = self._judge(judged, bounds, count)
        alive = np.ones(len(store), bool)
        for shard in judged:
            alive[shard.first : shard.first + shard.rows] = verdicts.alive(folder / shard.part)
        with self.stage("duplicates") as count:
            copies = self._copies(shards, store, alive, folder, count)
        kept = alive
        if copies is not None:
            kept[read_table(copies)["row"].to_numpy()] = False
            self.tally.add_groups(group_sizes(copies))
        places = Places(
            store, shards, [source.name for source in self.sources], policy if masks(policy) else None
        )
        decisions = Decisions(self.job, folder, copies, save_places(places, self.job.work))
        with self.stage("count") as count:
            tasks = [(decisions, shard) for shard in judged]
            for _, tally in self.engine.map(_tally, tasks, "count", rows=_rows_of_task):
                self.tally.merge(tally)
            count(sum(shard.rows for shard in judged))
        return Judgement(decisions, shards, kept, histograms, bounds, self.tally, self.stages)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int], None]]:
        """Times a stage; what it yields counts the rows that were dealt with."""
        rows, started = 0, time.monotonic()

        def count(more: int) -> None:
            nonlocal rows
            rows += more

        yield count
        self.stages[name] = {"seconds": time.monotonic() - started, "rows": rows}

    @cached_property
    def keys(self) -> list[str]:
        return source_keys(self.sources, self.fingerprints, self.job.columns, self.revision)

    @cached_property
    def fingerprints(self) -> list[dict[str, Any]]:
        """Of the sources; taken once, since files are read for it."""
        return [source.fingerprint() for source in self.sources]

    @cached_property
    def looks_for_copies(self) -> bool:
        policy = self.job.policy
        return policy.duplicates.enabled or (policy.leakage.enabled and self.has_evaluation)

    @property
    def has_evaluation(self) -> bool:
        return any(source.evaluation for source in self.sources)

    def _shards(self) -> Iterator[Shard]:
        first = 0
        for number, (source, key) in enumerate(zip(self.sources, self.keys, strict=True)):
            for name, rows, seconds in shards_of(source, self.job.work / "rows" / key):
                self.tally.add_cost("reading", rows, seconds)
                yield Shard(f"{key}/{name}", number, source.evaluation, rows, first)
                first += rows

    def _measure(self, count: Callable[[int], None]) -> tuple[list[Shard], Any]:
        """Shards are measured while later ones are read."""
        shards: list[Shard] = []
        histograms = thresholds.Histograms()
        signatures = self._signatures if self.looks_for_copies else None

        def tasks() -> Iterator[tuple[Job, Shard, Path | None, bool]]:
            for shard in self._shards():
                shards.append(shard)
                yield self.job, shard, signatures, self.has_evaluation

        for number, measured in self.engine.map(_measure, tasks(), "read and measure", rows=_rows_of_task):
            shard = shards[number]
            histograms.merge(measured.histograms)
            for step, seconds in measured.seconds.items():
                self.tally.add_cost(step, 0 if step == "duplicates" else shard.rows, seconds)
            if measured.computed:
                count(shard.rows)
        return shards, histograms

    @cached_property
    def _signatures(self) -> Path:
        from hybrid_kernels.governance import duplicates

        job = self.job
        measured = measured_fields(job.policy, duplicates.MEASURED)
        columns, language = asdict(job.columns), job.keys.get("language")
        key = content_key(self.revision, measured, columns, job.languages, language, self.has_evaluation)
        return job.work / "signatures" / key

    def _judge(self, shards: Sequence[Shard], bounds: Bounds, count: Callable[[int], None]) -> Path:
        policy = self.job.policy.model_dump(mode="json", exclude=_LATER)
        limits = sorted(
            [name, language or "", float(limit.low), float(limit.high)]
            for (name, language), limit in bounds.items()
        )
        key = content_key(self.revision, policy, dict(self.job.keys), limits)
        folder = self.job.work / "verdicts" / key
        tasks = [(self.job, shard, bounds, folder) for shard in shards]
        total = sum(shard.rows for shard in shards)
        for number, (seconds, computed) in self.engine.map(
            _judge, tasks, "judge", rows=_rows_of_task, total=total
        ):
            for step, spent in seconds.items():
                self.tally.add_cost(step, 0, spent)
            if computed:
                count(shards[number].rows)
        return folder

    def _copies(
        self,
        shards: Sequence[Shard],
        store: RowStore,
        alive: NDArray[np.bool_],
        verdicts_folder: Path,
        count: Callable[[int], None],
    ) -> Path | None:
        if not self.looks_for_copies:
            return None
        from hybrid_kernels.governance import duplicates

        policy = self.job.policy
        key = content_key(self._signatures.name, verdicts_folder.name)
        folder = self.job.work / "duplicates" / content_key(self.keys) / key
        found = folder / "found.arrow"
        if found.exists():
            self.tally.add_cost("duplicates", len(alive), copies_seconds(found))
            return found
        evaluation = np.repeat([shard.evaluation for shard in shards], [shard.rows for shard in shards])
        before = processor_seconds(self.engine)
        signatures = [self._signatures / shard.part for shard in shards]
        columns = self.job.columns
        copies = duplicates.find(store, signatures, alive, evaluation, columns, policy, self.engine, folder)
        seconds = processor_seconds(self.engine) - before
        self.tally.add_cost("duplicates", len(alive), seconds)
        write_copies(found, copies, seconds)
        count(len(alive))
        return found

    def remove_leftovers(self) -> None:
        """Files of sources and policies that are not this run's; of features those of other policies stay."""
        work, ours = self.job.work, {*self.keys, content_key(self.keys)}
        for kind in ("rows", "features/*", "signatures/*", "verdicts/*", "duplicates", "changes/*"):
            for folder in work.glob(f"{kind}/*"):
                if folder.name not in ours:
                    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Measured:
    histograms: Any
    seconds: dict[str, float]
    computed: bool


def _measure(task: tuple[Job, Shard, Path | None, bool]) -> Measured:
    job, shard, signatures, leakage = task
    rows, seconds, computed = Rows(job, shard), {}, False
    for step in job.steps_of(shard):
        seconds[step.name], now = rows.measure(step)
        computed |= now
    features = rows.features()
    languages = tuple(list(features[f"row_language_{i}"]) for i in range(len(job.columns.texts)))
    if signatures is not None:
        path = signatures / shard.part
        seconds["duplicates"], now = _sign(path, rows, languages, leakage)
        computed |= now
    histograms = thresholds.Histograms()
    if not shard.evaluation:
        histograms.add(features, languages)
    return Measured(histograms, seconds, computed)


def _sign(
    path: Path, rows: Rows, languages: tuple[list[str | None], ...], leakage: bool
) -> tuple[float, bool]:
    from hybrid_kernels.governance import duplicates
    from hybrid_kernels.governance.storage import write_table

    if path.exists():
        return float(read_table(path).schema.metadata[b"seconds"]), False
    started = time.process_time()
    table = duplicates.sign(rows.batch, languages, rows.job.policy, leakage)
    seconds = time.process_time() - started
    write_table(table.replace_schema_metadata({"seconds": repr(seconds)}), path)
    return seconds, True


def _judge(task: tuple[Job, Shard, Bounds, Path]) -> tuple[dict[str, float], bool]:
    job, shard, bounds, folder = task
    path = folder / shard.part
    if path.exists():
        return verdicts.seconds_of(path), False
    rows = Rows(job, shard)
    features = rows.features()
    objections, seconds = rows.objections(features, bounds)
    languages = tuple(list(features[f"row_language_{i}"]) for i in range(len(job.columns.texts)))
    verdict = Verdict(languages, _confidence(features, shard.rows), objections)
    verdicts.write_verdict(path, verdict, seconds)
    return seconds, True


def _confidence(features: Features, rows: int) -> NDArray[np.float64]:
    """Of the language of each row: the lower one, where it has two texts."""
    confidence = np.full(rows, np.nan)
    for name, values in features.items():
        if name.startswith("confidence_"):
            confidence = np.fmin(confidence, values.astype(np.float64))
    return confidence


def processor_seconds(engine: Engine) -> float:
    """Of this process and of the engine's workers."""
    here = isinstance(engine, InProcess)
    return time.process_time() + (0.0 if here else engine.seconds)


def _tally(task: tuple[Decisions, Shard]) -> Tally:
    decisions, shard = task
    verdict, copies = decisions.of(shard)
    rows, tally = Rows(decisions.job, shard), Tally()
    tally.add(
        masked_batch(rows.batch, verdict.objections, decisions.job.policy),
        verdict.objections,
        verdict.languages[0],
        source=copies.places.sources[shard.source],
        first=shard.first,
        records=rows.table["record"].to_numpy(),
        ids=rows.table["id"].to_pylist(),
        others=copies,
    )
    return tally


def _rows_of_task(task: Any) -> int:
    return task[1].rows
