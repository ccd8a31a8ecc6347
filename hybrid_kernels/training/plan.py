"""All that a run's cells need, and the work of one cell. A plan is sent to worker processes as it is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_kernels._files import write_file
from hybrid_kernels.training import distributed
from hybrid_kernels.training.cells import Cell, expand, prediction_key, source_of, training_key
from hybrid_kernels.training.circumstances import circumstances
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import Row
from hybrid_kernels.training.files import content_key, save_predictions, stored_result, write_json
from hybrid_kernels.training.method_config import distinct_labels
from hybrid_kernels.training.prepare import Rows
from hybrid_kernels.training.tasks import Task, task_of

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from transformers import PreTrainedTokenizerBase

#: (what is under way, done, total)
Report = Callable[[str, int, int], None]


@dataclass
class Plan:
    """`methods` are the configuration's by name, fitted to the budget; `model` is the pretrained one's fingerprint.

    `made`: on what cells are made now, which of another time may have been made on something else.
    """

    config: RunConfig
    folder: Path
    rows: Rows
    methods: dict[str, Any]
    model: list[Any]
    made: dict[str, Any]
    cells: list[Cell] = field(init=False)
    _row_keys: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cells = expand(self.config)

    @property
    def task(self) -> Task:
        return task_of(self.config)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The methods' labels by name."""
        return distinct_labels({name: method.label for name, method in self.methods.items()})

    def folder_of(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def describe(self, cell: Cell) -> str:
        """For a reader: what tells the cell from the run's others."""
        parts = [self.labels[cell.method], f"seed {cell.seed}"]
        if len({other.shots for other in self.cells}) > 1:
            parts.append(f"{cell.shots} shots" if self.methods[cell.method].trains else "no training")
        if len({other.governance for other in self.cells}) > 1:
            parts.append(f"governance: {cell.governance}")
        return ", ".join(parts)

    def training_key(self, cell: Cell) -> str:
        source = source_of(self.config, cell)
        if not self.methods[cell.method].trains:
            return training_key(self.config, cell, self.methods[cell.method], self.model, "", None)
        place = (cell.governance, cell.shots, cell.seed)
        if place not in self._row_keys:
            self._row_keys[place] = content_key(self.rows.of(self.config, cell))
        return training_key(
            self.config,
            cell,
            self.methods[cell.method],
            self.model,
            self._row_keys[place],
            None if source is None else self.training_key(source),
        )

    def prediction_key(self, cell: Cell) -> str:
        method = self.methods[cell.method]
        shown = self.rows.worked_examples if self.config.prompt_shots(method) else []
        parts = self.rows.parts_of(self.config, cell) | {"worked examples": shown}
        for name, rows in parts.items():
            if ("part", name, len(rows)) not in self._row_keys:
                self._row_keys["part", name, len(rows)] = content_key(rows)
        return prediction_key(
            self.training_key(cell),
            self.config,
            self.task.settings(method),
            {name: self._row_keys["part", name, len(rows)] for name, rows in parts.items()},
        )

    def card(
        self, cell: Cell, rows: list[Row], trainable_parameters: int, metrics: dict[str, Any]
    ) -> ModelCard:
        """The model card of a cell's adapter; `metrics` of each part, of which the card has the test part's."""
        from hybrid_kernels.training.methods import display_name
        from hybrid_kernels.training.model_card import model_card

        shots = "all rows" if cell.shots == "all" else f"{cell.shots} rows for each of the {self.task.groups}"
        macro = metrics.get("test", {}).get("macro", {})
        return model_card(
            base_model=display_name(self.config.model.name),
            method=self.methods[cell.method],
            task=self.task.kind,
            languages=self.task.languages(rows),
            data="the source stage's rows" if cell.is_source else f"{shots} of {self.config.data.source}",
            governance=None if cell.is_source else self.rows.summaries[cell.governance],
            metrics={f"{name}, mean over {self.task.groups}": value for name, value in macro.items()},
            trainable_parameters=trainable_parameters,
        )

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What `run_cell` left under the present key; None where it has not finished."""
        result: dict[str, Any] | None = stored_result(
            self.folder_of(cell) / "result.json", self.prediction_key(cell)
        )
        return result


def make_plan(config: RunConfig, folder: Path, rows: Rows) -> Plan:
    """The plan of a run; ValueError where a method fits neither model nor budget, or a row no prompt."""
    from hybrid_kernels.training.methods import load_tokenizer, model_fingerprint

    tokenizer = load_tokenizer(config.model.name)
    methods = fitted_methods(config, tokenizer)
    plan = Plan(config, folder, rows, methods, model_fingerprint(config.model.name), circumstances())
    todo = [cell for cell in plan.cells if plan.result(cell) is None]
    # Methods train on the same rows.
    trained = {(cell.governance, cell.shots, cell.seed): cell for cell in todo if methods[cell.method].trains}
    plan.task.check_rows(
        tokenizer,
        chain.from_iterable(rows.of(config, cell) for cell in trained.values()),
        chain.from_iterable(chain.from_iterable(rows.parts_of(config, cell).values()) for cell in todo),
    )
    return plan


def fitted_methods(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The methods by name, of the sizes closest to the budget; ValueError where one does not fit the model."""
    from hybrid_kernels.training.methods import check_fits

    task = task_of(config)
    model, head = task.load_model(tokenizer, 0)
    found = dict(config.named_methods)
    if config.budget is not None:
        from hybrid_kernels.training.budget import fit_budget

        found = {name: fit_budget(method, model, config.budget, head=head) for name, method in found.items()}
    for method in found.values():
        if method.trains:  # its first cell may be hours away
            check_fits(method, model, head, task.kind)
    return found


def run_cell(plan: Plan, cell: Cell, tokenizer: PreTrainedTokenizerBase, report: Report) -> dict[str, Any]:
    """Trains a cell and predicts the run's parts with the adapter as it was saved; does what is not done yet.

    Leaves in the cell's folder: adapter/ (of a method that trains), trained.json (`trainer.Trained`),
    training_rows.json (their ids), predictions.npz (`files.load_predictions`) and, written last, result.json.

    Returns:
        The content of result.json: the cell, `label`, `backend`, `folder` (relative to the run's), `train_rows`,
        `seconds`, `trainable_parameters`, `train_loss`, `adapter_bytes`, `metrics` of each part, and `made`.
    """
    from hybrid_kernels.training.trainer import predict, train

    started = time.monotonic()
    config, folder, task = plan.config, plan.folder_of(cell), plan.task
    rows, source, method = plan.rows.of(config, cell), source_of(config, cell), plan.methods[cell.method]
    trained = train(
        config,
        method,
        cell.seed,
        tokenizer,
        rows,
        folder,
        plan.training_key(cell),
        is_source=cell.is_source,
        start=None if source is None else plan.folder_of(source),
        progress=partial(report, "training"),
    )

    def predictions() -> dict[str, Any]:
        # Not with the model in memory: whether the run was interrupted may not show, and `evaluate` finds the same.
        model = load_model(task, method, folder, tokenizer, cell.seed)
        parts = plan.rows.parts_of(config, cell)
        found = {}
        for name, part in parts.items():
            found[name] = predict(
                task,
                model,
                tokenizer,
                part,
                method=method,
                worked_examples=plan.rows.worked_examples,
                progress=partial(report, f"predicting {name}"),
                path=folder / "decoding" / name,
                key=plan.prediction_key(cell),
            )
        left_out = set(trained.left_out)
        if distributed.is_first():
            save_predictions(folder / "predictions.npz", found)
            write_json(
                folder / "training_rows.json", [row["id"] for row in rows if row["id"] not in left_out]
            )
            shutil.rmtree(folder / "decoding", ignore_errors=True)
        metrics = {name: task.metrics(arrays) for name, arrays in found.items()}
        if distributed.is_first() and method.trains:
            card = plan.card(cell, rows, trained.trainable_parameters, metrics)
            write_file(folder / "adapter" / "README.md", str(card))
        return asdict(cell) | {
            "label": method.label,
            "backend": method.backend,
            "folder": str(folder.relative_to(plan.folder)),
            "train_rows": len(rows) - len(left_out),
            "seconds": round(time.monotonic() - started, 2),
            "trainable_parameters": trained.trainable_parameters,
            "train_loss": trained.train_loss,
            "adapter_bytes": trained.adapter_bytes,
            "metrics": metrics,
            "made": plan.made,
        }

    result, _ = distributed.shared_stage(folder / "result.json", plan.prediction_key(cell), predictions)
    return dict(result)


def load_model(task: Task, method: Any, folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    """A cell's model as it was saved in the cell's folder, where predictions are made."""
    model: Any = (
        task.load_trained(folder / "adapter", tokenizer, seed)
        if method.trains
        else task.load_model(tokenizer, seed)[0]
    )
    return model.to(_trained_device())


def _trained_device() -> Any:
    """Where the Trainer puts the model of this process."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
