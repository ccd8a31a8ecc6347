"""One training step of a Llama-shaped model of 1.1 billion parameters: frozen, under the hybrid, under stock PEFT LoRA.

    python benchmarks/llama_step.py [--tiny] [--output FILE]

The model is built from a configuration with random weights: hidden 2048, 16 layers, intermediate 8192, 32 heads and 8
key-value heads, vocabulary 32000. A step is forward, loss and backward of 4 x 1024 tokens without gradient
checkpointing, from input embeddings that ask for a gradient, so that the frozen model's step is the floor of the
others; there is no optimizer. Adapters are on all linear layers of the decoder: the hybrid r = 16 + 16 reflections as
the package chooses and, where Triton runs, on its kernels throughout; LoRA r = 32. Medians of interleaved steps, peak
memory above what the models themselves take, and the kernels of one step of the hybrid by their total time.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import pkgutil
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import Step
from torch import Tensor, nn

import hybrid_kernels as hk
import triton_ops
from hybrid_kernels.training.memory import peak_rise

RANK, REFLECTIONS, ALPHA = 16, 16, 16.0
FLOOR, HYBRID, ON_TRITON, LORA = "frozen model", "hybrid 16 + 16", "hybrid, Triton", "PEFT LoRA r=32"
SIZES = {
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    },
}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOP = 25


def llama(size: dict[str, int], tokens: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**size, max_position_embeddings=tokens, use_cache=False)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:  # random numbers by the billion are the device's work
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return model.requires_grad_(False).train()


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules over the same frozen weights."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def with_hybrid(model: nn.Module) -> nn.Module:
    """Every linear layer of the decoder under a hybrid adapter, off its start. Not through PEFT, which wants aenum."""
    for parent in list(model.modules()):
        for name in LINEAR:
            layer = getattr(parent, name, None)
            if isinstance(layer, nn.Linear):
                hybrid = hk.nn.HybridLinear(layer, rank=RANK, reflections=REFLECTIONS, alpha=ALPHA)
                setattr(parent, name, hybrid)
    return moved(model)


def with_lora(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2 * RANK, lora_alpha=ALPHA, target_modules=list(LINEAR))
    return moved(get_peft_model(model, config, autocast_adapter_dtype=False))


@torch.no_grad()
def moved(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def step_of(model: nn.Module, embeddings: Tensor, labels: Tensor) -> Step:
    leaves = [embeddings, *(p for p in model.parameters() if p.requires_grad)]

    def run() -> None:
        torch.autograd.grad(model(inputs_embeds=embeddings, labels=labels).loss, leaves)

    return run


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """What the step takes above what is allocated before it."""
    if device.type != "cuda":
        return None
    measuring.free(device)
    return peak_rise(step, device)


def own_kernels() -> set[str]:
    """The names of the kernels in triton_ops, where Triton is installed."""
    if triton_ops.unavailable() is not None:
        return set()
    names = set()
    for module in pkgutil.iter_modules(triton_ops.__path__):
        members = inspect.getmembers(import_module(f"triton_ops.{module.name}"))
        names |= {name for name, _ in members if name.endswith("_kernel")}
    return names


def profiled(step: Step, device: torch.device) -> dict[str, Any]:
    """Kernels (operators on a CPU) of one step by their total time, and what part of it is in our own."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    if device.type == "cuda":
        for event in profiler.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                total[event.name] += event.time_range.elapsed_us()
                calls[event.name] += 1
    else:
        for average in profiler.key_averages():
            total[average.key] = average.self_cpu_time_total
            calls[average.key] = average.count
    everything, ours = sum(total.values()) or 1.0, own_kernels()
    mine = sum(time for name, time in total.items() if name in ours)
    top = sorted(total, key=lambda name: -total[name])[:TOP]
    return {
        "kernel_seconds": everything / 1e6,
        "own_share": mine / everything,
        "top": [
            {
                "name": name[:120],
                "own": name in ours,
                "calls": calls[name],
                "seconds": total[name] / 1e6,
                "share": total[name] / everything,
            }
            for name in top
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers and 2 x 16 tokens")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    batch, tokens = (2, 16) if options.tiny else (4, 1024)
    size = SIZES["tiny" if options.tiny else "1b"]
    begin = time.monotonic()

    frozen = llama(size, tokens, device, dtype)
    embeddings = torch.randn(batch, tokens, size["hidden_size"], device=device, dtype=dtype)
    embeddings.requires_grad_()
    labels = torch.randint(size["vocab_size"], (batch, tokens), device=device)

    def of(model: nn.Module) -> Step:
        return step_of(model, embeddings, labels)

    hybrid = with_hybrid(shared_copy(frozen))
    builders = {
        FLOOR: lambda: of(frozen),
        HYBRID: lambda: of(hybrid),
        LORA: lambda: of(with_lora(shared_copy(frozen))),
    }
    if hk.ops.backend.unavailable("triton") is None:
        builders[ON_TRITON] = lambda: measuring.on_backend("triton", of(hybrid))
    result = measuring.head("llama_step", device, dtype=options.dtype, rounds=options.rounds)
    result["model"] = {
        **size,
        "batch": batch,
        "tokens": tokens,
        "parameters": sum(parameter.numel() for parameter in frozen.parameters()),
    }
    steps, failures = measuring.working(builders, device)
    result["ready_after_seconds"] = time.monotonic() - begin
    sides: dict[str, dict[str, Any]] = measuring.summarised(
        measuring.interleaved(steps, options.rounds, device, 20.0), FLOOR
    )
    for name, step in steps.items():
        sides[name]["peak_bytes"] = peak_bytes(step, device)
    sides |= {name: {"failed": why} for name, why in failures.items()}
    result["sides"] = sides
    measuring.write(result, options.output)
    result["profile"] = {name: profiled(steps[name], device) for name in (HYBRID, ON_TRITON) if name in steps}
    measuring.write(result, options.output)

    print(f"one step, {options.dtype} on {device}, {result['model']['parameters'] / 1e6:.1f} M parameters")
    for name, row in sides.items():
        if "failed" in row:
            print(f"  {name:20}  not measured: {row['failed']}")
            continue
        line = f"  {name:20}{row['ratio_to_frozen']:8.3f} × frozen"
        if device.type == "cuda":
            line += f"{row['median_seconds'] * 1e3:10.2f} ms{row['peak_bytes'] / 2**20:10.0f} MiB"
        print(line)
    for name, profile in result["profile"].items():
        print(
            f"\n{name}: {profile['own_share']:.1%} of {profile['kernel_seconds'] * 1e3:.1f} ms in our kernels"
        )
        for row in profile["top"]:
            mark = "*" if row["own"] else " "
            line = f"{row['share']:7.1%}{row['seconds'] * 1e3:10.3f} ms{row['calls']:6}"
            print(f"{line} {mark} {row['name'][:90]}")


if __name__ == "__main__":
    main()
