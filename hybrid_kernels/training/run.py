"""A whole run: load, govern, train and evaluate every method with every seed, measure the footprint, report.

The run's folder:

    malformed.jsonl                       records that could not be read, with file and line
    governance/                           kept, rejected and summary, as `GovernanceResult.write` leaves them
    data/train.jsonl, data/test.jsonl     the rows trained and evaluated on
    methods/NAME/seed-N/                  adapter/, predictions.npz, result.json (written last)
    footprint.json                        time per step, peak memory
    results.json, report.html, report.md

Each stage is skipped when its result is there and was made from the same content: configuration, rows, model, version.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

import hybrid_kernels
from hybrid_kernels._files import write_file
from hybrid_kernels.training.config import DataConfig, RunConfig
from hybrid_kernels.training.data import (
    NliData,
    Row,
    available_splits,
    load_nli,
    sample_shots,
    split_by_premise,
    write_jsonl,
)
from hybrid_kernels.training.files import content_key, read_json, stage, write_json
from hybrid_kernels.training.results import (
    commit,
    evaluate_predictions,
    machine,
    method_results,
    results_table,
    versions,
)

_GOVERNED_FIELDS = ("id", "item", "language", "premise", "hypothesis", "label")


def run(
    config: RunConfig,
    output: str | Path | None = None,
    *,
    footprint: bool = True,
    report: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Does whatever of a run is not done yet.

    Args:
        config: what to do.
        output: the run's folder; the configuration's by default.
        footprint: measure time per step and peak memory; without, the results hold None there.
        report: write `report.html` and `report.md`.

    Returns:
        The content of `results.json`; its structure is `hybrid_kernels.evaluation.results.Results`.
    """
    folder = Path(output if output is not None else config.output)
    console = console or Console()
    folder.mkdir(parents=True, exist_ok=True)
    write_file(
        folder / "config.yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )

    raw, evaluation, malformed = load_data(config)
    write_jsonl(malformed, folder / "malformed.jsonl")
    if malformed:
        console.print(
            f"{len(malformed)} malformed records skipped, the first at {malformed[0]['file']}:{malformed[0]['line']}"
            f" ({malformed[0]['reason']}); all in {folder / 'malformed.jsonl'}"
        )
    kept, summary = _govern(config, raw, folder, console)
    train_rows = sample_shots(kept, config.data.shots, config.data.seed)
    if not train_rows:
        raise ValueError(f"governance kept none of {len(raw)} training rows; see {folder / 'governance'}")
    _warn_of_missing_shots(config.data, train_rows, console)
    write_jsonl(train_rows, folder / "data" / "train.jsonl")
    write_jsonl(evaluation, folder / "data" / "test.jsonl")
    console.print(f"{len(train_rows)} rows to train on, {len(evaluation)} to evaluate on")

    from hybrid_kernels.training import methods

    tokenizer = methods.load_tokenizer(config.model.name)
    trained = _train(config, tokenizer, train_rows, evaluation, folder, console)
    measured = _footprint(config, tokenizer, train_rows, folder, console) if footprint else {}
    from hybrid_kernels.training.footprint import step_time_note

    model, _ = methods.load_classifier(config.model.name, tokenizer.pad_token_id, seed=0)
    results = {
        "title": config.title,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "config": config.model_dump(mode="json"),
        "model": {"name": methods.display_name(config.model.name), "parameters": model.num_parameters()},
        "data": {
            "source": config.data.source,
            "languages": sorted(
                {row["language"] for row in train_rows} | {row["language"] for row in evaluation}
            ),
            "train_rows_raw": len(raw),
            "train_rows": len(train_rows),
            "evaluation_rows": len(evaluation),
            "malformed_rows": len(malformed),
        },
        "governance": summary,
        "methods": [
            method_results(config, name, trained[name], folder) | measured.get(name, _UNMEASURED)
            for name in config.named_methods
        ],
        "step_time_note": step_time_note(config) if footprint else "Not measured.",
    }
    write_json(folder / "results.json", results)
    if report:
        write_report_of(folder, console)
    console.print(results_table(results))
    return results


_UNMEASURED: dict[str, Any] = {"step_time_ratio": None, "step_time_spread": None, "peak_memory_bytes": None}


def load_data(config: RunConfig) -> tuple[list[Row], list[Row], list[Row]]:
    """(training rows before governance, evaluation rows, malformed records)."""
    data = config.data

    def load(split: str, languages: list[str] | None) -> NliData:
        return load_nli(data.source, split, languages, rows_per_language=data.rows_per_language)

    splits = available_splits(data.source)
    for name in ("train_split", "evaluation_split"):
        if getattr(data, name) not in splits:
            raise ValueError(
                f"data.{name} is {getattr(data, name)!r}, but {data.source!r} has only {', '.join(splits)}"
            )
    train = load(data.train_split, data.languages)
    languages = config.evaluation.languages or data.languages
    if data.train_split == data.evaluation_split:
        train_rows, evaluation_rows = split_by_premise(train.rows, data.evaluation_fraction, data.seed)
        evaluation_rows = [
            row for row in evaluation_rows if languages is None or row["language"] in languages
        ]
        malformed = train.malformed
    else:
        evaluation = load(data.evaluation_split, languages)
        train_rows, evaluation_rows = train.rows, evaluation.rows
        malformed = train.malformed + evaluation.malformed
    evaluation_rows = sample_shots(evaluation_rows, config.evaluation.max_rows_per_language, data.seed)
    there = {row["language"] for row in evaluation_rows}
    if missing := sorted(
        {config.evaluation.reference_language, *(config.evaluation.languages or ())} - there
    ):
        raise ValueError(
            f"no evaluation rows in {', '.join(missing)}; there are rows in {', '.join(sorted(there))}"
        )
    return train_rows, evaluation_rows, malformed


def govern_rows(config: RunConfig, rows: list[Row], folder: Path) -> dict[str, Any]:
    """Governs the rows, writes kept and rejected ones to `folder`; returns the ids kept and the summary."""
    from hybrid_kernels.governance import govern

    result = govern(
        [{name: row[name] for name in _GOVERNED_FIELDS} for row in rows],
        sorted({row["language"] for row in rows}),
        text_columns=["premise", "hypothesis"],
        language_column="language",
        policy=config.governance,
        id_column="id",
    )
    result.write(folder)
    return {"kept": list(result.kept["id"]), "summary": result.summary}


def _govern(
    config: RunConfig, rows: list[Row], folder: Path, console: Console
) -> tuple[list[Row], dict[str, Any] | None]:
    if config.governance is None:
        return rows, None
    key = content_key(hybrid_kernels.__version__, config.governance.model_dump(mode="json"), rows)
    result, there = stage(
        folder / "governance" / "done.json", key, lambda: govern_rows(config, rows, folder / "governance")
    )
    summary = result["summary"]
    console.print(f"governance {'(done before) ' * there}kept {summary['kept']} of {summary['rows']} rows")
    kept = set(result["kept"])
    return [row for row in rows if row["id"] in kept], summary


def _train(
    config: RunConfig,
    tokenizer: Any,
    train_rows: list[Row],
    evaluation_rows: list[Row],
    folder: Path,
    console: Console,
) -> dict[str, list[dict[str, Any]]]:
    """The training's record of each method's seeds, by method name."""
    from hybrid_kernels.training.methods import model_fingerprint
    from hybrid_kernels.training.trainer import train

    shared = [
        hybrid_kernels.__version__,
        model_fingerprint(config.model.name),
        config.model.max_length,
        config.training.model_dump(exclude={"seeds", "checkpoint_steps"}),
        config.evaluation.model_dump(include={"batch_size"}),
        train_rows,
        evaluation_rows,
    ]
    trained: dict[str, list[dict[str, Any]]] = {}
    for name, method in config.named_methods.items():
        for seed in config.training.seeds:
            own = folder / "methods" / name / f"seed-{seed}"
            key = content_key(*shared, method.model_dump(), seed)

            def compute(
                method: Any = method, seed: int = seed, own: Path = own, key: str = key
            ) -> dict[str, Any]:
                console.print(f"{method.label}, seed {seed}: training")
                return asdict(train(config, method, seed, tokenizer, train_rows, evaluation_rows, own, key))

            result, there = stage(own / "result.json", key, compute)
            if there:
                console.print(f"{method.label}, seed {seed}: done before")
            trained.setdefault(name, []).append(result)
    return trained


def _footprint(
    config: RunConfig, tokenizer: Any, rows: list[Row], folder: Path, console: Console
) -> dict[str, dict[str, Any]]:
    from hybrid_kernels.training.footprint import measure
    from hybrid_kernels.training.methods import model_fingerprint

    rows = rows[: config.training.batch_size]
    key = content_key(
        hybrid_kernels.__version__,
        machine(),
        model_fingerprint(config.model.name),
        config.model.max_length,
        [method.model_dump() for method in config.methods],
        rows,
    )
    result, there = stage(folder / "footprint.json", key, lambda: measure(config, tokenizer, rows))
    if there:
        console.print("footprint: measured before")
    return result


def evaluate_run(folder: Path, data: str | None = None, console: Console | None = None) -> dict[str, Any]:
    """Loads every adapter of a run onto a fresh model and evaluates it.

    Args:
        folder: a run's folder.
        data: another data source for the evaluation rows; the run's own rows if None.

    Returns:
        {method name: `evaluation` and `spread` as in results.json}; also written to `evaluation.json` in the folder.
    """
    config = load_run_config(folder)
    console = console or Console()
    if data is None:
        rows = load_nli(folder / "data", "test").rows
    else:
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": data})})
        rows = load_data(config)[1]
    from hybrid_kernels.training import methods
    from hybrid_kernels.training.trainer import predict

    tokenizer = methods.load_tokenizer(config.model.name)
    found: dict[str, Any] = {}
    for name, method in config.named_methods.items():
        predictions = []
        for seed in config.training.seeds:
            adapter = folder / "methods" / name / f"seed-{seed}" / "adapter"
            if not adapter.is_dir():
                console.print(f"{method.label}, seed {seed}: not trained yet, left out")
                continue
            model = methods.load_trained(adapter, config.model.name, tokenizer.pad_token_id, seed)
            probabilities = predict(
                model,
                tokenizer,
                rows,
                max_length=config.model.max_length,
                batch_size=config.evaluation.batch_size,
                description=f"{method.label}, seed {seed}",
            )
            predictions.append(
                {
                    "probabilities": probabilities,
                    "labels": np.array([row["label"] for row in rows]),
                    "languages": np.array([row["language"] for row in rows]),
                }
            )
        if predictions:
            found[name] = {"label": method.label} | evaluate_predictions(
                predictions, config.evaluation.reference_language
            )
    if not found:
        raise ValueError(f"run folder {str(folder)!r} has no trained adapter yet")
    write_json(folder / "evaluation.json", found)
    return found


def load_run_config(folder: Path) -> RunConfig:
    """The configuration a run's folder was made with."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{str(folder)!r} is no folder of a run: it has no config.yaml")
    return RunConfig.load(folder / "config.yaml")


def write_report_of(folder: Path, console: Console | None = None) -> Path:
    """Writes report.html and report.md from results.json in a run's folder."""
    from hybrid_kernels.evaluation import write_report

    if not (folder / "results.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no results.json; `hybrid-kernels run` or `train` writes it"
        )
    path = write_report(read_json(folder / "results.json"), folder)
    (console or Console()).print(f"report: {path}")
    return path


def _warn_of_missing_shots(data: DataConfig, rows: list[Row], console: Console) -> None:
    counts = Counter(row["language"] for row in rows)
    if data.shots is not None and (few := {name: n for name, n in sorted(counts.items()) if n < data.shots}):
        console.print(
            f"fewer than {data.shots} training rows in: {', '.join(f'{k} ({n})' for k, n in few.items())}"
        )
