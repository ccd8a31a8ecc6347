"""Forward and backward of one adapted linear layer, against the frozen layer and the honest peers.

    python benchmarks/linear_layer.py [--device cpu] [--dtype float32] [--shapes 512x768x768,…] [--output FILE]

Sides, all with the gradients to x and to every adapter parameter: the frozen layer (forward and input gradient: the
floor); the hybrid r = 16 + 16 reflections as the package chooses, on ATen calls alone ("eager") and, where Triton runs,
with each of its variants; the same algebra in plain PyTorch and that under torch.compile; stock PEFT LoRA and DoRA
r = 32 (the same rank of the update), HRA r = 16 (the same reflections), OFT with blocks of 32 and BOFT with two
butterfly factors of blocks of 32, which has as many parameters as LoRA r = 32 on a square layer (without its CUDA
extension PEFT makes that one factor). Adapter parameters have x's dtype on every side.

All sides run in turn within each round, in an order drawn anew each round; slow ones sit out some rounds; one that
fails is recorded with the reason. Reported are medians over rounds, ratios to the frozen layer, and the quartiles of
the ratio within a round. Absolute times are printed on a GPU only: on a CPU they say more about the machine than about
us. On a GPU x and the output gradient change from step to step where they would stay in the cache, and each side is
also captured in a CUDA graph and timed from a cold cache ("graph"): small shapes are bound by launches, and that shows
what the device itself needs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import Step
from torch import Tensor, nn

import hybrid_kernels as hk
from triton_ops import selection

SHAPES = "512x768x768,1024x2048x2048,2048x1024x4096"
RANK, REFLECTIONS, ALPHA = 16, 16, 16.0
FLOOR, HYBRID = "frozen layer", "hybrid 16 + 16"
# The forward kernel that repeats the projection in every tile of columns is meant for few rows.
ONE_PASS_ROWS = 256
# A capture that fails half-way may leave memory behind, so what is known to wait for the device is not tried.
NOT_CAPTURED = {"PEFT BOFT b=32 m=2": "torch.linalg.solve waits for the device to report errors"}


class Holder(nn.Module):
    """The module around the layer, which PEFT needs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear


def moved(layer: nn.Module) -> nn.Module:
    """The layer with its adapter off its start, where some of it is zero or the identity."""
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    return layer


def peft_layer(linear: nn.Linear, method: str, **options: Any) -> nn.Module:
    import peft

    config = getattr(peft, method)(target_modules=["linear"], **options)
    model = peft.get_peft_model(Holder(linear), config, autocast_adapter_dtype=False)
    return moved(model.base_model.model.linear)


def plain_hybrid(
    x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, u: Tensor, mixing: Tensor
) -> Tensor:
    """The factor form as one would write it in plain PyTorch, left to autograd; the solve is in float32 or wider."""
    u = u.to(torch.promote_types(u.dtype, torch.float32))
    v = u / torch.linalg.vector_norm(u, dim=0)
    s = torch.triu(v.T @ v, diagonal=1) + 0.5 * torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    z = torch.linalg.solve_triangular(s, v, upper=True, left=False)
    down = torch.cat([a, v.T.to(a.dtype)])
    up = torch.cat([mixing * (ALPHA / RANK**0.5) * b, (mixing - 1) * (weight @ z.to(weight.dtype))], dim=1)
    return torch.nn.functional.linear(x, weight, bias) + (x @ down.T) @ up.T


