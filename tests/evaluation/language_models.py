"""Tiny random language models in double precision, and a tokenizer whose merges cross the end of a prompt."""

import functools

import torch
from tokenizers import AddedToken, Tokenizer, models, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hybrid_kernels.evaluation.prompts import NLI_PROMPTS

CORPUS = [
    "Translate from German to English.\n\nGerman: Guten Morgen.\nEnglish: Good morning.\n",
    "The cat sat on the mat. Die Katze saß auf der Matte. Question: Answer: Yes Answer: No Answer: Maybe",
    *(
        prompt.fill("a", "b") + verbalizer
        for prompt in NLI_PROMPTS.values()
        for verbalizer in prompt.verbalizers
    ),
]


def _tokenizer(template):
    # No pre-tokenizer: "Answer:" and " Yes" merge across the colon.
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    special = [AddedToken(name, special=True) for name in ("<pad>", "<unk>", "<s>", "</s>")]
    tokenizer.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=700, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@functools.cache
def causal_tokenizer():
    return _tokenizer("<s> $A")


@functools.cache
def encoder_decoder_tokenizer():
    return _tokenizer("$A </s>")


SIZES = {
    "vocab_size": 700,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


@functools.cache
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).double().eval()


@functools.cache
def gemma(window=8):
    """Sliding-window and full attention in turn."""
    torch.manual_seed(1)
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(**SIZES, sliding_window=window, layer_types=layers, query_pre_attn_scalar=8)
    return Gemma3ForCausalLM(config).double().eval()


@functools.cache
def t5():
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=700,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        initializer_factor=4.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
    )
    return T5ForConditionalGeneration(config).double().eval()


def plain_log_probability(model, prompt_ids, ids):
    """Σ ln p of `ids` after `prompt_ids`, token by token: one row, no padding, no cache."""
    total = 0.0
    with torch.no_grad():
        for i, token in enumerate(ids):
            if model.config.is_encoder_decoder:
                start = [model.config.decoder_start_token_id]
                logits = model(
                    input_ids=torch.tensor([prompt_ids]), decoder_input_ids=torch.tensor([start + ids[:i]])
                ).logits
            else:
                logits = model(input_ids=torch.tensor([prompt_ids + ids[:i]]), use_cache=False).logits
            assert logits.dtype == torch.float64
            total += logits[0, -1].log_softmax(0)[token].item()
    return total
