"""Bits per byte against a loop by hand, on tiny models of random weights."""

import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hybrid_kernels.governance import perplexity, thresholds
from hybrid_kernels.governance.batch import Columns, Range
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.steps import make_job
from tests.governance.quality_support import batch

TEXTS = ["The house is old.", None, "x", "", "Das Haus ist größer, 家很大。", "The house " * 40, "  "]


def tokenizer(bos):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    trained.train_from_iterator([text for text in TEXTS if text], trainer)
    special = {"eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained, **special)


def save(folder, config, bos=True):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # else all next tokens are about as likely
    model.save_pretrained(folder)
    tokenizer(bos).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    config = transformers.GPT2Config(vocab_size=310, n_embd=16, n_layer=2, n_head=2, n_positions=128)
    return save(tmp_path_factory.mktemp("gpt2"), config, bos=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    config = transformers.LlamaConfig(
        vocab_size=310,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    return save(tmp_path_factory.mktemp("llama"), config)


def policy(model, **fields):
    return GovernancePolicy.model_validate({"perplexity": {"enabled": True, "model": model, **fields}})


def by_hand(folder, text, most):
    """One token after the other, one text at a time."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    start = words.eos_token_id if words.bos_token_id is None else words.bos_token_id
    ids = words(text, add_special_tokens=False)["input_ids"][:most]
    bits = 0.0
    for i, token in enumerate(ids):
        with torch.no_grad():
            logits = model(torch.tensor([[start, *ids[:i]]])).logits[0, -1]
        bits -= torch.log_softmax(logits.double(), dim=0)[token].item() / math.log(2)
    return bits / len(words.decode(ids).encode())


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("most", [7, 60])
def test_bits_per_byte(model, most, request, monkeypatch):
    folder = request.getfixturevalue(model)
    monkeypatch.setattr(perplexity, "_BATCH_TOKENS", 50)
    rows = batch(TEXTS, TEXTS[::-1])
    perplexity._scorer.cache_clear()
    features = perplexity.measure(rows, policy(folder, max_tokens=most))
    assert features.keys() == perplexity.fields(rows.columns, policy(folder)).keys()
    expected = [by_hand(folder, text, most) if text else np.nan for text in TEXTS]
    np.testing.assert_allclose(features["bits_per_byte_0"], expected, rtol=1e-5)
    np.testing.assert_allclose(features["bits_per_byte_1"], expected[::-1], rtol=1e-5)
    assert np.nanmax(expected) > 1.2 * np.nanmin(expected)


def test_no_more_tokens_than_the_model_has_places_for(gpt2):
    perplexity._scorer.cache_clear()
    long = ["The house is old. " * 400, "Das Haus. " * 1_000_000]
    found = perplexity.measure(batch(long), policy(gpt2, max_tokens=5000))["bits_per_byte_0"]
    np.testing.assert_allclose(found[0], by_hand(gpt2, long[0], 127), rtol=1e-5)
    assert np.isfinite(found).all()


def test_the_model_is_loaded_once(gpt2, monkeypatch):
    perplexity._scorer.cache_clear()
    loaded = []
    load = perplexity._load
    monkeypatch.setattr(perplexity, "_load", lambda name: loaded.append(name) or load(name))
    for _ in range(2):
        perplexity.measure(batch(["One."]), policy(gpt2))
    assert loaded == [gpt2]


def test_objections():
    rows = batch(["Fine.", "Odd.", "Odd too.", None])
    languages = np.array(["en", "en", "sw", "en"], object)
    features = {"bits_per_byte_0": np.array([1, 4, 4, np.nan], np.float32), "row_language_0": languages}
    bounds = {("bits_per_byte_0", "en"): Range(high=2.5)}
    [found] = perplexity.objections(rows, features, policy("m"), bounds)
    assert (found.step, found.reason, found.column) == ("perplexity", "improbable", "a")
    assert (found.rows.tolist(), found.score.tolist(), found.bound.tolist()) == ([1], [4.0], [2.5])
    assert found.detail == ["4.00 bits per byte under the model, at most 2.50 in en"]
    assert perplexity.objections(rows, features, policy("m"), {}) == []


def test_bounds_come_from_the_language():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(2, 0.1, 1000), generator.normal(4, 0.1, 1000), [4.0]])
    languages = ["en"] * 1000 + ["sw"] * 1000 + ["en"]
    features = {"bits_per_byte_0": values, "row_language_0": np.array(languages, object)}
    histograms = thresholds.Histograms()
    histograms.add(features, [languages])
    bounds = thresholds.bounds(histograms, policy("m"))
    [found] = perplexity.objections(batch(["text"] * 2001), features, policy("m"), bounds)
    assert found.rows.tolist() == [2000]


def test_check(gpt2, llama):
    perplexity.check(GovernancePolicy())
    perplexity.check(policy(gpt2))
    perplexity.check(policy(llama))


def test_features_are_kept_under_the_content_of_the_model(gpt2, tmp_path):
    """Another model under the same name is measured again; the same one in the same place is not."""
    folder = tmp_path / "model"
    shutil.copytree(gpt2, folder)

    def key():
        columns = Columns(("text",))
        return make_job(tmp_path, columns, ["en"], policy(str(folder)), None).keys["perplexity"]

    first = key()
    before = perplexity.measure(batch(TEXTS), policy(str(folder)))["bits_per_byte_0"]
    assert key() == first
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] += 1
    model.save_pretrained(folder)
    assert key() != first
    assert (perplexity.measure(batch(TEXTS), policy(str(folder)))["bits_per_byte_0"] != before)[0]


def test_content_of_a_model_of_the_hub(gpt2, tmp_path, monkeypatch):
    """As the hub's client lays it out."""
    cache = tmp_path / "models--someone--tiny"
    shutil.copytree(gpt2, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert perplexity.check(policy("someone/tiny")) == perplexity.check(policy(gpt2))


def test_what_is_no_causal_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"perplexity\.model is None"):
        perplexity.check(policy(None))
    with pytest.raises(OSError, match=r"perplexity.model, '/no/such/folder', could not be loaded"):
        perplexity.check(policy("/no/such/folder"))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertConfig(vocab_size=310, **small)
    transformers.BertForMaskedLM(bert).save_pretrained(tmp_path / "masked")
    with pytest.raises(
        ValueError, match=r"is a BertForMaskedLM \(bert\); it must be a causal language model"
    ):
        perplexity.check(policy(str(tmp_path / "masked")))
    transformers.BertLMHeadModel(bert).save_pretrained(tmp_path / "head")
    with pytest.raises(
        ValueError, match=r"is a BertLMHeadModel \(bert\); it must be a causal language model"
    ):
        perplexity.check(policy(str(tmp_path / "head")))
    t5 = transformers.T5Config(vocab_size=310, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"T5ForConditionalGeneration \(t5\); it must be a causal"):
        perplexity.check(policy(str(tmp_path / "t5")))


def test_a_model_without_a_tokenizer(tmp_path, gpt2):
    transformers.AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"perplexity\.model, .* has no tokenizer of its own"):
        perplexity.check(policy(str(tmp_path)))
