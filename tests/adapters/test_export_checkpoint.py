"""`hybrid-kernels export`: a saved adapter becomes a LoRA or a merged model, which load without this package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.boft import layer as boft
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from hybrid_kernels import cli
from hybrid_kernels.adapters import HybridConfig
from hybrid_kernels.adapters.checkpoint import export_checkpoint
from tests.adapters.acceleration.support import BERT_LINEAR, LLAMA_LINEAR, METHODS, bert, llama, moved, tokens

UNITARY = {
    "hybrid": lambda **kw: HybridConfig(r=4, reflections=4, **kw),
    "hybrid unitary": lambda **kw: HybridConfig(
        r=4, reflections=4, unitary_modules=["q_proj", "query"], unitary_block_size=8, **kw
    ),
}
MERGED = {**METHODS, **UNITARY}


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens()).logits


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Base models in float64: a Llama with its tokenizer, and a BERT whose checkpoint has no classification head."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    root = tmp_path_factory.mktemp("bases")
    llama().double().save_pretrained(root / "llama")
    vocabulary = {f"w{i}": i for i in range(63)} | {"<unk>": 63}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.save_pretrained(root / "llama")
    bert().double().bert.save_pretrained(root / "bert")
    return {name: root / name for name in ("llama", "bert")}


@pytest.fixture
def saved(bases, tmp_path) -> Callable[..., tuple[nn.Module, Path]]:
    """An adapter of a method, trained a little, on a base model: (the model, where it is saved)."""

    def save(base: str, method: str, **changes: Any) -> tuple[nn.Module, Path]:
        if base == "llama":
            model = AutoModelForCausalLM.from_pretrained(bases[base])
            options = {"target_modules": LLAMA_LINEAR, "task_type": "CAUSAL_LM"}
        else:
            model = AutoModelForSequenceClassification.from_pretrained(bases[base], num_labels=3)
            options = {"target_modules": BERT_LINEAR, "task_type": "SEQ_CLS"}
        model = moved(get_peft_model(model, MERGED[method](**{**options, **changes})).double())
        model.save_pretrained(tmp_path / "adapter")
        return model, tmp_path / "adapter"

    return save


@pytest.fixture
def command(monkeypatch) -> Callable[..., tuple[int, str]]:
    """`hybrid-kernels export` in this process: (exit code, what it printed)."""

    def call(*arguments: Any) -> tuple[int, str]:
        # Rich keeps the stream it was made with; the runner's comes later.
        monkeypatch.setattr(cli.base.console, "_file", None)
        result = CliRunner().invoke(cli.base.app, ["export", *map(str, arguments)])
        return result.exit_code, result.output if result.exception is None else str(result.exception)

    return call


@pytest.mark.parametrize("method", MERGED)
@pytest.mark.parametrize("base", ["llama", "bert"])
def test_merged_model_is_a_plain_transformers_model(saved, bases, tmp_path, base, method) -> None:
    model, adapter = saved(base, method)
    written = export_checkpoint(adapter, tmp_path / "out", merged=True)
    loader = AutoModelForCausalLM if base == "llama" else AutoModelForSequenceClassification
    plain, loading = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(plain) is type(model.get_base_model())
    assert not any(loading.values()), loading
    assert not any("adapter" in file.name for file in (tmp_path / "out").iterdir())
    torch.testing.assert_close(outputs(plain), outputs(model))
    kind = "LlamaForCausalLM" if base == "llama" else "BertForSequenceClassification"
    assert written.what == f"{kind} in float64" and written.layers == (14 if base == "llama" else 13)
    if base == "llama":
        assert not written.notes
        assert AutoTokenizer.from_pretrained(tmp_path / "out")("w3 w7")["input_ids"] == [3, 7]
    else:
        assert written.notes == ["there is no tokenizer beside the adapter or the base model"]


def test_lora_of_a_causal_model_end_to_end(saved, tmp_path) -> None:
    """In a process of its own, and loaded with stock PEFT in another, which finds the base model by itself."""
    model, adapter = saved("llama", "hra", modules_to_save=["lm_head"])
    done = subprocess.run(
        [sys.executable, "-m", "hybrid_kernels", "export", str(adapter), str(tmp_path / "lora")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size / 2**20
    assert done.stdout.strip() == f"{tmp_path / 'lora'}: LoRA of rank 4, 14 layers, {size:.1f} MiB"
    stock = (
        "import sys, torch\nfrom peft import AutoPeftModelForCausalLM\n"
        "model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], dtype='auto').eval()\n"
        "torch.save(model(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])\n"
        "assert not [name for name in sys.modules if name.startswith('hybrid_kernels')]"
    )
    torch.save(tokens(), tmp_path / "ids.pt")
    files = tmp_path / "lora", tmp_path / "ids.pt", tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", stock, *map(str, files)], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), outputs(model))


def test_lora_of_a_classifier(saved, command, bases, tmp_path) -> None:
    """The base model is another copy, and has no head: the adapter's has three labels, and comes along."""
    model, adapter = saved("bert", "hybrid")
    moved_base = shutil.copytree(bases["bert"], tmp_path / "base")
    code, out = command(adapter, tmp_path / "lora", "--model", moved_base)
    assert code == 0 and "LoRA of rank 8, 13 layers" in out and "note" not in out, out
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(moved_base)
    base = AutoModelForSequenceClassification.from_pretrained(moved_base, num_labels=3)
    torch.testing.assert_close(outputs(PeftModel.from_pretrained(base, tmp_path / "lora")), outputs(model))


