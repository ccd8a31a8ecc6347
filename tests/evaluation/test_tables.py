"""Every table against direct computation from the arrays on disk."""

import json
import shutil
import statistics

import numpy as np
import pytest

from hybrid_kernels.evaluation import (
    apply_temperature,
    bootstrap,
    fit_temperature,
    macro_average,
    per_language_metrics,
)
from hybrid_kernels.evaluation.report import findings
from hybrid_kernels.evaluation.tables import (
    Column,
    Row,
    Value,
    governance,
    load_study,
    quality,
    robustness,
    shots,
)
from hybrid_kernels.evaluation.tables.table import best_in_rows, with_best
from hybrid_kernels.training.files import load_predictions
from tests.evaluation.runs import edit, make_run, row

SEEDS = (0, 1, 2)


def arrays(run, method, seed, number=32, variant="all"):
    path = run / "cells" / f"{method}.seed-{seed}.shots-{number}.governance-{variant}"
    return load_predictions(path / "predictions.npz")


def macro(part):
    p = np.exp(part["log_probabilities"].astype(float))
    return macro_average(per_language_metrics(p, part["labels"], part["languages"].tolist()))


def accuracies(part, keep=slice(None)):
    """By language, straight from the definition."""
    right = part["log_probabilities"].argmax(1) == part["labels"]
    return {code: right[part["languages"] == code].mean() for code in np.unique(part["languages"])}


def test_main_table_is_mean_and_deviation_over_seeds_of_macro_metrics(run_folder, found):
    table = quality.main_table(found)
    assert [column.name for column in table.columns[:6]] == [
        "Accuracy", "Macro-F1", "NLL", "Brier", "ECE, equal width", "ECE, equal mass",
    ]  # fmt: skip
    names = ("accuracy", "macro_f1", "nll", "brier", "ece", "ece_equal_mass")
    for method, label in (("lora", "LoRA"), ("boft", "BOFT"), ("hybrid", "Hybrid")):
        seeds = [macro(arrays(run_folder, method, seed)["test"]) for seed in SEEDS]
        for name, value in zip(names, row(table, label).values, strict=False):
            assert value.value == pytest.approx(statistics.fmean(one[name] for one in seeds), abs=1e-12)
            assert value.std == pytest.approx(statistics.stdev(one[name] for one in seeds), abs=1e-12)
            assert value.interval.low < value.interval.high
            assert value.sources == tuple(
                str(run_folder / "cells" / f"{method}.seed-{seed}.shots-32.governance-all") for seed in SEEDS
            )
    best = {label: row(table, label).values[0].value for label in ("LoRA", "BOFT", "Hybrid")}
    assert [one.label for one in table.rows if one.values[0].best] == [max(best, key=best.get) + " r = 4 + 4"]


def test_intervals_and_marks_are_those_of_the_bootstrap_in_clusters(run_folder, found):
    predictions = {
        method: [one.predictions() for one in cells] for method, cells in found.setting.by_method().items()
    }
    assert len(set(predictions["lora"][0].clusters)) == 20
    direct = bootstrap(predictions, [*quality.METRICS, "gap"])
    value = row(quality.main_table(found), "Hybrid").values[0]
    assert value.interval == direct.interval("hybrid", "accuracy")
    (comparison,) = [
        one
        for one in direct.compare(["lora", "boft"], quality.COMPARED)
        if (one.method, one.metric) == ("hybrid", "accuracy")
    ]
    assert comparison.baseline == "boft"
    assert (value.mark, value.p) == (comparison.mark, comparison.p_holm)
    (baseline,) = [one for one in quality.main_table(found).rows if one.label == "BOFT"]
    assert baseline.values[0].mark is None


