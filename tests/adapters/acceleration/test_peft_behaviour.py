"""What PEFT promises of an adapted model holds while it is accelerated, for every method."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from peft.utils import get_peft_model_state_dict
from torch import nn

from hybrid_kernels.adapters.acceleration import accelerate, restore
from hybrid_kernels.adapters.acceleration.groups import groups_on
from tests.adapters.acceleration.support import (
    METHODS,
    MODELS,
    Trio,
    accelerated_layers,
    adapted,
    gradients,
    inputs,
    moved,
    outputs,
    trio,
    twin,
)

each_method = pytest.mark.parametrize("method", METHODS)
each_model = pytest.mark.parametrize("model", MODELS)
exact_models = pytest.mark.parametrize("model", ["llama", "bert"])


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, on scales that HRA has not and on merging several adapters
        yield


def second(method: str):
    """A change that adds another adapter of the method, moved off its start."""

    def add(adapted_model: PeftModel) -> None:
        adapted_model.add_adapter("second", METHODS[method](target_modules=MODELS["llama"][1]))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, p in adapted_model.named_parameters():
                if ".second" in name:
                    p.add_((0.05 * torch.randn(p.shape, generator=generator)).to(p.dtype))

    return add


def activate(*names: str):
    return lambda model: model.base_model.set_adapter(list(names))


@each_model
@each_method
def test_outputs_and_every_gradient_are_stock(model, method):
    models = trio(model, method)
    models.assert_outputs_agree()
    models.assert_gradients_agree(inputs(model))


@each_method
def test_outputs_and_every_gradient_are_stock_in_training_mode_and_with_trainable_biases(method):
    models = trio("bert", method, bias="all")
    models.each(lambda model: model.train())
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    models.assert_gradients_agree(inputs("bert"))


@each_method
def test_state_dict_parameters_and_their_order_are_untouched(method):
    stock = adapted("llama", method)
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    parameters, buffers = list(stock.named_parameters()), list(stock.named_buffers())

    def unchanged() -> bool:
        state = stock.state_dict()
        return (
            list(state) == list(before)
            and all(torch.equal(state[name], tensor) for name, tensor in before.items())
            and all(p is q for (_, p), (_, q) in zip(parameters, stock.named_parameters(), strict=True))
            and all(p is q for (_, p), (_, q) in zip(buffers, stock.named_buffers(), strict=True))
        )

    accelerate(stock)
    assert unchanged()
    if method != "oft_constrained":  # projects its parameter in each forward, in PEFT as well
        outputs(stock)
    assert unchanged()
    restore(stock)
    assert unchanged()


@exact_models
@each_method
@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unmerge_give_peft_s_weights_and_outputs(model, method, safe):
    models = trio(model, method)
    models.each(outputs)  # with factors kept
    models.each(lambda m: m.merge_adapter(safe_merge=safe))
    models.assert_outputs_equal()
    models.assert_outputs_agree()
    models.each(lambda m: m.unmerge_adapter())
    for name, tensor in models.stock.state_dict().items():
        assert torch.equal(models.fast.state_dict()[name], tensor), name
    models.assert_outputs_agree()
    models.assert_gradients_agree(inputs(model))


@each_method
def test_safe_merge_finds_nan_and_leaves_the_weights(method):
    fast = adapted("llama", method)
    accelerate(fast)
    layer = accelerated_layers(fast)[3]
    with torch.no_grad():
        next(p for p in layer.parameters() if p.requires_grad).fill_(float("nan"))
    weight = layer.get_base_layer().weight.clone()
    with pytest.raises(ValueError, match="NaNs detected"):
        fast.merge_adapter(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, weight)
    assert not layer.merged


@each_method
@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unload_gives_the_plain_model(method, safe):
    models = trio("llama", method)
    plain = [model.merge_and_unload(safe_merge=safe) for model in models]
    assert not accelerated_layers(plain[1])
    assert type(plain[1]) is type(plain[0])
    assert torch.equal(outputs(plain[1]), outputs(plain[0]))
    assert list(plain[1].state_dict()) == list(plain[0].state_dict())
    assert not list(groups_on(plain[1]))


@each_method
def test_unload_gives_the_base_model(method):
    models = trio("llama", method)
    base = MODELS["llama"][0]()
    plain = models.fast.unload()
    assert torch.equal(outputs(plain), outputs(base))
    assert not list(groups_on(plain))


@each_method
def test_disabled_adapters_leave_the_base_model_and_come_back(method):
    models = trio("llama", method)
    with models.fast.disable_adapter(), models.stock.disable_adapter():
        models.assert_outputs_equal()
        assert torch.equal(outputs(models.fast), outputs(MODELS["llama"][0]()))
    models.assert_outputs_agree()


@each_method
def test_disabling_merged_adapters_unmerges_them(method):
    models = trio("llama", method)
    models.each(outputs)
    models.each(lambda m: m.merge_adapter())
    with models.fast.disable_adapter(), models.stock.disable_adapter(), models.truth.disable_adapter():
        models.assert_outputs_equal()
        outputs(models.truth)
    assert not any(layer.merged for layer in accelerated_layers(models.fast))
    models.assert_outputs_agree()


@each_method
def test_a_second_adapter_added_later_is_fast_alone_and_together_with_the_first(method):
    models = trio("llama", method)
    models.each(second(method))
    models.assert_outputs_agree()  # the first is still the active one
    models.each(lambda m: m.set_adapter("second"))
    models.assert_outputs_agree()
    models.assert_gradients_agree(inputs("llama"))
    models.each(activate("default", "second"))
    models.assert_outputs_agree()
    models.assert_gradients_agree(inputs("llama"))
    models.each(activate("second", "default"))
    models.assert_outputs_agree()


@each_method
def test_several_adapters_merge_and_unmerge(method):
    models = trio("llama", method)
    models.each(second(method))
    models.each(activate("default", "second"))
    models.each(lambda m: m.merge_adapter(adapter_names=["second"]))
    models.assert_outputs_equal()
    models.each(lambda m: m.unmerge_adapter())
    models.each(lambda m: m.merge_adapter())
    models.assert_outputs_equal()
    models.each(lambda m: m.unmerge_adapter())
    models.assert_outputs_agree()


@each_method
def test_deleted_adapters_leave_the_others_and_nothing_of_theirs(method):
    models = trio("llama", method)
    models.each(second(method))
    models.each(lambda m: m.set_adapter("second"))
    models.assert_outputs_agree()
    models.each(lambda m: m.delete_adapter("default"))
    models.assert_outputs_agree()
    assert not any(
        "default" in str(name) for layer in accelerated_layers(models.fast) for name in kept(layer)
    )


def kept(layer) -> list[object]:
    """The names of the factors that a layer keeps."""
    return list(layer._acceleration.cache._kept)


@each_method
def test_an_adapter_deleted_and_added_again_by_the_same_name_is_the_new_one(method):
    models = trio("llama", method)
    models.each(second(method))
    models.each(lambda m: m.set_adapter("second"))
    for shift in range(3):
        models.assert_outputs_agree()
        models.each(lambda m: m.delete_adapter("second"))
        models.each(second(method))
        models.each(lambda m: m.set_adapter("second"))
        models.each(lambda m, shift=shift: shifted(m, shift))
    models.assert_outputs_agree()


@torch.no_grad()
def shifted(model: nn.Module, shift: int) -> None:
    for name, p in model.named_parameters():
        if p.requires_grad and "second" in name:
            p.data.mul_(1 + 0.3 * shift)


@each_method
def test_layers_that_a_later_adapter_adds_are_taken_up_by_a_second_call(method):
    stock = get_peft_model(
        MODELS["llama"][0](), METHODS[method](target_modules=["q_proj", "k_proj", "o_proj"])
    )
    fast = twin(stock)
    accelerate(fast)
    for model in (stock, fast):
        torch.manual_seed(3)
        second(method)(model)
        model.set_adapter("second")
    assert len(accelerated_layers(fast)) == 6
    truth = twin(stock).double()
    models = Trio(stock, fast, truth)
    models.assert_outputs_agree()
    report = accelerate(fast)
    assert len(report.accelerated) == len(accelerated_layers(fast)) == 14
    models.assert_outputs_agree()
    models.assert_gradients_agree(inputs("llama"))
    models.each(activate("default", "second"))
    models.assert_outputs_agree()


@each_method
def test_layers_without_the_active_adapter_are_accelerated_and_run_as_the_base(method):
    stock = get_peft_model(MODELS["llama"][0](), METHODS[method](target_modules=["q_proj", "v_proj"]))
    stock.add_adapter("second", METHODS[method](target_modules=["o_proj"]))
    moved(stock)
    stock.set_adapter("second")
    fast = twin(stock)
    assert len(accelerate(fast).accelerated) == 6
    models = Trio(stock, fast, twin(stock).double())
    models.assert_outputs_agree()
    models.each(lambda m: m.set_adapter("default"))
    models.assert_outputs_agree()


@each_method
def test_what_is_saved_accelerated_loads_into_a_stock_model_and_back(method, tmp_path):
    fast = moved(adapted("llama", method), seed=8)
    stock = twin(fast)
    accelerate(fast)
    fast.save_pretrained(tmp_path / "fast")
    stock.save_pretrained(tmp_path / "stock")
    make = MODELS["llama"][0]
    loaded = PeftModel.from_pretrained(make(), tmp_path / "fast").eval()
    assert torch.equal(outputs(loaded), outputs(stock))
    again = PeftModel.from_pretrained(make(), tmp_path / "stock").eval()
    accelerate(again)
    assert torch.equal(outputs(again), outputs(fast))


@each_method
def test_weights_loaded_into_an_accelerated_model_take_effect(method, tmp_path):
    other = moved(adapted("llama", method), seed=8)
    other.save_pretrained(tmp_path)
    models = trio("llama", method)
    models.each(outputs)
    models.each(lambda m: m.load_adapter(tmp_path, "third"))
    models.each(lambda m: m.set_adapter("third"))
    models.assert_outputs_agree()
    state = get_peft_model_state_dict(other)
    models.each(lambda m: m.set_adapter("default"))
    models.assert_outputs_agree()
    models.each(lambda m: set_peft_model_state_dict(m, state))
    models.assert_outputs_agree()
    assert method == "oft_constrained" or torch.equal(outputs(models.stock), outputs(other))


@each_method
def test_modules_to_save_train_and_load_as_in_stock(method, tmp_path):
    models = trio("bert", method, modules_to_save=["classifier"])
    models.assert_outputs_agree()
    models.assert_gradients_agree(inputs("bert"))
    assert any("classifier" in name for name in gradients(models.fast, inputs("bert")))
    models.fast.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MODELS["bert"][0](), tmp_path).eval()
    if method == "oft_constrained":  # projects its parameter in each forward
        return
    assert torch.equal(outputs(loaded), outputs(models.stock))


@each_method
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(method, reentrant):
    models = trio("llama", method)
    models.each(lambda m: m.train())
    plain = gradients(models.fast, inputs("llama"))
    models.each(lambda m: m.enable_input_require_grads())
    models.each(
        lambda m: m.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    )
    checkpointed = gradients(models.fast, inputs("llama"))
    assert checkpointed.keys() == plain.keys()
    if method != "oft_constrained":
        assert all(torch.equal(checkpointed[name], g) for name, g in plain.items())
    models.assert_gradients_agree(inputs("llama"))


@each_method
def test_two_forwards_before_one_backward(method):
    models = trio("llama", method)
    models.each(lambda m: m.train())
    results = []
    for model in models:
        model.zero_grad()
        first, then = model(**inputs("llama")), model(input_ids=inputs("llama")["input_ids"].flip(1))
        (first.loss + then.logits.square().mean()).backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    stock, fast, truth = results
    assert (fast - truth).norm() <= 3 * (stock - truth).norm()


@each_method
def test_status_helpers_see_the_same(method):
    stock = adapted("llama", method)
    fast = twin(stock)
    accelerate(fast)
    for change in (
        lambda m: None,
        lambda m: m.merge_adapter(),
        lambda m: m.base_model.disable_adapter_layers(),
    ):
        change(stock)
        change(fast)
        theirs = [replace(status, module_type="") for status in stock.get_layer_status()]
        assert [replace(status, module_type="") for status in fast.get_layer_status()] == theirs
        assert fast.get_model_status() == stock.get_model_status()
        assert fast.get_nb_trainable_parameters() == stock.get_nb_trainable_parameters()


@each_method
def test_input_casting_switched_off_changes_nothing_where_dtypes_agree(method):
    models = trio("llama", method)
    casting = (disable_input_dtype_casting(model) for model in models)
    with next(casting), next(casting), next(casting):
        models.assert_outputs_agree()
        models.assert_gradients_agree(inputs("llama"))
