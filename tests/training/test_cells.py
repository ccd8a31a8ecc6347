"""What a configuration expands into, and what each cell trains on and predicts."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console

from hybrid_kernels.training.cells import Cell, expand, source_of, stage_of, variants
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.files import load_predictions, read_json
from hybrid_kernels.training.plan import make_plan
from hybrid_kernels.training.prepare import perturbed_parts, prepare
from hybrid_kernels.training.results import plan_table, training_steps
from hybrid_kernels.training.run import run
from hybrid_kernels.training.tasks import task_of
from tests.training.support import HRA, HYBRID

QUIET = Console(quiet=True)
POLICY = {"language": {"enabled": False}, "quality": {"reject_truncated": False}}


def plan_of(values, folder: Path):
    config = RunConfig.model_validate(values)
    return make_plan(config, folder, prepare(config, folder, QUIET))


@pytest.fixture
def sweep(values):
    """A source stage in English, then 0, 4 and 8 shots."""
    return values | {
        "source_stage": {"steps": 6},
        "data": values["data"] | {"shots": [8, 0, 4]},
        "training": values["training"] | {"seeds": [0, 1]},
    }


def test_expansion_of_a_sweep(sweep):
    cells = expand(RunConfig.model_validate(sweep))
    assert [cell.name for cell in cells] == [
        f"lora.seed-{seed}.shots-{shots}.governance-none" for seed in (0, 1) for shots in (0, 4, 8)
    ]
    sources = [source_of(RunConfig.model_validate(sweep), cell) for cell in cells]
    assert sources == [None, cells[0], cells[0], None, cells[3], cells[3]]
    # Without 0 shots the source stage is trained all the same, for the others.
    cells = expand(RunConfig.model_validate(sweep | {"data": sweep["data"] | {"shots": [4, "all"]}}))
    assert [(cell.shots, cell.reported) for cell in cells[:3]] == [(0, False), (4, True), ("all", True)]


def test_rates_of_a_methods_two_stages(sweep):
    """The method's for the stage, its other, the section's, the training's: the first that is given."""
    lora = sweep["methods"][0]

    def rates(stage: dict, **own: float) -> tuple[float, float]:
        config = RunConfig.model_validate(
            sweep | {"methods": [lora | own], "source_stage": {"steps": 6, **stage}}
        )
        (method,) = config.methods
        return tuple(stage_of(config, method, is_source).learning_rate for is_source in (True, False))

    assert rates({}) == (0.003, 0.003)
    assert rates({"learning_rate": 0.2}) == (0.2, 0.003)
    assert rates({"learning_rate": 0.2}, learning_rate=0.1) == (0.1, 0.1)
    assert rates({"learning_rate": 0.2}, source_learning_rate=0.3) == (0.3, 0.003)
    assert rates({"learning_rate": 0.2}, learning_rate=0.1, source_learning_rate=0.3) == (0.3, 0.1)


def test_methods_of_one_source_stage_share_it_where_it_is_not_reported(sweep, tmp_path):
    lora = sweep["methods"][0] | {"source_learning_rate": 0.01}
    sweep["methods"] = [
        lora,
        lora | {"name": "slow", "learning_rate": 0.0001},
        lora | {"name": "other-start", "source_learning_rate": 0.02},
        lora | {"name": "larger", "r": 5},
    ]
    reported = RunConfig.model_validate(sweep)
    assert [cell.method for cell in expand(reported) if cell.is_source and not cell.seed] == [
        "lora", "slow", "other-start", "larger",
    ]  # fmt: skip
    assert all(source_of(reported, cell).method == cell.method for cell in expand(reported) if cell.shots)
    config = RunConfig.model_validate(sweep | {"data": sweep["data"] | {"shots": [4]}})
    cells = expand(config)
    assert [(cell.method, cell.shots) for cell in cells if not cell.seed] == [
        ("lora", 0), ("lora", 4), ("slow", 4), ("other-start", 0), ("other-start", 4), ("larger", 0), ("larger", 4),
    ]  # fmt: skip
    sources = {(cell.method, cell.seed): source_of(config, cell) for cell in cells if cell.shots}
    assert sources["slow", 1] == sources["lora", 1] == Cell("lora", 1, 0, "none", reported=False)
    assert sources["larger", 0].method == "larger" and sources["other-start", 0].method == "other-start"
    # Equal or not, it is the same training.
    one = {cell.name: key for cell, key in trained_keys(plan_of(sweep, tmp_path))}
    two = {
        cell.name: key
        for cell, key in trained_keys(plan_of(sweep | {"data": config.data.model_dump()}, tmp_path))
    }
    assert two.items() <= one.items()
    results = run(
        config.model_copy(update={"training": config.training.model_copy(update={"seeds": [0]})}),
        footprint=False,
        report=False,
        console=QUIET,
    )
    assert [cell["method"] for cell in results["cells"]] == ["lora", "slow", "other-start", "larger"]


