"""Bits per byte against a plain loop, and what is no model."""

import math

import numpy as np
import pytest
import torch

from hybrid_kernels.governance import GovernancePolicy, perplexity
from hybrid_kernels.governance.batch import Batch, Columns, Range

TEXTS = [
    "the cat sat on the mat",
    None,
    "",
    "the",
    "die Katze saß auf der Matte und die Katze schlief ein",
    "a b",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random model, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(alphabet), n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=1.0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def policy(model, **options):
    return GovernancePolicy.model_validate({"perplexity": {"enabled": True, "model": model} | options})


def batch(texts):
    return Batch((texts,), (["en"] * len(texts),), Columns(("text",)), ("en",))


def by_hand(model, text, tokens):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = AutoTokenizer.from_pretrained(model)(text)["input_ids"][:tokens]
    bits = 0.0
    for i in range(1, len(ids)):
        with torch.no_grad():
            logits = network(torch.tensor([ids[:i]])).logits[0, -1].double()
        bits -= float(logits.log_softmax(-1)[ids[i]]) / math.log(2)
    return bits / len(ids)  # a token is a byte


@pytest.mark.parametrize("tokens", [512 // 8, 9])
def test_bits_per_byte_are_those_of_a_plain_loop(model, tokens):
    found = perplexity.measure(batch(TEXTS), policy(model, max_tokens=tokens))["bits_per_byte_0"]
    assert np.isnan(found[[1, 2]]).all()
    for row in (0, 4, 5):
        assert found[row] == pytest.approx(by_hand(model, TEXTS[row], tokens), rel=1e-4)


def test_the_improbable_is_objected_to():
    features = {
        "bits_per_byte_0": np.array([1.0, 9.0, np.nan]),
        "row_language_0": np.array(["en"] * 3, object),
    }
    bounds = {("bits_per_byte_0", "en"): Range(high=4.0)}
    (objection,) = perplexity.objections(batch(["a", "b", None]), features, GovernancePolicy(), bounds)
    assert objection.rows.tolist() == [1]
    assert objection.detail == ["9.00 bits per byte, at most 4.00"]


@pytest.mark.parametrize("name", [None, "no/such/folder"])
def test_what_is_no_model_is_an_error_before_any_work(name):
    with pytest.raises(ValueError, match=r"perplexity\.model"):
        perplexity.check(policy(name))
