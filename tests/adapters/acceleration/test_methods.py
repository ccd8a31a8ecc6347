"""What is particular to a method: HRA's degenerate vectors, OFT's constraint, dropout of each kind, DoRA's norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import HRAConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from hybrid_kernels import functional, reference
from hybrid_kernels.adapters.acceleration import accelerate
from hybrid_kernels.adapters.acceleration.lora import _row_norms
from tests.adapters.acceleration.support import moved, twin
from tests.adapters.acceleration.test_layers import (
    IN,
    OUT,
    Around,
    accelerated,
    adapted,
    assert_as_in_peft,
    base_layer,
    draw_x,
    layer_of,
    results,
)
from tests.support import assert_close_by_scale

# --- dropout -----------------------------------------------------------------------------------------------------


def lora_with_dropout(*probabilities: float, **changes: Any) -> nn.Module:
    """LoRA adapters "0", "1", … on one layer, all active, in training."""
    torch.manual_seed(1)
    configs = [
        LoraConfig(r=3 + i, lora_alpha=5, target_modules=["layer"], lora_dropout=p, **changes)
        for i, p in enumerate(probabilities)
    ]
    model = get_peft_model(Around(base_layer()), configs[0], adapter_name="0")
    for i, config in enumerate(configs[1:], 1):
        model.add_adapter(str(i), config)
    model.base_model.set_adapter([str(i) for i in range(len(configs))])
    return moved(model).train()


def lora_by_formula(layer: Any, x: Tensor) -> Tensor:
    """y with the masks that seeds drawn in the order of the adapters determine."""
    y = nn.functional.linear(x, layer.base_layer.weight.to(x), layer.base_layer.bias.to(x))
    for name in layer.active_adapters:
        p = layer.lora_dropout[name].p if isinstance(layer.lora_dropout[name], nn.Dropout) else 0.0
        seen = reference.seeded_dropout(x, p, functional.dropout_seed(x.device)) if p else x
        a, b = layer.lora_A[name], layer.lora_B[name]
        y = y + seen @ a.weight.to(x).T @ b.weight.to(x).T * layer.scaling[name]
        y = y if b.bias is None else y + b.bias.to(x) * layer.scaling[name]
    return y


@pytest.mark.parametrize("hook", [False, True], ids=["plain", "opaque"])
@pytest.mark.parametrize("lora_bias", [False, True], ids=["no_bias", "lora_bias"])
@pytest.mark.parametrize("probabilities", [(0.4,), (0.5, 0.25), (0.5, 0.0, 0.1)], ids=str)
def test_lora_drops_each_adapters_input_by_a_seeded_mask_of_its_own(probabilities, lora_bias, hook):
    model = lora_with_dropout(*probabilities, lora_bias=lora_bias)
    if hook:
        layer_of(model).base_layer.register_forward_hook(lambda module, args, y: None)
    fast, _ = accelerated(model)
    plain, truth = twin(model), twin(model).double()
    outcomes = []
    for each, dtype in ((fast, torch.float32), (truth, torch.float64), (plain, torch.float32)):
        x = draw_x(dtype=dtype).requires_grad_()
        torch.manual_seed(7)
        y = each(x) if each is fast else lora_by_formula(layer_of(each), x)
        parameters = [p for p in each.parameters() if p.requires_grad]
        outcomes.append([y, *torch.autograd.grad(y, [x, *parameters], draw_x(*y.shape, seed=8).to(dtype))])
    for index, (mine, true, theirs) in enumerate(zip(*outcomes, strict=True)):
        assert_close_by_scale(mine, true, theirs, 2 if index == 0 else 3)


def test_lora_drops_as_many_elements_as_asked_and_others_each_time():
    model = lora_with_dropout(0.3)
    layer = layer_of(model)
    layer.base_layer.requires_grad_(False).weight.zero_()
    layer.base_layer.bias.data.zero_()
    with torch.no_grad():
        layer.lora_A["0"].weight.zero_()[0] = 1.0
        layer.lora_B["0"].weight.zero_()[0, 0] = 1 / layer.scaling["0"]
    accelerate(model)
    x = torch.ones(4000, IN)
    first, second = model(x)[:, 0], model(x)[:, 0]
    assert not torch.equal(first, second)
    kept = (first.sum() / (1 / 0.7) / x.numel()).item()
    deviation = (0.3 * 0.7 / x.numel()) ** 0.5
    assert abs(kept - 0.7) < 5 * deviation


@pytest.mark.parametrize("method", ["lora", "dora", "boft"])
def test_nothing_is_dropped_in_evaluation(method):
    dropping = {"boft_dropout": 0.5} if method == "boft" else {"lora_dropout": 0.5}
    model, without = adapted(method, **dropping), adapted(method)
    assert torch.equal(accelerated(model)[0](draw_x()), accelerated(without)[0](draw_x()))


@pytest.mark.parametrize("hook", [False, True], ids=["plain", "opaque"])
def test_dora_drops_what_peft_drops_under_the_same_seed(hook):
    model = adapted("dora", lora_dropout=0.4).train()
    if hook:
        layer_of(model).base_layer.register_forward_hook(lambda module, args, y: None)
    assert_as_in_peft(model, seeded=True)


@pytest.mark.parametrize("method", ["boft", "boft_2", "boft_3"])
def test_boft_replaces_the_blocks_by_the_identity_that_peft_replaces_under_the_same_seed(method):
    model = adapted(method, boft_dropout=0.5).train()
    fast = assert_as_in_peft(model, seeded=True)
    outputs = {tuple(fast(draw_x()).flatten().tolist()) for _ in range(8)}
    assert len(outputs) > 1


# --- HRA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_zero_vector_of_hra_is_no_reflection_and_gets_no_gradient(training):
    model = adapted("hra").train(training)
    u = layer_of(model).hra_u["default"]
    with torch.no_grad():
        u[:, 1] = 0.0
    assert model(draw_x()).isnan().any()  # PEFT's
    shorter = get_peft_model(
        Around(base_layer()), HRAConfig(r=3, target_modules=["layer"], init_weights=False)
    )
    with torch.no_grad():
        layer_of(shorter).hra_u["default"].copy_(u[:, [0, 2, 3]])
    y, dx, du = results(accelerated(model)[0], draw_x())
    plain, truth = results(shorter, draw_x()), results(twin(shorter).double(), draw_x().double())
    for index, (mine, true, theirs) in enumerate(zip([y, dx, du[:, [0, 2, 3]]], truth, plain, strict=True)):
        assert_close_by_scale(mine, true, theirs, 2 if index == 0 else 3)
    assert torch.equal(du[:, 1], torch.zeros(IN))


def test_hra_whose_vectors_are_all_zero_is_the_base_layer():
    model = adapted("hra")
    with torch.no_grad():
        layer_of(model).hra_u["default"].zero_()
    x = draw_x()
    expected = layer_of(model).base_layer(x)
    torch.testing.assert_close(accelerated(model)[0](x), expected)


@pytest.mark.parametrize("apart", [1e-1, 1e-3])
def test_gram_schmidt_of_nearly_parallel_vectors_is_no_worse_than_peft(apart):
    model = adapted("hra_gram_schmidt")
    u = layer_of(model).hra_u["default"]
    with torch.no_grad():
        u[:, 1] = u[:, 0] + apart * u[:, 1]
    assert_as_in_peft(model)


# --- OFT ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "series"])
def test_constrained_oft_projects_its_parameter_in_place_as_peft_does(exact, training):
    model = adapted("oft_constrained", use_cayley_neumann=not exact).train(training)
    fast, _ = accelerated(model)
    before = layer_of(model).oft_R["default"].weight.clone()
    with torch.set_grad_enabled(training):
        model(draw_x()), fast(draw_x())
        model(draw_x()), fast(draw_x())
    after = layer_of(model).oft_R["default"].weight
    assert not torch.equal(before, after)
    assert torch.equal(layer_of(fast).oft_R["default"].weight, after)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "series"])
def test_constrained_oft_may_be_called_twice_before_its_backward(exact):
    model = adapted("oft_constrained", use_cayley_neumann=not exact).train()
    fast, _ = accelerated(model)
    gradients = []
    for each, dtype in ((fast, torch.float32), (twin(model).double(), torch.float64), (model, torch.float32)):
        (each(draw_x(dtype=dtype)) + each(draw_x(dtype=dtype, seed=6))).square().sum().backward()
        gradients.append(layer_of(each).oft_R["default"].weight.grad)
    assert_close_by_scale(*gradients, 3)


def test_oft_blocks_that_share_a_block_turn_alike():
    fast = assert_as_in_peft(adapted("oft_shared"))
    assert layer_of(fast).oft_R["default"].weight.shape[0] == 1 < layer_of(fast).r["default"]


# --- DoRA --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_row_norms_are_those_of_float32_whatever_the_dtype_and_autocast(dtype, autocast):
    generator = torch.Generator().manual_seed(0)
    weight, down, up = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((OUT, 4096), (4, 4096), (OUT, 4))
    )
    truth = (weight.double() + 0.7 * up.double() @ down.double()).norm(dim=1)
    plain = (weight.float() + 0.7 * up.float() @ down.float()).norm(dim=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        norms = _row_norms(weight, down, up, 0.7)
    assert_close_by_scale(norms, truth, plain, 2)


@pytest.mark.parametrize("method", ["hra", "hra_gram_schmidt"])
def test_hra_is_factorised_in_float32_under_autocast(method):
    layer = layer_of(accelerated(adapted(method))[0])
    expected = layer.update(layer.plain(), ["default"])
    with torch.autocast("cpu", torch.bfloat16):
        update = layer.update(layer.plain(), ["default"])
    assert torch.equal(update.down, expected.down)
    assert torch.equal(update.up, expected.up)
