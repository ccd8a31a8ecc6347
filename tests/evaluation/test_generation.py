import json

import pytest
import torch

from hybrid_kernels.evaluation import generation
from hybrid_kernels.evaluation.generation import Decoding, Output, clean, generate
from hybrid_kernels.evaluation.scoring import open_ids, prefill
from tests.evaluation.language_models import (
    causal_tokenizer,
    encoder_decoder_tokenizer,
    gemma,
    llama,
    t5,
)

BEGINNING = "Translate from German to English.\n\nGerman: Guten Morgen.\nEnglish: Good morning.\n\n"
SOURCES = ["Die Katze", "Morgen", "Guten Morgen. Die Katze saß auf der Matte.", "saß auf der Matte", "Ja"]
PROMPTS = [f"{BEGINNING}German: {source}\nEnglish:" for source in SOURCES]
MODELS = {"llama": llama, "gemma": gemma, "gemma, wide window": lambda: gemma(128), "t5": t5}
# Everything after the source is one limit's multiple.
DECODING = Decoding(limit_ratio=0.5, limit_extra=10)


def tokenizer_of(name):
    return encoder_decoder_tokenizer() if name == "t5" else causal_tokenizer()


def plain_greedy(model, tokenizer, prompt, limit, stops):
    """(ids, their number without a stop, stop) by a plain loop over whole sequences: one row, no padding, no cache."""
    out = []
    encoder_decoder = model.config.is_encoder_decoder
    ids = tokenizer(prompt)["input_ids"] if encoder_decoder else open_ids(tokenizer, prompt)
    with torch.no_grad():
        while len(out) < limit:
            if encoder_decoder:
                logits = model(
                    input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *out]])
                ).logits[0, -1]
            else:
                logits = model(input_ids=torch.tensor([ids + out]), use_cache=False).logits[0, -1]
            if not out:
                logits[sorted(stops)] = -torch.inf
            token = int(logits.argmax())
            if token in stops:
                # A token that ends in a line break may begin with the answer's end ("?\n").
                kept = [*out, token] if stops[token] == "newline" else out
                return kept, len(out), stops[token]
            out.append(token)
    return out, len(out), "length"


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_the_plain_loop_whatever_the_batch(name, one_thread):
    model, tokenizer = MODELS[name](), tokenizer_of(name)
    stops = generation._stop_tokens(model, tokenizer, name != "t5")
    for batch_size in (1, 3, 5):
        outputs = generate(model, tokenizer, PROMPTS, SOURCES, decoding=DECODING, batch_size=batch_size)
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            ids, tokens, stopped = plain_greedy(model, tokenizer, prompt, 32, stops)
            expected = Output(clean(tokenizer.decode(ids, skip_special_tokens=True)), tokens, stopped)
            assert output == expected, batch_size


@pytest.mark.parametrize("name", MODELS)
def test_beams_do_not_depend_on_the_batch_nor_on_the_shared_beginning(name, one_thread, monkeypatch):
    model, tokenizer = MODELS[name](), tokenizer_of(name)
    decoding = Decoding(beams=3, limit_ratio=0.5, limit_extra=10)
    alone = generate(model, tokenizer, PROMPTS, SOURCES, decoding=decoding, batch_size=1)
    assert generate(model, tokenizer, PROMPTS, SOURCES, decoding=decoding, batch_size=5) == alone
    monkeypatch.setattr("hybrid_kernels.evaluation.scoring.LEAST_SHARED", 10**6)
    assert generate(model, tokenizer, PROMPTS, SOURCES, decoding=decoding, batch_size=5) == alone
    assert generate(model, tokenizer, PROMPTS, SOURCES, decoding=DECODING, batch_size=5) != alone


def test_the_shared_beginning_is_used(one_thread):
    ids = [open_ids(causal_tokenizer(), prompt) for prompt in PROMPTS]
    assert prefill(ids, llama(), 0)[0].get_seq_length() > 16


