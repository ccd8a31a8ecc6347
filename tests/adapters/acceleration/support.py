"""Models, PEFT configurations and comparisons that the tests of acceleration share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.peft_butterflies import allow_butterflies_in_peft

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


def llama(**changes: Any) -> nn.Module:
    """A Llama with grouped key-value heads, the same weights at each call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            **{
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "intermediate_size": 48,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 64,
                **changes,
            }
        )
    ).eval()


def gemma(**changes: Any) -> nn.Module:
    """A Gemma 2: norms before and after, soft capping, tied embeddings; the same weights at each call."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            **{
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "intermediate_size": 48,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "vocab_size": 64,
                **changes,
            }
        )
    ).eval()


def bert(**changes: Any) -> nn.Module:
    """A BERT with three classes: biases, and query, key and value of one width; the same weights at each call."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            **{
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 48,
                "vocab_size": 64,
                "num_labels": 3,
                **changes,
            }
        )
    ).eval()


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
    return moved(get_peft_model(make(), METHODS[method](target_modules=targets, **changes)))


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
