"""What saves memory: checkpointing, accumulation of gradients, base weights that are elsewhere."""

import accelerate as hf_accelerate
import pytest
import torch
from torch import nn

from hybrid_kernels import accelerate
from tests.adapters.acceleration.support import tokens
from tests.adapters.stack.support import (
    DEVICES,
    HYBRID,
    KINDS,
    Results,
    accelerated,
    assert_as_plain,
    fast,
    gradients,
    plain,
    step,
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(kind, use_reentrant, device) -> None:
    model = fast(kind, layers=2).to(device)
    without = step(model)
    calls = []
    model.base_model.model.model.layers[1].mlp.act_fn.register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    with_it = step(model)
    assert len(calls) == 2  # it was made again
    for before, after in zip(without, with_it, strict=True):
        assert torch.equal(before, after)
    assert_as_plain(kind, with_it, layers=2, device=device)


def accumulate(model: nn.Module, parts: int) -> Results:
    model.zero_grad()
    ids = tokens(rows=4).to(next(model.parameters()).device)
    logits = []
    for part in ids.chunk(parts):
        output = model(input_ids=part, labels=part)
        (output.loss / parts).backward()
        logits.append(output.logits.detach())
    return [torch.cat(logits), gradients(model)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_gradients_are_those_of_one_batch(kind, device) -> None:
    results = accumulate(fast(kind).to(device), 4)
    assert_as_plain(kind, results, lambda model: accumulate(model, 1), device=device)


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_base_weights(kind, when, to_disk, tmp_path) -> None:
    """Every layer's base weight is on meta but for its own forward; the adapters stay where they are."""
    if kind in HYBRID and when == "after":
        pytest.skip("there is nothing to accelerate")
    model = plain(kind)
    if when == "before":
        accelerated(model)
    for module in model.modules():
        if hasattr(module, "base_layer"):
            if to_disk:
                folder = tmp_path / str(id(module))
                hf_accelerate.disk_offload(module.base_layer, folder, execution_device=torch.device("cpu"))
            else:
                hf_accelerate.cpu_offload(module.base_layer, execution_device=torch.device("cpu"))
            assert module.base_layer.weight.is_meta
    if when == "after":
        accelerated(model)
    assert_as_plain(kind, step(model))


@pytest.mark.parametrize("kind", ["lora", "oft"])  # PEFT's HRA and BOFT compute nonsense there, DoRA cannot
def test_where_the_adapters_are_offloaded_too_all_is_as_peft_has_it(kind) -> None:
    stock, model = plain(kind).eval(), plain(kind).eval()
    for each in (stock, model):
        hf_accelerate.cpu_offload(each, execution_device=torch.device("cpu"))
    report = accelerate(model)
    assert not report.accelerated
    assert all("offloaded" in layer.reason or "hooks" in layer.reason for layer in report.layers)
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, stock(tokens()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_data_parallel(kind) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("nn.DataParallel needs two GPUs")
    model = fast(kind).cuda()
    assert_as_plain(kind, step(nn.DataParallel(model)), device="cuda")
