"""What `hybrid_kernels.accelerate` makes of stock PEFT: a whole training step, single layers, peak memory.

    python benchmarks/acceleration.py step [--tiny] [--device cpu] [--dtype float32] [--output FILE]
    python benchmarks/acceleration.py layers [--shapes 512x768x768,…] …
    python benchmarks/acceleration.py memory …

Methods: LoRA, DoRA and HRA r = 16, OFT with blocks of 32 (PEFT's default series, and exact) and BOFT with two butterfly
factors of blocks of 8. Sides of each: stock PEFT; the same modules over the same parameters after
`hybrid_kernels.accelerate`; and that on ATen calls alone ("eager"), the same algebra in plain PyTorch. Without a GPU
PEFT cannot make BOFT's matrices of several factors: there a few ATen calls stand in for its CUDA extension.

step: forward, loss and backward to the adapters of a Llama-shaped model with adapters on all linear layers, without
gradient checkpointing or optimizer, from input embeddings that ask for a gradient, so that the frozen model's step is
the floor. On a CPU: hidden 512, 4 layers, intermediate 1408, 8 heads and 4 key-value heads, 512 tokens: as small as
leaves the products the most of the frozen model's time, so that a round of all sides takes seconds, and with
a vocabulary of 2048 because a head of 32000 words would be most of so small a model. On a GPU that model would be bound
by launches: hidden 2048, intermediate 5632, 32 and 8 heads, 2 x 1024 tokens.

layers: one layer of MxKxN (rows, in_features, out_features), forward and backward to x and to the adapter.

Sides run in turn within each round, in an order drawn anew each round; slow ones sit out some rounds. Reported are
medians over rounds, the ratio of stock PEFT and of eager to accelerated with its quartiles within a round, and
ratios to the frozen model or layer. Absolute times are printed on a GPU only.

memory: the highest use in three steps, from before the adapter is made, above that of the loaded model; a process of
its own for each figure, the median of several (`hybrid_kernels.training.memory`).
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
from linear_layer import peft_layer
from llama_step import LINEAR, llama, moved, shared_copy, step_of
from measuring import Step
from torch import nn

import hybrid_kernels as hk
from hybrid_kernels.cases.peft_butterflies import allow_butterflies_in_peft
from hybrid_kernels.training.memory import peak_rise

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA r=16": ("LoraConfig", {"r": 16, "lora_alpha": 16}),
    "DoRA r=16": ("LoraConfig", {"r": 16, "lora_alpha": 16, "use_dora": True}),
    "HRA r=16": ("HRAConfig", {"r": 16}),
    "OFT b=32": ("OFTConfig", {"r": 0, "oft_block_size": 32}),
    "OFT b=32 exact": ("OFTConfig", {"r": 0, "oft_block_size": 32, "use_cayley_neumann": False}),
    "BOFT b=8 m=2": ("BOFTConfig", {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
}
SHAPES = {
    "cpu": "512x768x768,1024x2048x2048,2048x1024x4096",
    "cuda": "512x4096x4096,4096x4096x4096,4096x4096x14336",
}
#: By device, or "tiny": the configuration, and the batch x tokens of a step.
SIZES: dict[str, tuple[dict[str, int], tuple[int, int]]] = {
    "cpu": (
        {
            "hidden_size": 512,
            "num_hidden_layers": 4,
            "intermediate_size": 1408,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 2048,
        },
        (1, 512),
    ),
    "cuda": (
        {
            "hidden_size": 2048,
            "num_hidden_layers": 4,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 8192,
        },
        (2, 1024),
    ),
    "tiny": (
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 256,
        },
        (2, 16),
    ),
}
FROZEN = "frozen"
MEMORY_STEPS = 3


def stock(method: str) -> str:
    return f"PEFT {method}"


def accelerated(method: str) -> str:
    return f"accelerated {method}"


def eager(method: str) -> str:
    return f"accelerated {method}, eager"


def builders(
    methods: list[str], make: Callable[[str], nn.Module], step: Callable[[nn.Module], Step]
) -> dict[str, Callable[[], Step]]:
    """{side: what makes its step} of the methods, ``make(method)`` the module under stock PEFT."""
    result: dict[str, Callable[[], Step]] = {}
    for method in methods:
        under_peft = functools.cache(functools.partial(make, method))

        def fast(under_peft: Callable[[], nn.Module] = under_peft) -> Step:
            return step(on_our_operators(shared_copy(under_peft())))

        result[stock(method)] = lambda under_peft=under_peft: step(under_peft())  # type: ignore[misc]
        result[accelerated(method)] = fast
        result[eager(method)] = lambda fast=fast: measuring.on_backend("eager", fast())  # type: ignore[misc]
    return result


def on_our_operators(model: nn.Module) -> nn.Module:
    report = hk.accelerate(model)
    if report.left_alone:
        raise RuntimeError(f"{report.left_alone[0].name} was left alone: {report.left_alone[0].reason}")
    return model


def measured(sides: dict[str, Callable[[], Step]], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """{side: its medians and ratios, or why it could not be measured}."""
    device = torch.device(options.device)
    steps, failures = measuring.working(sides, device)
    if FROZEN not in steps:
        raise RuntimeError(f"the frozen side cannot be measured: {failures[FROZEN]}")
    times = measuring.interleaved(steps, options.rounds, device, options.seconds_each)
    table = measuring.summarised(times, FROZEN)
    for method in options.methods:
        ours = accelerated(method)
        if ours in times:
            of_method = {name: times[name] for name in (stock(method), ours, eager(method)) if name in times}
            for name, row in measuring.summarised(of_method, ours).items():
                table[name]["ratio_to_accelerated"] = row["ratio_to_frozen"]
                table[name]["quartiles_to_accelerated"] = row["ratio_quartiles"]
    if device.type == "cuda":
        for name, run in steps.items():
            measuring.free(device)
            table[name]["peak_bytes"] = peak_rise(run, device)
    return table | {name: {"failed": why} for name, why in failures.items()}


class Model:
    """The model of a step, and its step under any adapter."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.methods = options.methods
        self.device, dtype = torch.device(options.device), getattr(torch, options.dtype)
        self.size, (batch, tokens) = SIZES["tiny" if options.tiny else self.device.type]
        self.frozen = llama(self.size, tokens, self.device, dtype)
        shape = batch, tokens, self.size["hidden_size"]
        self.embeddings = torch.randn(shape, device=self.device, dtype=dtype).requires_grad_()
        self.labels = torch.randint(self.size["vocab_size"], (batch, tokens), device=self.device)

    def described(self) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in self.frozen.parameters())
        batch, tokens, _ = self.embeddings.shape
        return {"model": "llama", **self.size, "parameters": parameters, "batch": batch, "tokens": tokens}

    def under(self, method: str) -> nn.Module:
        import peft

        name, values = METHODS[method]
        config = getattr(peft, name)(target_modules=list(LINEAR), **values)
        return moved(peft.get_peft_model(shared_copy(self.frozen), config, autocast_adapter_dtype=False))

    def step(self, model: nn.Module) -> Step:
        return step_of(model, self.embeddings, self.labels)

    def builders(self) -> dict[str, Callable[[], Step]]:
        return {FROZEN: lambda: self.step(self.frozen), **builders(self.methods, self.under, self.step)}


