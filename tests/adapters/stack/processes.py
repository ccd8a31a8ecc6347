"""What each of two processes does in test_distributed.py: `torchrun … processes.py MODE FOLDER`.

The first process writes what came out, or the traceback, for each kind of adapter and order of acceleration.
"""

import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hybrid_kernels import accelerate
from tests.adapters.acceleration.support import tokens
from tests.adapters.stack.support import HYBRID, KINDS, Results, accelerated, no_stock_forward, plain

BATCH = tokens(rows=4)
LAYERS = 2


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def own_part(batch: torch.Tensor) -> torch.Tensor:
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def step(model: nn.Module, parts: int = 1) -> Results:
    """The logits of the whole batch and the mean gradient, of which each process makes its own, in micro-batches."""
    model.zero_grad()
    logits = []
    with no_stock_forward(model):
        for index, ids in enumerate(own_part(BATCH).chunk(parts)):
            with model.no_sync() if index + 1 < parts else nullcontext():
                output = model(input_ids=ids, labels=ids)
                (output.loss / parts).backward()
                logits.append(output.logits.detach())
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    gradients = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]
    return [gathered(torch.cat(logits)), torch.cat([g.flatten() for g in gradients])]


def data_parallel(kind: str, order: str, folder: Path) -> dict[str, Results]:
    model = plain(kind, LAYERS)
    if order == "before":
        model = DistributedDataParallel(accelerated(model))
    else:
        model = DistributedDataParallel(model)
        accelerated(model.module)
    first = step(model)
    model.module.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = step(model)
    accumulated = step(model, parts=2)
    return {"step": first, "checkpointed": checkpointed, "accumulated": accumulated}


def sharded(kind: str, order: str, folder: Path) -> dict[str, Results]:
    model = plain(kind, LAYERS)
    if order == "before":
        accelerated(model)
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    if order == "after":
        report = accelerate(model)
        assert str(report) == str(accelerate(plain(kind, LAYERS)))
    first = step(model)

    # A sharded checkpoint of what is trained, read again after it was overwritten.
    options = StateDictOptions(ignore_frozen_params=True, strict=False)
    state = get_model_state_dict(model, options=options)
    dcp.save(state, checkpoint_id=folder / "sharded")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    state = get_model_state_dict(model, options=options)
    dcp.load(state, checkpoint_id=folder / "sharded")
    set_model_state_dict(model, state, options=options)
    loaded = step(model)

    # A full checkpoint that stock PEFT loads.
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        model.save_pretrained(folder / "full", state_dict=whole)

    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = step(model)
    return {"step": first, "loaded": loaded, "checkpointed": checkpointed}


MODES: dict[str, Callable[[str, str, Path], dict[str, Results]]] = {"ddp": data_parallel, "fsdp": sharded}


def main(mode: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for kind in KINDS:
        for order in ["before"] if kind in HYBRID else ["before", "after"]:
            place = folder / f"{kind}_{order}"
            place.mkdir(exist_ok=True)
            try:
                results: object = MODES[mode](kind, order, place)
            except Exception:
                results = traceback.format_exc()
            if dist.get_rank() == 0:
                torch.save(results, place / "results.pt")
            dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
