import re
from pathlib import Path
from typing import get_args

import pydantic
import pytest

from hybrid_kernels.training.cells import expand
from hybrid_kernels.training.config import DEMO_CONFIG, RunConfig, example_configs
from hybrid_kernels.training.method_config import TAGS, AnyMethod, Method
from hybrid_kernels.training.prepare import perturbed_parts
from hybrid_kernels.training.tasks import task_of
from tests.training.support import DATA, HYBRID

needs_data = pytest.mark.skipif(
    not (DATA / "ntrex").is_dir(), reason=f"no text in {DATA} (set HYBRID_KERNELS_DATA)"
)


def error_of(values, write_config) -> str:
    with pytest.raises(ValueError) as caught:
        RunConfig.load(write_config(values))
    return str(caught.value)


def test_the_demo_loads():
    config = RunConfig.load(DEMO_CONFIG)
    assert [method.method for method in config.methods] == ["lora", "hra", "hybrid"]


@pytest.mark.parametrize(
    ("name", "methods", "cells"),
    [
        ("xnli_few_shot", {"lora", "boft", "hra", "hybrid"}, 2 * 5 * 4),
        ("xnli_learning_rates", {"lora", "boft", "hra", "hybrid"}, 12),
        # Four source stages, and 8 and 128 shots.
        ("xnli_few_shot_rates", {"lora", "boft", "hra", "hybrid"}, 4 + 9 * 2),
        ("xnli_prompt", {"none", "lora", "hybrid"}, 3),
        # The source stage; a policy of three steps: all, none, each alone, all but each.
        ("governance_ablation", {"lora", "hybrid"}, 3 * 2 * (1 + 8)),
        ("flores", {"none", "lora", "hybrid"}, 4),
        ("flores_learning_rates", {"lora", "hybrid"}, 6),
        ("xnli_gpu", {"full", "lora", "lora_ga", "hra", "oft", "boft", "urnn", "hybrid"}, 3 * 15 * 4),
    ],
)
def test_examples_are_runs(name, methods, cells):
    config = RunConfig.load(example_configs()[name])
    assert {method.method for method in config.methods} == methods
    assert len(expand(config)) == cells


def test_every_example_is_tested():
    xnli = {"xnli_few_shot", "xnli_learning_rates", "xnli_few_shot_rates", "xnli_prompt", "xnli_gpu"}
    assert set(example_configs()) == xnli | {"governance_ablation", "flores", "flores_learning_rates"}


@needs_data
@pytest.mark.parametrize("name", ["xnli_few_shot", "xnli_prompt", "governance_ablation", "flores"])
def test_data_of_examples(name):
    """The sources, splits and languages are there, with rows enough for the shots and prompts."""
    config = RunConfig.load(example_configs()[name])
    names = ("source", "evaluation_source")
    here = {
        one: str(DATA / Path(getattr(config.data, one)).name) for one in names if getattr(config.data, one)
    }
    stage = config.source_stage
    if stage is not None and stage.source is not None:
        stage = stage.model_copy(update={"source": str(DATA / Path(stage.source).name)})
    config = config.model_copy(update={"data": config.data.model_copy(update=here), "source_stage": stage})
    task = task_of(config)
    loaded = task.load_data()
    assert loaded.test and bool(loaded.dev) == bool(config.data.dev_fraction)
    most = config.data.all_shots[-1]
    groups = len(config.data.languages) if name != "flores" else len(config.directions)
    assert len(task.training_rows(loaded.train, most, 0)) == most * groups
    robustness = config.evaluation.robustness
    parts = perturbed_parts(task, loaded.test)
    assert set(parts) == {f"perturbed/{one}" for one in (robustness.recipes if robustness else ())}
    assert all(parts.values())
    assert bool(loaded.source) == (stage is not None)
    shown = task.worked_examples(loaded.train, loaded.test)
    assert len(shown) == (4 * groups if name == "flores" else 0)


