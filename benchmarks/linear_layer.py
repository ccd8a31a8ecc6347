"""Forward and backward of one adapted linear layer, against the frozen layer and the honest peers.

    python benchmarks/linear_layer.py [--device cpu] [--dtype float32] [--shapes 512x768x768,…] [--output FILE]

Sides, all with the gradients to x and to every adapter parameter: the frozen layer (forward and input gradient: the
floor), the hybrid r = 16 + 16 reflections, the same algebra in plain PyTorch, that under torch.compile, stock PEFT LoRA
r = 32 (the same rank of the update) and stock PEFT HRA r = 16. All sides run in turn within each round, in an order
drawn anew each round; reported are medians over rounds, ratios to the frozen layer, and the quartiles of the ratio
within a round. Absolute times are printed on a GPU only: on a CPU they say more about the machine than about us.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hybrid_kernels as hk

SHAPES = "512x768x768,1024x2048x2048,2048x1024x4096"
RANK, REFLECTIONS, ALPHA = 16, 16, 16.0

Step = Callable[[], Any]


class Holder(nn.Module):
    """The module around the layer, which PEFT needs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear


def peft_layer(linear: nn.Linear, config: Any) -> nn.Module:
    from peft import get_peft_model

    model = get_peft_model(Holder(linear), config, autocast_adapter_dtype=False)
    layer = model.base_model.model.linear
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    return layer


def plain_hybrid(
    x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, u: Tensor, mixing: Tensor
) -> Tensor:
    """The factor form as one would write it in plain PyTorch, left to autograd."""
    v = u / torch.linalg.vector_norm(u, dim=0)
    s = torch.triu(v.T @ v, diagonal=1) + 0.5 * torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    z = torch.linalg.solve_triangular(s, v, upper=True, left=False)
    down = torch.cat([a, v.T])
    up = torch.cat([mixing * (ALPHA / RANK**0.5) * b, (mixing - 1) * (weight @ z)], dim=1)
    return torch.nn.functional.linear(x, weight, bias) + (x @ down.T) @ up.T


def sides(
    m: int, k: int, n: int, device: torch.device, dtype: torch.dtype, compiled: bool
) -> dict[str, Step]:
    """One training step of each contender on the same x (m, k), weight (n, k) and output gradient."""
    from peft import HRAConfig, LoraConfig

    from hybrid_kernels.adapters import HybridConfig

    torch.manual_seed(0)
    x = torch.randn(m, k, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(m, n, device=device, dtype=dtype)

    def linear() -> nn.Linear:
        return nn.Linear(k, n, device=device, dtype=dtype).requires_grad_(False)

    def step(layer: nn.Module) -> Step:
        parameters = [p for p in layer.parameters() if p.requires_grad]
        return lambda: torch.autograd.grad(layer(x), [x, *parameters], dy)

    target = {"target_modules": ["linear"]}
    hybrid = peft_layer(linear(), HybridConfig(r=RANK, reflections=REFLECTIONS, lora_alpha=ALPHA, **target))
    adapter = hybrid.adapter("default")
    leaves = [adapter.lora_A, adapter.lora_B, adapter.householder_u]
    base = hybrid.get_base_layer()

    def plain_step(function: Callable[..., Tensor]) -> Step:
        def run() -> Any:
            y = function(x, base.weight, base.bias, *leaves, adapter.mixing)
            return torch.autograd.grad(y, [x, *leaves], dy)

        return run

    steps: dict[str, Step] = {
        "frozen layer": step(linear()),
        "hybrid 16 + 16": step(hybrid),
        "plain PyTorch 16 + 16": plain_step(plain_hybrid),
        "PEFT LoRA r=32": step(peft_layer(linear(), LoraConfig(r=2 * RANK, lora_alpha=ALPHA, **target))),
        "PEFT HRA r=16": step(peft_layer(linear(), HRAConfig(r=REFLECTIONS, **target))),
    }
    if compiled:
        steps["torch.compile 16 + 16"] = plain_step(torch.compile(plain_hybrid, dynamic=False))
    return steps


def seconds(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    for step in steps.values():
        for _ in range(3):
            step()
    order = list(steps)
    shuffle = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            times[name].append(seconds(steps[name], device))
    floor = times["frozen layer"]
    table = {}
    for name, mine in times.items():
        ratios = [t / f for t, f in zip(mine, floor, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        table[name] = {
            "median_seconds": statistics.median(mine),
            "ratio_to_frozen": statistics.median(mine) / statistics.median(floor),
            "ratio_quartiles": [low, high],
        }
    return table


def commit() -> str | None:
    root = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True
        )
    except OSError:
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "") or None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shapes", default=SHAPES, help="MxKxN[,…]: rows, in_features, out_features")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    try:
        shapes = [tuple(int(size) for size in shape.split("x")) for shape in options.shapes.split(",")]
        if any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
            raise ValueError
    except ValueError:
        sys.exit(f"--shapes is {options.shapes!r}; it must be MxKxN[,MxKxN…] of whole numbers from 1")

    result: dict[str, Any] = {
        "benchmark": "linear_layer",
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "device": str(device),
        "dtype": options.dtype,
        "rounds": options.rounds,
        "info": hk.info(),
        "shapes": [],
    }
    print(f"forward + backward, {options.dtype} on {device}, medians of {options.rounds} interleaved rounds")
    for m, k, n in shapes:
        table = measure(sides(m, k, n, device, dtype, not options.no_compile), options.rounds, device)
        result["shapes"].append({"m": m, "k": k, "n": n, "sides": table})
        hybrid = table["hybrid 16 + 16"]["median_seconds"]
        print(f"\nM = {m}, K = {k}, N = {n}")
        print(f"  {'':24}{'× frozen layer':>16}{'quartiles':>16}{'× hybrid':>11}")
        for name, row in table.items():
            low, high = row["ratio_quartiles"]  # type: ignore[misc]
            line = f"  {name:24}{row['ratio_to_frozen']:16.3f}{f'{low:.3f}–{high:.3f}':>16}"
            line += f"{row['median_seconds'] / hybrid:11.2f}"
            print(line + (f"{row['median_seconds'] * 1e3:10.3f} ms" if device.type == "cuda" else ""))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(options.output)


if __name__ == "__main__":
    main()
