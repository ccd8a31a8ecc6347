"""Layers that share the projection of their input: when they do, when they stop, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybrid_kernels.adapters.acceleration import accelerate, restore
from hybrid_kernels.adapters.acceleration.groups import groups_on
from tests.adapters.acceleration.support import (
    METHODS,
    Trio,
    accelerated_layers,
    gradients,
    inputs,
    moved,
    outputs,
    trio,
    twin,
)

SHARING = ["lora", "rslora", "dora", "hra", "hra_gram_schmidt"]
Call = Callable[["Attention", Tensor], Tensor]


def together(self: Attention, x: Tensor) -> Tensor:
    return self.q_proj(x) + self.k_proj(x) * self.v_proj(x)


class Attention(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(16, 16))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


class Model(nn.Module):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.attention = Attention(call)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


def small(call: Call = together, method: str = "lora", targets: str = "qkv") -> Trio:
    torch.manual_seed(0)
    config = METHODS[method](target_modules=[f"{name}_proj" for name in targets])
    stock = moved(get_peft_model(Model(call), config))
    fast = twin(stock)
    accelerate(fast)
    return Trio(stock, fast, twin(stock).double())


def attention(model: nn.Module) -> Attention:
    return next(module for module in model.modules() if isinstance(module, Attention))


def run(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """The output and every gradient, that of x among them."""
    dtype = next(model.parameters()).dtype
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()
    model.zero_grad()
    y = model(x)
    result = {"y": y.detach()}
    if y.requires_grad:
        y.square().sum().backward()
        result["x"] = x.grad
        result |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return result


def assert_agree(models: Trio, seed: int = 0) -> None:
    stock, fast, truth = (run(model, seed) for model in models)
    assert stock.keys() == fast.keys() == truth.keys()
    for name, true in truth.items():
        allowed = max(3 * (stock[name] - true).norm(), 2**-22 * true.norm())
        assert (fast[name] - true).norm() <= allowed, name


@pytest.mark.parametrize("method", SHARING)
@pytest.mark.parametrize(("model", "sizes"), [("llama", [3, 2]), ("gemma", [3, 2]), ("bert", [3])])
def test_layers_of_one_input_share_in_every_block(model, sizes, method, shared_calls):
    models = trio(model, method)
    models.assert_outputs_agree()
    assert shared_calls[: 2 * len(sizes)] == 2 * sizes
    models.assert_gradients_agree(inputs(model))
    assert all(group.dissolved is None for group in groups_on(models.fast))


@pytest.mark.parametrize("method", ["oft", "boft"])
def test_layers_that_rotate_their_input_differently_share_nothing(method):
    assert not list(groups_on(trio("llama", method).fast))


def test_with_share_inputs_false_nothing_is_shared(shared_calls):
    models = small()
    restore(models.fast)
    report = accelerate(models.fast, share_inputs=False)
    assert not any(layer.shares for layer in report.layers)
    assert_agree(models)
    assert not shared_calls


@pytest.mark.parametrize("method", SHARING)
def test_layers_with_different_inputs_dissolve_their_group_and_stay_right(method, shared_calls):
    def differently(self, x):
        return self.q_proj(x) + self.k_proj(x * 2) * self.v_proj(x)

    models = small(differently, method)
    assert_agree(models)
    (group,) = groups_on(models.fast)
    assert "different inputs" in group.dissolved
    assert_agree(models, seed=1)
    assert shared_calls == [3]
    assert attention(models.fast).q_proj.shares() == ()


def test_a_pre_hook_that_changes_one_layer_s_input_dissolves_the_group():
    models = small()
    for model in models:
        attention(model).k_proj.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    assert_agree(models)


CALLS: dict[str, Call] = {
    "skipped": lambda self, x: self.q_proj(x) + self.v_proj(x),
    "skipped_first": lambda self, x: self.k_proj(x) * self.v_proj(x),
    "only_one": lambda self, x: self.v_proj(x),
    "reversed": lambda self, x: self.v_proj(x) * self.k_proj(x) + self.q_proj(x),
    "twice": lambda self, x: self.q_proj(x) * self.k_proj(x) + self.q_proj(x) * self.v_proj(x),
    "detached": lambda self, x: self.q_proj(x) + self.k_proj(x).detach() * self.v_proj(x),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("method", SHARING)
def test_layers_may_be_skipped_repeated_and_called_in_any_order(name, method):
    assert_agree(small(CALLS[name], method))


def _one_without_gradient(self, x):
    with torch.no_grad():
        k = self.k_proj(x)
    return self.q_proj(x) + k * self.v_proj(x)


def _first_without_gradient(self, x):
    with torch.no_grad():
        q = self.q_proj(x)
    return q + self.k_proj(x) * self.v_proj(x)


def _input_changed_in_place(self, x):
    x = x * 1
    q = self.q_proj(x)
    with torch.no_grad():
        x.mul_(2)
    return q.detach() + self.k_proj(x) * self.v_proj(x)


@pytest.mark.parametrize("call", [_one_without_gradient, _first_without_gradient])
@pytest.mark.parametrize("method", ["lora", "hra"])
def test_a_layer_called_without_gradient_takes_nothing_from_the_others(call, method):
    assert_agree(small(call, method))


def test_an_input_changed_in_place_between_two_layers_is_read_again():
    assert_agree(small(_input_changed_in_place))


def test_a_layer_outside_autocast_takes_nothing_from_one_inside():
    def call(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            q = self.q_proj(x)
        return q.float() + self.k_proj(x) * self.v_proj(x)

    stock, fast, _ = small(call)
    x = torch.randn(8, 16)
    y = fast(x)
    assert y.dtype == torch.float32
    assert (y - stock(x)).norm() <= 2**-7 * y.norm()
    k = attention(stock).k_proj(x) * attention(stock).v_proj(x)
    assert (y - attention(fast).call(attention(stock), x)).norm() <= 2**-7 * k.norm()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("which", ["q_proj", "k_proj", "v_proj"])
def test_one_layer_may_be_checkpointed(which, reentrant):
    def call(self, x):
        def maybe(name):
            layer = getattr(self, name)
            return checkpoint(layer, x, use_reentrant=reentrant) if name == which else layer(x)

        return maybe("q_proj") + maybe("k_proj") * maybe("v_proj")

    assert_agree(small(call))


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_parent_may_be_checkpointed_and_checkpoint_all_its_layers(reentrant, shared_calls):
    def call(self, x):
        return checkpoint(lambda x: together(self, x), x, use_reentrant=reentrant)

    models = small(call)
    assert_agree(models)
    models = small()
    for model in models:
        inner = attention(model)
        inner.forward = lambda x, inner=inner: checkpoint(
            lambda x: inner.call(inner, x), x, use_reentrant=reentrant
        )
    assert_agree(models)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_parent_may_call_its_layers_with_different_inputs(reentrant):
    """As in cross-attention: what the checkpoint's second call saves must be what its first did."""

    def differently(self, x):
        return self.q_proj(x) + self.k_proj(x * 2) * self.v_proj(x * 3)

    models = small(differently)
    for model in models:
        outer = next(module for module in model.modules() if isinstance(module, Model))
        outer.forward = lambda x, inner=outer.attention: checkpoint(inner, x, use_reentrant=reentrant)
    assert_agree(models)