def test_temperature_is_fitted_on_dev_and_applied_to_test(run_folder, found):
    value = row(quality.main_table(found), "LoRA").values
    temperatures, scaled = [], []
    for seed in SEEDS:
        parts = arrays(run_folder, "lora", seed)
        temperatures.append(fit_temperature(parts["dev"]["log_probabilities"], parts["dev"]["labels"]))
        p = apply_temperature(np.exp(parts["test"]["log_probabilities"].astype(float)), temperatures[-1])
        p /= p.sum(1, keepdims=True)
        scaled.append(
            macro_average(
                per_language_metrics(p, parts["test"]["labels"], parts["test"]["languages"].tolist())
            )
        )
    assert value[8].value == pytest.approx(statistics.fmean(temperatures))
    assert value[6].value == pytest.approx(statistics.fmean(one["nll"] for one in scaled), abs=1e-6)
    assert value[7].value == pytest.approx(statistics.fmean(one["ece"] for one in scaled), abs=1e-6)


def test_without_dev_part_there_are_no_scaled_columns_and_with_one_seed_no_deviation(tmp_path):
    make_run(tmp_path, seeds=(0,), shots=(8,), dev=False, ablated=(), recipes=())
    (setting,) = load_study([tmp_path])
    found = quality.main_quality(setting)
    table = quality.main_table(found)
    assert len(table.columns) == 6
    assert {value.std for one in table.rows for value in one.values} == {None}
    assert "One seed" in table.note
    assert shots.few_shot(setting, found) is None
    assert robustness.robustness(setting) is None
    assert governance.ablations(setting) == []


def test_parity_of_each_seed_is_averaged(run_folder, found):
    table = quality.parity_table(found)
    by_seed = [accuracies(arrays(run_folder, "lora", seed)["test"]) for seed in SEEDS]
    english = [one["en"] for one in by_seed]
    worst = [min(one.values()) for one in by_seed]
    values = row(table, "LoRA").values
    assert values[0].value == pytest.approx(np.mean(english))
    assert values[1].value == pytest.approx(np.mean(worst))
    assert values[2].value == pytest.approx(np.mean(np.subtract(english, worst)))
    assert values[3].value == pytest.approx(
        np.mean([one["en"] - (one["ar"] + one["sw"]) / 2 for one in by_seed])
    )
    assert values[4].value == pytest.approx(np.mean([np.std(list(one.values())) for one in by_seed]))
    assert "sw" in values[1].detail


def test_groups_of_languages_are_means_of_their_languages(run_folder, found):
    by_seed = [accuracies(arrays(run_folder, "boft", seed)["test"]) for seed in SEEDS]
    latin = row(quality.group_table(found, "by_script"), "Latin (en, sw)").values[1]
    assert latin.value == pytest.approx(np.mean([(one["en"] + one["sw"]) / 2 for one in by_seed]))
    fifth = row(quality.group_table(found, "by_resource_class"), "5 (ar, en)").values[1]
    assert fifth.value == pytest.approx(np.mean([(one["ar"] + one["en"]) / 2 for one in by_seed]))
    swahili = row(quality.language_table(found, "accuracy"), "Swahili (sw), 60 rows").values[1]
    assert swahili.value == pytest.approx(np.mean([one["sw"] for one in by_seed]))
    assert [quality.name_and_code(code) for code in ("ja", "xx")] == ["Japanese (ja)", "xx"]


def test_reliability_pools_the_seeds(found):
    bins = quality.reliability(found)["lora"]
    assert sum(one["count"] for one in bins) == 3 * 180


def test_few_shot_table_has_each_number_of_shots_and_the_difference(run_folder, setting, found):
    few = shots.few_shot(setting, found)
    table = shots.shots_table(few)
    assert [column.name for column in table.columns] == ["8 shots", "32 shots"]
    for place, number in enumerate((8, 32)):
        means = {
            method: np.mean(
                [
                    np.mean(list(accuracies(arrays(run_folder, method, seed, number)["test"]).values()))
                    for seed in SEEDS
                ]
            )
            for method in ("lora", "boft", "hybrid")
        }
        assert row(table, "LoRA").values[place].value == pytest.approx(means["lora"])
        difference = row(table, "Hybrid r = 4 + 4 −").values[place]
        assert difference.value == pytest.approx(means["hybrid"] - max(means["lora"], means["boft"]))
        assert difference.interval.low < difference.value < difference.interval.high