def trained_keys(plan):
    return [(cell, plan.training_key(cell)) for cell in plan.cells]


def test_governance_variants(values):
    values |= {"governance": POLICY, "governance_ablation": {"methods": ["lora"], "shots": 8}}
    values["governance"] = {"quality": {"max_digits": 0.3}, "personal_data": {"enabled": False}}
    found = variants(RunConfig.model_validate(values))
    on = {
        name: {step for step in ("quality", "language", "duplicates") if getattr(policy, step).enabled}
        for name, policy in found.items()
    }  # fmt: skip
    assert on == {
        "all": {"quality", "language", "duplicates"},
        "none": set(),
        "only-quality": {"quality"},
        "only-language": {"language"},
        "only-duplicates": {"duplicates"},
        "without-quality": {"language", "duplicates"},
        "without-language": {"quality", "duplicates"},
        "without-duplicates": {"quality", "language"},
    }
    assert found["only-quality"].quality.max_digits == 0.3
    # Rows of the test part are no training rows in any variant.
    assert all(policy.leakage.enabled for policy in found.values())
    values["governance"]["leakage"] = {"enabled": False}
    assert variants(RunConfig.model_validate(values))["none"] is None
    # Where the ablation's shots are the sweep's, "all" is the run's own cell.
    values["methods"].append(HRA)
    names = [cell.name for cell in expand(RunConfig.model_validate(values))]
    assert len(names) == len(set(names)) == 2 + 8
    values["data"]["shots"] = 8
    assert len(expand(RunConfig.model_validate(values))) == 2 + 7


def test_shots_are_nested_balanced_and_follow_the_seed(sweep, tmp_path):
    plan = plan_of(sweep, tmp_path)
    ids = {
        (cell.seed, cell.shots): [row["id"] for row in plan.rows.of(plan.config, cell)] for cell in plan.cells
    }
    for seed in (0, 1):
        assert set(ids[seed, 4]) < set(ids[seed, 8])
        rows = plan.rows.of(plan.config, Cell("lora", seed, 8, "none"))
        assert Counter(row["language"] for row in rows) == {"en": 8, "de": 8}
        per_label = Counter((row["language"], row["label"]) for row in rows)
        assert set(per_label.values()) == {2, 3} and len(per_label) == 6
    assert ids[0, 8] != ids[1, 8]
    assert {row["language"] for row in plan.rows.of(plan.config, plan.cells[0])} == {"en"}
    assert ids[0, 0] == ids[1, 0]


def test_keys_hold_what_matters_and_nothing_else(sweep, tmp_path):
    def keys(**changes):
        plan = plan_of(sweep | changes, tmp_path)
        return {cell.shots: plan.training_key(cell) for cell in plan.cells if cell.seed == 0}

    before = keys()
    assert len(set(before.values())) == 3
    training = sweep["training"]
    same = keys(
        title="another",
        output="elsewhere",
        training=training | {"seeds": [0], "checkpoint_steps": 5, "tensorboard": True},
        data=sweep["data"] | {"shots": [0, 4, 8, 16]},
        methods=[sweep["methods"][0] | {"name": "lora"}],
    )
    assert before.items() <= same.items()
    for changes in (
        {"training": training | {"learning_rate": 0.1}},
        {"source_stage": {"steps": 7}},
        {"source_stage": {"steps": 6, "rows_per_language": 12}},
        {"methods": [sweep["methods"][0] | {"r": 5}]},
        {"model": sweep["model"] | {"max_length": 16}},
    ):
        after = keys(**changes)
        assert all(after[shots] != before[shots] for shots in before), changes
    # The source stage has a length of its own.
    longer = keys(training=training | {"steps": 7})
    assert longer[8] != before[8] and longer[0] == before[0]
    # Whose accuracy the parity gap starts from is no matter of training, and one of metrics.
    sweep |= {"source_stage": {"steps": 6, "languages": ["en"]}}
    plan = plan_of(sweep, tmp_path)
    other = plan_of(sweep | {"evaluation": sweep["evaluation"] | {"reference_language": "de"}}, tmp_path)
    for cell in plan.cells:
        assert plan.training_key(cell) == other.training_key(cell)
        assert plan.prediction_key(cell) != other.prediction_key(cell)


