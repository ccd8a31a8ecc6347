"""In evaluation without gradients, factors are kept; whatever changes what they are made of makes them anew."""

from __future__ import annotations

import pytest
import torch
from peft import set_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from peft.utils import get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hybrid_kernels.adapters.acceleration import accelerate, restore
from hybrid_kernels.nn.cache import FactorCache
from tests.adapters.acceleration.support import (
    METHODS,
    accelerated_layers,
    adapted,
    inputs,
    moved,
    outputs,
    trio,
)

CACHING = [name for name in METHODS if name not in ("lora", "rslora")]
each_method = pytest.mark.parametrize("method", CACHING)


def kept(model: nn.Module) -> list[object]:
    return [
        value for layer in accelerated_layers(model) for *_, value in layer._acceleration.cache._kept.values()
    ]


@each_method
def test_factors_are_kept_in_evaluation_without_gradients_alone(method):
    fast = trio("llama", method).fast
    outputs(fast)
    first = kept(fast)
    assert len(first) == 14
    outputs(fast)
    assert all(a is b for a, b in zip(first, kept(fast), strict=True))
    fast(**inputs("llama"))
    assert not kept(fast)
    fast.train()
    outputs(fast)
    assert not kept(fast)


@each_method
def test_an_optimizer_step_shows(method):
    models = trio("llama", method)
    for model in models:
        outputs(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        model(**inputs("llama")).loss.backward()
        optimizer.step()
    models.assert_outputs_agree()
    for model in models:  # and one without a forward before it
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.full_like(p, 0.01)
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    models.assert_outputs_agree()


@each_method
def test_inference_mode_and_no_grad_take_turns(method):
    models = trio("llama", method)
    for _ in range(2):
        with torch.inference_mode():
            models.fast(input_ids=inputs("llama")["input_ids"])
        models.assert_outputs_agree()
    models.assert_gradients_agree(inputs("llama"))
    models.assert_outputs_agree()


@each_method
@pytest.mark.parametrize("how", ["load_state_dict", "set_peft_model_state_dict", "assign", "data"])
def test_loaded_weights_show(method, how):
    other = moved(adapted("llama", method), seed=9)
    models = trio("llama", method)
    models.each(outputs)
    if how == "set_peft_model_state_dict":
        models.each(lambda m: set_peft_model_state_dict(m, get_peft_model_state_dict(other)))
    elif how == "data":  # another tensor in its place
        state = dict(other.named_parameters())

        def write(model):
            for name, p in model.named_parameters():
                p.data = state[name].detach().to(p.dtype).clone()

        models.each(write)
    else:
        state = {name: t.clone() for name, t in other.state_dict().items()}
        models.each(
            lambda m: m.load_state_dict({n: t.clone() for n, t in state.items()}, assign=how == "assign")
        )
    models.assert_outputs_agree()


@each_method
def test_merging_and_unmerging_show_in_what_is_made_of_the_base_weight(method):
    models = trio("llama", method)
    for _ in range(2):
        models.each(outputs)
        models.each(lambda m: m.merge_adapter())
        models.assert_outputs_equal()
        assert not kept(models.fast)
        models.each(lambda m: m.unmerge_adapter())
        models.assert_outputs_agree()
    models.each(change_base)
    models.assert_outputs_agree()


@torch.no_grad()
def change_base(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if "base_layer.weight" in name:
            p.mul_(1.5)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_scales_show_and_leave_one_set_of_factors(method):
    models = trio("llama", method)
    for scale in (2.0, 0.5, 0, 3):
        outputs(models.fast)
        with (
            rescale_adapter_scale(models.stock, scale),
            rescale_adapter_scale(models.fast, scale),
            rescale_adapter_scale(models.truth, scale),
        ):
            models.assert_outputs_agree()
    models.assert_outputs_agree()
    assert len(kept(models.fast)) == (14 if method == "dora" else 0)


def test_a_hot_swapped_adapter_shows(tmp_path):
    moved(adapted("llama", "lora"), seed=9, by=0.5).save_pretrained(tmp_path)
    models = trio("llama", "lora")
    models.assert_outputs_agree()
    models.each(lambda m: hotswap_adapter(m, str(tmp_path), adapter_name="default"))
    models.assert_outputs_agree()


def test_the_cache_does_not_take_a_tensor_for_one_that_is_gone():
    storage = torch.zeros(3)
    cache = FactorCache()
    addresses = set()
    with torch.no_grad():
        for value in range(50):
            storage.data.fill_(value)
            tensor = storage.detach()
            addresses.add((id(tensor), tensor.data_ptr(), tensor._version))
            got = cache.get(
                "name", lambda tensor=tensor: [tensor], lambda tensor=tensor: tensor.clone(), False
            )
            assert got[0] == value
            del tensor, got


def test_the_cache_keeps_what_a_computation_that_writes_to_its_source_made():
    cache, source, calls = FactorCache(), torch.full((3,), 2.0), []

    def compute():
        calls.append(1)
        return source.clamp_(max=1.0) * 1

    with torch.no_grad():
        first = cache.get("name", lambda: [source], compute, False)
        assert cache.get("name", lambda: [source], compute, False) is first
    assert calls == [1]


def test_a_tensor_whose_data_was_replaced_twice_between_forwards_shows():
    """The second replacement may get the memory that the first one freed: an address alone would not tell."""
    source, cache = nn.Parameter(torch.zeros(64, 64)), FactorCache()
    with torch.no_grad():
        for _ in range(20):
            assert torch.equal(cache.get("name", lambda: [source], source.clone, False), source)
            source.data = source.data + 1
            source.data = source.data + 1


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["dora", "hra", "oft"])
def test_a_change_of_shards_shows(method, process_group):
    """FSDP gathers shards into the same tensors, whose versions stay."""
    model = adapted("llama", method)
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for _ in range(3):
        accelerate(model)
        outputs(model)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.05)
        changed = outputs(model)
        restore(model)
        torch.testing.assert_close(changed, outputs(model))
