"""Acceleration over quantised base layers: bitsandbytes' 8 and 4 bits and torchao's int8 weights, on the CPU.

The weights are known only through their layer's forward. What they are, read back in float64 under stock PEFT, is the
truth that both are measured against.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.aqlm import AqlmLoraLinear
from peft.tuners.lora.awq import AwqLoraLinear
from peft.tuners.lora.gptq import GPTQLoraLinear
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hybrid_kernels.adapters.acceleration import accelerate, restore
from tests.adapters.acceleration.support import LLAMA_LINEAR, METHODS, llama, moved, tokens
from tests.support import assert_close_by_scale

METHOD_NAMES = ["lora", "rslora", "dora", "oft", "oft_exact", "boft", "boft_2"]
# bitsandbytes quantises blocks of 64 numbers.
CONFIGURATION = {"hidden_size": 64, "intermediate_size": 64, "attention_bias": True, "mlp_bias": True}


def _eight_bits() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


def _four_bits() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(quant_type=Int8WeightOnlyConfig())


QUANTISATIONS: dict[str, tuple[str, Callable[[], Any]]] = {
    "bitsandbytes_8_bits": ("bitsandbytes", _eight_bits),
    "bitsandbytes_4_bits": ("bitsandbytes", _four_bits),
    "torchao_int8": ("torchao", _torchao),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    model = llama(**CONFIGURATION)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=QUANTISATIONS)
def quantised(request: pytest.FixtureRequest, checkpoint: str) -> Callable[[str], nn.Module]:
    """method ↦ the quantised Llama under it, the same at each call."""
    package, configuration = QUANTISATIONS[request.param]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")

    def make(method: str) -> nn.Module:
        base = AutoModelForCausalLM.from_pretrained(
            checkpoint, quantization_config=configuration(), dtype=torch.float32, device_map="cpu"
        )
        torch.manual_seed(3)  # the adapter's start
        return moved(get_peft_model(base, METHODS[method](target_modules=LLAMA_LINEAR))).train()

    make.kind = request.param  # type: ignore[attr-defined]
    return make


class StandInQuantLinear(nn.Module):
    """Looks to PEFT like a quantised layer of another library: no weight, other names for its sizes."""

    infeatures, outfeatures = 8, 6

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.arange(48, dtype=torch.int32).reshape(6, 8) - 24)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.qweight.to(x.dtype).T / 24


def _weight(base_layer: Any) -> Tensor:
    if type(base_layer.weight).__name__ in ("Int8Params", "Params4bit"):
        return dequantize_bnb_weight(base_layer.weight, state=getattr(base_layer, "state", None))
    return base_layer.weight.dequantize()


def _read_back(model: nn.Module, method: str) -> nn.Module:
    """The same in float64, its weights plain ones."""
    base = llama(**CONFIGURATION).double()
    truth = get_peft_model(base, METHODS[method](target_modules=LLAMA_LINEAR)).double().train()
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, module in truth.named_modules():
            if name.endswith("base_layer"):
                module.weight.copy_(_weight(modules[name]))
                module.bias.copy_(modules[name].bias)
        parameters = dict(model.named_parameters())
        for name, parameter in truth.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(parameters[name])
    return truth


def _results(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits, and the gradients of every adapter laid end to end."""
    ids = tokens()
    output = model(input_ids=ids, labels=ids)
    gradients = torch.autograd.grad(output.loss, [p for p in model.parameters() if p.requires_grad])
    return output.logits.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def _adapted_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "base_layer")]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_outputs_and_gradients_are_those_of_stock_peft_on_the_same_quantised_weights(quantised, method):
    stock, fast = quantised(method), quantised(method)
    report = accelerate(fast)
    assert not report.left_alone, str(report)
    assert all(layer.shares == () for layer in report.layers)
    operator = {"l": "low_rank_add", "d": "low_rank_add", "r": "low_rank_add"}.get(method[0], "rotate on")
    assert all(operator in layer.backend for layer in report.layers)
    truth = _read_back(fast, method)
    true_logits, true_gradients = _results(truth)
    plain_logits, plain_gradients = _results(stock)
    for _ in range(2):  # nothing is left behind in the quantised layers
        logits, gradients = _results(fast)
        assert_close_by_scale(logits, true_logits, plain_logits, 2)
        assert_close_by_scale(gradients, true_gradients, plain_gradients, 3)


@pytest.mark.parametrize("method", ["lora", "dora", "oft", "boft_2"])
def test_merged_unmerged_and_disabled_are_as_in_stock_peft(quantised, method):
    if quantised.kind == "bitsandbytes_8_bits" and method == "dora":
        pytest.skip("stock PEFT's DoRA over 8 bits fails on the CPU after one forward")
    stock, fast = quantised(method), quantised(method)
    accelerate(fast)
    ids = tokens()
    with torch.no_grad():
        with stock.disable_adapter(), fast.disable_adapter():
            assert torch.equal(fast(input_ids=ids).logits, stock(input_ids=ids).logits)
        for model in (stock, fast):
            model.merge_adapter()
        assert torch.equal(fast(input_ids=ids).logits, stock(input_ids=ids).logits)
        for model in (stock, fast):
            model.unmerge_adapter()
        for mine, theirs in zip(_adapted_layers(fast), _adapted_layers(stock), strict=True):
            assert torch.equal(_weight(mine.base_layer), _weight(theirs.base_layer))
    true_logits, true_gradients = _results(_read_back(fast, method))
    plain_logits, plain_gradients = _results(stock)
    logits, gradients = _results(fast)
    assert_close_by_scale(logits, true_logits, plain_logits, 2)
    assert_close_by_scale(gradients, true_gradients, plain_gradients, 3)


def test_hra_which_peft_does_not_take_over_quantised_weights_is_left_alone(quantised):
    stock, fast = quantised("hra"), quantised("hra")
    report = accelerate(fast)
    assert not report.accelerated
    assert all("quantised weight" in layer.reason for layer in report.left_alone)
    ids = tokens()
    try:
        expected = stock(input_ids=ids).logits
    except Exception as error:
        with pytest.raises(type(error)):
            fast(input_ids=ids)
    else:
        assert torch.equal(fast(input_ids=ids).logits, expected)


@pytest.mark.parametrize("cls", [AqlmLoraLinear, AwqLoraLinear, GPTQLoraLinear])
def test_lora_over_other_quantised_layers_is_left_alone_with_a_reason(cls):
    layer = moved(cls(StandInQuantLinear(), "default", config=LoraConfig(r=2), r=2, lora_alpha=2))
    model = nn.Sequential(layer)
    x = torch.randn(5, 8)
    expected = model(x)
    report = accelerate(model)
    (entry,) = report.left_alone
    assert entry.method == "LoRA"
    assert f"{cls.__name__} on StandInQuantLinear has no fast form" in entry.reason
    assert type(layer) is cls
    assert torch.equal(model(x), expected)


def test_restored_the_quantised_layers_are_of_their_former_class(quantised):
    fast = quantised("lora")
    classes = [type(layer) for layer in _adapted_layers(fast)]
    accelerate(fast)
    assert all(type(layer) is not cls for layer, cls in zip(_adapted_layers(fast), classes, strict=True))
    restore(fast)
    assert [type(layer) for layer in _adapted_layers(fast)] == classes