def test_a_sweep_from_its_source_stage(sweep):
    results = run(RunConfig.model_validate(sweep), footprint=False, console=QUIET)
    folder = Path(sweep["output"])
    cells = {(cell["seed"], cell["shots"]): cell for cell in results["cells"]}
    assert set(cells) == {(seed, shots) for seed in (0, 1) for shots in (0, 4, 8)} and not results["missing"]
    for cell in cells.values():
        own = folder / cell["folder"]
        predictions = load_predictions(own / "predictions.npz")["test"]
        right = predictions["log_probabilities"].argmax(axis=1) == predictions["labels"]
        for language, found in cell["metrics"]["test"]["per_language"].items():
            assert found["accuracy"] == pytest.approx(right[predictions["languages"] == language].mean())
        assert len(read_json(own / "training_rows.json")) == cell["train_rows"]
        assert (own / "adapter" / "adapter_model.safetensors").is_file()
    plan = plan_of(sweep, folder)
    for cell in plan.cells:
        history = read_json(folder / "cells" / cell.name / "trained.json")["result"]["history"]
        assert len(history) == training_steps(plan, cell)
    # `methods` are those of the most shots.
    (method,) = results["methods"]
    mean = np.mean([cells[seed, 8]["metrics"]["test"]["macro"]["nll"] for seed in (0, 1)])
    assert method["evaluation"]["macro"]["nll"] == pytest.approx(mean)
    # Another source stage is another start: the few-shot cells are made again.
    trained = folder / cells[0, 8]["folder"] / "trained.json"
    first = read_json(trained)["result"]["history"][0]["loss"]
    sweep |= {"source_stage": {"steps": 9}, "training": sweep["training"] | {"seeds": [0]}}
    run(RunConfig.model_validate(sweep), footprint=False, report=False, console=QUIET)
    assert read_json(trained)["result"]["history"][0]["loss"] != first


def test_governance_ablation_trains_on_what_each_variant_keeps(values, tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    doubled = [*rows, *(row | {"id": f"again-{row['id']}"} for row in rows[:10])]
    test = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    # A row of the test part is removed in every variant.
    leaked = test[0] | {"id": "leaked", "item": 99, "premise": " ".join(f"w{i}x" for i in range(30))}
    leaked["hypothesis"] = " ".join(f"v{i}y" for i in range(30))
    broken = [*doubled, *(row | {"id": f"digits-{row['id']}", "premise": "123 456 7"} for row in rows[:6])]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*broken, leaked]))
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*test, leaked]))
    values |= {"governance": POLICY, "governance_ablation": {"methods": ["lora"]}}
    values["data"]["source"] = str(data)
    values["training"]["steps"] = 2
    results = run(RunConfig.model_validate(values), footprint=False, report=False, console=QUIET)
    kept = {cell["governance"]: cell["train_rows"] for cell in results["cells"]}
    assert kept["none"] == len(broken) and kept["all"] == results["data"]["train_rows"] == len(rows)
    # The six rows of digits have two texts between three cues.
    assert kept["only-quality"] == len(doubled) and len(rows) < kept["only-duplicates"] < len(broken)
    assert {name: one["kept"] for name, one in results["governance_variants"].items()} == kept


