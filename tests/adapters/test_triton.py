"""The PEFT method on the Triton kernels, under the interpreter where there is no GPU."""

from unittest import mock

import pytest
import torch
from peft import get_peft_model

from hybrid_kernels import use_backend
from hybrid_kernels.adapters.layer import HybridLayer
from hybrid_kernels.ops import householder
from tests.adapters.test_peft_method import config, train
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import common, selection


@pytest.fixture(params=["SEQ_CLS", None])
def made(request, make_base, batch):
    """A trained adapter on query and value of both layers, and its input, on the device.

    With a task type and without one PEFT reaches the model by different ways.
    """
    model = get_peft_model(make_base(), config(target_modules=["query", "value"], task_type=request.param))
    train(model, batch)
    return model.to(DEVICE), {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def loss_and_gradients(model, batch):
    model.train()
    model.zero_grad()
    torch.manual_seed(4)
    loss = model(**batch).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("variant", selection.VARIANTS["forward"])
def test_every_variant_is_reached_and_right(variant, made):
    model, batch = made
    for dropout in model.modules():
        if isinstance(dropout, torch.nn.Dropout):
            dropout.p = 0.0
    selection.RAN.clear()
    with use_backend("triton", variant=variant):
        mine = loss_and_gradients(model, batch)
    assert ("forward", variant) in {(operation, name) for operation, name, *_ in selection.RAN}
    with use_backend("reference"):
        plain = loss_and_gradients(model, batch)
        truth = loss_and_gradients(model.double(), batch)
    flat = [torch.cat([tensor.flatten() for tensor in each]) for each in (mine, truth, plain)]
    assert_close_by_scale(*flat, 3)


def factor_launches(model, batch) -> tuple[list, int]:
    with use_backend("triton"), mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        results = loss_and_gradients(model, batch)
    kernels = [call.args[0].fn.__name__ for call in launch.call_args_list]
    return results, kernels.count("householder_factors_kernel")


def test_the_reflections_of_all_layers_are_factorised_in_one_launch(made, monkeypatch):
    model, batch = made
    together, launches = factor_launches(model, batch)
    assert launches == 1
    layers = [layer for layer in model.modules() if isinstance(layer, HybridLayer)]
    assert len(layers) == 4
    assert all(layer.adapter("default").prepared_reflections is None for layer in layers)
    monkeypatch.setattr(householder, "prepare", lambda us: None)
    apart, launches = factor_launches(model, batch)
    assert launches == 4
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_makes_them_again_to_the_same_bits(use_reentrant, made):
    model, batch = made
    expected, _ = factor_launches(model, batch)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    again, _ = factor_launches(model, batch)
    for one, other in zip(expected, again, strict=True):
        assert torch.equal(one, other)


def test_an_error_leaves_nothing_behind(made):
    model, _ = made
    model.train()
    with use_backend("triton"), pytest.raises((TypeError, ValueError, AttributeError)):
        model(input_ids="nonsense")
    layers = [layer for layer in model.modules() if isinstance(layer, HybridLayer)]
    assert all(layer.adapter("default").prepared_reflections is None for layer in layers)


def test_unloading_takes_the_hooks_along(made):
    model, _ = made
    base = model.unload()
    assert not base._forward_pre_hooks and not base._forward_hooks


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_layers_compiled_by_themselves_make_their_own(backend, checkpointing, made):
    """A graph that took the prepared ones would save other tensors than the one that runs anew without them."""
    model, batch = made
    expected, _ = factor_launches(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch._dynamo.reset()
    for layer in model.base_model.model.bert.encoder.layer:
        layer.attention.self.query.compile(backend=backend, fullgraph=True)
    compiled, launches = factor_launches(model, batch)
    # The two values take what was prepared, the two queries do not; where layers run anew, each makes its own.
    assert launches == 1 + 2 + (4 if checkpointing else 0)
    for one, other in zip(expected, compiled, strict=True):
        torch.testing.assert_close(one, other)