def test_demo_names_every_key():
    """The demo's file is the documentation of the format."""
    import yaml

    written = yaml.safe_load(DEMO_CONFIG.read_text())
    config = RunConfig.load(DEMO_CONFIG)
    for name in ("model", "data", "training", "evaluation"):
        assert set(written[name]) == set(type(getattr(config, name)).model_fields), name
    optional = {"name", "learning_rate", "source_learning_rate"}
    for method, values in zip(config.methods, written["methods"], strict=True):
        assert set(values) == set(type(method).model_fields) - optional, method.method
    text = DEMO_CONFIG.read_text()
    keys = {key for kind in get_args(AnyMethod) for key in kind.model_fields}
    assert not [name for name in {*keys, *TAGS} if not re.search(rf"\b{name}\b", text)]
    for one in re.findall(r"`(\{method: .*?\})`", text):
        pydantic.TypeAdapter(Method).validate_python(yaml.safe_load(one))


def test_overrides(values, write_config):
    config = RunConfig.load(write_config(values), model="m", data="d", output="o", seed=7)
    assert (config.model.name, config.data.source, config.output) == ("m", "d", "o")
    assert config.training.seeds == [7]


def test_other_data_takes_the_place_of_all_sources(values, write_config):
    values["data"]["evaluation_source"] = "theirs"
    values["source_stage"] = {"source": "english", "steps": 3, "languages": ["en"]}
    values["data"]["shots"] = 4
    path = write_config(values)
    before, config = RunConfig.load(path), RunConfig.load(path, data="mine")
    assert (before.data.evaluation_source, before.source_stage.source) == ("theirs", "english")
    assert (config.data.source, config.data.evaluation_source, config.source_stage.source) == (
        "mine",
        None,
        None,
    )
    assert config.source_stage.languages == ["en"]


def test_misspelt_keys_name_path_and_nearest_key(values, write_config):
    values["training"]["learning_rat"] = 1
    values["methods"].append(HYBRID | {"reflection": 4})
    message = error_of(values, write_config)
    assert "training.learning_rat: unknown key; did you mean 'learning_rate'?" in message
    assert "methods[1].reflection: unknown key; did you mean 'reflections'?" in message
    assert "2 problems" in message and "config.yaml" in message


@pytest.mark.parametrize(
    ("section", "change", "expected"),
    [
        (
            "training",
            {"batch_size": 0},
            "training.batch_size: input should be greater than or equal to 1 (it is 0)",
        ),
        ("training", {"epochs": 1}, "training: give exactly one of epochs and steps"),
        ("training", {"seeds": [1, 1]}, "training: seeds are repeated: [1, 1]"),
        (
            "data",
            {"train_split": "tran"},
            "data.train_split is 'tran'; it may be one of 'train', 'dev', 'test'",
        ),
        ("governance", {"langage": {}}, "governance.langage: unknown key; did you mean 'language'?"),
        (
            "governance",
            {"language": {"min_script": 2}},
            "governance.language.min_script: input should be less than",
        ),
    ],
)
def test_wrong_values(values, write_config, section, change, expected):
    values[section] = (values[section] or {}) | change
    assert expected in error_of(values, write_config)


def test_wrong_methods(values, write_config):
    lora = values["methods"][0]
    values["methods"] = [lora, lora]
    assert "two methods have the same name" in error_of(values, write_config)
    values["methods"] = [{"method": "lorra", "r": 4}]
    message = error_of(values, write_config)
    assert "methods[0]" in message and "'lora', 'lora_ga', 'hra'" in message
    values["methods"] = [HYBRID | {"reflections": 3}]
    assert "methods[0].reflections: input should be a multiple of 2 (it is 3)" in error_of(
        values, write_config
    )
    values["methods"] = [{"method": "lora", "alpha": 1}]
    assert "methods[0].r: required, but missing" in error_of(values, write_config)
    values["methods"] = [lora | {"source_learning_rate": 0.1}]
    assert "method 'lora': source_learning_rate is 0.1, but there is no source_stage" in error_of(
        values, write_config
    )


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        RunConfig.load(tmp_path / "absent.yaml")
    path = tmp_path / "config.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match="is not a YAML file"):
        RunConfig.load(path)
    path.write_text("- a list")
    with pytest.raises(ValueError, match="holds list"):
        RunConfig.load(path)
