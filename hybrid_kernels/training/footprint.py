"""What a training step of each method costs: time, tokens a second, peak memory, parameters, energy.

A method of PEFT has two entries: stock, and with its layers on this package's operators by `hybrid_kernels.accelerate`.

Step time: a training step (zero the gradients, forward, loss with its regulariser, backward, mixing, optimizer step)
against the frozen model's forward and backward to its input embeddings, which any training of the model pays. All
sides run on the same batch, interleaved in one process, and the ratio is taken within each round.

Peak memory: a fresh process per method loads the pretrained model, then adds the adapter and takes a few steps; the
figure is the highest use during these above the use after loading, so it holds adapter, activations, gradients and
optimizer state, and not the weights that every method has. On a CPU it is the resident set size, sampled every
millisecond; on a GPU it is torch's count of allocated bytes.

Energy: what RAPL and NVML count over a step of a method, so of the whole machine; None where neither can be read.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybrid_kernels.training import methods
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import Row
from hybrid_kernels.training.energy import EnergyMeter
from hybrid_kernels.training.memory import peak_rise
from hybrid_kernels.training.method_config import FullMethod, HybridMethod
from hybrid_kernels.training.tasks import task_of
from hybrid_kernels.training.trainer import batches

ROUNDS = 9
MEMORY_STEPS = 3
FROZEN = ("", False)  # no name of a method
# The fresh process belongs to no process group.
_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
Side = tuple[str, bool]  # a method's name, whether accelerated


def step_time_note(config: RunConfig, made: dict[str, Any]) -> str:
    """What the figures mean, for the report; they may be `made` on another machine than the cells."""
    place = made["machine"]["gpu"] or made["machine"]["cpu"]
    memory = "torch's allocated bytes" if torch.cuda.is_available() else "resident set size"
    return (
        f"Median of {ROUNDS} training steps in {config.training.precision} on one batch of "
        f"{config.training.batch_size} rows, each divided by the "
        "frozen model's forward and backward to its input embeddings on that batch in the same round; all methods "
        "interleaved in one process, after one step of warm-up. Peak memory: highest "
        f"{memory} of {MEMORY_STEPS} steps in a fresh process per method, above that of the loaded model. "
        f"Measured on {place} with torch {made['versions']['torch']}."
    )


def measure(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> dict[str, dict[str, Any]]:
    """What the methods cost, by name.

    Args:
        rows: make the batch; they are cut to the batch size.

    Returns:
        `step_time_ratio`, `step_time_spread` (quartiles) and `peak_memory_bytes` of the method as it is trained, and
        `footprint`: a dict for each implementation with `implementation` ("peft", "accelerated" or
        "hybrid-kernels"), these three, `step_seconds` (median), `tokens_per_second` (padding not counted),
        `trainable_parameters` (with the head), and `joules_per_step` (median, or None).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = rows[: config.training.batch_size]
    sides: list[Side] = [
        (name, accelerated)
        for name, method in config.named_methods.items()
        if method.trains
        for accelerated in ((False, True) if hasattr(method, "accelerate") else (False,))
    ]
    peaks = {
        side: _peak_memory_in_new_process(config, side, rows)
        for side in track(sides, description="peak memory")
    }
    task = task_of(config)
    examples, _ = task.examples(tokenizer, rows)
    batch = next(batches(task, tokenizer, examples, len(examples), device))
    frozen, _ = task.load_model(tokenizer, 0)
    frozen.to(torch.device(device))  # type: ignore[arg-type]
    steps = {FROZEN: _frozen_step(config, frozen, batch)}
    parameters: dict[Side, int] = {}
    for side in sides:
        model, head = task.load_model(tokenizer, 0)
        if not isinstance(config.named_methods[side[0]], FullMethod):
            # Frozen in all adapters and the bulk of a small multilingual model: held in memory once.
            model.set_input_embeddings(frozen.get_input_embeddings())
            model.tie_weights()
        adapted = _adapted(config, side, model, head).to(device)
        parameters[side] = methods.trainable_parameters(adapted)
        steps[side] = _training_step(config, adapted, config.named_methods[side[0]], batch)
    for step in steps.values():
        step()
    meter = EnergyMeter()
    times: dict[Side, list[float]] = {side: [] for side in steps}
    joules: dict[Side, list[float]] = {side: [] for side in steps}
    for _ in track(range(ROUNDS), description="time per step"):
        for side, step in steps.items():
            before = meter.joules()
            times[side].append(_seconds(step))
            if before is not None and (after := meter.joules()) is not None:
                joules[side].append(after - before)
    tokens = int(batch["attention_mask"].sum())
    result: dict[str, dict[str, Any]] = {}
    for side in sides:
        ratios = [own / floor for own, floor in zip(times[side], times[FROZEN], strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        seconds = statistics.median(times[side])
        relative = {
            "step_time_ratio": median,
            "step_time_spread": [lower, upper],
            "peak_memory_bytes": peaks[side],
        }
        name, accelerated = side
        method = config.named_methods[name]
        stock = "peft" if hasattr(method, "accelerate") else methods.backend(method)
        own_entry = relative | {
            "implementation": "accelerated" if accelerated else stock,
            "step_seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "trainable_parameters": parameters[side],
            "joules_per_step": statistics.median(joules[side]) if joules[side] else None,
        }
        found = result.setdefault(name, {"footprint": []})
        found["footprint"].append(own_entry)
        if accelerated == getattr(method, "accelerate", False):
            found |= relative
    return result


def _adapted(config: RunConfig, side: Side, model: PreTrainedModel, head: list[str]) -> torch.nn.Module:
    name, accelerated = side
    method = config.named_methods[name]
    if hasattr(method, "accelerate"):
        method = method.model_copy(update={"accelerate": accelerated})
    adapted = methods.add_adapter(model, head, method, 0, task_of(config).kind)
    if methods.gradient_aligned(method):
        from hybrid_kernels.adapters.layers import named_adapters

        for _, _, adapter in named_adapters(adapted):
            adapter.allocate_start()  # of zeros, which cost as much as a start from gradients
    return adapted


def _loss(config: RunConfig, model: torch.nn.Module, batch: methods.Batch) -> torch.Tensor:
    """As the Trainer computes it, in the precision of the training."""
    device = batch["attention_mask"].device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.training.precision == "bfloat16"):
        loss: torch.Tensor = model(**batch).loss
        return loss


def _frozen_step(config: RunConfig, model: PreTrainedModel, batch: methods.Batch) -> Callable[[], None]:
    """Forward and backward to the input embeddings; every parameter, the head's too, is frozen."""
    model.requires_grad_(False)
    model.train()
    # A hook of its own: the embedding module is shared with the adapted models, which need no such gradient.

    def step() -> None:
        embeddings = model.get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        try:
            _loss(config, model, batch).backward()
        finally:
            handle.remove()

    return step


def _training_step(
    config: RunConfig,
    model: torch.nn.Module,
    method: Any,
    batch: methods.Batch,
) -> Callable[[], None]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=method.learning_rate or config.training.learning_rate, fused=True
    )
    weight = methods.orthogonality_weight(method)
    mixing = None
    if isinstance(method, HybridMethod):
        from hybrid_kernels.adapters import GradientNormMixing, orthogonality_penalty

        mixing = GradientNormMixing() if method.mixing == "gradient_norm" else None
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        loss = _loss(config, model, batch)
        if weight:
            loss = loss + weight * orthogonality_penalty(model)
        loss.backward()
        if mixing is not None:
            mixing.step(model)
        optimizer.step()

    return step


