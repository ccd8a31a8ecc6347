"""export_lora: the checkpoints load with stock PEFT, in a process without this package, and give the same outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from hybrid_kernels.adapters import HybridConfig, accelerate, export_lora, initialize_gradient_aligned
from tests.adapters.acceleration.support import (
    BERT_LINEAR,
    LLAMA_LINEAR,
    METHODS,
    adapted,
    bert,
    llama,
    moved,
    tokens,
    twin,
)
from tests.support import assert_close_by_scale

STOCK = """
import json, sys
import torch, transformers
from peft import LoraConfig, PeftModel
jobs, ids, results = json.loads(sys.argv[1]), torch.load(sys.argv[2]), {}
for name, (loader, base, folder, dtype) in jobs.items():
    model = getattr(transformers, loader).from_pretrained(base, dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(model, folder).eval()
    config = model.peft_config["default"]
    assert type(config) is LoraConfig
    scalings = {s for m in model.modules() if hasattr(m, "lora_A") for s in m.scaling.values()}
    assert scalings == {1.0}, scalings
    with torch.no_grad():
        results[name] = model(ids).logits, model.merge_and_unload()(ids).logits
assert not [module for module in sys.modules if module.split(".")[0] in ("hybrid_kernels", "triton_ops")]
torch.save(results, sys.argv[3])
"""


def gpt2() -> nn.Module:
    """A GPT-2, whose layers are Conv1D: their weights are transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)).eval()


def hybrid(**options: Any) -> HybridConfig:
    return HybridConfig(**{"r": 4, "reflections": 4, **options})


