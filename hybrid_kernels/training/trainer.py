"""Training and prediction of one method with one seed, resumable."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)

from hybrid_kernels._files import write_file
from hybrid_kernels.adapters import HybridTrainer, mixing_values
from hybrid_kernels.training import methods
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import LABELS, Row
from hybrid_kernels.training.files import read_json
from hybrid_kernels.training.method_config import AnyMethod

MIXING_RECORDS = 50


@dataclass(frozen=True)
class Trained:
    """What is known of one trained method and seed; everything else is in its folder."""

    trainable_parameters: int
    train_loss: float
    adapter_bytes: int
    history: list[dict[str, Any]]
    mixing_history: list[dict[str, Any]]


class MethodTrainer(HybridTrainer):
    """Logs the cross-entropy without the penalty, the same for every method, and λ of hybrid layers now and then."""

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        # Logged at every step, so the last penalty belongs to this loss. In the log history, mixing survives a resume.
        if "loss" in logs:
            logs["loss"] -= self.last_penalty.item()
            if not math.isfinite(logs["loss"]):
                raise FloatingPointError(
                    f"the training loss is {logs['loss']} at step {self.state.global_step}; lower the learning rate "
                    f"(it is {self.args.learning_rate})"
                )
            if (
                self.is_hybrid
                and self.state.global_step % max(1, self.state.max_steps // MIXING_RECORDS) == 0
            ):
                assert self.model is not None
                logs["mixing"] = mixing_values(self.model)
        super().log(logs, *args, **kwargs)


class _Bar(TrainerCallback):
    """A progress bar with the loss."""

    def __init__(self, label: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
        )
        self.task = self.progress.add_task(label, loss=float("nan"))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.progress.update(self.task, completed=state.global_step, loss=logs["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.stop()


def tokenize(tokenizer: PreTrainedTokenizerBase, rows: list[Row], max_length: int) -> list[dict[str, Any]]:
    """Premise–hypothesis pairs as token ids with `labels`; the longer part of a long pair is cut."""
    encoded = tokenizer(
        [row["premise"] for row in rows],
        [row["hypothesis"] for row in rows],
        truncation="longest_first",
        max_length=max_length,
    )
    return [
        {name: values[i] for name, values in encoded.items()} | {"labels": row["label"]}
        for i, row in enumerate(rows)
    ]


def batches(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[dict[str, Any]], batch_size: int, device: Any
) -> Iterator[methods.Batch]:
    """Padded batches in the order of `examples`."""
    collate = DataCollatorWithPadding(tokenizer)
    for start in range(0, len(examples), batch_size):
        batch = collate(list(examples[start : start + batch_size]))
        yield {name: values.to(device) for name, values in batch.items()}


def predict(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    *,
    max_length: int,
    batch_size: int,
    description: str,
) -> np.ndarray:
    """Class probabilities (rows, classes), float64; batches hold pairs of like length."""
    examples = tokenize(tokenizer, rows, max_length)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
    device = next(model.parameters()).device
    parts = []
    model.eval()
    with torch.inference_mode():
        for batch in track(
            batches(tokenizer, [examples[i] for i in order], batch_size, device),
            description=description,
            total=-(-len(examples) // batch_size),
        ):
            batch.pop("labels")
            parts.append(model(**batch).logits.double().softmax(dim=-1).cpu())
    probabilities = np.empty((len(rows), len(LABELS)))
    probabilities[order] = torch.cat(parts).numpy()
    return probabilities


def train(
    config: RunConfig,
    method: AnyMethod,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: list[Row],
    evaluation_rows: list[Row],
    folder: Path,
    key: str,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Trains one method with one seed and predicts the evaluation rows.

    Leaves in `folder`: `adapter/` and `predictions.npz` (see `load_predictions`), and during training `checkpoints/`.
    If the folder has a whole checkpoint made under the same `key`, training goes on from it with the same result.
    """
    checkpoint = _prepare(folder, key)
    base, head = methods.load_classifier(config.model.name, tokenizer.pad_token_id, seed)
    model = methods.add_adapter(base, head, method, seed)
    examples = tokenize(tokenizer, train_rows, config.model.max_length)
    arguments = _arguments(config, method, seed, folder)
    trainer = MethodTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[_Bar(f"{method.label}, seed {seed}"), *callbacks],
        orthogonality_weight=methods.orthogonality_weight(method),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    # Also before a resume: a checkpoint loads into an adapter of the same make.
    count = config.training.batch_size
    order = np.random.default_rng(seed).permutation(len(examples))
    first = batches(tokenizer, [examples[i] for i in order], count, model.device)
    methods.initialize(model, method, first)
    methods.set_seed(seed)
    bar = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, _Bar))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        bar.progress.stop()

    probabilities = predict(
        model,
        tokenizer,
        evaluation_rows,
        max_length=config.model.max_length,
        batch_size=config.evaluation.batch_size,
        description=f"{method.label}, evaluation",
    )
    save_predictions(folder / "predictions.npz", probabilities, evaluation_rows)
    model.save_pretrained(str(folder / "adapter"))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    last_epoch = [entry["loss"] for entry in logs if entry["epoch"] > logs[-1]["epoch"] - 1]
    return Trained(
        trainable_parameters=methods.trainable_parameters(model),
        train_loss=float(np.mean(last_epoch)),
        adapter_bytes=sum(file.stat().st_size for file in (folder / "adapter").glob("*.safetensors")),
        history=[
            {name: entry.get(name) for name in ("step", "epoch", "loss", "grad_norm", "learning_rate")}
            for entry in logs
        ],
        mixing_history=[
            {"step": entry["step"], "values": entry["mixing"]} for entry in logs if "mixing" in entry
        ],
    )


def save_predictions(path: Path, probabilities: np.ndarray, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            probabilities=probabilities,
            labels=np.array([row["label"] for row in rows]),
            languages=np.array([row["language"] for row in rows]),
            ids=np.array([row["id"] for row in rows]),
        )
    partial.replace(path)


def load_predictions(path: Path) -> dict[str, np.ndarray]:
    """`probabilities` (n, classes), `labels` (n,), `languages` (n,), `ids` (n,)."""
    with np.load(path) as file:
        return dict(file)


def _arguments(config: RunConfig, method: AnyMethod, seed: int, folder: Path) -> TrainingArguments:
    training = config.training
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=training.epochs or 1,
        max_steps=training.steps or -1,
        per_device_train_batch_size=training.batch_size,
        learning_rate=method.learning_rate or training.learning_rate,
        # Trainer reads a number below one as a fraction of the steps.
        warmup_steps=training.warmup_fraction,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=training.checkpoint_steps,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _prepare(folder: Path, key: str) -> str | None:
    """Empties a folder made under another key; returns the last whole checkpoint of this one."""
    key_file = folder / "key"
    if not key_file.is_file() or key_file.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_file(key_file, key)
    checkpoints = sorted(
        (folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )
    return next((str(path) for path in reversed(checkpoints) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    # Trainer writes its state last.
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, json.JSONDecodeError):
        return False
    return True