def test_answers_end_at_a_line_break_an_eos_or_the_limit(one_thread):
    """A model that says what it is told to, whatever it reads."""
    tokenizer = causal_tokenizer()
    newline, eos = tokenizer("\n", add_special_tokens=False)["input_ids"][0], 3
    cat, mat = tokenizer("cat", add_special_tokens=False)["input_ids"][:2]

    class Scripted(type(llama())):
        def forward(self, input_ids=None, attention_mask=None, **arguments):
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **arguments)
            step = int(attention_mask.shape[1]) - self.prompt if attention_mask is not None else 0
            output.logits[:] = 0.0
            for preference, token in enumerate(self.script[min(step, len(self.script) - 1)]):
                output.logits[:, :, token] = 10.0 - preference
            return output

    model = Scripted(llama().config).eval()

    def says(*script, **options):
        model.script = [token if isinstance(token, tuple) else (token,) for token in script]
        # Two rows of unequal length, so that there is a mask to count by.
        prompts = ["The cat sat on the mat", "The cat"]
        model.prompt = len(open_ids(tokenizer, prompts[0]))
        decoding = Decoding(limit_ratio=0, limit_extra=1, **options)
        return generate(model, tokenizer, prompts, ["", ""], decoding=decoding, batch_size=2)[1]

    def text(*ids):
        return clean(tokenizer.decode(list(ids)))

    assert says(cat, mat, newline, cat) == Output(text(cat, mat), 2, "newline")
    assert says(cat, eos, cat) == Output(text(cat), 1, "eos")
    assert says(cat) == Output(text(*[cat] * 32), 32, "length")
    # Right after the prompt neither ends anything: the next likely token is taken.
    assert says((newline, cat), eos) == Output(text(cat), 1, "eos")
    assert says((eos, mat), newline) == Output(text(mat), 1, "newline")
    assert says(cat, newline, mat, eos, stop_at_newline=False) == Output(text(cat), 3, "eos")


def test_newline_tokens_are_those_that_decode_to_one():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<0x0A>": 1, "\n": 2, ".\n\n": 3, "Ċ": 4, "a": 5}
    sentencepiece = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    sentencepiece.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert generation._newline_tokens(PreTrainedTokenizerFast(tokenizer_object=sentencepiece)) == (1, 2, 3)
    byte_level = Tokenizer(models.BPE({"Ċ": 0, "a": 1, "aĊ": 2}, []))
    byte_level.decoder = decoders.ByteLevel()
    assert generation._newline_tokens(PreTrainedTokenizerFast(tokenizer_object=byte_level)) == (0, 2)


def test_an_answer_is_cleaned():
    assert clean("  Good \t morning.\u2028 Yes\nGerman: x") == "Good morning. Yes"
    assert clean("\n\n Good") == "Good" and clean(" \n") == ""


def test_the_limit_follows_the_source(one_thread):
    limits = [generation._limit(tokens, Decoding()) for tokens in (1, 5, 6, 16, 100)]
    assert limits == [32, 32, 64, 64, 320]


def test_a_stopped_run_goes_on_and_decodes_the_rest_only(tmp_path, one_thread, monkeypatch):
    model, tokenizer, path = llama(), causal_tokenizer(), tmp_path / "part" / "outputs.jsonl"
    options = {"decoding": DECODING, "batch_size": 2, "path": path, "key": "model 1"}
    whole = generate(model, tokenizer, PROMPTS, SOURCES, decoding=DECODING)
    decode, calls = generation._decode, []

    def counted(model, rows, *arguments):
        if len(calls) == 2:
            raise RuntimeError("stopped")
        calls.append(len(rows))
        return decode(model, rows, *arguments)

    monkeypatch.setattr(generation, "_decode", counted)
    with pytest.raises(RuntimeError, match="stopped"):
        generate(model, tokenizer, PROMPTS, SOURCES, **options)
    assert calls == [2, 2] and len(path.read_text().splitlines()) == 5
    calls.clear()
    assert generate(model, tokenizer, PROMPTS, SOURCES, **options) == whole and calls == [1]
    assert generate(model, tokenizer, PROMPTS, SOURCES, **options) == whole and calls == [1]
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [(row["index"], row["text"]) for row in rows] == [(i, out.text) for i, out in enumerate(whole)]
    # Made from something else: done anew.
    calls.clear()
    with pytest.raises(RuntimeError, match="stopped"):
        generate(model, tokenizer, PROMPTS, SOURCES, **options | {"key": "model 2"})
    assert calls == [2, 2]


def test_bad_input_is_named(tmp_path):
    model, tokenizer = llama(), causal_tokenizer()
    with pytest.raises(ValueError, match="equally many, got 5 and 4"):
        generate(model, tokenizer, PROMPTS, SOURCES[1:])
    with pytest.raises(ValueError, match="the one at index 0 is"):
        generate(t5(), lambda text, **options: {"input_ids": []}, [""], [""])
    with pytest.raises(ValueError, match="beams must be at least 1, got 0"):
        Decoding(beams=0)
    path = tmp_path / "notes.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"notes\.jsonl' is there and does not hold outputs"):
        generate(model, tokenizer, PROMPTS, SOURCES, path=path)
    assert path.read_text() == '{"a": 1}\n'
