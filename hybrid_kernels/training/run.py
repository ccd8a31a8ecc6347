"""A whole run: load, govern, train and evaluate every cell, measure the footprint, report.

The run's folder:

    config.yaml                          the run's configuration
    malformed.jsonl                      records that could not be read, with file and line
    governance/VARIANT/                  kept, rejected and summary, as `GovernanceResult.write` leaves them
    data/                                the rows before the choice of shots, and those of each part that is predicted
    cells/METHOD.seed-N.shots-N.governance-VARIANT/
                                         adapter/, predictions.npz, result.json (written last); see `plan.run_cell`
    footprint.json                       time per step, peak memory, energy; footprint_error.txt if that failed
    results.json, report.html, report.md, tables/NAME.tex

Each stage is skipped when its result is there and was made from the same content: configuration, rows, model, version.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from hybrid_kernels._files import write_file
from hybrid_kernels.training import distributed
from hybrid_kernels.training.cells import main_variant
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import Row, read_jsonl
from hybrid_kernels.training.files import content_key, stage, write_json
from hybrid_kernels.training.plan import Plan, load_model, make_plan
from hybrid_kernels.training.prepare import prepare
from hybrid_kernels.training.results import (
    groups,
    main_cells,
    method_results,
    missing_table,
    plan_table,
    results_table,
)
from hybrid_kernels.training.tasks import task_of


class NoResult(RuntimeError):
    """Every cell of a run failed."""


def run(
    config: RunConfig,
    output: str | Path | None = None,
    *,
    workers: int = 1,
    footprint: bool = True,
    report: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Does whatever of a run is not done yet.

    Under torchrun or `accelerate launch` every process calls this; they share each batch and each evaluation.

    Args:
        config: what to do.
        output: the run's folder; the configuration's by default.
        workers: cells at a time, in processes of their own if more than 1.
        footprint: measure time per step, memory and energy; without, or where that fails, the results hold None there.
        report: write `report.html`, `report.md` and `tables/`.

    Returns:
        The content of `results.json`; its structure is `hybrid_kernels.evaluation.results.Results`, and besides:
        `cells`, what each of `plan.run_cell` returned, and `missing`, why there is no result of others, by name.

    Raises:
        ValueError, FileNotFoundError: configuration, data or model do not fit, or another run uses the folder.
        NoResult: every cell failed.
    """
    folder = Path(output if output is not None else config.output)
    distributed.start()
    distributed.batch_size_per_process(config.training.batch_size)
    if not distributed.is_first():
        console = Console(quiet=True)
    console = console or Console()
    with _lock(folder):
        return _run(config, folder, workers, footprint, report, console)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps other runs out of the folder; the lock ends with the process, however it ends."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    if not distributed.is_first():
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"run folder {str(folder)!r} is in use by another run; name another with --output"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _run(
    config: RunConfig, folder: Path, workers: int, footprint: bool, report: bool, console: Console
) -> dict[str, Any]:
    from hybrid_kernels.training.pool import execute

    plan = distributed.from_first(lambda: _plan(config, folder, console))
    missing = execute(plan, workers=workers, console=console)
    return distributed.from_first(lambda: _results(plan, missing, footprint, report, console))


