import re
from pathlib import Path

import pytest
import torch

import hybrid_kernels as hk
from hybrid_kernels.cases import models, peers
from hybrid_kernels.cases.configs import LinearShape, linear_layers, load_config
from hybrid_kernels.ops.backend import Choices

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("aenum")
pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = {
    "bert": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 99
    },
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4, "vocab_size": 99},
    "gpt2": {"n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 99, "n_positions": 32},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    def save(model_type):
        transformers.AutoConfig.for_model(model_type, **SMALL[model_type]).save_pretrained(
            tmp_path / model_type
        )
        return str(tmp_path / model_type)

    return save


def cases(name, **options):
    options = {"dtype": torch.float32, "batch": 2, "tokens": 8, **options}
    # A folder's model has a digest of its configuration in its name.
    return {re.sub("-[0-9a-f]{8}", "", case.name): case for case in models.cases(name, CPU, **options)}


def results(side):
    with hk.use_backend(side.backend):
        loss = side.forward()
        return [loss, *torch.autograd.grad(loss, side.leaves, side.gradients)]


def backends(side):
    """Those of this package's operators that a step runs on."""
    with Choices() as choices:
        side.step("both")()
    return {backend for _, backend in choices.made}


def shapes(linear):
    return sum(shape.count * (shape.in_features + shape.out_features) for shape in linear)


def test_every_side_of_a_decoder_runs_and_is_the_model_at_the_pretrained_weights():
    case = cases("llama-tiny", methods=())["llama-tiny"]
    assert case.id == "model/llama-tiny/layers2-batch2-tokens8/float32/cpu"
    assert case.passes == ("forward", "both")
    sides = {name: build() for name, build in case.builders().items()}
    assert list(sides) == ["frozen model", "hybrid 16 + 16", "hybrid, eager", "PEFT LoRA r=32"]
    for name, side in sides.items():
        for part in case.passes:
            side.step(part)()
        for result in results(side):
            assert result.isfinite().all() and result.any(), name
    torch.testing.assert_close(results(sides["hybrid, eager"]), results(sides["hybrid 16 + 16"]))
    assert (backends(sides["hybrid, eager"]), backends(sides["PEFT LoRA r=32"])) == ({"eager"}, set())


def test_parameters_are_those_of_all_linear_layers():
    linear = linear_layers(load_config("llama-tiny"))
    counts = {n: build().parameters for n, build in cases("llama-tiny")["llama-tiny"].builders().items()}
    assert counts["frozen model"] == 0
    assert counts["PEFT LoRA r=32"] == 32 * shapes(linear)
    assert counts["hybrid 16 + 16"] == 16 * shapes(linear) + 16 * sum(s.count * s.in_features for s in linear)


@pytest.mark.parametrize("method", peers.ACCELERATED)
def test_stock_and_accelerated_models_agree(method, folder):
    name = folder("bert")
    case = cases(name, methods=[method], dtype=torch.float64)[f"bert-accelerate-{method.replace(' ', '-')}"]
    assert (case.floor, case.ours) == ("frozen model", f"accelerated {method}")
    sides = {name: build() for name, build in case.builders().items()}
    stock = results(sides[f"PEFT {method}"])
    assert backends(sides[f"PEFT {method}"]) == set() != backends(sides[f"accelerated {method}"])
    assert backends(sides[f"accelerated {method}, eager"]) == {"eager"}
    assert len(stock) >= 2 + 13 and all(result.isfinite().all() for result in stock)
    for name in (f"accelerated {method}", f"accelerated {method}, eager"):
        torch.testing.assert_close(results(sides[name]), stock)
    assert not torch.allclose(results(sides["frozen model"])[1], stock[1])


def test_an_encoder_gets_gradients_to_its_pooler(folder):
    side = cases(folder("bert"), methods=())["bert"].builders()["PEFT LoRA r=32"]()
    pooler = LinearShape(64, 64, True, 9, "encoder.layer.0.attention.self.query")
    assert linear_layers(load_config(folder("bert")))[0] == pooler
    assert side.parameters == 32 * shapes(linear_layers(load_config(folder("bert"))))
    assert all(gradient.any() for gradient in results(side))


def test_an_encoder_and_decoder_model_has_the_loss_of_its_head(folder):
    case = cases(folder("t5"), methods=())["t5"]
    for name, build in case.builders().items():
        side = build()
        assert side.forward().item() == pytest.approx(torch.tensor(99.0).log().item(), rel=0.5), name
        assert all(result.isfinite().all() for result in results(side))


def test_a_step_is_deterministic_and_models_share_their_weights():
    case = cases("llama-tiny", methods=())["llama-tiny"]
    first, second = (results(case.builders()["hybrid 16 + 16"]()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    model = models.Model(load_config("llama-tiny"), "x", {"batch": 1, "tokens": 2}, torch.float32, CPU)
    frozen = {id(parameter) for parameter in model.frozen.parameters()}
    adapted = model.under_peft("LoRA r=16", model.copy())
    assert frozen <= {id(parameter) for parameter in adapted.parameters()}
    assert not any("lora" in name for name, _ in model.frozen.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.frozen.parameters())


def test_dropout_of_the_model_itself_is_off(folder):
    config = models.prepared(load_config(folder("bert")), "bert")
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.0
    side = cases(folder("bert"), methods=())["bert"].builders()["frozen model"]()
    assert torch.equal(side.forward(), side.forward())


def test_weights_and_inputs_have_the_dtype_asked_for(folder):
    case = cases("llama-tiny", methods=("DoRA r=16",), dtype=torch.bfloat16)[
        "llama-tiny-accelerate-DoRA-r=16"
    ]
    for name, build in case.builders().items():
        side = build()
        assert {leaf.dtype for leaf in side.leaves} == {torch.bfloat16}, name
        assert all(result.isfinite().all() for result in results(side))


def test_layers_are_cut():
    case = cases("llama-tiny", layers=1, methods=())["llama-tiny"]
    assert case.shape == {"layers": 1, "batch": 2, "tokens": 8}
    whole = cases("llama-tiny", methods=())["llama-tiny"]
    one, two = (c.builders()["PEFT LoRA r=32"]().parameters for c in (case, whole))
    assert two == 2 * one


def test_a_sweep_changes_the_tokens_alone(monkeypatch, folder):
    monkeypatch.setitem(models.SWEEPS, "tokens", (4, 16, 64))
    family = models.cases(folder("gpt2"), CPU, torch.float32, sweep="tokens")
    assert [case.shape for case in family] == [
        {"layers": 1, "batch": 1, "tokens": t} for t in (4, 16)
    ]  # 32 positions
    assert {case.sweep for case in family} == {"tokens"}
    assert [c.builders()["frozen model"]().leaves[0].shape for c in family] == [(1, 4, 64), (1, 16, 64)]


def test_layers_that_the_hybrid_cannot_go_on_are_named(folder):
    builders = cases(folder("gpt2"), methods=())["gpt2"].builders()
    with pytest.raises(TypeError, match="c_attn is a Conv1D"):
        builders["hybrid 16 + 16"]()
    assert all(result.isfinite().all() for result in results(builders["PEFT LoRA r=32"]()))


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("bert", "AutoModel"), ("llama", "AutoModelForCausalLM"), ("t5", "AutoModelForSeq2SeqLM")],
)
def test_encoders_have_no_head_and_others_have_theirs(model_type, expected):
    assert models._auto_class(load_config(model_type)).__name__ == expected


def test_a_file_names_the_case_by_its_folder(folder):
    assert list(cases(folder("bert") + "/config.json", methods=())) == ["bert"]


def test_another_configuration_in_a_folder_of_that_name_is_another_case(folder):
    def ids():
        return [case.id for case in models.cases(path, CPU, torch.float32, tokens=8, methods=())]

    path = folder("bert")
    first = ids()
    assert first == ids() and first[0].startswith("model/bert-")
    config = Path(path) / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 128', '"intermediate_size": 96'))
    assert ids() != first


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama-tiny", {"batch": 0}, "batch is 0; it must be at least 1"),
        ("llama-tiny", {"tokens": 9999}, "tokens is 9999; 'llama-tiny' has positions for 8192"),
        ("llama-tiny", {"methods": ["LoRA"]}, "methods has 'LoRA'; each may be one of 'LoRA r=32'"),
        ("llama-tiny", {"sweep": "width"}, "sweep is 'width'; of a model it may be 'tokens'"),
        ("llama-tiny", {"layers": 3}, "layers is 3; the model has 2"),
        ("vit", {}, "model is 'vit', of type 'vit'; it must be a language model"),
        ("cpmant", {}, "it must be one whose forward takes inputs_embeds"),
    ],
)
def test_bad_arguments_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        cases(name, **options)
