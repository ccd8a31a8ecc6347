"""Single accelerated layers against PEFT's: outputs and gradients, whatever the base layer, dtype, shape or dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftMixedModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hybrid_kernels.adapters.acceleration import Report, accelerate
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer
from tests.adapters.acceleration.support import METHODS, moved, twin
from tests.support import assert_close_by_scale

DRAWS = 4  # together: on a few numbers plain PyTorch is exact by luck
IN, OUT, ROWS = 16, 24, 20


class Around(nn.Module):
    """A model that is one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(x, **kwargs)


def base_layer(kind: str = "linear", dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    if kind == "conv1d":
        layer: nn.Module = Conv1D(OUT, IN)
        nn.init.normal_(layer.bias)
    else:
        layer = nn.Linear(IN, OUT, bias=bias)
    return layer.to(dtype)


def adapted(
    method: str, base: nn.Module | None = None, autocast_adapter_dtype: bool = True, **changes: Any
) -> Any:
    """A model of one layer under ``method``, the adapter moved off its start."""
    torch.manual_seed(1)
    config = METHODS[method](target_modules=["layer"])
    for name, value in changes.items():
        setattr(config, name, value)
    model = get_peft_model(
        Around(base_layer() if base is None else base), config, autocast_adapter_dtype=autocast_adapter_dtype
    )
    return moved(model).eval()


def layer_of(model: Any) -> Any:
    return model.base_model.model.layer


def accelerated(model: nn.Module) -> tuple[nn.Module, Report]:
    fast = twin(model)
    report = accelerate(fast)
    assert not report.left_alone, str(report)
    return fast, report


def draw_x(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (ROWS, IN)), generator=generator).to(dtype)