def peers(k: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """PEFT's configurations for a layer with in_features k; blocks are of 32 or the power of two that divides k."""
    block = math.gcd(k, 32)
    return {
        "PEFT LoRA r=32": ("LoraConfig", {"r": 2 * RANK, "lora_alpha": ALPHA}),
        "PEFT DoRA r=32": ("LoraConfig", {"r": 2 * RANK, "lora_alpha": ALPHA, "use_dora": True}),
        "PEFT HRA r=16": ("HRAConfig", {"r": REFLECTIONS}),
        "PEFT OFT b=32": ("OFTConfig", {"r": 0, "oft_block_size": block}),
        "PEFT BOFT b=32 m=2": ("BOFTConfig", {"boft_block_size": block, "boft_n_butterfly_factor": 2}),
    }


class Sides:
    """One training step of each contender on the same x (m, k), weight (n, k) and output gradient."""

    def __init__(self, m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        factory = {"device": device, "dtype": dtype}
        self.m, self.k, self.n, self.device = m, k, n, device
        self.factory = factory
        pair_bytes = m * (k + n) * dtype.itemsize
        self.input_sets = min(max(math.ceil(2 * measuring.cache_bytes(device) / pair_bytes), 1), 16)
        self.inputs = itertools.cycle(
            [
                (torch.randn(m, k, requires_grad=True, **factory), torch.randn(m, n, **factory))
                for _ in range(self.input_sets)
            ]
        )
        #: Trainable numbers of each side that has been built.
        self.parameters: dict[str, int] = {}

    def linear(self) -> nn.Linear:
        return nn.Linear(self.k, self.n, **self.factory).requires_grad_(False)

    def step(self, name: str, layer: nn.Module) -> Step:
        return self.plain_step(name, layer, [p for p in layer.parameters() if p.requires_grad])

    def plain_step(self, name: str, function: Callable[[Tensor], Tensor], leaves: list[Tensor]) -> Step:
        self.parameters[name] = sum(leaf.numel() for leaf in leaves)

        def run() -> None:
            x, dy = next(self.inputs)
            torch.autograd.grad(function(x), [x, *leaves], dy)

        return run

    def builders(self, compiled: bool) -> dict[str, Callable[[], Step]]:
        """{side: what makes its step}; a backend asked for by name that cannot run raises in the step."""
        hybrid = moved(hk.nn.HybridLinear(self.linear(), rank=RANK, reflections=REFLECTIONS, alpha=ALPHA))
        adapter, base = hybrid.adapter, hybrid.base_layer
        leaves = [adapter.lora_A, adapter.lora_B, adapter.householder_u]

        def on(name: str, backend: str, variant: str | None) -> Callable[[], Step]:
            return lambda: measuring.on_backend(backend, self.step(name, hybrid), variant)

        def plain(name: str, function: Callable[..., Tensor]) -> Callable[[], Step]:
            def forward(x: Tensor) -> Tensor:
                return function(x, base.weight, base.bias, *leaves, adapter.mixing)

            return lambda: self.plain_step(name, forward, leaves)

        result: dict[str, Callable[[], Step]] = {
            FLOOR: lambda: self.step(FLOOR, self.linear()),
            HYBRID: lambda: self.step(HYBRID, hybrid),
            "hybrid, eager": on("hybrid, eager", "eager", None),
        }
        if hk.ops.backend.unavailable("triton") is None:
            for variant in (
                "addmm",
                "accumulate",
                "epilogue",
                *(["one_pass"] if self.m <= ONE_PASS_ROWS else []),
            ):
                name = f"hybrid, Triton {variant}"
                result[name] = on(name, "triton", variant)
        result["plain PyTorch 16 + 16"] = plain("plain PyTorch 16 + 16", plain_hybrid)
        if compiled:
            torch.compiler.reset()  # a compiled function counts its shapes, and gives up after a few
            result["torch.compile 16 + 16"] = plain(
                "torch.compile 16 + 16", torch.compile(plain_hybrid, dynamic=False)
            )
        for name, (method, options) in peers(self.k).items():
            result[name] = lambda name=name, method=method, options=options: self.step(  # type: ignore[misc]
                name, peft_layer(self.linear(), method, **options)
            )
        return result


def ran(step: Step) -> list[str]:
    """The variants of Triton kernels that a step runs, with the tiles where they were measured ones."""
    selection.RAN.clear()
    step()
    return sorted(
        f"{operation} {variant}" + (f" {tuple(tiles)}" if tiles else "")
        for operation, variant, tiles, *_ in selection.RAN
    )


def measured(sides: Sides, options: argparse.Namespace) -> dict[str, Any]:
    """The entry of one shape in the result file."""
    device = sides.device
    left_out = {name for name in (options.without or "").split(",") if name}
    builders = {
        name: build
        for name, build in sides.builders(not options.no_compile).items()
        if not any(name.startswith(prefix) for prefix in left_out)
    }
    steps, failures = measuring.working(builders, device)
    if FLOOR not in steps:
        raise RuntimeError(f"the frozen layer cannot be measured: {failures[FLOOR]}")
    eager = measuring.interleaved(steps, options.rounds, device, options.seconds_each)
    table = measuring.summarised(eager, FLOOR)
    for name, row in table.items():
        row["parameters"] = sides.parameters[name]
        if name.startswith("hybrid"):
            row["triton_ran"] = ran(steps[name])
    table |= {name: {"failed": why} for name, why in failures.items()}
    if device.type == "cuda":
        replays, not_captured = measuring.captured(
            {name: step for name, step in steps.items() if name not in NOT_CAPTURED}
        )
        not_captured |= {name: why for name, why in NOT_CAPTURED.items() if name in steps}
        if FLOOR in replays:
            flush = measuring.cache_flush(device)
            replayed = measuring.interleaved(replays, options.rounds, device, options.seconds_each, flush)
            for name, row in measuring.summarised(replayed, FLOOR).items():
                table[name]["graph"] = row
        for name, why in not_captured.items():
            table[name]["graph"] = {"failed": why}
    m, k, n = sides.m, sides.k, sides.n
    return {
        "m": m,
        "k": k,
        "n": n,
        "input_sets": sides.input_sets,
        "frozen_tflops": 4e-12 * m * k * n / table[FLOOR]["median_seconds"],
        "sides": table,
    }


def show(entry: dict[str, Any], on_gpu: bool) -> None:
    table = entry["sides"]
    hybrid = table[HYBRID].get("median_seconds", math.nan)
    tflops = f", frozen layer at {entry['frozen_tflops']:.0f} TFLOP/s" if on_gpu else ""
    print(f"\nM = {entry['m']}, K = {entry['k']}, N = {entry['n']}{tflops}")
    columns = f"  {'':24}{'× frozen layer':>16}{'quartiles':>16}{'× hybrid':>11}"
    print(columns + (f"{'eager':>13}{'graph':>13}{'× frozen':>11}" if on_gpu else ""))
    for name, row in table.items():
        if "failed" in row:
            print(f"  {name:24}  not measured: {row['failed']}")
            continue
        low, high = row["ratio_quartiles"]
        line = f"  {name:24}{row['ratio_to_frozen']:16.3f}{f'{low:.3f}–{high:.3f}':>16}"
        line += f"{row['median_seconds'] / hybrid:11.2f}"
        if on_gpu:
            graph = row.get("graph", {"failed": "not tried"})
            line += f"{row['median_seconds'] * 1e3:10.3f} ms"
            if "failed" in graph:
                line += f"   no graph: {graph['failed'][:60]}"
            else:
                line += f"{graph['median_seconds'] * 1e3:10.3f} ms{graph['ratio_to_frozen']:11.3f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shapes", default=SHAPES, help="MxKxN[,…]: rows, in_features, out_features")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument(
        "--seconds-each", type=float, default=20.0, help="a side that takes longer sits out some rounds"
    )
    parser.add_argument("--limit", type=float, default=math.inf, help="begin no shape after so many seconds")
    parser.add_argument(
        "--without", help="leave out sides whose names begin so, such as 'PEFT BOFT,PEFT OFT'"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--output", type=Path, help="write the result as JSON, anew after each shape")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    begin = time.monotonic()
    try:
        shapes = measuring.shapes_of(options.shapes)
    except ValueError as error:
        sys.exit(str(error))

    result = measuring.head("linear_layer", device, dtype=options.dtype, rounds=options.rounds)
    result["tf32"] = torch.backends.cuda.matmul.allow_tf32
    result["copy_gb_per_second"] = measuring.copy_bandwidth(device) / 1e9
    result["shapes"] = []
    print(f"forward + backward, {options.dtype} on {device}, medians of {options.rounds} interleaved rounds")
    if device.type == "cuda":
        print(f"a copy in device memory moves {result['copy_gb_per_second']:.0f} GB/s")
    for m, k, n in shapes:
        if time.monotonic() - begin > options.limit:
            result.setdefault("not_begun", []).append(f"{m}x{k}x{n}")
            print(f"\nM = {m}, K = {k}, N = {n}: not begun, {options.limit:.0f} s have passed")
            continue
        entry = measured(Sides(m, k, n, device, dtype), options)
        result["shapes"].append(entry)
        show(entry, device.type == "cuda")
        measuring.write(result, options.output)
        measuring.free(device)
    measuring.write(result, options.output)


if __name__ == "__main__":
    main()
