"""`accelerate` and `restore` as a pair: exact, idempotent, nested; copies and pickles of accelerated models."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from hybrid_kernels.adapters.acceleration import accelerate, restore
from hybrid_kernels.adapters.acceleration.groups import groups_on
from tests.adapters.acceleration.support import (
    METHODS,
    MODELS,
    accelerated_layers,
    adapted,
    gradients,
    inputs,
    outputs,
    trio,
    twin,
)

each_method = pytest.mark.parametrize("method", METHODS)


def anatomy(model: nn.Module) -> dict[str, object]:
    """Classes, attributes and hooks of every module."""
    hooks = [name for name in vars(nn.Module()) if "hooks" in name]
    return {
        name: (
            type(module),
            sorted(vars(module)),
            [sorted(getattr(module, kind) or ()) for kind in hooks],
        )
        for name, module in model.named_modules()
    }


@each_method
def test_restore_puts_back_exactly_what_was_there(method):
    model = adapted("llama", method)
    model.base_model.model.model.layers[0].self_attn.register_forward_hook(lambda *_: None)
    before = outputs(model)
    shape = anatomy(model)
    accelerate(model)
    outputs(model)
    assert anatomy(model) != shape
    assert restore(model) == 14
    assert anatomy(model) == shape
    assert torch.equal(outputs(model), before) or method == "oft_constrained"
    assert restore(model) == 0
    assert anatomy(model) == shape


@each_method
def test_accelerate_is_idempotent(method):
    model = adapted("llama", method)
    first = accelerate(model)
    shape = anatomy(model)
    second = accelerate(model)
    assert anatomy(model) == shape
    assert second.layers == first.layers
    with second:
        pass  # it did nothing, so there is nothing to turn back
    assert anatomy(model) == shape


def test_context_managers_turn_back_what_each_did():
    model = adapted("llama", "lora")
    plain = anatomy(model)
    with accelerate(model):
        inside = anatomy(model)
        with accelerate(model):
            assert anatomy(model) == inside
        assert anatomy(model) == inside
    assert anatomy(model) == plain


def test_a_context_manager_turns_back_the_groups_it_formed():
    model = adapted("llama", "lora")
    with accelerate(model, share_inputs=False):
        apart = anatomy(model)
        with accelerate(model):
            assert list(groups_on(model))
        assert anatomy(model) == apart
        outputs(model)


def test_a_context_manager_ends_with_an_exception():
    model = adapted("llama", "lora")
    plain = anatomy(model)
    with pytest.raises(KeyError), accelerate(model):
        raise KeyError
    assert anatomy(model) == plain


def test_a_context_manager_leaves_no_hook_where_layers_were_unloaded_in_it():
    model = adapted("llama", "lora")
    with accelerate(model):
        model = model.merge_and_unload()
    assert not list(groups_on(model))


def test_restore_after_merge_and_unload_leaves_no_hook():
    model = adapted("llama", "lora")
    accelerate(model)
    model = model.merge_and_unload()
    restore(model)
    assert anatomy(model) == anatomy(MODELS["llama"][0]())


def test_restore_of_a_part_restores_that_part():
    model = adapted("llama", "lora")
    accelerate(model)
    first, second = model.base_model.model.model.layers
    assert restore(first) == 7
    assert not accelerated_layers(first) and not list(groups_on(first))
    assert len(accelerated_layers(second)) == 7 and len(list(groups_on(second))) == 2
    before = outputs(twin(model))
    assert torch.equal(outputs(model), before)


def test_restore_of_one_layer_ends_its_group_for_all():
    models = trio("llama", "lora")
    attention = models.fast.base_model.model.model.layers[0].self_attn
    assert restore(attention.k_proj) == 1
    assert not list(groups_on(attention))
    models.assert_outputs_agree()
    models.assert_gradients_agree(inputs("llama"))


@each_method
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_accelerated_and_independent(method, how):
    models = trio("llama", method)
    before = outputs(models.fast)  # with factors kept
    if how == "deepcopy":
        copied = copy.deepcopy(models.fast)
    else:
        buffer = io.BytesIO()
        torch.save(models.fast, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert anatomy(copied) == anatomy(models.fast)
    if method != "oft_constrained":
        assert torch.equal(outputs(copied), outputs(models.fast))
    mine, theirs = ({id(group) for group in groups_on(model)} for model in (models.fast, copied))
    assert len(mine) == len(theirs) and not mine & theirs
    for group in groups_on(copied):
        for name, layer in group.members.items():
            assert group.parent._modules[name] is layer
            assert layer._acceleration.group is group
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(2)
    copied_gradients = gradients(copied, inputs("llama"))
    assert copied_gradients.keys() == gradients(models.fast, inputs("llama")).keys()
    if method != "oft_constrained":  # projects its parameter in each forward, in PEFT as well
        assert torch.equal(outputs(models.fast), before)
    restore(copied)
    assert anatomy(copied) == anatomy(models.stock)
    models.assert_outputs_agree()
    assert len(accelerated_layers(models.fast)) == 14


def test_a_copy_of_one_layer_takes_no_other_along():
    models = trio("llama", "lora")
    layer = models.fast.base_model.model.model.layers[0].self_attn.q_proj
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    assert len(buffer.getvalue()) < 4 * sum(p.numel() * 4 for p in layer.parameters())
    copied = copy.deepcopy(layer)
    x = torch.randn(3, 32)
    assert torch.equal(copied(x), layer(x))
    assert copied.shares() == ()


def test_a_copy_made_after_an_interrupted_forward_is_whole():
    models = trio("llama", "lora")
    v = models.fast.base_model.model.model.layers[0].self_attn.v_proj

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = v.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.fast(**inputs("llama"))
    handle.remove()
    copied = copy.deepcopy(models.fast)
    assert torch.equal(outputs(copied), outputs(models.fast))


@pytest.mark.parametrize("method", ["lora", "dora", "hra", "oft"])
def test_replicas_of_data_parallel_share_no_group_and_compute_the_same(method, shared_calls):
    models = trio("llama", method)
    replica = replicate(models.fast)
    x = inputs("llama")["input_ids"]
    with torch.no_grad():
        want = models.fast(x).logits
        got = replica(x).logits
        attention = models.fast.base_model.model.model.layers[0].self_attn

        def beside(module, args):
            if not getattr(module, "_is_replica", False):
                replica(x)

        handle = attention.register_forward_pre_hook(beside)
        shared_calls.clear()
        assert torch.equal(models.fast(x).logits, want)
        assert len(shared_calls) == len(list(groups_on(models.fast))) == (0 if method == "oft" else 4)
        handle.remove()
    assert torch.allclose(got, want, atol=1e-5)
    for module in replica.modules():
        group = getattr(getattr(module, "_acceleration", None), "group", None)
        assert group is None or group._pending is None
    models.assert_outputs_agree()


def replicate(model: nn.Module) -> nn.Module:
    """What `nn.DataParallel` makes for each device, here on one."""
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicas[child]
        replica._former_parameters = {}
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.clone())
                replica._former_parameters[name] = getattr(replica, name)
    return replicas[model]


@pytest.mark.parametrize("method", ["lora", "hra", "oft", "boft_2"])
def test_a_wrapper_of_an_accelerated_layer_s_forward_survives_restore(method):
    model = adapted("llama", method)
    expected = outputs(model)
    accelerate(model)
    for layer in accelerated_layers(model):
        add_hook_to_module(layer, ModelHook())  # keeps the layer's forward
    restore(model)
    assert torch.equal(outputs(model), expected)
