"""Models, PEFT configurations and comparisons that the tests of acceleration share."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from hybrid_kernels.adapters.acceleration import accelerate
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer
from hybrid_kernels.cases.peft_butterflies import allow_butterflies_in_peft
from tests.support import assert_close_by_scale

allow_butterflies_in_peft()

# Every variant of every method that `accelerate` takes; `targets` is filled in by the model.
METHODS: dict[str, Callable[..., PeftConfig]] = {
    "lora": lambda **kw: LoraConfig(r=4, lora_alpha=6, **kw),
    "rslora": lambda **kw: LoraConfig(r=4, lora_alpha=6, use_rslora=True, **kw),
    "dora": lambda **kw: LoraConfig(r=4, lora_alpha=6, use_dora=True, **kw),
    "hra": lambda **kw: HRAConfig(r=4, **kw),
    "hra_gram_schmidt": lambda **kw: HRAConfig(r=3, apply_GS=True, init_weights=False, **kw),
    "oft": lambda **kw: OFTConfig(oft_block_size=8, **kw),  # the truncated series, PEFT's default
    "oft_exact": lambda **kw: OFTConfig(oft_block_size=8, use_cayley_neumann=False, **kw),
    "oft_shared": lambda **kw: OFTConfig(oft_block_size=8, block_share=True, **kw),
    "oft_constrained": lambda **kw: OFTConfig(oft_block_size=8, coft=True, eps=1e-2, **kw),
    "boft": lambda **kw: BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, **kw),
    "boft_2": lambda **kw: BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, **kw),
    "boft_3": lambda **kw: BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, **kw),
}

LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BERT_LINEAR = ["query", "key", "value", "dense"]


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


def llama(**changes: Any) -> nn.Module:
    """A Llama with grouped key-value heads, the same weights at each call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_key_value_heads": 2, **changes})).eval()


def gemma(**changes: Any) -> nn.Module:
    """A Gemma 2: norms before and after, soft capping, tied embeddings; the same weights at each call."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    own = {"num_key_value_heads": 2, "head_dim": 8}
    return Gemma2ForCausalLM(Gemma2Config(**{**SMALL, **own, **changes})).eval()


def bert(**changes: Any) -> nn.Module:
    """A BERT with three classes: biases, and query, key and value of one width; the same weights at each call."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**{**SMALL, "num_labels": 3, **changes})).eval()


MODELS: dict[str, tuple[Callable[..., nn.Module], list[str]]] = {
    "llama": (llama, LLAMA_LINEAR),
    "gemma": (gemma, LLAMA_LINEAR),
    "bert": (bert, BERT_LINEAR),
}


def tokens(rows: int = 3, length: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def adapted(model: str, method: str, **changes: Any) -> nn.Module:
    """The model under the method on all its linear layers, the adapter moved off its start."""
    make, targets = MODELS[model]
    return moved(get_peft_model(make(), METHODS[method](target_modules=targets, **changes)).eval())


@torch.no_grad()
def moved(model: nn.Module, seed: int = 2, by: float = 0.05) -> nn.Module:
    """Every trainable parameter moved at random, so that nothing is zero or the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((by * noise).to(parameter.dtype))
    return model


def twin(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def loss_and_gradients(model: nn.Module, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = model(**inputs).loss
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


def inputs(model: str) -> dict[str, Tensor]:
    """A batch with labels."""
    ids = tokens()
    return {"input_ids": ids, "labels": torch.tensor([0, 2, 1]) if model == "bert" else ids}


ROWS = 24  # so many that no single token on which rounding errors grow decides a comparison


@torch.no_grad()
def outputs(model: nn.Module, seed: int = 1, **kwargs: Any) -> Tensor:
    """Logits and the last hidden states, flattened."""
    last = next(each for name, each in model.named_modules() if name.endswith(("bert.encoder", "model.norm")))
    states: list[Any] = []
    handle = last.register_forward_hook(lambda module, args, output: states.append(output))
    logits = model(input_ids=tokens(ROWS, seed=seed), **kwargs).logits
    handle.remove()
    return torch.cat(
        [logits.flatten(), (states[0] if isinstance(states[0], Tensor) else states[0][0]).flatten()]
    )


class Trio(NamedTuple):
    """One model three times: as PEFT has it, accelerated, and as PEFT has it in float64, the truth."""

    stock: Any
    fast: Any
    truth: Any

    def each(self, change: Callable[[Any], object]) -> None:
        """The same done to all three, with the same random numbers."""
        for model in self:
            torch.manual_seed(3)
            change(model)
        self.truth.double()

    def assert_outputs_agree(self, **kwargs: Any) -> None:
        stock, fast, truth = (outputs(model, **kwargs) for model in self)
        assert_close_by_scale(fast, truth, stock, 2)

    def assert_outputs_equal(self, **kwargs: Any) -> None:
        """Where the fast model computes what PEFT does."""
        assert torch.equal(outputs(self.fast, **kwargs), outputs(self.stock, **kwargs))

    def assert_gradients_agree(self, batch: dict[str, Tensor]) -> None:
        """Errors of one kind of parameter are taken together, each relative to its size."""
        stock, fast, truth = (gradients(model, batch) for model in self)
        assert stock.keys() == fast.keys() == truth.keys()
        kinds: dict[str, list[str]] = {}
        for name in truth:
            kinds.setdefault(next(part for part in name.split(".") if _PARAMETER.match(part)), []).append(
                name
            )
        for names in kinds.values():
            sizes = [truth[name].norm().clamp_min(1e-300) for name in names]
            fast_, truth_, stock_ = (
                torch.cat([(each[n].double() / size).flatten() for n, size in zip(names, sizes, strict=True)])
                for each in (fast, truth, stock)
            )
            assert_close_by_scale(fast_.float(), truth_, stock_.float(), 3)


_PARAMETER = re.compile("lora_|hra_|oft_|boft_|modules_to_save|bias")


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """By parameter, of those that get one."""
    model.zero_grad()
    model(**batch).loss.backward()
    result = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result


def trio(model: str, method: str, **changes: Any) -> Trio:
    stock = adapted(model, method, **changes)
    fast, truth = twin(stock), twin(stock).double()
    report = accelerate(fast)
    assert report.accelerated and not report.left_alone
    return Trio(stock, fast, truth)


def accelerated_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, AcceleratedLayer)]
