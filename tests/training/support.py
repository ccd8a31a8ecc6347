"""A tiny model, tokenizer and data set, so that a whole run takes seconds; and where real data is."""

import json
import os
from pathlib import Path

import pytest
import yaml

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[3] / "shared" / "data"))
XNLI = DATA / "xnli"
needs_xnli = pytest.mark.skipif(not XNLI.is_dir(), reason=f"no XNLI data in {XNLI} (set HYBRID_KERNELS_DATA)")


WORDS = [
    "a",
    "the",
    "cat",
    "dog",
    "bird",
    "tree",
    "house",
    "runs",
    "sleeps",
    "sees",
    "eats",
    "red",
    "big",
    "small",
    "not",
    "never",
    "always",
    "some",
    "all",
    "very",
]

# The word that gives a pair's label away, so that there is something to learn.
CUES = ("all", "some", "not")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer BERT (hidden 32) and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (48 rows) and test.jsonl (24 rows) in en and de, premises in threes."""
    import random

    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    for split, items in (("train", 24), ("test", 12)):
        rows = []
        for item in range(items):
            for language in ("en", "de"):
                if item % 3 == 0:
                    premise = {name: " ".join(draw.choices(WORDS, k=6)) for name in ("en", "de")}
                rows.append(
                    {
                        "id": f"{split}-{item}-{language}",
                        "item": item,
                        "language": language,
                        "premise": premise[language],
                        "hypothesis": f"{CUES[item % 3]} {draw.choice(WORDS)}",
                        "label": item % 3,
                    }
                )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def values(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> dict:
    """A configuration of a run that takes seconds, as YAML would give it."""
    return {
        "title": "tiny",
        "output": str(tmp_path / "run"),
        "model": {"name": str(tiny_model), "max_length": 32},
        "data": {"source": str(tiny_data)},
        "governance": None,
        "training": {"steps": 6, "batch_size": 8, "learning_rate": 0.003, "checkpoint_steps": 2},
        "methods": [{"method": "lora", "r": 4, "alpha": 8, "target_modules": ["query", "value"]}],
        "evaluation": {},
    }


HYBRID = {
    "method": "hybrid",
    "r": 4,
    "reflections": 2,
    "alpha": 4,
    "target_modules": ["query", "value"],
    "gradient_batches": 2,
    "orthogonality_weight": 0.01,
}
HRA = {"method": "hra", "r": 4, "target_modules": ["query", "value"]}


@pytest.fixture
def write_config(tmp_path: Path):
    """Writes configuration values as a YAML file and returns its path."""

    def write(values: dict) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