CHANGES = {
    "merged": lambda model: attention(model).k_proj.merge(),
    "disabled": lambda model: attention(model).k_proj.enable_adapters(False),
    "another adapter": lambda model: attention(model).k_proj.set_adapter("second"),
    "no adapter": lambda model: attention(model).q_proj.set_adapter([]),
    "frozen": lambda model: attention(model).k_proj.requires_grad_(False),
    "base trainable": lambda model: attention(model).k_proj.base_layer.requires_grad_(True),
    "base hooked": lambda model: attention(model).k_proj.base_layer.register_forward_hook(
        lambda module, args, output: output * 2
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_layer_in_another_state_stays_right_and_so_do_the_others(change):
    models = small()
    for model in models:
        model.add_adapter("second", METHODS["lora"](target_modules=["k_proj"]))
        with torch.no_grad():
            attention(model).k_proj.lora_B["second"].weight.fill_(0.1)
            attention(model).k_proj.lora_A["second"].weight.fill_(0.2)
        CHANGES[change](model)
    assert_agree(models)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_parent_s_forward_leaves_nothing_for_the_next(error, shared_calls):
    def call(self, x):
        y = self.q_proj(x)
        if getattr(self, "fails", False):
            raise error
        return y + self.k_proj(x) * self.v_proj(x)

    models = small(call)
    x = torch.randn(40, 16)
    attention(models.fast).fails = True
    with pytest.raises(error):
        models.fast(x)
    attention(models.fast).fails = False
    with torch.no_grad():
        for model in models:
            for p in model.parameters():
                if p.requires_grad:
                    p.mul_(1.5)
        assert (models.fast(x) - models.stock(x)).norm() <= 1e-5 * models.stock(x).norm()
    assert_agree(models)


def test_nothing_outlives_the_forward():
    seen: list[weakref.ref] = []

    def call(self, x):
        x = x * 2
        y = self.q_proj(x)
        seen.extend([weakref.ref(x), weakref.ref(y)])
        return y.sum() + self.v_proj(x).sum() * 0  # k_proj's is never asked for

    fast = small(call).fast
    before = {id(t) for t in tensors()}
    gc.disable()
    try:
        with torch.no_grad():
            fast(torch.randn(40, 16))
        assert not any(reference() is not None for reference in seen)
        left = [t for t in tensors() if id(t) not in before and t.shape == (40, 16)]
        assert not left
        y = fast(torch.randn(40, 16))
        del y
        assert not any(reference() is not None for reference in seen)
    finally:
        gc.enable()


def tensors() -> list[Tensor]:
    # By type: isinstance asks weak proxies, some of them dead.
    return [each for each in gc.get_objects() if issubclass(type(each), Tensor)]


def test_an_exception_leaves_no_tensors_behind():
    seen: list[weakref.ref] = []

    def call(self, x):
        x = x * 2
        seen.append(weakref.ref(x))
        self.q_proj(x)
        raise RuntimeError

    fast = small(call).fast
    with contextlib.suppress(RuntimeError):
        fast(torch.randn(40, 16))
    gc.collect()
    assert seen[0]() is None


def test_a_layer_called_outside_its_parent_s_forward_runs_alone(shared_calls):
    models = small()
    x = torch.randn(4, 16)
    assert torch.allclose(attention(models.fast).k_proj(x), attention(models.stock).k_proj(x), atol=1e-5)
    assert not shared_calls


def test_a_dissolved_group_is_formed_again_after_restore(shared_calls):
    models = small(lambda self, x: self.q_proj(x) + self.k_proj(x * 2) * self.v_proj(x))
    models.fast(torch.randn(4, 16))
    for model in models:
        attention(model).call = together
    restore(models.fast)
    accelerate(models.fast)
    shared_calls.clear()
    assert_agree(models)
    assert shared_calls == [3]


def test_a_third_layer_added_later_forms_the_group(shared_calls):
    models = small(targets="qv")
    assert_agree(models)
    assert not shared_calls
    for model in models:
        torch.manual_seed(1)
        model.add_adapter("second", METHODS["lora"](target_modules=["q_proj", "k_proj", "v_proj"]))
        model.set_adapter("second")
        moved(model)
    models.truth.double()
    report = accelerate(models.fast)
    assert all(len(layer.shares) == 2 for layer in report.layers)
    assert_agree(models)
    assert shared_calls == [3]


def test_gradient_accumulation_and_steps_keep_groups_right():
    models = trio("llama", "lora")
    models.each(lambda m: m.train())
    for model in models:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(2):
            model(**inputs("llama")).loss.backward()
            model(**inputs("llama")).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    models.each(lambda m: m.eval())
    stock, fast, truth = (outputs(model) for model in models)
    assert (fast - truth).norm() <= 3 * (stock - truth).norm() + 1e-5 * truth.norm()
    assert gradients(models.fast, inputs("llama")).keys() == gradients(models.stock, inputs("llama")).keys()


def test_the_groups_hold_no_layer_that_was_unloaded():
    fast = small().fast
    layers = [weakref.ref(layer) for layer in accelerated_layers(fast)]
    plain = fast.merge_and_unload()
    del fast
    plain(torch.randn(2, 16))
    gc.collect()
    assert not any(reference() is not None for reference in layers)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
