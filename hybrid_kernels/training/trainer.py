"""Training and prediction of one cell, resumable; in one process or in several that share each batch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)

from hybrid_kernels._files import write_file
from hybrid_kernels.adapters import HybridTrainer, mixing_values
from hybrid_kernels.training import distributed, methods
from hybrid_kernels.training.cells import Stage, stage_of
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import Row, clusters
from hybrid_kernels.training.files import read_json
from hybrid_kernels.training.method_config import AnyMethod
from hybrid_kernels.training.sampling import LengthBucketedSampler
from hybrid_kernels.training.tasks import Arrays, Progress, Task, task_of

MIXING_RECORDS = 50
#: of the history; the rest of a log entry is what callbacks measured
_LOGGED = ("step", "epoch", "loss", "grad_norm", "learning_rate", "mixing")


@dataclass(frozen=True)
class Trained:
    """What is known of one training; everything else is in its folder.

    `history` has a dict for each step: step, epoch, loss (without the penalty), grad_norm, learning_rate, and whatever
    callbacks logged. `trainable` names the parameters that were trained, so that a later stage goes on with them.
    `left_out` has the ids of rows that are too long. Of a method that does not train all is empty, and the loss None.
    """

    trainable_parameters: int
    train_loss: float | None
    adapter_bytes: int
    history: list[dict[str, Any]]
    mixing_history: list[dict[str, Any]]
    trainable: list[str]
    left_out: list[str]


class MethodTrainer(HybridTrainer):
    """Logs the cross-entropy without the penalty, the same for every method, and λ of hybrid layers now and then.

    Args:
        bucket_size: of batches of like length; None: rows are shuffled.
    """

    def __init__(self, *args: Any, bucket_size: int | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bucket_size = bucket_size

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.bucket_size is None:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset
        return LengthBucketedSampler(
            [len(row["input_ids"]) for row in rows], self.bucket_size, self.args.data_seed or 0
        )

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
                logs["mixing"] = mixing_values(self.accelerator.unwrap_model(self.model))
        super().log(logs, *args, **kwargs)


class _Steps(TrainerCallback):
    """Tells how far the training is."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.progress(state.global_step, state.max_steps)
        if state.global_step >= state.max_steps:
            # From a checkpoint of the last step Trainer would go on with one step more.
            control.should_save = False
        return control


