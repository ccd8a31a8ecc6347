"""Sizes under one budget: the formulas against what PEFT really makes, and the choice among them."""

import copy

import pytest
import torch
from pydantic import TypeAdapter
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hybrid_kernels.training import methods
from hybrid_kernels.training.budget import adapter_parameters, fit_budget, target_layers
from hybrid_kernels.training.method_config import Method, hybrid_ablations

HEAD = ("classifier", "bert.pooler")
SETTINGS = {
    "lora": {"method": "lora", "r": None, "alpha": 8},
    "lora_ga": {"method": "lora_ga", "r": None, "alpha": 8.0},
    "hra": {"method": "hra", "r": None},
    "oft": {"method": "oft", "block_size": None},
    "boft": {"method": "boft", "block_size": None, "factors": 2},
    "hybrid": {"method": "hybrid", "r": None, "reflections": None, "alpha": 4.0},
    "hybrid-unitary": {
        "method": "hybrid",
        "r": None,
        "reflections": None,
        "alpha": 4.0,
        "mixing": "learned",
        "unitary_modules": ["query", "q_proj"],
        "unitary_block_size": 8,
    },
}


def make(settings, targets="all-linear"):
    return TypeAdapter(Method).validate_python({**settings, "target_modules": targets})


@pytest.fixture(params=["bert", "llama"])
def base(request):
    """(model, head, task)"""
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
    torch.manual_seed(0)
    if request.param == "bert":
        return (
            BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **sizes)),
            HEAD,
            "classification",
        )
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes)
    return LlamaForCausalLM(config), (), "causal_lm"


def really_trained(method, base):
    adapted = methods.add_adapter(copy.deepcopy(base[0]), list(base[1]), method, 0, base[2])
    return sum(
        p.numel() for n, p in adapted.named_parameters() if p.requires_grad and "modules_to_save" not in n
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("budget", [10_000, 30_000])
def test_fitted_methods_have_the_budgeted_parameters(name, budget, base):
    model, head, _ = base
    before = {n: p.clone() for n, p in model.named_parameters()}
    fitted = fit_budget(make(SETTINGS[name]), model, budget, head=head)
    count = adapter_parameters(fitted, model, head=head)
    assert count == really_trained(fitted, base)
    assert count <= 1.05 * budget
    if name not in ("oft", "boft"):  # block sizes are few
        # No rank or pair of reflections more would fit.
        step = max(adapter_parameters(make({"method": "lora", "r": 1, "alpha": 1}), model, head=head), 1)
        assert count > budget - step
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_closest_size_wins(base):
    model, head, task = base
    unit = adapter_parameters(make({"method": "lora", "r": 1, "alpha": 1}), model, head=head)
    lora = make(SETTINGS["lora"])

    def rank(budget):
        return fit_budget(lora, model, budget, head=head).r

    assert rank(10 * unit) == 10
    assert rank(int(10.4 * unit)) == 10
    assert rank(int(10.6 * unit)) == 11  # 11 units are 3.8 % above it
    assert rank(int(1.9 * unit)) == 1  # closer is 2, but 5.3 % above
    assert rank(10**9) == (48 if task == "causal_lm" else 96)  # the smaller side of the smallest layer


def test_the_hybrid_splits_the_budget_evenly(base):
    model, head, _ = base
    layers = target_layers(make(SETTINGS["hybrid"]), model, head=head)
    inputs, outputs = (sum(side) for side in zip(*layers.values(), strict=True))
    fitted = fit_budget(make(SETTINGS["hybrid"]), model, 40_000, head=head)
    low_rank, reflections = fitted.r * (inputs + outputs), fitted.reflections * inputs
    assert abs(low_rank - reflections) <= inputs + outputs + 2 * inputs
    if inputs == outputs:  # then r = 7 and n = 10 have as many parameters, and are less even
        exact = fit_budget(make(SETTINGS["hybrid"]), model, 24 * inputs, head=head)
        assert (exact.r, exact.reflections) == (6, 12)
    # A branch that is left out leaves all to the other, and sizes given before do not matter.
    whole = make(SETTINGS["hybrid"] | {"r": 3, "reflections": 2})
    ablations = {one.name: fit_budget(one, model, 40_000, head=head) for one in hybrid_ablations(whole)}
    assert ablations["hybrid-no-reflections"].reflections == ablations["hybrid-no-low-rank"].r == 0
    for one in ablations.values():
        assert abs(adapter_parameters(one, model, head=head) - 40_000) <= inputs + outputs
    assert ablations["hybrid-fixed-mixing"].r == fitted.r


def test_layers_are_those_that_peft_adapts(base):
    model, head, task = base
    layers = target_layers(make(SETTINGS["lora"]), model, head=head)
    # A head is trained whole: neither the classifier nor a new pooler is adapted, nor the language-model head.
    assert len(layers) == (12 if task == "classification" else 14)
    assert set(layers.values()) >= {(96, 96), (96, 192), (192, 96)}
    targets = ["query", "q_proj"]
    some = target_layers(make(SETTINGS["lora"], targets), model, head=head)
    assert set(some.values()) == {(96, 96)} and len(some) == 2 and set(some) < set(layers)


def test_methods_without_a_size_come_back_with_their_count(base):
    model, head, _ = base
    for settings in ({"method": "full"}, {"method": "full", "embeddings": False}, {"method": "urnn"}):
        method = TypeAdapter(Method).validate_python(settings)
        assert fit_budget(method, model, 1, head=head) is method
    urnn = TypeAdapter(Method).validate_python({"method": "urnn"})
    assert adapter_parameters(urnn, model, head=head) == really_trained(urnn, base)
    full, frozen = (
        adapter_parameters(
            TypeAdapter(Method).validate_python({"method": "full", "embeddings": on}),
            model,
            head=head,
        )
        for on in (True, False)
    )
    assert full - frozen == 50 * 96
    in_head = sum(p.numel() for n, p in model.named_parameters() if n.startswith(HEAD))
    assert full == sum(p.numel() for p in model.parameters()) - in_head


def test_a_budget_below_the_smallest_size_names_the_nearest(base):
    model, head, _ = base
    unit = adapter_parameters(make({"method": "lora", "r": 1, "alpha": 1}), model, head=head)
    with pytest.raises(
        ValueError, match=rf"budget is 500; method 'lora' on \d+ layers .* than {unit:,}, {2 * unit:,} "
    ):
        fit_budget(make(SETTINGS["lora"]), model, 500, head=head)
    with pytest.raises(ValueError, match="budget is 0; it must be at least 1"):
        fit_budget(make(SETTINGS["lora"]), model, 0, head=head)
    with pytest.raises(
        ValueError, match=r"method 'hybrid': (No modules were targeted|Target modules .* not found)"
    ):
        fit_budget(make(SETTINGS["hybrid"], ["nowhere"]), model, 1000, head=head)
