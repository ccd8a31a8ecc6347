import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid_kernels.evaluation.parallel import directions, load_parallel, sample_items
from hybrid_kernels.evaluation.prompting import encode_row, score_prompts
from hybrid_kernels.evaluation.prompts import NLI_PROMPTS
from hybrid_kernels.evaluation.translation import reference_nats, translation_prompts
from hybrid_kernels.training.translation_data import (
    IGNORED,
    CompletionCollator,
    balanced_rows,
    govern_pairs,
    prompt_examples,
    translation_examples,
)
from tests.evaluation.language_models import causal_tokenizer, encoder_decoder_tokenizer, gemma, llama, t5

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "flores200_dataset").is_dir(), reason=f"no parallel text at {DATA} (set HYBRID_KERNELS_DATA)"
)
ROWS = [
    {
        "id": str(i),
        "item": str(i),
        "source_language": "de",
        "target_language": "en",
        "source": source,
        "target": target,
    }
    for i, (source, target) in enumerate(
        [("Guten Morgen.", "Good morning."), ("Die Katze saß.", "The cat sat on the mat."), ("Ja", "Yes")]
    )
]
NLI = [
    {"language": "en", "premise": "The cat sat on the mat.", "hypothesis": "A cat sat.", "label": 0},
    {"language": "de", "premise": "Die Katze saß.", "hypothesis": "Sie lag.", "label": 2},
]


def summed_loss(model, batch):
    """−Σ ln p over the tokens whose label counts."""
    with torch.no_grad():
        mean = model(**batch).loss.item()
    counted = batch["labels"] if model.config.is_encoder_decoder else batch["labels"][:, 1:]
    return mean * int((counted != IGNORED).sum())