def results(model: nn.Module, x: Tensor, seed: int | None = None) -> list[Tensor]:
    """y, and the gradients of x and of every parameter that takes part."""
    if seed is not None:
        torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    y = model(x)
    dy = draw_x(*y.shape, seed=6).to(y.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(y, [x, *parameters], dy, allow_unused=True)
    return [y, *(gradient for gradient in gradients if gradient is not None)]


def assert_as_in_peft(
    model: nn.Module,
    draw: Callable[[int], Tensor] = lambda seed: draw_x(seed=seed),
    around: Callable[[], Any] = contextlib.nullcontext,
    plain_dtype: torch.dtype | None = None,
    seeded: bool = False,
) -> nn.Module:
    """Accelerated, a twin of ``model`` gives PEFT's results; returns the twin.

    PEFT's in float64 are the truth, PEFT's as they are, or with all of the model in ``plain_dtype``, the plain ones.
    ``seeded``: each starts from the same state of torch's generator.
    """
    stock, truth = twin(model).to(plain_dtype), twin(model).double()
    fast, _ = accelerated(model)
    columns = []
    for seed in range(DRAWS):
        x = draw(seed)
        with around():
            mine, plain = (results(each, x, seed if seeded else None) for each in (fast, stock))
        true = results(truth, x.double(), seed if seeded else None)
        columns.append(list(zip(mine, true, plain, strict=True)))
    for index, column in enumerate(zip(*columns, strict=True)):
        mine, true, plain = (torch.stack(each) for each in zip(*column, strict=True))
        if mine.dtype == torch.float64:
            assert plain.dtype == torch.float64
            torch.testing.assert_close(mine, true)
        else:
            assert_close_by_scale(mine, true, plain.to(mine.dtype), 2 if index == 0 else 3)
    return fast


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("method", METHODS)
def test_linear_layers_with_and_without_bias(method, bias):
    assert_as_in_peft(adapted(method, base_layer(bias=bias)))


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_conv1d_whose_weight_is_the_transpose(method):
    assert_as_in_peft(adapted(method, base_layer("conv1d"), fan_in_fan_out=True))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_lora_bias_is_scaled_and_added(kind):
    model = adapted("lora", base_layer(kind), lora_bias=True, fan_in_fan_out=kind == "conv1d")
    assert layer_of(model).lora_B["default"].bias is not None
    assert_as_in_peft(model)


DTYPES = {
    "float16_base": (torch.float16, True),
    "bfloat16_base": (torch.bfloat16, True),
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "float64": (torch.float64, True),
}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_dtypes_of_base_layer_and_adapter(method, dtypes):
    dtype, upcast = DTYPES[dtypes]
    model = adapted(method, base_layer(dtype=dtype), autocast_adapter_dtype=upcast)
    trainable = {p.dtype for p in model.parameters() if p.requires_grad}
    assert (torch.float32 in trainable) == (upcast and dtype is not torch.float64)
    # PEFT's HRA multiplies everything in its parameters' dtype, the frozen product too.
    plain_dtype = dtype if method.startswith("hra") else None
    assert_as_in_peft(model, lambda seed: draw_x(dtype=dtype, seed=seed), plain_dtype=plain_dtype)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_to_bfloat16(method):
    assert_as_in_peft(adapted(method), around=lambda: torch.autocast("cpu", torch.bfloat16))


@pytest.mark.parametrize("given", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_an_input_of_another_dtype_is_left_to_peft_or_raises_as_in_peft(method, given):
    model = adapted(method)
    fast, _ = accelerated(model)
    x = draw_x(dtype=given)
    try:
        expected = results(model, x)
    except RuntimeError as error:
        with pytest.raises(RuntimeError) as raised:
            results(fast, x)
        assert str(raised.value) == str(error)
    else:
        for mine, theirs in zip(results(fast, x), expected, strict=True):
            assert torch.equal(mine, theirs)


SHAPES = {"1": (IN,), "2": (5, IN), "3": (2, 5, IN), "4": (2, 3, 2, IN)}


@pytest.mark.parametrize("dimensions", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_any_number_of_dimensions(method, dimensions):
    if method.startswith("oft") and dimensions == "4":
        pytest.skip("PEFT's OFT takes four dimensions for an image")
    if method == "dora" and dimensions == "1":
        pytest.skip("PEFT's DoRA returns two dimensions for one")
    assert_as_in_peft(adapted(method), lambda seed: draw_x(*SHAPES[dimensions], seed=seed))


@pytest.mark.parametrize("method", METHODS)
def test_no_rows_give_no_rows_and_zero_gradients(method):
    model = adapted(method)
    fast, _ = accelerated(model)
    x = draw_x(0, IN)
    for mine, theirs in zip(results(fast, x), results(model, x), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_not_contiguous(method):
    assert_as_in_peft(adapted(method), lambda seed: draw_x(IN, ROWS, 2, seed=seed)[..., 1].T)
    assert_as_in_peft(adapted(method), lambda seed: draw_x(1, IN, seed=seed).expand(ROWS, IN))


@pytest.mark.parametrize("method", METHODS)
def test_a_base_layer_that_is_trained_too_gets_the_gradients_that_peft_gives_it(method):
    model = adapted(method)
    layer_of(model).base_layer.requires_grad_()
    assert_as_in_peft(model)


@pytest.mark.parametrize("method", METHODS)
def test_a_replaced_forward_of_the_base_layer_is_called_as_in_peft(method):
    model = adapted(method)
    base = layer_of(model).base_layer
    base.forward = lambda x: 2 * nn.functional.linear(x, base.weight, base.bias)
    x, fast = draw_x(), accelerated(model)[0]
    # A deep copy's replaced forward would read the original's weights.
    for mine, theirs in zip(results(fast, x), results(model, x), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_on_the_base_layer_are_seen_as_in_peft(method):
    model = adapted(method)
    layer_of(model).base_layer.register_forward_hook(lambda module, args, y: 3 * y)
    assert_as_in_peft(model)


@pytest.mark.parametrize("inner, outer", [("lora", "oft"), ("oft", "lora"), ("oft", "dora")])
def test_layers_on_layers_of_a_mixed_model(inner, outer):
    torch.manual_seed(1)
    model = PeftMixedModel(Around(base_layer()), METHODS[inner](target_modules=["layer"]), "inner")
    model.add_adapter("outer", METHODS[outer](target_modules=["layer"]))
    model.set_adapter(["inner", "outer"])
    moved(model).eval()
    fast = assert_as_in_peft(model)
    assert isinstance(layer_of(fast), AcceleratedLayer)
    assert isinstance(layer_of(fast).base_layer, AcceleratedLayer)
