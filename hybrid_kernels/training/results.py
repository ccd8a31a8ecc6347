"""What a run found: metrics over seeds, and the tables in a terminal."""

from __future__ import annotations

import math
import statistics
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from hybrid_kernels.training.cells import Cell, expand, main_variant, stage_of
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.files import load_predictions, read_json
from hybrid_kernels.training.method_config import distinct_labels
from hybrid_kernels.training.plan import Plan
from hybrid_kernels.training.tasks import Task


def groups(config: RunConfig) -> dict[str, list[Cell]]:
    """The reported cells that differ by the seed alone, by the method's name, with shots and variant if they vary."""
    cells = [cell for cell in expand(config) if cell.reported]
    swept = (
        len({(cell.shots, cell.governance) for cell in cells if config.named_methods[cell.method].trains}) > 1
    )
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        name = f"{cell.method}.shots-{cell.shots}.governance-{cell.governance}" if swept else cell.method
        found.setdefault(name, []).append(cell)
    return found


def main_cells(config: RunConfig, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of the cells that stand for the run: with the most shots of the sweep, governed as it says.

    A method that does not train has one cell, which stands for it.
    """
    chosen = (config.data.all_shots[-1], main_variant(config))
    return [
        cell
        for cell in cells
        if (cell["shots"], cell["governance"]) == chosen or not config.named_methods[cell["method"]].trains
    ]


def method_results(plan: Plan, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`methods` of results.json: the `main_cells` of each, over the seeds that are done."""
    from hybrid_kernels.training.methods import backend

    config, found = plan.config, []
    for name, method in plan.methods.items():
        own = [one for one in main_cells(config, cells) if one["method"] == name]
        if not own:
            continue
        folders = [plan.folder / one["folder"] for one in own]
        trained = read_json(folders[0] / "trained.json")["result"]
        predictions = [load_predictions(folder / "predictions.npz")["test"] for folder in folders]
        found.append(
            {
                "name": name,
                "label": method.label,
                "backend": backend(method),
                "seeds": [one["seed"] for one in own],
                "trainable_parameters": trained["trainable_parameters"],
                "train_loss": statistics.fmean(one["train_loss"] for one in own) if method.trains else None,
                **plan.task.over_seeds(predictions),
                "adapter_bytes": trained["adapter_bytes"],
            }
        )
    return found


def missing_table(plan: Plan, missing: dict[str, str]) -> Table:
    """The cells without a result, and why."""
    table = Table(
        "cell", "why", title=f"{len(missing)} of {len(plan.cells)} cells are missing", box=box.SIMPLE_HEAD
    )
    for name, reason in missing.items():
        table.add_row(escape(name), escape(reason))
    table.caption = (
        f"tracebacks: {plan.folder / 'cells' / '*' / 'error.txt'}; run the same command again to try again"
    )
    return table


def plan_table(plan: Plan) -> Table:
    """The methods as fitted to the budget, with their cells, and what these train on and predict."""
    table = Table(title=plan.config.title, box=box.SIMPLE_HEAD)
    table.add_column("method")
    for name in ("cells", "done", "training steps to go", "predictions to go"):
        table.add_column(name, justify="right")
    totals = [0, 0, 0, 0]
    for name in plan.methods:
        own = [cell for cell in plan.cells if cell.method == name]
        todo = [cell for cell in own if plan.result(cell) is None]
        steps = sum(training_steps(plan, cell) for cell in todo)
        predictions = sum(
            len(rows) for cell in todo for rows in plan.rows.parts_of(plan.config, cell).values()
        )
        numbers = [len(own), len(own) - len(todo), steps, predictions]
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        table.add_row(escape(plan.labels[name]), *(f"{number:,}" for number in numbers))
    table.add_section()
    table.add_row("all", *(f"{total:,}" for total in totals))
    table.caption = f"a step is of {plan.config.training.batch_size} rows; folder: {plan.folder}"
    return table


def training_steps(plan: Plan, cell: Cell) -> int:
    """Optimizer steps of a cell's training; rows that turn out too long make them fewer."""
    method = plan.methods[cell.method]
    if not method.trains:
        return 0
    stage = stage_of(plan.config, method, cell.is_source)
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    rows = len(plan.rows.of(plan.config, cell))
    return math.ceil(stage.epochs * math.ceil(rows / plan.config.training.batch_size))


def results_table(results: dict[str, Any], task: Task) -> Table:
    """The comparison that a run ends in."""
    table = Table(title=results["title"], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method")  # wraps, so that no number is cut
    if not results["methods"]:
        table.caption = "no method has a result with the most shots; the other cells are in results.json"
        return table
    # The leading three: more do not fit into a terminal of 80 columns.
    found = [dict(list(task.columns(one["evaluation"]).items())[:3]) for one in results["methods"]]
    for name in ("train\nloss", *found[0], "step\ntime", "peak\nMiB"):
        table.add_column(name, justify="right", no_wrap=True)
    labels = distinct_labels({one["name"]: one["label"] for one in results["methods"]})
    for method, columns in zip(results["methods"], found, strict=True):
        loss, ratio, peak = (method[name] for name in ("train_loss", "step_time_ratio", "peak_memory_bytes"))
        table.add_row(
            labels[method["name"]],
            "–" if loss is None else f"{loss:.3f}",
            *columns.values(),
            "–" if ratio is None else f"{ratio:.2f}×",
            "–" if peak is None else f"{peak / 2**20:.0f}",
        )
    table.caption = (
        f"{task.caption}; step time: a training step against the frozen model's forward and input gradient; "
        "peak memory: above the loaded model's"
    )
    return table
