"""The structured unitary adapter as a PEFT method, on a small BERT."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from hybrid_kernels.adapters import StructuredUnitaryConfig
from hybrid_kernels.adapters.structured import StructuredUnitaryLayer


def adapted(base, **options):
    return get_peft_model(
        base, StructuredUnitaryConfig(target_modules="all-linear", task_type="SEQ_CLS", **options)
    )


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(batch["input_ids"]).logits


def layers(model):
    return [module for module in model.modules() if isinstance(module, StructuredUnitaryLayer)]


def move(model, adapter="default", seed=1):
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in layers(model):
            for parameter in layer.unitary(adapter).parameters():
                parameter.add_(torch.randn_like(parameter))


def test_starts_as_the_base_and_trains_7n_parameters_a_layer(make_base, batch) -> None:
    before = logits(make_base(), batch)
    model = adapted(make_base())
    torch.testing.assert_close(logits(model, batch), before, rtol=1e-5, atol=1e-6)
    trained = [p.numel() for n, p in model.named_parameters() if p.requires_grad and "urnn_" in n]
    assert sum(trained) == sum(7 * layer.in_features // 2 for layer in layers(model))
    assert len(layers(model)) == 13
    model(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "urnn_" in n)


def test_merges_to_the_formula_and_back(make_base, batch) -> None:
    model = adapted(make_base().double())
    move(model)
    layer = layers(model)[0]
    weight = layer.base_layer.weight.clone()
    expected, plain = logits(model, batch), logits(make_base().double(), batch)
    assert not torch.allclose(expected, plain, atol=1e-3)
    model.merge_adapter()
    q = layer.unitary("default").matrix()
    torch.testing.assert_close(q @ q.T, torch.eye(len(q), dtype=q.dtype))
    torch.testing.assert_close(layer.base_layer.weight, weight @ q.T)
    torch.testing.assert_close(logits(model, batch), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(layer.base_layer.weight, weight)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, batch), plain)
    torch.testing.assert_close(logits(model.merge_and_unload(), batch), expected)


def test_two_adapters_merge_to_what_they_compute(make_base, batch) -> None:
    config = StructuredUnitaryConfig(target_modules=["query", "dense"])
    model = get_peft_model(make_base().double(), config)
    model.add_adapter("other", config)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".other." in n)
    move(model)
    move(model, "other", seed=2)
    one = logits(model, batch)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model, batch)
    assert not torch.allclose(one, both, atol=1e-3)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), both)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, batch), both)


def test_saved_and_loaded_outputs_are_equal(make_base, batch, tmp_path) -> None:
    model = adapted(make_base())
    move(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_base(), tmp_path), batch), logits(model, batch))


def test_bad_targets_are_named(make_base) -> None:
    with pytest.raises(TypeError, match="word_embeddings is a Embedding"):
        get_peft_model(make_base(), StructuredUnitaryConfig(target_modules=["word_embeddings"]))
    odd = torch.nn.Sequential(torch.nn.Linear(7, 4))
    with pytest.raises(ValueError, match="target module 0: in_features is 7; it must be even"):
        get_peft_model(odd, StructuredUnitaryConfig(target_modules=["0"]))
