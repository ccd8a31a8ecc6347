"""Two processes on the CPU: DDP and FSDP2 give the losses and gradients of one process."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.adapters.stack import processes
from tests.adapters.stack.support import HYBRID, KINDS, Results, assert_as_plain, plain, plain_base, step

ORDERS = [(k, order) for k in KINDS for order in ("before", "after") if k not in HYBRID or order == "before"]
ROOT = Path(__file__).parents[3]


def run(mode: str, folder: Path) -> Path:
    """Runs the processes; once more where one is killed by SIGSEGV, with its stack in a warning.

    That was seen once, on a loaded machine, and not in 60 runs since; the extension is clean under AddressSanitizer in
    both modes. Two in a row fail.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    for attempt in range(2):
        done = subprocess.run(
            [*command, processes.__file__, mode, str(folder)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if attempt or "Fatal Python error: Segmentation fault" not in done.stderr:
            break
        warnings.warn(f"{mode} crashed, and runs once more:\n{done.stderr[-20_000:]}", stacklevel=2)
    assert done.returncode == 0, done.stderr[-20_000:]
    return folder


@pytest.fixture(scope="module")
def ddp(tmp_path_factory) -> Path:
    return run("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory) -> Path:
    return run("fsdp", tmp_path_factory.mktemp("fsdp"))


def results_in(folder: Path) -> dict[str, Results]:
    results = torch.load(folder / "results.pt")
    assert not isinstance(results, str), results
    return results


def whole_batch(model: nn.Module) -> Results:
    return step(model, processes.BATCH)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
def test_data_parallel_in_processes(kind, order, ddp) -> None:
    for results in results_in(ddp / f"{kind}_{order}").values():
        assert_as_plain(kind, results, whole_batch, processes.LAYERS)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
def test_sharded(kind, order, fsdp) -> None:
    for results in results_in(fsdp / f"{kind}_{order}").values():
        assert_as_plain(kind, results, whole_batch, processes.LAYERS)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
def test_checkpoint_gathered_from_shards_loads_in_stock_peft(kind, order, fsdp) -> None:
    loaded = PeftModel.from_pretrained(plain_base(processes.LAYERS), fsdp / f"{kind}_{order}" / "full")
    own = plain(kind, processes.LAYERS).state_dict()
    assert loaded.state_dict().keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())