def _plan(config: RunConfig, folder: Path, console: Console) -> Plan:
    from hybrid_kernels.training import methods

    write_file(
        folder / "config.yaml",
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    methods.load_tokenizer(config.model.name)
    plan = make_plan(config, folder, prepare(config, folder, console))
    main = len(plan.rows.kept[main_variant(config)])
    console.print(
        f"{main} rows to train on, {len(plan.rows.parts['test'])} to evaluate on, {len(plan.cells)} "
        f"{'cell' if len(plan.cells) == 1 else 'cells'}"
    )
    return plan


def dry_run(config: RunConfig, output: str | Path | None = None, *, console: Console | None = None) -> None:
    """Loads and governs the rows, fits the methods to model and budget, and prints what `run` would do; trains nothing.

    The rows stay in the run's folder, so that `run` starts from them. Arguments and errors are those of `run`.
    """
    folder, console = Path(output if output is not None else config.output), console or Console()
    with _lock(folder):
        console.print(plan_table(_plan(config, folder, console)))


def _results(
    plan: Plan, missing: dict[str, str], footprint: bool, report: bool, console: Console
) -> dict[str, Any]:
    from hybrid_kernels.evaluation import write_report
    from hybrid_kernels.training import methods
    from hybrid_kernels.training.footprint import step_time_note

    config, folder, rows = plan.config, plan.folder, plan.rows
    cells = [found for cell in plan.cells if cell.reported and (found := plan.result(cell)) is not None]
    if missing:
        console.print(missing_table(plan, missing))
    if not cells:
        raise NoResult(
            f"no cell of the run has a result; the first one: {next(iter(missing.values()))} "
            f"(tracebacks: {folder / 'cells' / '*' / 'error.txt'})"
        )
    tokenizer = methods.load_tokenizer(config.model.name)
    model, _ = plan.task.load_model(tokenizer, 0)
    parameters = model.num_parameters()
    del model
    compared = method_results(plan, cells)
    trained = [one["name"] for one in compared if plan.methods[one["name"]].trains]
    measured = _footprint_or_none(plan, trained, tokenizer, console) if footprint and trained else {}
    train_rows = rows.kept[main_variant(config)]
    results = {
        "title": config.title,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **plan.made,
        "config": config.model_dump(mode="json"),
        "model": {"name": methods.display_name(config.model.name), "parameters": parameters},
        "data": {
            "source": config.data.source,
            "languages": plan.task.languages([*train_rows, *rows.parts["test"]]),
            "train_rows_raw": rows.raw,
            "train_rows": max((cell["train_rows"] for cell in main_cells(config, cells)), default=0),
            "evaluation_rows": len(rows.parts["test"]),
            "malformed_rows": rows.malformed,
            "romanised": _romanised(config, rows.parts["test"]),
        },
        "governance": rows.summaries[main_variant(config)],
        "governance_variants": {
            name: {"kept": len(kept), "summary": rows.summaries[name]} for name, kept in rows.kept.items()
        },
        "methods": [one | measured.get(one["name"], _UNMEASURED) for one in compared],
        "step_time_note": step_time_note(config, plan.made) if measured else "Not measured.",
        "cells": cells,
        "missing": missing,
    }
    write_json(folder / "results.json", results)
    if report:
        console.print(f"report: {write_report([folder])}")
    console.print(results_table(results, plan.task))
    return results


_UNMEASURED: dict[str, Any] = {
    "step_time_ratio": None,
    "step_time_spread": None,
    "peak_memory_bytes": None,
    "footprint": None,
}


def _romanised(config: RunConfig, rows: list[Row]) -> list[str]:
    """The ids of test rows whose hypothesis its writer romanised."""
    from hybrid_kernels.evaluation.robustness import natural_romanised
    from hybrid_kernels.governance.scripts import read_tag

    if "hypothesis" not in task_of(config).text_columns:
        return []
    known = [row for row in rows if read_tag(row["language"]) is not None]
    return [row["id"] for row, found in zip(known, natural_romanised(known), strict=True) if found]


def _footprint_or_none(
    plan: Plan, names: list[str], tokenizer: Any, console: Console
) -> dict[str, dict[str, Any]]:
    """Nothing where it cannot be measured, such as for want of memory: the results are there without it."""
    error_file = plan.folder / "footprint_error.txt"
    try:
        found = _footprint(plan, names, tokenizer, console)
    except Exception:
        text = traceback.format_exc()
        write_file(error_file, text)
        console.print(
            f"footprint: not measured: {text.strip().splitlines()[-1]} (traceback: {error_file})",
            markup=False,
            highlight=False,
        )
        return {}
    error_file.unlink(missing_ok=True)
    return found


def _footprint(plan: Plan, names: list[str], tokenizer: Any, console: Console) -> dict[str, dict[str, Any]]:
    """Of these methods, which train."""
    from hybrid_kernels.training.footprint import measure

    config = plan.config
    measured = [plan.methods[name].model_dump() for name in names]
    rows = plan.task.training_rows(plan.rows.kept[main_variant(config)], "all", 0)
    rows = rows[: config.training.batch_size]
    key = content_key(
        plan.made["versions"],
        plan.made["machine"],
        plan.model,
        config.task,
        None if config.prompt is None else config.prompt.prompts,
        config.model.max_length,
        config.training.precision,
        measured,
        rows,
    )
    # An ablation may be of a method that is not measured.
    fitted = RunConfig.model_validate(
        config.model_dump() | {"methods": measured, "governance_ablation": None}
    )
    result, there = stage(plan.folder / "footprint.json", key, lambda: measure(fitted, tokenizer, rows))
    if there:
        console.print("footprint: measured before")
    return dict(result)


def evaluate_run(folder: Path, data: str | None = None, console: Console | None = None) -> dict[str, Any]:
    """Loads every adapter of a run onto a fresh model and evaluates it.

    Under torchrun or `accelerate launch` every process calls this; they share each evaluation.

    Args:
        folder: a run's folder.
        data: another data source, all of whose `data.evaluation_split` is evaluated; the run's own test rows if None.

    Returns:
        {group of cells that differ by the seed: `label`, `evaluation` and `spread` as in results.json}; also written to
        `evaluation.json` in the folder.
    """
    from hybrid_kernels.training import methods
    from hybrid_kernels.training.trainer import predict

    config = load_run_config(folder)
    distributed.start()
    console = (console or Console()) if distributed.is_first() else Console(quiet=True)
    task = task_of(config)
    if data is None:
        rows, _ = read_jsonl(folder / "data" / "test.jsonl")
    else:
        rows = task.load_evaluation(data)
    worked_examples, _ = read_jsonl(folder / "data" / "worked_examples.jsonl")
    tokenizer = methods.load_tokenizer(config.model.name)
    found: dict[str, Any] = {}
    for name, cells in groups(config).items():
        predictions = []
        for cell in cells:
            method, own = config.named_methods[cell.method], folder / "cells" / cell.name
            if method.trains and not (own / "trained.json").is_file():
                console.print(f"{cell.name}: not trained yet, left out")
                continue
            console.print(f"{cell.name}: evaluating")
            model = load_model(task, method, own, tokenizer, cell.seed)
            predictions.append(
                predict(task, model, tokenizer, rows, method=method, worked_examples=worked_examples)
            )
        if predictions:
            label = config.named_methods[cells[0].method].label
            found[name] = {"label": label} | task.over_seeds(predictions)
    if not found:
        raise ValueError(f"run folder {str(folder)!r} has no trained adapter yet")
    if distributed.is_first():
        write_json(folder / "evaluation.json", found)
    return found


def load_run_config(folder: Path) -> RunConfig:
    """The configuration a run's folder was made with."""
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{str(folder)!r} is no folder of a run: it has no config.yaml")
    return RunConfig.load(folder / "config.yaml")