def test_robustness_compares_the_same_rows(run_folder, setting):
    found = robustness.robustness(setting)
    table = robustness.recipe_table(found)
    for place, method in enumerate(("lora", "boft", "hybrid")):
        drops, same, swahili = changed_rows(run_folder, method)
        values = row(table, "romanisation (ar, sw), 120 rows").values
        assert values[place].value == pytest.approx(np.mean(drops))
        assert values[3 + place].value == pytest.approx(np.mean(same))
        # The bootstrap's estimate is the table's own: it saw the same rows.
        assert values[place].interval.estimate == pytest.approx(np.mean(drops))
        first = found.tables[method][0]["per_language"]["sw"]["romanisation"]
        assert first["accuracy_drop"] == pytest.approx(swahili[0])
    scripts = robustness.place_table(found, "per_script")
    assert [one.label for one in scripts.rows] == ["Arabic", "Latin"]
    arabic = row(robustness.place_table(found, "per_language"), "Arabic (ar)").values[1]
    # The recipe upper_case is not for Arabic.
    assert "romanisation" in arabic.detail


def test_joined_runs_are_compared_on_the_changed_rows_that_they_share(tmp_path):
    options = {"ablated": (), "dev": False, "shots": (32,), "items": 30}
    make_run(tmp_path / "a", methods=("lora", "hybrid"), **options)
    make_run(tmp_path / "b", methods=("boft",), recipes=("romanisation",), **options)
    make_run(tmp_path / "c", methods=("hra",), **options)
    edit(tmp_path / "c", lambda content: content["config"]["evaluation"].update(robustness={"rate": 0.5}))
    found = robustness.robustness(load_study([tmp_path / name for name in "abc"])[0])
    assert list(found.cells) == ["lora", "hybrid", "boft"] and found.recipes == ["romanisation"]
    table = robustness.recipe_table(found)
    assert [one.label for one in table.rows] == ["romanisation (ar, sw), 60 rows"]
    assert "Left out, as their rows were changed otherwise: HRA." in table.note
    assert (
        "Recipes left out, as not all methods were tried with the same rows of them: upper case."
        in table.note
    )
    assert robustness.place_table(found, "per_language").rows
    # Nothing shared: the first run's.
    found = robustness.robustness(load_study([tmp_path / name for name in "ca"])[0])
    assert list(found.cells) == ["hra"] and len(found.recipes) == 2