@pytest.fixture
def fake_robustness(monkeypatch):
    """`hybrid_kernels.evaluation.robustness` with one recipe for all languages and one for German."""
    module = ModuleType("hybrid_kernels.evaluation.robustness")
    module.recipes_for = lambda language: ("upper", "umlaut") if language == "de" else ("upper",)

    def perturb(texts, language, recipe, *, seed, rate):
        assert (seed, rate) == (3, 0.5)
        return [text.upper() if recipe == "upper" else f"ä {text}" for text in texts]

    module.perturb = perturb
    module.natural_romanised = lambda rows: np.array([row["language"] == "de" for row in rows])
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_robustness_predicts_perturbed_rows(sweep, fake_robustness):
    sweep["training"] |= {"seeds": [0], "steps": 3}
    sweep["evaluation"] = {"robustness": {"rate": 0.5, "seed": 3, "shots": 8, "max_rows_per_language": 6}}
    results = run(RunConfig.model_validate(sweep), footprint=False, report=False, console=QUIET)
    by_shots = {cell["shots"]: cell for cell in results["cells"]}
    assert set(by_shots[0]["metrics"]) == set(by_shots[4]["metrics"]) == {"test"}
    assert set(by_shots[8]["metrics"]) == {"test", "perturbed/upper", "perturbed/umlaut"}
    parts = load_predictions(Path(sweep["output"]) / by_shots[8]["folder"] / "predictions.npz")
    upper, test = parts["perturbed/upper"], parts["test"]
    assert len(upper["ids"]) == 12 and set(upper["ids"]) < set(test["ids"])
    assert set(parts["perturbed/umlaut"]["languages"]) == {"de"}
    assert results["data"]["romanised"] == [row for row in test["ids"] if row.endswith("de")]
    # Premises come in threes.
    clusters = dict(zip(test["items"].tolist(), test["clusters"].tolist(), strict=True))
    assert all(clusters[item] == clusters[str(int(item) // 3 * 3)] for item in clusters)
    assert len(set(clusters.values())) == 4
    assert by_shots[8]["metrics"]["perturbed/umlaut"]["parity"] is None
    # Words in upper case are unknown to the model.
    same = [np.flatnonzero(test["ids"] == row)[0] for row in upper["ids"]]
    assert not np.allclose(upper["log_probabilities"], test["log_probabilities"][same], atol=1e-3)
    with pytest.raises(ValueError, match=r"recipes has lower; for de, en there are umlaut, upper"):
        sweep["evaluation"]["robustness"]["recipes"] = ["lower"]
        run(RunConfig.model_validate(sweep), footprint=False, report=False, console=QUIET)


def test_rows_that_a_recipe_leaves_as_they_are_are_not_predicted_again(values):
    values["evaluation"] = {"robustness": {"recipes": ["lower_case", "upper_case"]}}
    task = task_of(RunConfig.model_validate(values))
    texts = [("A cat", "sat"), ("a cat", "SAT"), ("a cat", "sat")]
    rows = [
        {"id": str(i), "item": i, "language": "en", "premise": premise, "hypothesis": hypothesis, "label": 0}
        for i, (premise, hypothesis) in enumerate(texts)
    ]
    parts = perturbed_parts(task, rows)
    assert [row["id"] for row in parts["perturbed/lower_case"]] == ["0", "1"]
    assert len(parts["perturbed/upper_case"]) == 3
    assert set(perturbed_parts(task, rows[2:])) == {"perturbed/upper_case"}


def test_a_recipe_that_changes_no_row_is_named(values, tmp_path):
    """The tiny rows are in lower case."""
    values["evaluation"] = {"robustness": {"recipes": ["lower_case", "upper_case"]}}
    console = Console(record=True, width=200)
    parts = prepare(RunConfig.model_validate(values), tmp_path, console).parts
    assert "no evaluation row is changed by lower_case; left out" in console.export_text()
    assert set(parts) == {"test", "perturbed/upper_case"}


def test_methods_of_one_label_are_told_apart(values, tmp_path):
    lora = values["methods"][0]
    values["methods"] = [lora, lora | {"name": "fast", "learning_rate": 1.0}, HRA]
    values["output"] = str(tmp_path)
    plan = plan_of(values, tmp_path)
    labels = ["LoRA r = 4 (lora)", "LoRA r = 4 (fast)", "HRA r = 4"]
    assert [plan.describe(cell) for cell in plan.cells] == [f"{label}, seed 0" for label in labels]
    assert list(plan_table(plan).columns[0].cells) == [*labels, "all"]


def test_methods_are_fitted_to_the_budget(values, monkeypatch):
    module = ModuleType("hybrid_kernels.training.budget")

    def fit_budget(method, model, budget, *, head):
        assert model.config.hidden_size == 32 and head == ["bert.pooler.dense", "classifier"]
        # LoRA on two 32 × 32 layers of each of two blocks: 256 parameters a rank.
        return method.model_copy(update={"r": budget // 256})

    module.fit_budget = fit_budget
    monkeypatch.setitem(sys.modules, module.__name__, module)
    results = run(
        RunConfig.model_validate(values | {"budget": 1600}), footprint=False, report=False, console=QUIET
    )
    (method,) = results["methods"]
    assert method["label"] == "LoRA r = 6"
    head = 32 * 32 + 32 + 3 * 32 + 3
    assert method["trainable_parameters"] == results["cells"][0]["trainable_parameters"] == 6 * 256 + head
    assert results["config"]["methods"][0]["r"] == 4


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "oft", "block_size": 5}, r"Invalid `oft_block_size` \(5\)"),
        ({"method": "boft", "block_size": 6}, r"in_features \(32\) must be divisible by boft_block_size \(6\)"),
        ({"method": "lora_ga", "r": 17, "alpha": 1}, "r is 17; it must be at most 16, as a gradient-aligned start"),
        (HYBRID | {"r": 17}, "r is 17; it must be at most 16"),
        (HYBRID | {"unitary_modules": ["vlaue"]}, r"unitary_modules is \{'vlaue'\} but matches none of the target"),
        (HYBRID | {"unitary_modules": ["value"], "unitary_block_size": 5}, "block_size is 5; it must be at least 2"),
        (HRA | {"target_modules": ["kwery"]}, "No modules were targeted .* `target_modules`"),
        (HRA | {"target_modules": "(["}, "a regular expression of target_modules or unitary_modules: untermin"),
        ({"method": "urnn", "target_modules": ["word_embeddings"]}, "word_embeddings is a Embedding"),
    ],
)  # fmt: skip
def test_methods_that_do_not_fit_the_model_are_found_while_planning(values, tmp_path, method, message):
    """Whatever comes before them in the run, with a budget or without."""
    values["methods"].append({"name": "own", "target_modules": ["query", "value"]} | method)
    with pytest.raises(ValueError, match=f"^method 'own': .*{message}"):
        plan_of(values, tmp_path)


def test_methods_that_fit_the_model(values, tmp_path):
    targets = {"target_modules": ["query", "value"]}
    peft = [
        values["methods"][0],
        HRA,
        {"method": "oft", "block_size": 4},
        {"method": "boft", "block_size": 4},
    ]
    values["methods"] = [
        *(one | targets | {"name": f"{one['method']}-{on}", "accelerate": on} for one in peft for on in (True, False)),
        {"method": "lora_ga", "r": 16, "alpha": 1} | targets,
        HYBRID | {"unitary_modules": ["value"]},
        {"method": "urnn"} | targets,
        {"method": "full"},
    ]  # fmt: skip
    assert len(plan_of(values, tmp_path).methods) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"source": "sample", "shots": [8, -1]}}, r"data.shots: must be an integer of at least 0, \"all\""),
        ({"data": {"source": "sample", "shots": [8, 8]}}, r"data.shots: names a number of shots twice"),
        ({"data": {"source": "sample", "shots": 0}}, "0 shots need a source_stage"),
        ({"data": {"source": "sample", "dev_split": "train"}}, "dev_split is 'train', which the training rows"),
        ({"data": {"source": "sample", "dev_split": "test"}}, "give dev_fraction the part that is for dev"),
        ({"source_stage": {"steps": 3, "epochs": 1}}, "source_stage: give exactly one of epochs and steps"),
        ({"governance_ablation": {"methods": ["lora"]}}, "needs a governance policy to switch"),
        (
            {"governance": {}, "governance_ablation": {"methods": ["hra"]}},
            "governance_ablation.methods has hra; the methods are lora",
        ),
        (
            {"methods": [{"method": "none"}], "task": "prompt", "prompt": {}, "governance": {},
             "governance_ablation": {"methods": ["none"]}},
            "governance_ablation.methods has none, which does not train",
        ),
        ({"evaluation": {"robustness": {"shots": 32}}}, r"robustness.shots is 32; data.shots has \['all'\]"),
        ({"budget": 0}, "budget: input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_configurations_that_make_no_sense(values, write_config, changes, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.load(write_config(values | changes))