def test_head_of_the_base_model_makes_room_for_the_adapters(saved, bases, tmp_path) -> None:
    model, adapter = saved("bert", "lora")
    two = AutoModelForSequenceClassification.from_pretrained(bases["bert"], num_labels=2)
    two.save_pretrained(tmp_path / "two")
    export_checkpoint(adapter, tmp_path / "out", model=str(tmp_path / "two"), merged=True)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(outputs(plain), outputs(model))


def test_one_of_several_adapters(saved, command, tmp_path) -> None:
    model, adapter = saved("llama", "hra")
    model.add_adapter("other", METHODS["hra"](target_modules=["v_proj"], task_type="CAUSAL_LM"))
    model.set_adapter("other")
    moved(model.double(), seed=7)
    model.save_pretrained(adapter)
    code, out = command(adapter, tmp_path / "lora", "--adapter-name", "other")
    assert code == 0 and "LoRA of rank 4, 2 layers" in out, out
    stock = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora", dtype="auto")
    torch.testing.assert_close(outputs(stock), outputs(model))
    code, out = command(adapter, tmp_path / "x", "--adapter-name", "third")
    assert code == 1 and "has no 'third'" in out and "it has adapters ['default', 'other']" in out


def test_dtype_of_a_merged_model(saved, command, tmp_path) -> None:
    _, adapter = saved("llama", "hra")
    code, out = command(adapter, tmp_path / "out", "--merged", "--dtype", "bfloat16")
    assert code == 0 and "LlamaForCausalLM in bfloat16, 14 layers" in out, out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_model_class_without_task_type(saved, command, tmp_path) -> None:
    """PEFT records the class; where even that is missing, AutoModel is tried, and that is said."""
    model, adapter = saved("llama", "hra", task_type=None)
    code, out = command(adapter, tmp_path / "out", "--merged")
    assert code == 0 and "LlamaForCausalLM" in out, out
    torch.testing.assert_close(
        outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), outputs(model)
    )
    change(adapter, auto_mapping=None)
    code, out = command(adapter, tmp_path / "lora")
    assert code == 1 and "does not load onto" in out and "missing adapter keys" in out
    assert not (tmp_path / "lora").exists()
    inner = get_peft_model(model.unload().model, METHODS["hra"](target_modules=LLAMA_LINEAR))
    moved(inner).save_pretrained(adapter)
    change(adapter, auto_mapping=None)
    code, out = command(adapter, tmp_path / "lora")
    assert (
        code == 0
        and "note: " in out
        and "has no task_type and no model class: the base model is an AutoModel" in out
    )


def test_a_resized_vocabulary_is_found_by_the_tokenizer(saved, bases, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases["llama"])
    tokenizer.add_tokens(["new", "newer"])
    base = AutoModelForCausalLM.from_pretrained(bases["llama"])
    base.resize_token_embeddings(len(tokenizer))
    model = moved(get_peft_model(base, METHODS["hra"](target_modules=LLAMA_LINEAR, task_type="CAUSAL_LM")))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    export_checkpoint(tmp_path / "adapter", tmp_path / "out", merged=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(outputs(plain), outputs(model))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 66 == plain.config.vocab_size


def test_untrained_weights_are_said(saved, tmp_path) -> None:
    """An adapter without a head, on a base model without one."""
    _, adapter = saved("bert", "hra", task_type=None)
    written = export_checkpoint(adapter, tmp_path / "lora")
    (note,) = written.notes
    assert "neither" in note and "classifier.bias, classifier.weight: they are new and untrained" in note


def change(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("oft", "is OFT; a rotation is no low-rank update"),
        ("boft", "is BOFT; a rotation is no low-rank update"),
        ("dora", "is DoRA, whose scale of whole rows"),
        ("hybrid unitary", "has unitary rotations"),
    ],
)
def test_what_is_no_lora_is_to_be_merged(saved, command, tmp_path, method, message) -> None:
    _, adapter = saved("llama", method)
    code, out = command(adapter, tmp_path / "lora")
    assert code == 1 and message in out and "--merged" in out, out
    assert not (tmp_path / "lora").exists()


