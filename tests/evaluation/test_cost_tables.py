"""Costs, and the curves of trainings."""

import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from hybrid_kernels.evaluation.report import figures, findings
from hybrid_kernels.evaluation.tables import (
    cost,
    load_study,
    quality,
    training,
)
from hybrid_kernels.evaluation.tables.table import over_seeds
from tests.evaluation.runs import edit, make_run, row


def test_costs_are_traced_to_the_run_that_measured_them(tmp_path):
    options = {"ablated": (), "recipes": (), "dev": False, "items": 30, "shots": (8,)}
    make_run(tmp_path / "a", methods=("lora",), seeds=(0,), **options)
    make_run(tmp_path / "b", methods=("lora", "hybrid"), seeds=(1,), **options)
    edit(tmp_path / "a", lambda content: content["methods"][0].update(footprint=None))
    edit(tmp_path / "b", lambda content: content["cells"][0].update(adapter_bytes=7 * 2**20))
    (setting,) = load_study([tmp_path / "a", tmp_path / "b"])
    table = cost.footprint_table(setting)
    adapter = [column.name for column in table.columns].index("Adapter")
    value = row(table, "LoRA r = 8 · PEFT").values[adapter]
    (source,) = value.sources
    assert value.value == 7 and source.startswith(str(tmp_path / "b" / "cells" / "lora.seed-1"))
    frontier = cost.frontier_table(quality.main_quality(setting))
    measured = (str(tmp_path / "b" / "footprint.json"),)
    values = row(frontier, "LoRA r = 8 · PEFT").values
    assert values[1].sources == values[2].sources == measured
    assert values[3].sources == values[0].sources + measured


def test_footprint_divides_by_the_stock_implementation(setting):
    table = cost.footprint_table(setting)
    names = [(column.top, column.name) for column in table.columns]
    assert ("", "Energy") not in names and "whole machine" not in table.note  # nothing could be read
    assert "Tokens: without padding. Trainable: with the head" in table.note
    stock, ours = (row(table, f"LoRA r = 8 · {who}").values for who in ("PEFT", "this package's kernels"))
    time, memory = names.index(("Against stock", "Time")), names.index(("Against stock", "Memory"))
    assert (ours[0].value, stock[0].value) == (pytest.approx(10), pytest.approx(20))
    assert (ours[time].value, ours[memory].value) == (0.5, 0.75)
    assert stock[time].value is None and row(table, "Hybrid").values[time].value is None


def test_what_one_cell_gives_has_no_deviation_however_often_it_stands():
    assert over_seeds([0.5, 0.5], ["a", "a"]).std is None
    assert over_seeds([0.5, 0.7], ["a", "b"]).std == pytest.approx(0.02**0.5)


def test_an_implementation_is_named_without_that_of_the_training(run_folder, tmp_path):
    def accelerate(content):
        for one in content["cells"]:
            if one["method"] != "hybrid":
                one["label"] = "BOFT, accelerated" if one["method"] == "boft" else "LoRA"
        content["methods"][0]["footprint"][0]["implementation"] = "transformers"

    shutil.copytree(run_folder, tmp_path / "run")
    edit(tmp_path / "run", accelerate)
    (setting,) = load_study([tmp_path / "run"])
    found = quality.main_quality(setting)
    for table in (cost.footprint_table(setting), cost.frontier_table(found)):
        assert [one.label for one in table.rows[:4]] == [
            "LoRA · Transformers",
            "LoRA · this package's kernels",
            "BOFT · PEFT",
            "BOFT · this package's kernels",
        ]
    _, text = findings.cost_finding(setting, None)
    assert "80 ms (BOFT, PEFT)" in text and "and BOFT 0.50" in text


def test_points_of_the_front_are_ringed(found):
    axes = Figure().subplots()
    points = cost.frontier(found, "step_seconds")
    figures._front(axes, points, 1e-3)
    (rings,) = axes.collections
    front = sorted((1000 * point.cost, point.quality) for point in points if point.front)
    assert np.asarray(rings.get_offsets()) == pytest.approx(np.array(front))


def test_pareto_front_holds_what_no_other_beats(found):
    points = cost.frontier(found, "step_seconds")
    assert len(points) == 5
    for one in points:
        beaten = any(
            other.cost <= one.cost
            and other.quality >= one.quality
            and (other.cost, other.quality) != (one.cost, one.quality)
            for other in points
        )
        assert one.front is not beaten
    # The hybrid is the most accurate, LoRA on the kernels the fastest.
    assert {(p.method, p.implementation) for p in points if p.front} == {
        ("lora", "accelerated"),
        ("hybrid", "hybrid-kernels"),
    }


def test_curves_of_more_methods_than_colours_are_told_apart(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    names = [f"m{i}" for i in range(12)]

    def more(content):
        first = next(c for c in content["cells"] if c["shots"] == 32)
        content["cells"] = [first | {"method": name, "label": name} for name in names]
        content["methods"] = [{"name": name, "footprint": None} for name in names]

    edit(tmp_path / "run", more)
    (setting,) = load_study([tmp_path / "run"])
    axes = Figure().subplots()
    figures._draw(axes, setting, training.loss_curves(setting), "loss")
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 12
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 12


def test_curves_are_means_over_seeds(setting):
    (lora, *_) = training.loss_curves(setting)
    assert lora.mean.tolist() == pytest.approx([1 / s + 0.01 for s in range(1, 9)])
    assert (lora.high - lora.low).tolist() == pytest.approx([0.02] * 8)
    branches = training.branch_curves(setting)
    assert [curve.method for curve in branches["reflections"]] == ["hybrid"]
    assert branches["low_rank"][0].steps.tolist() == [2, 4, 6, 8]
    (defect,) = training.defect_curves(setting)
    assert defect.mean.tolist() == pytest.approx([4e-7, 8e-7, 1.2e-6, 1.6e-6])
    (mixing,) = training.mixing(setting)
    assert mixing.values.shape == (3, 4) and mixing.values[2, 3] == pytest.approx(0.66)
