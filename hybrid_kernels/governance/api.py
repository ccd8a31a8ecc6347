"""`govern` for rows in memory, `govern_files` for files of any size: the same stages, the same decisions."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import Dataset
from rich.console import Console

from hybrid_kernels.governance import manifest, report, what_if
from hybrid_kernels.governance.arguments import (
    check_additions,
    check_apart,
    check_claims,
    check_free,
    check_outside,
    checked_languages,
    checked_policy,
    checked_rows,
    listed,
    make_columns,
)
from hybrid_kernels.governance.duplicate_ids import duplicate_ids
from hybrid_kernels.governance.engine import Engine, InProcess, LocalEngine, RayEngine
from hybrid_kernels.governance.output import write_rows
from hybrid_kernels.governance.pipeline import Judgement, Pipeline, processor_seconds
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.progress import Reporter
from hybrid_kernels.governance.result import GovernanceResult, result_of
from hybrid_kernels.governance.sources import InMemory, Source, open_sources
from hybrid_kernels.governance.steps import make_job
from hybrid_kernels.governance.storage import read_table
from hybrid_kernels.governance.workspace import DRY_RUN, remove_result, workspace


def govern(
    dataset: Dataset | Sequence[Mapping[str, Any]],
    languages: Sequence[str],
    *,
    text_columns: Sequence[str],
    language_column: str | Sequence[str] | None = None,
    translation: bool = False,
    policy: GovernancePolicy | None = None,
    id_column: str | None = None,
    evaluation: Dataset | Sequence[Mapping[str, Any]] | None = None,
    num_proc: int | None = None,
    progress: bool = True,
) -> GovernanceResult:
    """Sort the rows of `dataset` into kept and rejected, without looking at labels.

    Every step that is on judges every row; duplicates, and copies of evaluation rows, are looked for among the rows
    that nothing else speaks against.

    Args:
        dataset: rows; kept rows are handed back unchanged.
        languages: wanted language codes; see `supported_languages`.
        text_columns: the column, or the two, that make up a row's text, the shared one (an NLI premise) first. A row
            in which one of them is no text is rejected (by "input"), whatever the policy.
        language_column: column with each row's language, or one for each text column; it is then verified. Without it
            a language is assigned (new column `language`).
        translation: the two text columns are translations of each other.
        policy: by default `GovernancePolicy()`.
        id_column: column that names a row in `duplicate_of`; without it the row's index does.
        evaluation: rows that no kept row may be a copy of; they have the same text columns.
        num_proc: worker processes; None computes in this one.
        progress: show progress.

    Raises:
        TypeError: `dataset` is neither a Dataset nor a sequence of mappings, a text column holds no strings,
            or a column of a sequence mixes types.
        ValueError: a column is missing or has a name that govern adds, a language is unknown, or there are no
            rows or languages.
    """
    policy = checked_policy(policy)
    columns = make_columns(text_columns, language_column, None, translation, id_column)
    languages = checked_languages(languages)
    source = InMemory(checked_rows("dataset", dataset), "dataset", "dataset", columns, evaluation=False)
    sources: list[Source] = [source]
    if evaluation is not None:
        rows = checked_rows("evaluation", evaluation)
        sources.append(InMemory(rows, "evaluation", "evaluation", columns, evaluation=True))
    check_free(source.dataset, columns, policy)
    reporter = Reporter(Console(stderr=True) if progress else None)
    engine: Engine = InProcess(reporter) if num_proc is None else LocalEngine(num_proc, reporter)
    with (
        closing(engine),
        tempfile.TemporaryDirectory(prefix="hybrid-kernels-govern-") as folder,
        _own_tables(),
        _no_bars(),
    ):
        job = make_job(Path(folder), columns, languages, policy, None)
        judgement = Pipeline(sources, job, engine, None).run()
        summary = summary_of(judgement, languages)
        del summary["cost"]
        return result_of(source.dataset, judgement, summary)


def govern_files(
    inputs: str | Path | Sequence[str | Path],
    languages: Sequence[str],
    out: str | Path,
    *,
    text_columns: Sequence[str],
    language_column: str | Sequence[str] | None = None,
    expected: Sequence[str] | None = None,
    translation: bool = False,
    id_column: str | None = None,
    policy: GovernancePolicy | None = None,
    evaluation: str | Path | Sequence[str | Path] = (),
    encoding: str = "utf-8",
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    dry_run: bool = False,
    progress: bool | Console = True,
) -> dict[str, Any]:
    """Sort the rows of files into kept and rejected ones.

    `out` receives kept/ (a file for each input, its rows byte for byte), rejected.jsonl, verdicts.parquet (a row for
    each row read), summary.json, report.html, policy.yaml and manifest.json; and work/, with what a run that was
    stopped goes on from: call again with the same arguments. work/ holds the texts, and may be deleted at the end.

    Args:
        inputs: files, folders, globs and `hub:` names; see `sources.open_sources`.
        languages, text_columns, language_column, translation, id_column, policy: as of `govern`.
        expected: instead of a column: the language of all texts, or one for each text column.
        evaluation: more such inputs, of which no kept row may be a copy.
        encoding: of files that are not Parquet.
        engine: worker processes of this machine, or Ray.
        workers: tasks that run at once; None: as many as there are cores.
        ray_address: of a Ray cluster; None: Ray on this machine.
        dry_run: write summary.json, report.html and policy.yaml alone, into `out`/dry-run.
        progress: show progress, on this console.

    Returns:
        The content of summary.json.

    Raises:
        TypeError, ValueError, OSError: an argument or an input is wrong; the message names it.
    """
    started = time.monotonic()
    policy = checked_policy(policy)
    columns = make_columns(text_columns, language_column, expected, translation, id_column)
    languages = checked_languages(languages)
    check_claims(columns, languages)
    console = Console(stderr=True) if progress is True else progress or None
    reporter = Reporter(console)
    if engine not in ("local", "ray"):
        raise ValueError(f"engine must be 'local' or 'ray', got {engine!r}")
    out = Path(out)
    check_outside(out, [*listed(inputs), *listed(evaluation)])
    sources = open_sources(listed(inputs), columns, encoding=encoding)
    if listed(evaluation):
        sources += open_sources(listed(evaluation), columns, encoding=encoding, evaluation=True)
    check_outside(out, [source.name for source in sources])  # globs are files by now
    check_additions(sources, columns, policy)
    revision = [manifest.revision(), manifest.versions(policy), encoding]
    runner: Engine = (
        LocalEngine(workers, reporter) if engine == "local" else RayEngine(ray_address, workers, reporter)
    )
    with closing(runner), workspace(out) as work, _own_tables():
        job = make_job(work.resolve(), columns, languages, policy, revision)
        pipeline = Pipeline(sources, job, runner, revision)
        check_apart(sources, pipeline.fingerprints)
        judgement = pipeline.run()
        result = _Files(out, sources, judgement, runner, encoding, engine, started)
        summary = result.write(pipeline, dry_run)
        if not dry_run:
            pipeline.remove_leftovers()
    return summary


@dataclass(frozen=True)
class _Files:
    out: Path
    sources: Sequence[Source]
    judgement: Judgement
    engine: Engine
    encoding: str
    engine_name: str
    started: float

    def write(self, pipeline: Pipeline, dry_run: bool) -> dict[str, Any]:
        judgement, job = self.judgement, self.judgement.decisions.job
        judged = [shard for shard in judgement.shards if not shard.evaluation]
        rows = sum(shard.rows for shard in judged)
        outputs: list[dict[str, Any]] = []
        if not dry_run:
            names = [source.output_name for source in self.sources if not source.evaluation]
            remove_result(self.out, [f"{manifest.KEPT}/{name}" for name in names])
            before = processor_seconds(self.engine)
            with pipeline.stage("write") as count:
                outputs = write_rows(judgement, self.sources, self.out.absolute(), self.engine)
                count(rows)
            judgement.tally.add_cost("writing", rows, processor_seconds(self.engine) - before)
        with pipeline.stage("what if") as count:
            before = processor_seconds(self.engine)
            alternatives = what_if.run(judgement, self.engine)
            judgement.tally.add_cost("what if", alternatives["rows"], processor_seconds(self.engine) - before)
            count(alternatives["rows"])
        summary = summary_of(judgement, job.languages)
        summary["duplicate_ids"] = duplicate_ids(judgement) if job.columns.id else None
        summary["stages"] = pipeline.stages
        made = manifest.manifest(
            inputs=self._described(pipeline.fingerprints, evaluation=False),
            evaluation=self._described(pipeline.fingerprints, evaluation=True),
            outputs=outputs,
            columns=job.columns,
            languages=job.languages,
            policy=job.policy,
            counts={key: summary[key] for key in ("rows", "kept", "rejected")},
            encoding=self.encoding,
            run=manifest.Run(
                engine=self.engine_name,
                workers=self.engine.workers,
                seconds=time.monotonic() - self.started,
                cost=summary["cost"],
            ),
        )
        folder = self.out / DRY_RUN if dry_run else self.out
        manifest.write_summary(folder, summary)
        report.write_report(folder, summary, judgement.histograms, judgement.bounds, alternatives, made)
        manifest.write_policy(folder, job.policy)
        if not dry_run:
            manifest.write_manifest(folder, made)
        return summary

    def _described(self, fingerprints: Sequence[dict[str, Any]], evaluation: bool) -> list[dict[str, Any]]:
        return [
            fingerprints[number] | {"rows": sum(shard.rows for shard in self.judgement.shards_of(number))}
            for number, source in enumerate(self.sources)
            if source.evaluation == evaluation
        ]


def summary_of(judgement: Judgement, languages: Sequence[str]) -> dict[str, Any]:
    job = judgement.decisions.job
    steps = ["input", *(step.name for step in job.steps)]
    steps += ["duplicates"] if job.policy.duplicates.enabled else []
    steps += ["leakage"] if any(shard.evaluation for shard in judgement.shards) else []
    # A translation counts under the language of its first text: the other's would seem to have lost all rows.
    listed_always = languages if job.policy.language.enabled and not job.columns.translation else ()
    counted = judgement.tally.to_json(listed_always, steps)
    summary = {**counted, "policy": job.policy.model_dump(mode="json"), "languages": list(languages)}
    plain: dict[str, Any] = json.loads(json.dumps(summary))
    return plain


@contextmanager
def _own_tables() -> Iterator[None]:
    """Tables that stay mapped keep their files on the disk; those of a run are let go with it."""
    read_table.cache_clear()
    try:
        yield
    finally:
        read_table.cache_clear()


@contextmanager
def _no_bars() -> Iterator[None]:
    """Of `datasets`, whose bars for single steps of ours would say nothing."""
    were_there = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_there:
            datasets.enable_progress_bars()