def layer_builders(m: int, k: int, n: int, options: argparse.Namespace) -> dict[str, Callable[[], Step]]:
    factory = {"device": torch.device(options.device), "dtype": getattr(torch, options.dtype)}
    torch.manual_seed(0)
    x, dy = torch.randn(m, k, requires_grad=True, **factory), torch.randn(m, n, **factory)

    def linear() -> nn.Linear:
        return nn.Linear(k, n, **factory).requires_grad_(False)

    def under(method: str) -> nn.Module:
        name, values = METHODS[method]
        return peft_layer(linear(), name, **values)

    def step(layer: nn.Module) -> Step:
        leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
        return lambda: torch.autograd.grad(layer(x), leaves, dy)

    return {FROZEN: lambda: step(linear()), **builders(options.methods, under, step)}


def memory_of(side: str, options: argparse.Namespace) -> int:
    """Bytes; of a process that has measured nothing else."""
    import peft  # noqa: F401 (not what a side takes)

    hk.accelerate  # noqa: B018
    model = Model(options)
    build = model.builders()[side]

    def run() -> None:
        step = build()
        for _ in range(MEMORY_STEPS):
            step()

    return peak_rise(run, model.device)


def memory_in_new_processes(side: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "memory", "--side", side]
    command += ["--device", options.device, "--dtype", options.dtype, *(["--tiny"] if options.tiny else [])]
    values = []
    for _ in range(options.rounds):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return {"failed": lines[-1][:200] if lines else f"exit status {done.returncode}"}
        values.append(int(done.stdout.splitlines()[-1]))
    return {"peak_bytes": statistics.median(values), "range": [min(values), max(values)]}


def show(entry: dict[str, Any], on_gpu: bool) -> None:
    sides = entry["sides"]
    print(f"\n{'':20}{'× frozen':>26}{'PEFT / accelerated':>29}{'eager / accelerated':>29}")
    print(
        f"{'':20}{'PEFT':>12}{'accelerated':>14}"
        + ("" if not on_gpu else f"{'ms':>60}{'MiB, PEFT':>14}{'ours':>8}")
    )
    for method in METHODS:
        rows = [sides.get(name(method), {}) for name in (stock, accelerated, eager)]
        line = f"  {method:18}"
        line += f"{cell(rows[0], 'ratio_to_frozen'):>12}{cell(rows[1], 'ratio_to_frozen'):>14}"
        for row in (rows[0], rows[2]):
            line += f"{cell(row, 'ratio_to_accelerated'):>11}"
            line += f"{'–'.join(f'{value:.2f}' for value in row.get('quartiles_to_accelerated', ())):>18}"
        if on_gpu:
            line += f"{cell(rows[1], 'median_seconds', 1e3):>12}"
            line += f"{cell(rows[0], 'peak_bytes', 2**-20, '.0f'):>14}{cell(rows[1], 'peak_bytes', 2**-20, '.0f'):>8}"
        print(line)
    show_failures(sides)