def outputs(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model.eval()(tokens() if ids is None else ids).logits


def aligned() -> nn.Module:
    model = get_peft_model(bert(), hybrid(target_modules=BERT_LINEAR, task_type="SEQ_CLS"))
    batch = {"input_ids": tokens(), "labels": torch.tensor([0, 1, 2])}
    initialize_gradient_aligned(model, [batch], progress=False)
    return moved(model)


def second_of_two() -> nn.Module:
    """A model whose active adapter is another one than the one to export."""
    model = adapted("llama", "hra")
    model.add_adapter("second", METHODS["hra_gram_schmidt"](target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".second" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return model


def uneven() -> nn.Module:
    """Ranks and scalings by layer, and biases of the low-rank branch."""
    return adapted_to(
        bert(),
        LoraConfig(
            r=4,
            lora_alpha=6,
            rank_pattern={"query": 2, "layer.1.attention.self.value": 7},
            alpha_pattern={"key": 3},
            use_rslora=True,
            lora_bias=True,
            target_modules=BERT_LINEAR,
            task_type="SEQ_CLS",
        ),
    )


def adapted_to(base: nn.Module, config: Any) -> nn.Module:
    return moved(get_peft_model(base, config))


# What is exported: a model in float32, and the adapter's name where it is not the default one.
EXPORTED = {
    "hybrid": lambda: adapted_to(llama(), hybrid(target_modules=LLAMA_LINEAR, task_type="CAUSAL_LM")),
    "hybrid learned": lambda: adapted_to(
        bert(), hybrid(target_modules=BERT_LINEAR, task_type="SEQ_CLS", mixing="learned")
    ),
    "hybrid aligned": aligned,
    "hra": lambda: adapted("llama", "hra"),
    "hra with head": lambda: adapted("bert", "hra", task_type="SEQ_CLS"),
    "hra gram-schmidt": lambda: adapted("llama", "hra_gram_schmidt"),
    "hra with biases": lambda: adapted("bert", "hra", bias="all"),
    "hra second": second_of_two,
    "lora": lambda: adapted("llama", "lora", modules_to_save=["lm_head", "embed_tokens"]),
    "lora rank-stabilised": lambda: adapted("bert", "rslora", task_type="SEQ_CLS"),
    "lora uneven": uneven,
    "lora with biases": lambda: adapted("bert", "lora", bias="lora_only"),
    "lora on Conv1D": lambda: adapted_to(
        gpt2(), LoraConfig(r=3, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    ),
    "lora with tokens": lambda: adapted("llama", "lora", trainable_token_indices={"embed_tokens": [1, 3, 5]}),
}
BASES = {"llama": llama, "bert": bert, "gpt2": gpt2}


def adapter_of(name: str) -> str:
    return "second" if name == "hra second" else "default"


def base_of(model: nn.Module) -> str:
    return {"LlamaForCausalLM": "llama", "BertForSequenceClassification": "bert", "GPT2LMHeadModel": "gpt2"}[
        type(model.get_base_model()).__name__
    ]


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> dict[tuple[str, str], dict[str, Any]]:
    """Every exported model in float64 and float32: the model, the folder, and what stock PEFT makes of that."""
    root = tmp_path_factory.mktemp("exported")
    for name, make in BASES.items():
        make().double().save_pretrained(root / name)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    jobs = {}
    for name, make in EXPORTED.items():
        for dtype in ("float64", "float32"):
            model = make().to(getattr(torch, dtype))
            model.set_adapter(adapter_of(name))
            expected = outputs(model)
            model.set_adapter("default")
            folder = export_lora(model, root / f"{name} {dtype}", adapter_of(name))
            base = base_of(model)
            loader = "AutoModelForSequenceClassification" if base == "bert" else "AutoModelForCausalLM"
            jobs[f"{name}|{dtype}"] = (loader, str(root / base), str(folder), dtype)
            found[name, dtype] = {"expected": expected, "folder": folder}
    files = str(root / "ids.pt"), str(root / "results.pt")
    torch.save(tokens(), files[0])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", STOCK, json.dumps(jobs), *files],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for key, results in torch.load(files[1]).items():
        name, dtype = key.split("|")
        found[name, dtype]["loaded"], found[name, dtype]["merged"] = results
    return found


@pytest.mark.parametrize("name", EXPORTED)
def test_stock_peft_gives_the_same_outputs(stock, name) -> None:
    truth = stock[name, "float64"]
    torch.testing.assert_close(truth["loaded"], truth["expected"])
    single = stock[name, "float32"]
    assert_close_by_scale(single["loaded"], truth["expected"], single["expected"], 2)


@pytest.mark.parametrize("name", EXPORTED)
def test_stock_peft_merges_to_the_same_outputs(stock, name) -> None:
    truth = stock[name, "float64"]
    torch.testing.assert_close(truth["merged"], truth["expected"])


def test_configuration_names_layers_and_ranks(stock) -> None:
    saved = json.loads((stock["lora uneven", "float64"]["folder"] / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA" and saved["r"] == saved["lora_alpha"] == 4
    assert saved["rank_pattern"] == saved["alpha_pattern"]
    assert saved["rank_pattern"] == {
        r"^bert\.encoder\.layer\.0\.attention\.self\.query": 2,
        r"^bert\.encoder\.layer\.1\.attention\.self\.query": 2,
        r"^bert\.encoder\.layer\.1\.attention\.self\.value": 7,
    }
    assert saved["lora_bias"] and not saved["use_rslora"] and "bert.pooler.dense" in saved["target_modules"]
    for name, rank in (("hybrid", 8), ("hybrid aligned", 12), ("hra", 4)):
        saved = json.loads((stock[name, "float64"]["folder"] / "adapter_config.json").read_text())
        assert saved["r"] == saved["lora_alpha"] == rank and not saved["rank_pattern"]
    assert saved["task_type"] is None and saved["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"
    for name, bias in (("hra with biases", "all"), ("lora with biases", "lora_only"), ("hra", "none")):
        saved = json.loads((stock[name, "float64"]["folder"] / "adapter_config.json").read_text())
        assert saved["bias"] == bias
    saved = json.loads((stock["hybrid aligned", "float64"]["folder"] / "adapter_config.json").read_text())
    assert saved["task_type"] == "SEQ_CLS" and set(saved["modules_to_save"]) == {"classifier", "score"}


@pytest.mark.parametrize("method", ["lora", "rslora", "hra", "hra_gram_schmidt"])
def test_accelerated_and_stock_layers_export_the_same(tmp_path, method) -> None:
    model = adapted("llama", method)
    accelerated = twin(model)
    assert not accelerate(accelerated, share_inputs=False).left_alone
    for folder, each in (("stock", model), ("accelerated", accelerated)):
        export_lora(each, tmp_path / folder)
    mine, stocks = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("accelerated", "stock")
    )
    assert mine.keys() == stocks.keys()
    assert all(torch.equal(mine[key], stocks[key]) for key in mine)


def test_base_layer_that_cannot_be_read_is_called(tmp_path) -> None:
    """A weight of its own type, as torchao's, stands for quantised ones: it can be applied, and must not be read."""

    class Opaque(nn.Parameter):
        pass

    model = adapted("bert", "hra").double()
    expected, called = outputs(model), []
    for layer in model.modules():
        base = getattr(layer, "base_layer", None)
        if isinstance(base, nn.Linear):
            base.weight = Opaque(base.weight.data, requires_grad=False)
            base.register_forward_hook(lambda *_: called.append(1))
    export_lora(model, tmp_path)
    assert len(called) == 13
    stock = PeftModel.from_pretrained(bert().double(), tmp_path)
    torch.testing.assert_close(outputs(stock), expected)


def test_hooks_on_base_layers_that_pefts_hra_does_not_call_do_not_count(tmp_path) -> None:
    model = adapted("llama", "hra").double()
    for layer in model.modules():
        base = getattr(layer, "base_layer", None)
        if isinstance(base, nn.Linear):
            base.register_forward_hook(lambda module, inputs, output: 2 * output)
    export_lora(model, tmp_path)
    stock = PeftModel.from_pretrained(llama().double(), tmp_path)
    torch.testing.assert_close(outputs(stock), outputs(model))


def test_factors_of_a_half_precision_model_are_made_in_float32(tmp_path) -> None:
    """From the weights as they are, in bfloat16, without another rounding."""
    model = adapted("llama", "hra").to(torch.bfloat16)
    export_lora(model, tmp_path / "narrow")
    export_lora(model.double(), tmp_path / "wide")
    narrow, wide = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("narrow", "wide"))
    for key, value in narrow.items():
        assert value.dtype == torch.float32
        error = torch.linalg.vector_norm(value - wide[key]) / torch.linalg.vector_norm(wide[key])
        assert error < 64 * torch.finfo(torch.float32).eps, key
    lora = adapted("llama", "lora").to(torch.bfloat16)  # scaled by 3/2
    layer = lora.base_model.model.model.layers[0].self_attn.q_proj
    export_lora(lora, tmp_path / "lora")
    saved = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    up = saved["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert torch.equal(up, layer.lora_B["default"].weight.float() * 1.5)


def test_names_that_end_alike_are_kept_apart(tmp_path) -> None:
    """PEFT takes a target's name for the ending of any other: "0" also for "1.0"."""

    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 8)
        ).double()

    config = METHODS["lora"](target_modules=r"0|1\.1|2", rank_pattern={"^2": 2, r"1\.1": 3})
    model = moved(get_peft_model(base(), config))
    x = torch.randn(5, 8, dtype=torch.float64)
    export_lora(model, tmp_path)
    stock = PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(stock(x), model(x))


def test_resized_vocabulary_comes_along(tmp_path) -> None:
    llama().save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    base.resize_token_embeddings(70)
    model = moved(get_peft_model(base, METHODS["hra"](target_modules=LLAMA_LINEAR)))
    with pytest.warns(UserWarning, match="embedding layer has been resized"):
        export_lora(model, tmp_path / "lora")
    saved = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert saved["base_model.model.model.embed_tokens.weight"].shape == (70, 32)


def test_tied_modules_are_written_both(tmp_path) -> None:
    """They share their memory, which a checkpoint's tensors must not."""
    config = METHODS["lora"](
        target_modules=LLAMA_LINEAR, modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True
    )
    model = adapted_to(llama(tie_word_embeddings=True), config)
    export_lora(model, tmp_path)
    stock = PeftModel.from_pretrained(llama(tie_word_embeddings=True), tmp_path)
    torch.testing.assert_close(outputs(stock), outputs(model))


def test_weights_move_in_before_the_configuration(tmp_path, monkeypatch) -> None:
    moves = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (moves.append(to), replace(self, to))[1])
    export_lora(adapted("llama", "hra"), tmp_path)
    assert moves == [tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"]


def test_existing_checkpoint_is_replaced_whole(tmp_path, monkeypatch) -> None:
    folder = export_lora(adapted("llama", "hra"), tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(before) == {"adapter_config.json", "adapter_model.safetensors"}

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(LoraConfig, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        export_lora(adapted("llama", "lora"), tmp_path)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    monkeypatch.undo()
    export_lora(adapted("llama", "lora"), tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() != before["adapter_model.safetensors"]
    assert {file.name for file in folder.iterdir()} == set(before)


def merged_model() -> nn.Module:
    model = adapted("llama", "hra")
    model.merge_adapter()
    return model


def sharded() -> nn.Module:
    model = adapted("llama", "hra")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.hra_u["default"] = nn.Parameter(layer.hra_u["default"].to("meta"))
    return model


REFUSED = {
    "rotation": (
        lambda: get_peft_model(
            bert(), hybrid(target_modules=BERT_LINEAR, unitary_modules=["query"], unitary_block_size=8)
        ),
        r"adapter 'default' has unitary rotations \(unitary_modules=.*query.*--merged",
    ),
    "OFT": (lambda: adapted("bert", "oft"), "adapter 'default' is OFT; a rotation is no low-rank.*--merged"),
    "BOFT": (
        lambda: adapted("bert", "boft"),
        "adapter 'default' is BOFT; a rotation is no low-rank.*--merged",
    ),
    "DoRA": (
        lambda: adapted("bert", "dora"),
        "adapter 'default' is DoRA, whose scale of whole rows is no low-rank update.*--merged",
    ),
    "MiCA": (
        lambda: adapted("llama", "lora", init_lora_weights="mica"),
        "adapter 'default' at .*q_proj: MiCALinearVariant is no plain LoRA",
    ),
    "PiSSA": (
        lambda: adapted("llama", "lora", init_lora_weights="pissa"),
        "adapter 'default' has init_lora_weights='pissa', which changed the base .*conversion.*--merged",
    ),
    "IA3": (
        lambda: get_peft_model(
            llama(), IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
        ),
        "adapter 'default' is IA3; export_lora takes the hybrid, HRA and LoRA.*--merged",
    ),
    "prompt": (
        lambda: get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "adapter 'default' is PROMPT_TUNING, which changes no layer; serve its own checkpoint",
    ),
    "embedding": (
        lambda: get_peft_model(llama(), LoraConfig(target_modules=["embed_tokens", "q_proj"])),
        "adapter 'default' at .*embed_tokens: it is on a Embedding; export_lora takes linear layers",
    ),
    "merged": (merged_model, r"the model is merged in 14 layers, first .*q_proj; call unmerge_adapter\(\)"),
    "sharded": (sharded, r"adapter 'default' at .*q_proj: its parameters cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_before_anything_is_written(tmp_path, name) -> None:
    make, message = REFUSED[name]
    model = make()
    with pytest.raises(ValueError, match=message):
        export_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_says_which_argument_is_wrong(tmp_path) -> None:
    model = adapted("llama", "hra")
    with pytest.raises(TypeError, match="model is a LlamaForCausalLM; export_lora takes a PeftModel"):
        export_lora(llama(), tmp_path / "lora")
    with pytest.raises(ValueError, match=r"adapter_name is 'x'; the model has \['default'\]"):
        export_lora(model, tmp_path / "lora", "x")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(NotADirectoryError, match=r"folder is '.*file', which is a file"):
        export_lora(model, tmp_path / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"