def _seconds(step: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_memory_in_new_process(config: RunConfig, side: Side, rows: list[Row]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_text(json.dumps({"config": config.model_dump(mode="json"), "side": side, "rows": rows}))
        done = subprocess.run(
            [sys.executable, "-m", "hybrid_kernels.training.footprint", str(request)],
            capture_output=True,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name not in _GROUP},
        )
    if done.returncode:
        raise RuntimeError(f"measuring the peak memory of {side[0]!r} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


def _peak_memory(request: Path) -> int:
    """Bytes; runs in the fresh process."""
    values = json.loads(request.read_text())
    config = RunConfig.model_validate(values["config"])
    (name, accelerated), rows = values["side"], values["rows"]
    task = task_of(config)
    tokenizer = methods.load_tokenizer(config.model.name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    examples, _ = task.examples(tokenizer, rows)
    batch = next(batches(task, tokenizer, examples, len(examples), device))
    model, head = task.load_model(tokenizer, 0)
    model.to(torch.device(device))  # type: ignore[arg-type]
    with torch.no_grad():
        # Weights may be mapped from the file and become resident at their first use.
        for parameter in model.parameters():
            parameter.sum()

    def steps() -> None:
        adapted = _adapted(config, (name, accelerated), model, head).to(device)
        step = _training_step(config, adapted, config.named_methods[name], batch)
        for _ in range(MEMORY_STEPS):
            step()

    return peak_rise(steps, torch.device(device))


if __name__ == "__main__":
    print(_peak_memory(Path(sys.argv[1])))
