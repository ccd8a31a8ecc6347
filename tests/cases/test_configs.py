import json
import sys

import pytest

pytest.importorskip("transformers")

from hybrid_kernels.cases.configs import BUILT_IN, LinearShape, linear_layers, load_config, with_layers

TINY_LAYERS = [
    LinearShape(64, 64, False, 4, "layers.0.self_attn.q_proj"),
    LinearShape(64, 32, False, 4, "layers.0.self_attn.k_proj"),
    LinearShape(64, 128, False, 4, "layers.0.mlp.gate_proj"),
    LinearShape(128, 64, False, 2, "layers.0.mlp.down_proj"),
]


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_linear_layers_of_a_built_in_model():
    assert linear_layers(load_config("llama-tiny")) == TINY_LAYERS


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_model_has_the_sizes_it_is_listed_with(name):
    config = load_config(name)
    assert {key: getattr(config, key) for key in BUILT_IN[name]} == BUILT_IN[name]


def test_a_model_type_needs_no_network(offline):
    shapes = linear_layers(load_config("bert"))
    # Four square layers a block, and the pooler; biases everywhere.
    assert shapes[0] == LinearShape(768, 768, True, 4 * 12 + 1, "encoder.layer.0.attention.self.query")


def test_conv1d_layers_count_with_their_sides_the_right_way_round(offline):
    assert linear_layers(load_config("gpt2"))[0] == LinearShape(768, 2304, True, 12, "h.0.attn.c_attn")


def test_a_folder_and_a_file_say_what_the_model_is(tmp_path):
    load_config("llama-tiny").save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        assert linear_layers(load_config(str(name))) == TINY_LAYERS


def test_a_model_of_text_and_images_is_its_text_part(offline):
    assert load_config("gemma3").model_type == "gemma3_text"


def test_layers_are_cut_with_the_lists_that_describe_them(offline):
    whole = load_config("gemma2")
    cut = with_layers(whole, 3)
    assert cut.num_hidden_layers == len(cut.layer_types) == 3
    assert cut.layer_types == whole.layer_types[:3] and len(whole.layer_types) == 26
    assert [s.count for s in linear_layers(cut)] == [s.count * 3 // 26 for s in linear_layers(whole)]


@pytest.mark.parametrize(("name", "count"), [("t5", 2 * 4 + 2 * 8), ("bart", 2 * 4 + 2 * 8), ("gpt2", 2)])
def test_both_stacks_are_cut(offline, name, count):
    square = {
        s.count for s in linear_layers(with_layers(load_config(name), 2)) if s.in_features == s.out_features
    }
    assert square == {count}


@pytest.mark.parametrize("layers", [0, 3])
def test_more_layers_than_there_are_cannot_be_asked_for(layers):
    with pytest.raises(ValueError, match=f"layers is {layers}; the model has 2"):
        with_layers(load_config("llama-tiny"), layers)


def test_an_unknown_name_is_refused_with_what_it_may_be(offline):
    with pytest.raises(OSError, match=r"model is 'lama-tiny'.*did you mean 'llama-tiny'"):
        load_config("lama-tiny")


@pytest.mark.parametrize("name", ["", "a/b/c"])
def test_what_cannot_be_a_name_is_refused(offline, name):
    with pytest.raises((OSError, ValueError), match=f"model is '{name}'.*a Transformers model type such as"):
        load_config(name)


def test_folders_and_files_without_a_configuration_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a folder without a config\.json"):
        load_config(str(tmp_path))
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(OSError, match="cannot be read"):
        load_config(str(path))
    path.write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(ValueError, match=r"model is .*model_type"):
        load_config(str(path))


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hybrid-kernels\[peft\]'"):
        load_config("llama")


def test_sizes_that_differ_by_layer_are_cut_as_well(offline):
    cut = with_layers(load_config("gemma4"), 2)
    assert cut.num_hidden_layers == 2 and linear_layers(cut)


def test_a_number_of_layers_that_a_kind_of_model_cannot_have_is_refused(offline):
    with pytest.raises(ValueError, match="layers is 2, which a model of type 'olmo_hybrid' cannot have"):
        with_layers(load_config("olmo_hybrid"), 2)


def test_a_configuration_that_makes_no_model_is_refused(offline):
    with pytest.raises(ValueError, match="cannot build a model of type 'nemotron' from this configuration"):
        linear_layers(load_config("nemotron"))
    config = load_config("bert")
    config.hidden_size = 100
    with pytest.raises(ValueError, match="cannot build a model of type 'bert'"):
        linear_layers(config)
