"""What PEFT has for LoRA alone: mixed batches, scales, variants, dropout, merging of adapters into new ones."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hybrid_kernels.adapters.acceleration import accelerate
from tests.adapters.acceleration.support import (
    MODELS,
    ROWS,
    Trio,
    accelerated_layers,
    inputs,
    moved,
    outputs,
    trio,
    twin,
)

exact_models = pytest.mark.parametrize("model", ["llama", "bert"])


def several(model: str = "llama", method: str = "lora", **changes: object) -> Trio:
    """Adapters "default", of rank 4 on all layers, and "second", of rank 3 on some of them."""
    models = trio(model, method, **changes)
    targets = MODELS[model][1][1:3]
    for each in models:
        torch.manual_seed(4)
        each.add_adapter(
            "second", LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_dora=method == "dora")
        )
        with torch.no_grad():
            for name, p in each.named_parameters():
                if "second" in name:
                    p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(6)) * 0.1)
    models.truth.double()
    return models


@exact_models
@pytest.mark.parametrize(
    "names",
    [
        ["default", "second", "__base__"],
        ["second", "second", "default"],
        ["__base__", "__base__", "__base__"],
        ["second", "__base__", "second"],
        ["default", "default", "default"],
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_mixed_batches_are_stock(model, names, bias):
    models = several(model, lora_bias=bias and model == "bert")
    models.assert_outputs_agree(adapter_names=names * (ROWS // 3))
    models.assert_outputs_agree()  # and nothing of it stays


def test_rows_of_a_mixed_batch_are_those_of_each_adapter_alone():
    fast = several().fast
    ids = inputs("llama")["input_ids"]
    with torch.no_grad():
        mixed = fast(ids, adapter_names=["second", "default", "__base__"]).logits
        for row, name in enumerate(["second", "default"]):
            fast.set_adapter(name)
            assert torch.allclose(mixed[row], fast(ids).logits[row], atol=1e-5)
        with fast.disable_adapter():
            assert torch.allclose(mixed[2], fast(ids).logits[2], atol=1e-5)


def raises_as_stock(models: Trio, **kwargs: object) -> None:
    messages = []
    for model in models[:2]:
        with pytest.raises(ValueError) as error:
            outputs(model, **kwargs)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "names", [["default"], ["default"] * (ROWS + 1), ["default", "unknown"] * (ROWS // 2)]
)
def test_mixed_batches_with_wrong_names_raise_peft_s_errors(names):
    raises_as_stock(several(), adapter_names=names)


def test_mixed_batches_with_merged_adapters_raise_peft_s_error():
    models = several()
    models.each(lambda m: m.merge_adapter())
    raises_as_stock(models, adapter_names=["default", "second", "__base__"] * (ROWS // 3))


def test_mixed_batches_with_dora_raise_peft_s_error():
    raises_as_stock(several(method="dora"), adapter_names=["default", "__base__"] * (ROWS // 2))


def test_mixed_batches_in_training_raise_peft_s_error():
    models = several()
    models.each(lambda m: m.train())
    raises_as_stock(models, adapter_names=["default", "__base__"] * (ROWS // 2))


def test_mixed_batches_with_adapters_disabled_give_the_base():
    models = several()
    with models.stock.disable_adapter(), models.fast.disable_adapter():
        models.assert_outputs_equal(adapter_names=["default", "second", "__base__"] * (ROWS // 3))


def test_mixed_batches_generate_the_same_tokens():
    models = several()
    names = ["default", "second", "__base__"]
    ids = inputs("llama")["input_ids"]
    stock, fast = (
        model.generate(input_ids=ids, adapter_names=names, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for model in models[:2]
    )
    assert torch.equal(fast, stock)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_scales_are_peft_s(method):
    models = trio("llama", method)

    def layers(change):
        def apply(model):
            for module in model.modules():
                if hasattr(module, "lora_A") and hasattr(module, "scale_layer"):
                    change(module)

        models.each(apply)
        models.assert_outputs_agree()
        models.assert_gradients_agree(inputs("llama"))

    layers(lambda layer: layer.set_scale("default", 0.5))
    layers(lambda layer: layer.scale_layer(3))
    layers(lambda layer: layer.unscale_layer(2))
    layers(lambda layer: layer.unscale_layer())
    layers(lambda layer: layer.set_scale("default", 0))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_scale_may_be_a_tensor_as_compiled_hot_swapping_has_it(method):
    models = trio("llama", method)

    def change(model):
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"] = torch.tensor(1.25)

    models.each(change)
    models.assert_outputs_agree()
    for model in models:
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scaling["default"].fill_(0.5)
    models.assert_outputs_agree()
    models.assert_gradients_agree(inputs("llama"))


@pytest.mark.parametrize("kind", ["cat", "linear", "svd"])
def test_weighted_adapters_are_made_and_run(kind):
    models = trio("llama", "lora")
    config = LoraConfig(r=4, lora_alpha=6, target_modules=MODELS["llama"][1])
    models.each(lambda m: m.add_adapter("second", config))
    for model in models:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "second" in name:
                    p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(6)) * 0.1)
    models.each(
        lambda m: m.add_weighted_adapter(["default", "second"], [0.7, -0.4], "both", combination_type=kind)
    )
    models.each(lambda m: m.set_adapter("both"))
    if kind == "svd":  # made by PEFT in the dtype of each
        stock, fast = (outputs(model) for model in models[:2])
        assert (fast - stock).norm() <= 1e-5 * stock.norm()
    else:
        models.assert_outputs_agree()


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_dropout_of_one_drops_all_as_in_stock(method):
    models = trio("llama", method, lora_dropout=1.0)
    models.each(lambda m: m.train())
    models.assert_outputs_agree()


def test_a_lora_and_a_dora_adapter_active_together_are_stock():
    models = trio("llama", "lora")
    config = LoraConfig(r=4, use_dora=True, target_modules=MODELS["llama"][1])
    models.each(lambda m: m.add_adapter("second", config))
    models.each(lambda m: m.base_model.set_adapter(["default", "second"]))
    models.assert_outputs_equal()
    models.each(lambda m: m.set_adapter("second"))
    models.assert_outputs_agree()


def test_a_variant_without_a_fast_form_is_no_dora():
    fast = trio("llama", "lora").fast
    fast.add_adapter("second", LoraConfig(r=4, init_lora_weights="mica", target_modules=MODELS["llama"][1]))
    fast.set_adapter("second")
    assert {layer.method for layer in accelerated_layers(fast)} == {"LoRA"}


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Conv1D(12, 8)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("hook", [False, True])
def test_conv1d_is_stock_also_where_it_has_to_be_called(dora, hook):
    torch.manual_seed(0)
    config = LoraConfig(r=4, use_dora=dora, target_modules=["layer"], fan_in_fan_out=True)
    stock = moved(get_peft_model(Convolved(), config), by=0.3)
    if hook:
        next(m for m in stock.modules() if type(m) is Conv1D).register_forward_hook(lambda *_: None)
    fast = twin(stock)
    assert accelerate(fast).accelerated
    x = torch.randn(50, 8)
    assert (fast(x) - stock(x)).norm() <= 1e-5 * stock(x).norm()


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_of_the_base_layer_run(kind):
    fast = trio("llama", "lora").fast
    calls = []
    base = accelerated_layers(fast)[-1].get_base_layer()
    getattr(base, kind)(lambda *_: calls.append(1))
    fast(**inputs("llama")).loss.backward()
    assert calls