def eos_nats(model, example):
    """−ln p(EOS | everything before it) of one example."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(
                input_ids=torch.tensor([example["input_ids"]]), labels=torch.tensor([example["labels"]])
            ).logits[0, -1]
        else:
            logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, -2]
    return -logits.log_softmax(0)[3].item()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gemma", "t5"])
def test_the_loss_is_what_scoring_says_of_the_targets_and_their_eos(name, side, one_thread):
    model = {"llama": llama, "gemma": gemma, "t5": t5}[name]()
    tokenizer = encoder_decoder_tokenizer() if name == "t5" else causal_tokenizer()
    examples, long = translation_examples(tokenizer, ROWS, 200, encoder_decoder=name == "t5")
    assert long == [] and len({len(one["input_ids"]) for one in examples}) > 1, "there has to be padding"
    batch = CompletionCollator.for_model(model, tokenizer, side)(examples)
    nats = reference_nats(model, tokenizer, ROWS, translation_prompts(ROWS))
    expected = nats.sum() + sum(eos_nats(model, one) for one in examples)
    assert summed_loss(model, batch) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_prompt_examples_teach_the_labels_verbalizer(name, one_thread):
    model = {"llama": llama, "t5": t5}[name]()
    tokenizer = encoder_decoder_tokenizer() if name == "t5" else causal_tokenizer()
    examples = prompt_examples(tokenizer, NLI, 200, encoder_decoder=name == "t5")
    scores = score_prompts(model, tokenizer, NLI).log_probabilities
    for row, example, values in zip(NLI, examples, scores, strict=True):
        batch = CompletionCollator.for_model(model, tokenizer)([example])
        expected = -values[row["label"]] + eos_nats(model, example)
        assert summed_loss(model, batch) == pytest.approx(expected, rel=1e-6)
    # The premise gives way to the limit, the EOS included.
    long = NLI[0] | {"premise": "The cat sat on the mat. " * 30}
    assert len(prompt_examples(tokenizer, [long], 80)[0]["input_ids"]) <= 80
    english = prompt_examples(tokenizer, NLI, 200, prompts="en")
    encoded = encode_row(tokenizer, NLI_PROMPTS["en"], NLI[1], 200)
    assert english[1]["input_ids"] == [*encoded.prompt, *encoded.completions[2], 3]


def test_the_prompt_is_masked_and_rows_are_never_cut():
    tokenizer = causal_tokenizer()
    examples, _ = translation_examples(tokenizer, ROWS, 200)
    lengths = [len(one["input_ids"]) for one in examples]
    for row, one in zip(ROWS, examples, strict=True):
        masked = one["labels"].count(IGNORED)
        assert one["labels"] == [IGNORED] * masked + one["input_ids"][masked:]
        text = tokenizer.decode(one["input_ids"][masked:], skip_special_tokens=True).replace(" ", "")
        assert text.endswith(row["target"].replace(" ", "")) and one["labels"][-1] == 3
        assert len(text) <= len(row["target"]) + 9, "no more than what merged across the border"
    assert len(set(lengths)) == 3
    some, long = translation_examples(tokenizer, ROWS, sorted(lengths)[1])
    assert long == [ROWS[int(np.argmax(lengths))]["id"]] and len(some) == 2
    with pytest.raises(ValueError, match="max_length 5 is too short for every one of 3 rows"):
        translation_examples(tokenizer, ROWS, 5)


def test_padding_goes_where_it_is_asked_for():
    examples = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    left = CompletionCollator(pad_token_id=1, padding_side="left")(examples)
    assert left["input_ids"].tolist() == [[5, 6, 7], [1, 1, 8]]
    assert left["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, IGNORED, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    right = CompletionCollator(pad_token_id=1)(examples)
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert right["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    with pytest.raises(ValueError, match="padding_side must be 'left' or 'right', got 'top'"):
        CompletionCollator(1, "top")


def test_directions_are_balanced():
    def pair(i, a, b):
        return {
            "id": f"{i}{a}{b}",
            "item": str(i),
            "languages": [a, b],
            "texts": {a: f"{a}{i}", b: f"{b}{i}"},
        }

    pairs = [pair(i, "de", "en") for i in range(10)] + [pair(i, "en", "fr") for i in range(6)]
    wanted = directions(["de", "en", "fr"])
    rows = balanced_rows(pairs, wanted, seed=0)
    counts = {
        d: [row for row in rows if (row["source_language"], row["target_language"]) == d] for d in wanted
    }
    assert [len(own) for own in counts.values()] == [6] * 4
    assert {row["item"] for row in counts["de", "en"]} == {row["item"] for row in counts["en", "de"]}
    fewer = balanced_rows(pairs, wanted, seed=0, most=2)
    assert len(fewer) == 8 and all(row in rows for row in fewer)
    assert balanced_rows(pairs, wanted, seed=1, most=2) != fewer
    with pytest.raises(ValueError, match="no pair to train direction de-fr on"):
        balanced_rows(pairs, [("de", "en"), ("de", "fr")], seed=0)


@needs_data
def test_governance_rejects_what_is_no_translation_and_keeps_both_directions():
    wanted = directions(["de", "en", "fr"])
    # Documents of news, in which sentences of one item are no near-duplicates of another's.
    pairs = sample_items(load_parallel(DATA / "ntrex", "ntrex", wanted), 60, seed=0)
    by_id = {pair["id"]: pair for pair in pairs}
    german = [pair for pair in pairs if pair["languages"] == ["de", "en"]]
    french = [pair for pair in pairs if pair["languages"] == ["en", "fr"]]
    # A German side that is French, and a pair that is there twice.
    spoilt = [german[0] | {"texts": german[0]["texts"] | {"de": french[0]["texts"]["fr"]}}, *pairs[1:]]
    spoilt.append(german[5] | {"id": "again", "item": "again"})
    # Lines that slipped: both sides are good text, of other sentences.
    slipped = {
        "de": "Am 14. März 1997 wurden 1250 Menschen in 36 Städten gezählt, 48 davon krank.",
        "en": "He came home.",
    }
    spoilt.append({"id": "slipped", "item": "slipped", "languages": ["de", "en"], "texts": slipped})
    kept, summaries = govern_pairs(spoilt, progress=False)
    ids = {pair["id"] for pair in kept}
    assert german[0]["id"] not in ids and not {"again", german[5]["id"]} <= ids
    assert "slipped" not in ids
    assert set(summaries) == {"de-en", "en-fr"} and summaries["de-en"]["rows"] == 62
    # English sentences recur in every two languages; that makes none of them a duplicate.
    assert len(ids) >= 0.9 * len(pairs) and all(pair == by_id.get(pair["id"], spoilt[-2]) for pair in kept)
    rows = balanced_rows(kept, wanted, seed=0)
    assert len({(row["source_language"], row["target_language"]) for row in rows}) == 4
    # What is scored may not be trained on.
    clean, _ = govern_pairs(pairs, evaluation=german[10:14], progress=False)
    assert not {pair["id"] for pair in german[10:14]} & {pair["id"] for pair in clean}