def test_a_drop_of_one_seed_has_no_interval_where_others_have_more(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")

    def cut(content):
        content["cells"] = [c for c in content["cells"] if c["method"] != "lora" or c["seed"] == 0]

    edit(tmp_path / "run", cut)
    table = robustness.recipe_table(robustness.robustness(load_study([tmp_path / "run"])[0]))
    lora, boft, *_ = row(table, "romanisation").values
    assert lora.interval is None and boft.interval is not None
    assert "None for a method of one seed, where others have more." in table.note


def test_robustness_of_too_few_rows_says_why_there_are_no_intervals(tmp_path):
    make_run(tmp_path, items=3, dev=False, ablated=(), shots=(8,), recipes=("romanisation",))
    table = robustness.recipe_table(robustness.robustness(load_study([tmp_path])[0]))
    assert "No intervals for romanisation: all rows are of cluster 'test-0'" in table.note
    assert table.rows[0].values[0].interval is None


def test_the_hybrids_drop_is_compared_with_that_of_the_most_accurate_baseline(run_folder, setting):
    found = robustness.robustness(setting)
    baseline, interval = robustness.excess_drops(found)["romanisation"]
    assert baseline == "boft"
    ours, theirs = (np.mean(changed_rows(run_folder, method)[0]) for method in ("hybrid", "boft"))
    assert interval.estimate == pytest.approx(ours - theirs)
    assert interval.low < interval.estimate < interval.high


def test_the_worst_drop_is_written_as_all_numbers_are():
    for drop, text in ((-0.083, "x y −8.3"), (0.0001, "x y 0.0"), (0.5, "x y +50.0")):
        seeds = [{"per_language": {"ar": {"x_y": {"accuracy_drop": drop, "n": 3}}}}]
        assert robustness._worst(seeds, "per_language", "ar").startswith(text)


def changed_rows(run_folder, method):
    """Of each seed: drop and consistency with romanisation, means over ar and sw; and the drop in sw."""
    drops, same, swahili = [], [], []
    for seed in SEEDS:
        parts = arrays(run_folder, method, seed)
        clean, changed = parts["test"], parts["perturbed/romanisation"]
        place = {name: i for i, name in enumerate(clean["ids"].tolist())}
        rows = np.array([place[name] for name in changed["ids"].tolist()])
        before = clean["log_probabilities"][rows].argmax(1)
        after = changed["log_probabilities"].argmax(1)
        by_language = {}
        for code in ("ar", "sw"):
            own = changed["languages"] == code
            lost = (before == changed["labels"])[own].mean() - (after == changed["labels"])[own].mean()
            by_language[code] = lost, (before == after)[own].mean()
        drops.append(np.mean([lost for lost, _ in by_language.values()]))
        same.append(np.mean([one for _, one in by_language.values()]))
        swahili.append(by_language["sw"][0])
    return drops, same, swahili


def test_romanised_rows_are_set_against_the_others(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    content["data"]["romanised"] = [f"test-{i}-ar" for i in range(12)]
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    table = robustness.romanised_table(load_study([tmp_path / "run"])[0])
    (only,) = table.rows
    assert only.label == "Arabic (ar), 12 of 60 rows"
    gone = []
    for seed in SEEDS:
        part = arrays(run_folder, "lora", seed)["test"]
        right = (part["log_probabilities"].argmax(1) == part["labels"])[part["languages"] == "ar"]
        gone.append(right[12:].mean() - right[:12].mean())
    assert only.values[2].value == pytest.approx(np.mean(gone))
    assert only.values[2].interval is None
    assert robustness.romanised_table(load_study([run_folder])[0]) is None

    # The pretrained model, beside every seed, is one training.
    def untrained(content):
        content["cells"] = [c for c in content["cells"] if c["shots"] == 32 and c["governance"] == "all"]
        content["cells"][0] |= {"method": "none", "label": "Pretrained", "shots": 0, "train_loss": None}

    edit(tmp_path / "run", untrained)
    table = robustness.romanised_table(load_study([tmp_path / "run"])[0])
    drops = zip(table.columns[2::3], table.rows[0].values[2::3], strict=True)
    assert [column.top for column, value in drops if value.interval is not None] == ["Pretrained"]
    assert "of a single training: 95 % intervals" in table.note


def test_governance_differences_pair_seeds(run_folder, setting):
    (found,) = governance.ablations(setting)
    table = governance.ablation_table(found)
    differences = governance.difference_table(found)
    for one in (table, differences):
        assert [line.label for line in one.rows] == ["all", "none", "only-language", "only-quality"]
    assert [one.values[0].value for one in table.rows] == [300, 330, 310, 320]
    accuracy = {
        variant: np.mean(
            [
                np.mean(list(accuracies(arrays(run_folder, "lora", s, 32, variant)["test"]).values()))
                for s in SEEDS
            ]
        )
        for variant in ("all", "none", "only-language")
    }
    tops = [(column.top, column.name) for column in differences.columns]
    minus_none, minus_all = (tops.index((f"Minus “{other}”", "Accuracy")) for other in ("none", "all"))
    assert row(table, "only-language").values[1].value == pytest.approx(accuracy["only-language"])
    values = row(differences, "only-language").values
    assert values[minus_none].value == pytest.approx(accuracy["only-language"] - accuracy["none"])
    assert values[minus_all].value == pytest.approx(accuracy["only-language"] - accuracy["all"])
    assert values[minus_all].interval.low < values[minus_all].value < values[minus_all].interval.high
    assert row(differences, "none").values[minus_none].value is None


def test_governance_leaves_out_seeds_that_a_variant_lacks(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    content["cells"] = [c for c in content["cells"] if (c["governance"], c["seed"]) != ("none", 1)]
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    (found,) = governance.ablations(load_study([tmp_path / "run"])[0])
    assert {name: [c.result.seed for c in own] for name, own in found.variants.items()} == {
        name: [0, 2] for name in ("all", "none", "only-language", "only-quality")
    }


def test_governance_of_too_few_rows_has_numbers_and_says_why_there_are_no_intervals(tmp_path):
    make_run(tmp_path, items=3, shots=(8,), recipes=(), dev=False)
    (setting,) = load_study([tmp_path])
    (found,) = governance.ablations(setting)
    for table in (governance.ablation_table(found), governance.difference_table(found)):
        assert "No intervals: all rows are of cluster 'test-0'" in table.note
        values = row(table, "only-language").values
        assert all(value.value is not None and value.interval is None for value in values)
    accuracy = [
        np.mean(list(accuracies(arrays(tmp_path, "lora", seed, 8, "only-language")["test"]).values()))
        for seed in SEEDS
    ]
    assert row(governance.ablation_table(found), "only-language").values[1].value == pytest.approx(
        np.mean(accuracy)
    )
    assert "whether by chance cannot be told" in findings.governance_finding([found])[1]


def test_intervals_below_the_calibration_error_are_explained(setting, found):
    (ablation,) = governance.ablations(setting)
    for table in (quality.main_table(found), governance.ablation_table(ablation)):
        assert "Chance makes a calibration error larger" in table.note


def test_best_is_marked_within_its_group_and_where_there_are_two():
    columns = [Column("a", better="higher"), Column("b", better="lower"), Column("c")]
    rows = [
        Row("x", [Value(1.0), Value(1.0), Value(9.0)]),
        Row("y", [Value(2.0), Value(None), Value(1.0)]),
        Row("z", [Value(5.0), Value(5.0), Value(1.0)], group="other"),
    ]
    marked = [[value.best for value in one.values] for one in with_best(columns, rows)]
    assert marked == [[False, False, False], [True, False, False], [False, False, False]]
    level = with_best(columns[:1], [Row("x", [Value(1.0)]), Row("y", [Value(1.0)])])
    assert not any(one.values[0].best for one in level)
    across = best_in_rows([Column("a", better="lower")], [Row("x", [Value(1.0), Value(3.0), Value(1.0)])])
    assert [value.best for value in across[0].values] == [True, False, True]


def test_the_pretrained_model_stands_beside_every_seed_and_number_of_shots(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    pretrained = next(c for c in content["cells"] if c["method"] == "lora" and c["shots"] == 8)
    pretrained |= {"method": "none", "label": "Pretrained", "backend": "transformers"}
    pretrained |= {"shots": 0, "train_loss": None}
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    (setting,) = load_study([tmp_path / "run"])
    assert setting.all_shots == [8, 32]
    for number in (8, 32):
        (cell, *others) = setting.by_method(number)["none"]
        assert len(others) == 2 and {cell} == set(others)
    found = quality.main_quality(setting)
    value = row(quality.main_table(found), "Pretrained").values[0]
    assert value.value == pytest.approx(
        np.mean(list(accuracies(arrays(run_folder, "lora", 0, 8)["test"]).values()))
    )
    assert value.std is None and len(value.sources) == 1
    difference = found.resampled.difference("hybrid", "none", "accuracy")[0]
    assert difference.estimate == pytest.approx(
        row(quality.main_table(found), "Hybrid").values[0].value - value.value
    )


def test_of_pretrained_models_alone_no_seeds_are_spoken_of(tmp_path):
    make_run(tmp_path, methods=("lora",), seeds=(0,), shots=(8,), ablated=(), recipes=(), dev=False)
    edit(tmp_path, lambda content: [c.update(train_loss=None, shots=0) for c in content["cells"]])
    note = quality.main_table(quality.main_quality(load_study([tmp_path])[0])).note
    assert note.startswith("Nothing was trained. ") and "seed" not in note


def test_too_few_rows_give_no_intervals_and_say_why(tmp_path):
    make_run(tmp_path, items=3, languages=("en",), dev=False, ablated=(), recipes=(), shots=(8,))
    found = quality.main_quality(load_study([tmp_path])[0])
    table = quality.main_table(found)
    assert "No intervals: all rows are of cluster 'test-0'" in table.note
    assert table.rows[0].values[0].interval is None
    assert quality.parity_table(found) is None