class _Diagnostics(TrainerCallback):
    """Logs gradient norms by branch, and how far structured layers are from orthogonal, when λ is logged."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from hybrid_kernels.training.diagnostics import branch_gradient_norms, orthogonality_defect

        # The step under way is counted when it is over.
        if (state.global_step + 1) % max(1, state.max_steps // MIXING_RECORDS) == 0:
            model = kwargs["model"]
            self.found = {
                "branch_gradient_norms": branch_gradient_norms(model),
                "orthogonality_defect": orthogonality_defect(model),
            }

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and self.found:
            # Taken after Trainer's clipping, whose factor this is.
            factor = max(1.0, (float(logs["grad_norm"]) + 1e-6) / args.max_grad_norm)
            norms = self.found["branch_gradient_norms"]
            self.found["branch_gradient_norms"] = {name: factor * norm for name, norm in norms.items()}
            # Trainer has put a copy into its history already.
            state.log_history[-1].update(self.found)
            logs.update(self.found)
            self.found = {}


class _TensorBoard(TrainerCallback):
    """Event files with every number that is logged; a dict, such as λ by layer, becomes a group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            # Events after the checkpoint that this training goes on from are hidden.
            self.writer = SummaryWriter(str(self.folder), purge_step=state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.writer is None:
            return
        for name, value in (logs or {}).items():
            group = value if isinstance(value, dict) else {None: value}
            for part, number in group.items():
                tag = f"train/{name}" if part is None else f"{name}/{part}"
                self.writer.add_scalar(tag, number, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.writer is not None:
            self.writer.close()


def batches(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[dict[str, Any]],
    batch_size: int,
    device: Any,
) -> Iterator[methods.Batch]:
    """Padded batches in the order of `examples`."""
    collate = task.collator(tokenizer)
    for start in range(0, len(examples), batch_size):
        batch = collate(list(examples[start : start + batch_size]))
        yield {name: values.to(device) for name, values in batch.items()}


def predict(
    task: Task,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    method: AnyMethod,
    worked_examples: Sequence[Row] = (),
    progress: Progress = lambda done, total: None,
    path: Path | None = None,
    key: str = "",
) -> Arrays:
    """The arrays of all rows, as `files.load_predictions` has those of a part; each process predicts its share.

    Other arguments are as in `Task.predict`; each process keeps what it has done in a file of its own beside `path`.
    """
    size = distributed.world_size()
    mine = rows[distributed.rank() :: size]
    if path is not None:
        path = path.with_name(f"{path.name}.{distributed.rank()}-of-{size}.jsonl")
    shares = distributed.gathered(
        task.predict(
            model,
            tokenizer,
            mine,
            method=method,
            worked_examples=worked_examples,
            progress=progress,
            path=path,
            key=key,
        )
        if mine
        else {}
    )
    found: Arrays = {}
    for name, first in shares[0].items():
        found[name] = np.empty(
            (len(rows), *first.shape[1:]), dtype=np.result_type(*(s[name] for s in shares if s))
        )
        for own, share in enumerate(shares):
            if share:
                found[name][own::size] = share[name]
    for name, column in (("ids", "id"), ("items", "item"), ("languages", "language")):
        found[name] = np.array([row[column] for row in rows])
    found["clusters"] = np.array(clusters(rows, task.text_columns[0]))
    return found


def train(
    config: RunConfig,
    method: AnyMethod,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    folder: Path,
    key: str,
    *,
    is_source: bool = False,
    start: Path | None = None,
    progress: Progress = lambda done, total: None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Trains one method with one seed, unless that was done under the same `key`.

    Leaves `adapter/` and `trained.json` (written last) in `folder`, and during training `checkpoints/`. If the folder
    has a whole checkpoint made under the same `key`, training goes on from it with the same result.

    Args:
        method: one of the configuration's methods, as fitted to the budget.
        rows: to train on, in an order that depends on the seed alone.
        is_source: the source stage's length and learning rate hold.
        start: folder of a cell whose adapter this one starts from.
        progress: is told of each step.
    """

    def compute() -> dict[str, Any]:
        if not method.trains:
            return asdict(Trained(0, None, 0, [], [], [], []))
        return asdict(
            _train(config, method, seed, tokenizer, rows, folder, key, is_source, start, progress, callbacks)
        )

    result, _ = distributed.shared_stage(folder / "trained.json", key, compute)
    if distributed.is_first():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return Trained(**result)


def _train(
    config: RunConfig,
    method: Any,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    folder: Path,
    key: str,
    is_source: bool,
    start: Path | None,
    progress: Progress,
    callbacks: Sequence[TrainerCallback],
) -> Trained:
    task = task_of(config)
    count = distributed.batch_size_per_process(config.training.batch_size)
    checkpoint = distributed.from_first(lambda: _prepare(folder, key))
    if start is None:
        base, head = task.load_model(tokenizer, seed)
        model = methods.add_adapter(base, head, method, seed, task.kind)
    else:
        model = task.load_trained(start / "adapter", tokenizer, seed)
        trainable = set(read_json(start / "trained.json")["result"]["trainable"])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
        methods.accelerate_if_asked(model, method)
    examples, left_out = task.examples(tokenizer, rows)
    trainer = MethodTrainer(
        model=model,
        args=_arguments(config, stage_of(config, method, is_source), seed, count, folder),
        train_dataset=examples,
        data_collator=task.collator(tokenizer),
        callbacks=[
            _Steps(progress),
            _Diagnostics(),
            *([_TensorBoard(folder / "tensorboard")] if config.training.tensorboard else []),
            *callbacks,
        ],
        orthogonality_weight=methods.orthogonality_weight(method),
        bucket_size=config.training.batch_size if config.training.length_bucketed else None,
    )
    if task.loss_over_rows:
        # Else Trainer takes the loss for a sum over tokens divided by their number in all processes, as causal language
        # models have it, and multiplies that of a classifier by the number of processes.
        trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if start is None:
        # Also before a resume: a checkpoint loads into an adapter of the same make.
        order = np.random.default_rng(seed).permutation(len(examples))
        first = batches(
            task, tokenizer, [examples[i] for i in order], config.training.batch_size, trainer.args.device
        )
        methods.initialize(model, method, first)
    methods.set_seed(seed)
    trainer.train(resume_from_checkpoint=checkpoint)
    if distributed.is_first():
        methods.save(model, folder / "adapter")

    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    last_epoch = [entry["loss"] for entry in logs if entry["epoch"] > logs[-1]["epoch"] - 1]
    return Trained(
        trainable_parameters=methods.trainable_parameters(model),
        train_loss=float(np.mean(last_epoch)),
        adapter_bytes=sum(file.stat().st_size for file in (folder / "adapter").glob("*.safetensors")),
        history=[
            {name: entry.get(name) for name in _LOGGED if name != "mixing"}
            | {name: value for name, value in entry.items() if name not in _LOGGED}
            for entry in logs
        ],
        mixing_history=[
            {"step": entry["step"], "values": entry["mixing"]} for entry in logs if "mixing" in entry
        ],
        trainable=[name for name, parameter in model.named_parameters() if parameter.requires_grad],
        left_out=left_out,
    )


def _arguments(config: RunConfig, stage: Stage, seed: int, count: int, folder: Path) -> TrainingArguments:
    training = config.training
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=stage.epochs or 1,
        max_steps=stage.steps or -1,
        per_device_train_batch_size=count,
        learning_rate=stage.learning_rate,
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
        use_cpu=not on_gpu,
        bf16=training.precision == "bfloat16",
        ddp_backend=None if on_gpu or distributed.world_size() == 1 else "gloo",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=on_gpu,
    )


def _prepare(folder: Path, key: str) -> str | None:
    """Empties a folder made under another key; returns the last whole checkpoint of this one."""
    key_file = folder / "key"
    if not key_file.is_file() or key_file.read_text() != key:
        # What says that something is done goes first: half of a folder is no result.
        for marker in ("result.json", "trained.json"):
            (folder / marker).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        write_file(key_file, key)
    checkpoints = sorted(
        (folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])
    )
    return next((str(path) for path in reversed(checkpoints) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    # The first process writes the Trainer's state last; the others write their random state besides.
    states = len(list(checkpoint.glob("rng_state*.pth")))
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, json.JSONDecodeError):
        return False
    return states == distributed.world_size()
