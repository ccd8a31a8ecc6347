"""HybridConfig as a PEFT method: PEFT's public behaviour, on a small BERT."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model

from hybrid_kernels.adapters import GradientNormMixing, HybridConfig, initialize_gradient_aligned
from hybrid_kernels.adapters.layer import HybridLayer

OPTIONS = {
    "plain": {},
    "rotation": {"unitary_modules": ["query", "output.dense"], "unitary_block_size": 8},
    "complex rotation": {"unitary_modules": ".*value", "unitary_block_size": 4, "unitary_complex": True},
    "learned": {"mixing": "learned"},
    "fixed": {"mixing": "fixed", "mixing_value": 0.25},
    "low rank alone": {"reflections": 0},
    "reflections alone": {"r": 0},
}


def config(**options) -> HybridConfig:
    defaults = {"r": 4, "reflections": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS"}
    return HybridConfig(**{**defaults, **options})


def logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(batch["input_ids"]).logits


def hybrid_layers(model) -> dict[str, HybridLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, HybridLayer)}


def train(model, batch, steps: int = 3) -> None:
    torch.manual_seed(2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    mixing = GradientNormMixing()
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        mixing.step(model)
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(params=OPTIONS)
def trained(request, make_base, batch):
    """A model whose adapter and head have moved away from their start."""
    model = get_peft_model(make_base(), config(**OPTIONS[request.param]))
    if model.peft_config["default"].r:
        initialize_gradient_aligned(model, [batch], progress=False)
    train(model, batch)
    return model


def test_starts_as_the_pretrained_model(make_base, batch) -> None:
    base = make_base()
    before = logits(base, batch)
    for options in OPTIONS.values():
        model = get_peft_model(make_base(), config(**options))
        torch.testing.assert_close(logits(model, batch), before)
        if model.peft_config["default"].r:
            assert initialize_gradient_aligned(model, [batch], progress=False)
            torch.testing.assert_close(logits(model, batch), before)
        else:
            with pytest.raises(ValueError, match="rank is 0; gradient-aligned"):
                initialize_gradient_aligned(model, [batch], progress=False)


def test_only_adapter_and_head_are_trained(make_base, batch) -> None:
    model = get_peft_model(make_base(), config())
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all(".hybrid_adapters.default." in n or "modules_to_save.default" in n for n in names)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    train(model, batch)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if not p.requires_grad)


def test_training_moves_every_branch(trained, make_base, batch) -> None:
    assert not torch.allclose(logits(trained, batch), logits(make_base(), batch), atol=1e-3)
    for layer in hybrid_layers(trained).values():
        adapter = layer.adapter("default")
        assert adapter.rank == 0 or not torch.equal(adapter.lora_B, adapter.lora_B_start)
        u = adapter.householder_u
        assert adapter.reflections == 0 or not torch.equal(u[:, 0], u[:, 1])
        if adapter.has_rotation:
            assert adapter.cayley_skew.any()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load_on_a_fresh_base(trained, make_base, batch, tmp_path, low_cpu_mem_usage) -> None:
    y = logits(trained, batch)
    trained.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "HYBRID"
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    torch.testing.assert_close(logits(loaded, batch), y, rtol=0, atol=0)
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if "hybrid_adapters" in n)
    under_another_name = PeftModel.from_pretrained(make_base(), tmp_path, adapter_name="other")
    torch.testing.assert_close(logits(under_another_name, batch), y, rtol=0, atol=0)


def test_loaded_adapter_trains_on_as_before(make_base, batch, tmp_path) -> None:
    model = get_peft_model(make_base(), config())
    initialize_gradient_aligned(model, [batch], progress=False)
    train(model, batch, 2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_base(), tmp_path, is_trainable=True)
    train(model, batch, 2)
    train(again, batch, 2)
    torch.testing.assert_close(logits(again, batch), logits(model, batch))


def test_disable(trained, make_base, batch) -> None:
    y = logits(trained, batch)
    with trained.disable_adapter():
        torch.testing.assert_close(logits(trained, batch), logits(make_base(), batch))
    torch.testing.assert_close(logits(trained, batch), y)


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_unmerge(trained, batch, safe_merge) -> None:
    y = logits(trained, batch)
    weights = {name: layer.weight.clone() for name, layer in hybrid_layers(trained).items()}
    trained.merge_adapter(safe_merge=safe_merge)
    torch.testing.assert_close(logits(trained, batch), y)
    assert any(not torch.equal(weights[n], layer.weight) for n, layer in hybrid_layers(trained).items())
    trained.unmerge_adapter()
    for name, layer in hybrid_layers(trained).items():
        torch.testing.assert_close(layer.weight, weights[name])
    torch.testing.assert_close(logits(trained, batch), y)


def test_merge_and_unload(trained, batch) -> None:
    y = logits(trained, batch)
    merged = trained.merge_and_unload()
    assert not hybrid_layers(merged)
    torch.testing.assert_close(logits(merged, batch), y)


def test_unload_gives_the_base_back(trained, make_base, batch) -> None:
    base = trained.unload()
    with torch.no_grad():
        base.classifier.load_state_dict(make_base().classifier.state_dict())
    torch.testing.assert_close(logits(base, batch), logits(make_base(), batch))


def test_safe_merge_refuses_nan_and_leaves_the_weight(make_base) -> None:
    model = get_peft_model(make_base(), config())
    layer = next(iter(hybrid_layers(model).values()))
    before = layer.weight.clone()
    with torch.no_grad():
        layer.adapter("default").lora_B[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.weight, before) and not layer.merged


def test_several_adapters_switch_add_delete(make_base, batch) -> None:
    alone = {"task_type": None, "target_modules": ["query", "value"]}  # PEFT allows one trained head only
    model = get_peft_model(make_base(), config(**alone))
    train(model, batch)
    first = logits(model, batch)
    model.add_adapter("second", config(**{**alone, "target_modules": ["query"]}, r=2, reflections=2))
    torch.testing.assert_close(logits(model, batch), first)
    model.set_adapter("second")
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable and all(".second." in n for n in trainable)
    train(model, batch)
    second = logits(model, batch)
    assert not torch.allclose(second, first)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model, batch), first)

    model.base_model.set_adapter(["default", "second"])
    both = logits(model, batch)
    model.merge_adapter(["default"])
    model.merge_adapter(["default", "second"])
    torch.testing.assert_close(logits(model, batch), both)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, batch), both)

    model.set_adapter("default")
    model.delete_adapter("second")
    assert all("second" not in layer.hybrid_adapters for layer in hybrid_layers(model).values())
    torch.testing.assert_close(logits(model, batch), first)


def test_rotations_stand_alone(make_base) -> None:
    rotating = {**OPTIONS["rotation"], "task_type": None, "target_modules": ["query", "value"]}
    model = get_peft_model(make_base(), config(**rotating))
    model.add_adapter("second", config(task_type=None, target_modules=["query"]))
    with pytest.raises(ValueError, match="carry a unitary rotation"):
        model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (["query"], 2),
        ("bert.encoder.layer.1.*(query|value)", 2),
        ("all-linear", 13),
        (["query", "intermediate.dense"], 4),
    ],
)
def test_target_modules(make_base, target, expected) -> None:
    assert len(hybrid_layers(get_peft_model(make_base(), config(target_modules=target)))) == expected


def test_layer_subsets_and_exclusions(make_base) -> None:
    subset = config(target_modules=["query", "value"], layers_to_transform=[1], layers_pattern="layer")
    names = list(hybrid_layers(get_peft_model(make_base(), subset)))
    assert len(names) == 2 and all(".layer.1." in name for name in names)
    excluded = config(target_modules=["query", "value"], exclude_modules=["value"])
    assert all("query" in name for name in hybrid_layers(get_peft_model(make_base(), excluded)))


def test_unitary_modules_select_sub_layers(make_base) -> None:
    model = get_peft_model(make_base(), config(**OPTIONS["rotation"]))
    rotating = [n for n, layer in hybrid_layers(model).items() if layer.adapter("default").has_rotation]
    assert len(rotating) == 6  # two of query, attention.output.dense, output.dense
    with pytest.raises(ValueError, match="matches none of the target modules"):
        get_peft_model(make_base(), config(unitary_modules=["q_proj"]))


def test_half_precision_base_with_float32_adapter(make_base, batch) -> None:
    model = get_peft_model(make_base().bfloat16(), config(**OPTIONS["rotation"]))
    adapter = next(iter(hybrid_layers(model).values())).adapter("default")
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    before = logits(make_base().bfloat16(), batch)
    assert logits(model, batch).dtype == torch.bfloat16
    initialize_gradient_aligned(model, [batch], progress=False)
    torch.testing.assert_close(logits(model, batch), before, rtol=0.05, atol=0.05)
    train(model, batch)
    y = logits(model, batch)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), y, rtol=0.05, atol=0.05)


def test_dropout_of_the_configuration_acts_in_training_alone(make_base, batch, tmp_path) -> None:
    model = get_peft_model(make_base(), config(lora_dropout=0.5))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the model's own
    train(model, batch)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path)
    assert {layer.adapter("default").dropout for layer in hybrid_layers(loaded).values()} == {0.5}

    def outputs(training: bool) -> list[torch.Tensor]:
        model.train(training)
        with torch.no_grad():
            return [model(batch["input_ids"]).logits for _ in range(2)]

    assert torch.equal(*outputs(training=False))
    assert not torch.equal(*outputs(training=True))


def test_autocast_and_gradient_checkpointing(make_base, batch) -> None:
    model = get_peft_model(make_base(), config())
    train(model, batch, 1)
    model.eval()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**batch).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    truth = gradients()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for mine, true in zip(gradients(), truth, strict=True):
        torch.testing.assert_close(mine, true)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_truncated_checkpoint(make_base, tmp_path) -> None:
    get_peft_model(make_base(), config()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors cannot be read.*truncated"):
        PeftModel.from_pretrained(make_base(), tmp_path)


def test_checkpoint_of_another_shape(make_base, tmp_path) -> None:
    get_peft_model(make_base(), config(r=4)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**saved, "r": 6}))
    with pytest.raises(ValueError, match=r"lora_A of shape \(4, 32\), the model needs \(6, 32\)"):
        PeftModel.from_pretrained(make_base(), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**saved, "gradient_aligned": True}))
    with pytest.raises(ValueError, match="lacks 26 of"):
        PeftModel.from_pretrained(make_base(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": -1}, "r is -1"),
        ({"r": 0, "reflections": 0}, "r and reflections are both 0"),
        ({"r": 64}, r"target module bert.encoder.layer.0.attention.self.query: rank is 64"),
        ({"reflections": 5}, "reflections is 5; it must be even"),
        ({"lora_alpha": -1.0}, "lora_alpha is -1.0"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"mixing": "auto"}, "mixing is 'auto'"),
        ({"mixing_value": 1.5}, "mixing_value is 1.5"),
        (
            {"unitary_modules": ["query"], "unitary_block_size": 5},
            "layer.0.attention.self.query: block_size is 5",
        ),
        ({"target_modules": ["nothing"]}, "target_modules"),
    ],
)
def test_bad_configuration_names_the_field(make_base, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(make_base(), config(**options))


def test_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="reflection"):
        HybridConfig(reflection=4)


def test_target_that_is_no_linear_layer(make_base) -> None:
    with pytest.raises(TypeError, match=r"word_embeddings is a Embedding"):
        get_peft_model(make_base(), config(target_modules=["word_embeddings"]))