def show_memory(entry: dict[str, Any]) -> None:
    sides = entry["sides"]
    print(f"\n{'MiB':20}{'PEFT':>10}{'accelerated':>14}{'ratio':>9}")
    for method in METHODS:
        peft, ours = (sides.get(name(method), {}) for name in (stock, accelerated))
        ratio = (
            ours["peak_bytes"] / peft["peak_bytes"]
            if "peak_bytes" in peft and "peak_bytes" in ours
            else math.nan
        )
        print(
            f"  {method:18}"
            + "".join(f"{cell(row, 'peak_bytes', 2**-20, '.0f'):>12}" for row in (peft, ours))
            + f"{ratio:9.2f}"
        )
    print(f"  {FROZEN:18}{cell(sides[FROZEN], 'peak_bytes', 2**-20, '.0f'):>12}")
    show_failures(sides)


def cell(row: dict[str, Any], key: str, scale: float = 1.0, form: str = ".2f") -> str:
    return format(row[key] * scale, form) if key in row else "–"


def show_failures(sides: dict[str, dict[str, Any]]) -> None:
    for name, row in sides.items():
        if "failed" in row:
            print(f"  {name}: not measured: {row['failed']}")


def run_step(result: dict[str, Any], options: argparse.Namespace) -> None:
    model = Model(options)
    entry = {**model.described(), "sides": measured(model.builders(), options)}
    result["shapes"].append(entry)
    show(entry, model.device.type == "cuda")


def run_layers(result: dict[str, Any], options: argparse.Namespace) -> None:
    begin = time.monotonic()
    for m, k, n in options.shapes:
        if time.monotonic() - begin > options.limit:
            result.setdefault("not_begun", []).append(f"{m}x{k}x{n}")
            print(f"\nM = {m}, K = {k}, N = {n}: not begun, {options.limit:.0f} s have passed")
            continue
        entry = {"m": m, "k": k, "n": n, "sides": measured(layer_builders(m, k, n, options), options)}
        result["shapes"].append(entry)
        print(f"\nM = {m}, K = {k}, N = {n}")
        show(entry, options.device == "cuda")
        measuring.write(result, options.output)
        measuring.free(torch.device(options.device))


def run_memory(result: dict[str, Any], options: argparse.Namespace) -> None:
    entry = Model(options).described()
    names = [FROZEN, *(name(method) for method in options.methods for name in (stock, accelerated))]
    entry["sides"] = {}
    result["shapes"].append(entry)
    for name in names:
        entry["sides"][name] = memory_in_new_processes(name, options)
        measuring.write(result, options.output)
    show_memory(entry)


PARTS = {"step": run_step, "layers": run_layers, "memory": run_memory}
ROUNDS = {"step": 15, "layers": 25, "memory": 3}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers and 2 x 16 tokens")
    parser.add_argument("--shapes", help="of layers: MxKxN[,…]")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}; of memory, processes for each figure")
    parser.add_argument(
        "--seconds-each", type=float, default=5.0, help="a side that takes longer sits out some rounds"
    )
    parser.add_argument(
        "--without", default="", help="leave out methods whose names begin so, such as BOFT,OFT"
    )
    parser.add_argument("--limit", type=float, default=math.inf, help="begin no shape after so many seconds")
    parser.add_argument(
        "--side", help="of memory: of this side alone, in this process, and nothing else is printed"
    )
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device is 'cuda', and no GPU is visible to torch; it may be 'cpu' here")
    if options.rounds is None:
        options.rounds = ROUNDS[options.part]
    if options.rounds < 1:
        sys.exit(f"--rounds is {options.rounds}; it must be at least 1")
    try:
        options.shapes = measuring.shapes_of(options.shapes or SHAPES[options.device])
    except ValueError as error:
        sys.exit(str(error))
    left_out = tuple(name for name in options.without.split(",") if name)
    options.methods = [method for method in METHODS if not method.startswith(left_out)]
    stand_in = options.device == "cpu"
    if stand_in:
        allow_butterflies_in_peft()
    if options.side is not None:
        print(memory_of(options.side, options))
        return

    device = torch.device(options.device)
    result = measuring.head(
        f"acceleration_{options.part}",
        device,
        dtype=options.dtype,
        rounds=options.rounds,
        threads=torch.get_num_threads(),
    )
    result["boft_extension"] = "plain PyTorch in its place" if stand_in else "PEFT's own"
    result["shapes"] = []
    peft = result["info"]["packages"].get("peft")
    print(
        f"{options.part}: {options.dtype} on {device}, medians of {options.rounds} "
        f"{'processes' if options.part == 'memory' else 'interleaved rounds'}; torch {torch.__version__}, PEFT {peft}"
    )
    if stand_in:
        print("plain PyTorch in the place of the CUDA extension with which PEFT makes BOFT's matrices")
    PARTS[options.part](result, options)
    measuring.write(result, options.output)


if __name__ == "__main__":
    main()
