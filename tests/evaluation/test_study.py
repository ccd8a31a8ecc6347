"""Which runs are joined, and what is said of those that cannot be read."""

import re
import shutil

import pytest

from hybrid_kernels.evaluation.tables import load_study, quality, shots, translation
from hybrid_kernels.evaluation.tables.study import seeds_of
from tests.evaluation.runs import edit, make_run, make_translation_run, results


def test_runs_on_the_same_rows_are_joined_and_others_follow(run_folder, translation_folder, tmp_path):
    make_run(tmp_path / "hra", methods=("hra",), ablated=(), recipes=())
    first, second = load_study([run_folder, translation_folder, tmp_path / "hra"])
    assert list(first.methods) == ["lora", "boft", "hybrid", "hra"]
    assert [run.folder for run in first.runs] == [run_folder, tmp_path / "hra"]
    assert second.translates and second.title == "Translation"
    # The same cells once more are another setting: whose numbers they are would not be known.
    shutil.copytree(run_folder, tmp_path / "again")
    assert len(load_study([run_folder, tmp_path / "again"])) == 2
    make_run(tmp_path / "fewer", methods=("hra",), ablated=(), recipes=(), items=30)
    assert len(load_study([run_folder, tmp_path / "fewer"])) == 2


def test_seeds_ascend_and_those_of_the_pretrained_model_are_all(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")

    def cut(content):
        gone = [("lora", 2), ("boft", 0), ("hybrid", 1)]
        content["cells"] = [c for c in content["cells"] if (c["method"], c["seed"]) not in gone]
        pretrained = {"method": "none", "backend": "transformers", "shots": 0, "train_loss": None}
        content["cells"].append(content["cells"][0] | pretrained)

    edit(tmp_path / "run", cut)
    (setting,) = load_study([tmp_path / "run"])
    cells = setting.by_method()
    assert seeds_of(cells) == {"lora": [0, 1], "boft": [1, 2], "hybrid": [0, 2], "none": [0, 1, 2]}
    assert [len(own) for own in cells.values()] == [2, 2, 2, 3]
    found = quality.main_quality(setting)
    # Of LoRA and the hybrid, seed 0 is the only one that both have.
    assert {(c.method, c.baseline): c.seeds for c in found.comparisons if c.metric == "accuracy"} == {
        ("lora", "boft"): 1,
        ("hybrid", "boft"): 1,
        ("none", "boft"): 2,
    }
    assert found.value("hybrid", "accuracy").mark == "not distinguishable"
    # The pretrained model has three cells here; BOFT, with which it is compared, two.
    assert "comparisons, each over the 2 seeds that both methods have." in quality.main_table(found).note


def test_methods_of_one_seed_among_others_are_not_compared(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")

    def cut(content):
        content["cells"] = [c for c in content["cells"] if c["method"] == "hybrid" or c["seed"] == 0]

    edit(tmp_path / "run", cut)
    (setting,) = load_study([tmp_path / "run"])
    table = quality.main_table(quality.main_quality(setting))
    assert "over 1 or 3 seeds. A method of one seed" in table.note and "▲" not in table.note
    assert {value.mark for one in table.rows for value in one.values} == {None, "not distinguishable"}


def test_shots_of_a_governance_ablation_alone_are_not_those_of_the_study(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")

    def ablate_with_all_rows(content):
        content["config"]["data"] = {"shots": [8, 32]}
        ablated = [c for c in content["cells"] if (c["method"], c["shots"]) == ("lora", 32)]
        content["cells"] = [c for c in content["cells"] if c["shots"] == 8 or c["governance"] == "all"]
        content["cells"] += [c | {"shots": "all"} for c in ablated]

    edit(tmp_path / "run", ablate_with_all_rows)
    (setting,) = load_study([tmp_path / "run"])
    assert setting.all_shots == [8, 32] and setting.main_shots == 32
    assert list(setting.by_method()) == ["lora", "boft", "hybrid"]


def test_main_shots_are_those_of_most_methods_and_the_others_are_named(tmp_path):
    options = {"ablated": (), "recipes": (), "dev": False, "items": 30}
    make_run(tmp_path / "one", methods=("lora", "hybrid"), shots=(8, 32), **options)
    make_run(tmp_path / "two", methods=("boft",), shots=(32, 64), **options)
    (setting,) = load_study([tmp_path / "one", tmp_path / "two"])
    assert setting.all_shots == [8, 32, 64] and setting.main_shots == 32
    main = quality.main_quality(setting)
    assert (
        set(main.cells) == {"lora", "hybrid", "boft"} and "Not trained" not in quality.main_table(main).note
    )
    few = shots.few_shot(setting, main)
    assert {number: set(one.cells) for number, one in few.by_shots.items()} == {
        8: {"lora", "hybrid"},
        32: {"lora", "hybrid", "boft"},
        64: {"boft"},
    }
    make_run(tmp_path / "three", methods=("hra",), shots=(8,), **options)
    (setting,) = load_study([tmp_path / name for name in ("one", "two", "three")])
    assert setting.main_shots == 32
    note = quality.main_table(quality.main_quality(setting)).note
    assert "Not trained with 32 examples a language: HRA. " in note


def test_baselines_on_this_packages_kernels_are_baselines(tmp_path):
    make_run(
        tmp_path, methods=("lora", "boft", "hra", "hybrid"), shots=(8,), ablated=(), recipes=(), dev=False
    )

    def accelerate(content):
        for one in content["cells"]:
            one["backend"] = "peft" if one["method"] == "lora" else "hybrid-kernels"
        for place, kind in ((1, "boft"), (2, "lora_ga"), (3, "hybrid")):
            content["config"]["methods"][place] = {"name": content["methods"][place]["name"], "method": kind}

    edit(tmp_path, accelerate)
    (setting,) = load_study([tmp_path])
    assert setting.baselines == ["lora", "boft", "hra"] and setting.own == ["hybrid"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["config"]["training"].update(learning_rate=1.0),
        lambda content: content["config"].update(source_stage={"steps": 3}),
        lambda content: content["config"].update(methods=[{"name": "lora", "method": "lora", "r": 16}]),
    ],
)
def test_one_method_trained_in_two_ways_is_not_further_seeds_of_it(tmp_path, change):
    def configured(content):
        content["config"] |= {
            "title": "One",
            "output": "one",
            "training": {"learning_rate": 0.001, "steps": 9, "seeds": [0]},
            "methods": [{"name": "lora", "method": "lora", "r": 8}],
        }

    options = {"ablated": (), "recipes": (), "dev": False, "items": 30, "shots": (8,)}
    for name, seeds in (("a", (0, 1)), ("b", (2,))):
        make_run(tmp_path / name, methods=("lora",), seeds=seeds, **options)
        edit(tmp_path / name, configured)
    edit(tmp_path / "b", lambda content: content["config"].update(title="Two", output="two"))
    edit(tmp_path / "b", lambda content: content["config"]["training"].update(seeds=[2]))
    # A key of a later version, at its default.
    edit(tmp_path / "b", lambda content: content["config"]["training"].update(precision="float32"))
    (setting,) = load_study([tmp_path / "a", tmp_path / "b"])
    assert [cell.result.seed for cell in setting.by_method()["lora"]] == [0, 1, 2]
    edit(tmp_path / "b", change)
    assert len(load_study([tmp_path / "a", tmp_path / "b"])) == 2


def test_notes_of_translations_say_what_is_absent_and_differs(tmp_path):
    make_translation_run(tmp_path / "a", methods=("lora",))
    make_translation_run(tmp_path / "b", methods=("hybrid",))
    edit(tmp_path / "a", lambda content: content["config"].update(budget=8))
    edit(tmp_path / "b", lambda content: content["config"].update(budget=9))
    edit(tmp_path / "b", lambda content: [cell.update(shots=8) for cell in content["cells"]])
    (setting,) = load_study([tmp_path / "a", tmp_path / "b"])
    note = translation.direction_tables(translation.translations(setting))[0].note
    assert "Not trained with 32 examples a direction: Hybrid r = 4 + 4. " in note
    assert "differ in their settings of budget. " in note


def test_a_difference_between_the_settings_of_joined_runs_is_said(tmp_path):
    options = {"ablated": (), "recipes": (), "dev": False, "items": 30, "shots": (8,)}
    make_run(tmp_path / "a", methods=("lora",), **options)
    make_run(tmp_path / "b", methods=("hra",), **options)
    (setting,) = load_study([tmp_path / "a", tmp_path / "b"])
    assert "differ" not in quality.main_table(quality.main_quality(setting)).note
    edit(tmp_path / "b", lambda content: content["config"]["training"].update(learning_rate=1.0))
    edit(tmp_path / "b", lambda content: content["config"].update(budget=99))
    (setting,) = load_study([tmp_path / "a", tmp_path / "b"])
    note = quality.main_table(quality.main_quality(setting)).note
    assert "The runs of these methods differ in their settings of training, budget. " in note


def test_bad_folders_are_named(run_folder, tmp_path):
    with pytest.raises(ValueError, match="folders is empty"):
        load_study([])
    with pytest.raises(FileNotFoundError, match=re.escape(f"'{tmp_path}' has no results.json")):
        load_study([tmp_path])
    with pytest.raises(ValueError, match="twice"):
        load_study([run_folder, run_folder])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_study([tmp_path])
    results(tmp_path, [], ["lora"])
    with pytest.raises(ValueError, match=r"results\.json: results: key 'cells'"):
        load_study([tmp_path])
    shutil.copytree(run_folder, tmp_path / "run")
    next((tmp_path / "run").glob("cells/lora.seed-0*/predictions.npz")).write_bytes(b"PK")
    for path in (tmp_path / "run").glob("cells/*/predictions.npz"):
        path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"predictions\.npz, of a cell in results\.json, cannot be read"):
        load_study([tmp_path / "run"])
