"""Time per training step relative to the frozen model's, and peak memory, of each method.

Step time: a training step (zero the gradients, forward, loss with its regulariser, backward, mixing, optimizer step)
against the frozen model's forward and backward to its input embeddings, which any training of the model pays. All
sides run on the same batch, interleaved in one process, and the ratio is taken within each round.

Peak memory: a fresh process per method loads the pretrained model, then adds the adapter and takes a few steps; the
figure is the highest use during these above the use after loading, so it holds adapter, activations, gradients and
optimizer state, and not the weights that every method has. On a CPU it is the resident set size, sampled every
millisecond; on a GPU it is torch's count of allocated bytes.
"""

from __future__ import annotations

import json
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
from hybrid_kernels.training.memory import peak_rise
from hybrid_kernels.training.method_config import AnyMethod, FullMethod, HybridMethod
from hybrid_kernels.training.trainer import batches, tokenize

ROUNDS = 9
MEMORY_STEPS = 3
FROZEN = ""  # no name of a method


def step_time_note(config: RunConfig) -> str:
    """What the figures mean, for the report."""
    memory = "torch's allocated bytes" if torch.cuda.is_available() else "resident set size"
    return (
        f"Median of {ROUNDS} training steps on one batch of {config.training.batch_size} pairs, each divided by the "
        "frozen model's forward and backward to its input embeddings on that batch in the same round; all methods "
        "interleaved in one process, after one step of warm-up. Peak memory: highest "
        f"{memory} of {MEMORY_STEPS} steps in a fresh process per method, above that of the loaded model."
    )


def measure(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, rows: list[Row]
) -> dict[str, dict[str, Any]]:
    """`step_time_ratio`, `step_time_spread` (quartiles) and `peak_memory_bytes` of each method, by name.

    `rows` make the batch; they are cut to the batch size.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = rows[: config.training.batch_size]
    peaks = {
        name: _peak_memory_in_new_process(config, name, rows)
        for name in track(config.named_methods, description="peak memory")
    }
    batch = next(batches(tokenizer, tokenize(tokenizer, rows, config.model.max_length), len(rows), device))
    frozen, _ = methods.load_classifier(config.model.name, tokenizer.pad_token_id, seed=0)
    frozen.to(torch.device(device))  # type: ignore[arg-type]
    steps = {FROZEN: _frozen_step(frozen, batch)}
    for name, method in config.named_methods.items():
        model, head = methods.load_classifier(config.model.name, tokenizer.pad_token_id, seed=0)
        if not isinstance(method, FullMethod):
            # Frozen in all adapters and the bulk of a small multilingual model: held in memory once.
            model.set_input_embeddings(frozen.get_input_embeddings())
        adapted = methods.add_adapter(model, head, method, seed=0)
        adapted.to(torch.device(device))  # type: ignore[arg-type]
        steps[name] = _training_step(config, adapted, method, batch)
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(ROUNDS), description="time per step"):
        for name, step in steps.items():
            times[name].append(_seconds(step))
    result = {}
    for name, peak in peaks.items():
        ratios = [own / floor for own, floor in zip(times[name], times[FROZEN], strict=True)]
        lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        result[name] = {
            "step_time_ratio": median,
            "step_time_spread": [lower, upper],
            "peak_memory_bytes": peak,
        }
    return result


def _frozen_step(model: PreTrainedModel, batch: methods.Batch) -> Callable[[], None]:
    """Forward and backward to the input embeddings; every parameter, the head's too, is frozen."""
    model.requires_grad_(False)
    model.train()
    # A hook of its own: the embedding module is shared with the adapted models, which need no such gradient.

    def step() -> None:
        embeddings = model.get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        try:
            model(**batch).loss.backward()
        finally:
            handle.remove()

    return step


def _training_step(
    config: RunConfig,
    model: torch.nn.Module,
    method: AnyMethod,
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
        loss = model(**batch).loss
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


def _peak_memory_in_new_process(config: RunConfig, name: str, rows: list[Row]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_text(
            json.dumps({"config": config.model_dump(mode="json"), "method": name, "rows": rows})
        )
        done = subprocess.run(
            [sys.executable, "-m", "hybrid_kernels.training.footprint", str(request)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"measuring the peak memory of {name!r} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


def _peak_memory(request: Path) -> int:
    """Bytes; runs in the fresh process."""
    values = json.loads(request.read_text())
    config = RunConfig.model_validate(values["config"])
    method, rows = config.named_methods[values["method"]], values["rows"]
    tokenizer = methods.load_tokenizer(config.model.name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = next(batches(tokenizer, tokenize(tokenizer, rows, config.model.max_length), len(rows), device))
    model, head = methods.load_classifier(config.model.name, tokenizer.pad_token_id, seed=0)
    model.to(torch.device(device))  # type: ignore[arg-type]
    with torch.no_grad():
        # Weights may be mapped from the file and become resident at their first use.
        for parameter in model.parameters():
            parameter.sum()

    def steps() -> None:
        adapted = methods.add_adapter(model, head, method, seed=0)
        adapted.to(torch.device(device))  # type: ignore[arg-type]
        step = _training_step(config, adapted, method, batch)
        for _ in range(MEMORY_STEPS):
            step()

    return peak_rise(steps, torch.device(device))


if __name__ == "__main__":
    print(_peak_memory(Path(sys.argv[1])))