def test_says_what_is_wrong_before_anything_is_written(saved, command, bases, tmp_path) -> None:
    _, adapter = saved("llama", "hra")
    out_folder = tmp_path / "out"
    file = tmp_path / "file"
    file.write_text("kept")
    full = tmp_path / "full"
    full.mkdir()
    (full / "model.safetensors").write_text("kept")
    for arguments, message in (
        ((tmp_path / "absent", out_folder), "there is no such folder"),
        ((bases["llama"], out_folder), "it has no adapter"),
        ((adapter, file), "out is '.*file', which is a file"),
        ((adapter, adapter), "the adapter's own folder"),
        ((adapter, full, "--merged"), "which has files in it; a merged model needs a new folder"),
        ((adapter, out_folder, "--dtype", "int8"), "dtype is 'int8'; it may be one of 'auto', 'float32'"),
        ((adapter, out_folder, "--model", tmp_path / "absent"), "absent' is no folder here; give model"),
        ((adapter, out_folder, "--model", file.parent), "could not be loaded: .*; give model"),
        ((adapter, out_folder, "--model", bases["bert"]), "could not be loaded|does not load onto"),
    ):
        code, out = command(*arguments)
        assert code == 1, arguments
        assert re.search(message, out), out
    change(adapter, base_model_name_or_path=None)
    code, out = command(adapter, out_folder)
    assert code == 1 and "names no base model; give model" in out
    assert not out_folder.exists() and file.read_text() == "kept"
    assert [each.name for each in full.iterdir()] == ["model.safetensors"]


def test_errors_are_one_line_on_the_command_line(tmp_path, capsys, monkeypatch) -> None:
    from rich.console import Console

    monkeypatch.setattr(cli.base, "errors", Console(stderr=True))
    with pytest.raises(SystemExit) as caught:
        cli.main(["export", str(tmp_path / "absent"), str(tmp_path / "out")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: adapter is") and error.count("\n") == 1


def test_base_model_that_does_not_fit(saved, command, tmp_path) -> None:
    """Of another width, or with fewer layers than the adapter was made for, which PEFT passes over."""
    _, adapter = saved("llama", "hra")
    for changes, message in (
        ({"hidden_size": 16}, "size mismatch"),
        ({"num_hidden_layers": 1}, "the model lacks 7 tensors"),
        ({"num_hidden_layers": 3}, "missing adapter keys"),
    ):
        llama(**changes).save_pretrained(tmp_path / "base")
        code, out = command(adapter, tmp_path / "lora", "--model", tmp_path / "base")
        assert code == 1 and "does not load onto" in out and message in out, out
        assert not (tmp_path / "lora").exists()


def test_damaged_adapter(saved, command, tmp_path) -> None:
    _, adapter = saved("bert", "hra")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, out = command(adapter, tmp_path / "lora")
    assert code == 1 and "cannot be read" in out and str(weights) in out
    weights.unlink()
    code, out = command(adapter, tmp_path / "lora")
    assert code == 1 and "has no adapter_model.safetensors" in out


def test_boft_of_several_factors_without_pefts_extension(saved, command, tmp_path, monkeypatch) -> None:
    _, adapter = saved("llama", "boft_2")
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: None)
    code, out = command(adapter, tmp_path / "out", "--merged")
    assert code == 1 and "PEFT makes BOFT's 2 factors with a CUDA extension alone" in out


def test_prompts_are_no_layers(bases, command, tmp_path) -> None:
    base = AutoModelForCausalLM.from_pretrained(bases["llama"])
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    model.save_pretrained(tmp_path / "adapter")
    code, out = command(tmp_path / "adapter", tmp_path / "out", "--merged")
    assert code == 1 and "PROMPT_TUNING, which has no layers to merge" in out
    assert not (tmp_path / "out").exists()
