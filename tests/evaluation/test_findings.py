"""Sentences say who won only where the bootstrap does."""

import json
import re

import pytest

from hybrid_kernels.evaluation import write_report
from hybrid_kernels.evaluation.report import findings
from hybrid_kernels.evaluation.report.view import build
from hybrid_kernels.evaluation.tables import cost, load_study, quality
from tests.evaluation.runs import edit, make_run, make_translation_run

STANDINGS = ("Where the hybrid wins", "Where the hybrid does not win")


@pytest.fixture
def said(tmp_path):
    """(skills, **options) → the findings of a run of LoRA, BOFT and the hybrid, by topic."""

    def make(**options):
        defaults = {"shots": (32,), "recipes": (), "ablated": (), "dev": False, "items": 120}
        make_run(tmp_path, **(defaults | options))
        (part,) = build(load_study([tmp_path])).parts
        return dict(part.findings)

    return make


def test_a_clear_win_is_said_with_its_difference(said):
    topics = said(seeds=(0,), skills={"lora": -0.3, "boft": -0.3, "hybrid": 2.5})
    assert topics["Accuracy"].startswith("Hybrid r = 4 + 4 has the highest accuracy: ")
    assert "against it significantly better: Hybrid r = 4 + 4 (+" in topics["Accuracy"]
    assert "accuracy (significantly better than" in topics["Where the hybrid wins"]
    assert "accuracy" not in topics.get("Where the hybrid does not win", "").replace("accuracy gap", "")
    assert "Each method was trained once" in topics["Certainty"]


def test_a_loss_is_said_plainly(said):
    topics = said(seeds=(0,), skills={"lora": 1.0, "boft": 2.5, "hybrid": -0.3})
    assert topics["Accuracy"].startswith("BOFT has the highest accuracy: ")
    assert "Against it" in topics["Accuracy"] and "significantly worse: " in topics["Accuracy"]
    assert "accuracy (significantly worse than BOFT)" in topics["Where the hybrid does not win"]
    assert "Where the hybrid wins" not in topics or "accuracy" not in topics["Where the hybrid wins"]


def test_a_difference_by_chance_is_no_win(said):
    topics = said(skills={"lora": 1.0, "boft": 1.0, "hybrid": 1.02})
    assert "not told apart: " in topics["Accuracy"] and "significantly" not in topics["Accuracy"]
    assert "Where the hybrid wins" not in topics
    for metric in ("accuracy (", "calibration error (", "parity gap ("):
        assert metric in topics["Where the hybrid does not win"]
    standing = topics["Where the hybrid does not win"]
    assert standing.count("not told apart") + standing.count("level with") == 3
    assert "trained with 3 seeds" in topics["Certainty"]


def test_guessing_is_named_and_recognised(said):
    topics = said(skills={"lora": -0.64, "boft": -3.0, "hybrid": 2.0})
    assert "Guessing among 3 classes scores 33.3 %." in topics["Accuracy"]
    assert "Not distinguishable from guessing: LoRA r = 8." in topics["Accuracy"]
    assert "Worse than guessing: BOFT." in topics["Accuracy"]


def test_one_method_is_described_without_comparison(said):
    topics = said(methods=("lora",))
    assert topics["Accuracy"].startswith("LoRA r = 8: ")
    assert not [topic for topic in topics if topic.startswith("Where")]


def test_verdicts_are_those_of_the_main_tables_marks(run_folder):
    (setting,) = load_study([run_folder])
    found = quality.main_quality(setting)
    text = " ".join(sentence for _, sentence in findings.quality_findings(found))
    for comparison in found.comparisons:
        label = setting.label(comparison.method)
        difference = f"{100 * comparison.difference.estimate:+.1f}".replace("-", "−")
        assert f"{label} ({difference} [" in text
    standing = dict(findings.quality_findings(found))["Where the hybrid does not win"]
    names = {"accuracy": "accuracy", "ece": "calibration error", "gap": "parity gap"}
    own = [one for one in found.comparisons if one.method == "hybrid"]
    ahead_in = [one.metric for one in own if (one.difference.estimate > 0) == (one.metric == "accuracy")]
    assert 0 < len(ahead_in) < len(own)
    for one in own:
        ahead = one.metric in ahead_in
        assert f"{names[one.metric]} ({'ahead of' if ahead else 'behind'}" in standing


def test_shots_robustness_governance_cost_and_cuts_are_said(run_folder, said):
    (part,) = build(load_study([run_folder])).parts
    topics = dict(part.findings)
    assert topics["Shots"].startswith(
        "Hybrid r = 4 + 4 minus the best baseline, points of accuracy: 8 shots +"
    )
    assert "The recipe that costs most accuracy: LoRA r = 8: " in topics["Robustness"]
    assert "Hybrid r = 4 + 4, against the baseline that is most accurate on the rows" in topics["Robustness"]
    assert topics["Governance"].startswith("LoRA r = 8: all steps together remove 30 of 330 rows")
    assert (
        "123,456 parameters (12 % of the model's) and takes 2.50× the frozen model's time" in topics["Cost"]
    )
    assert "from 10 ms (LoRA r = 8, this package's kernels) to 80 ms (BOFT, PEFT)" in topics["Cost"]
    assert "LoRA r = 8 0.50 and BOFT 0.50" in topics["Cost"]
    assert "Cut" not in topics
    for interval, doubt in re.findall(
        r"shots [+−][\d.]+ \[(.*?)\](, not told from none)?[;.]", topics["Shots"]
    ):
        low, high = interval.split(", ")
        assert bool(doubt) is (low[0] != high[0])
    assert "1 of 10 cells have no result" in said(missing={"x": "y"})["Cut"]


def test_without_a_cell_of_the_runs_own_governance_there_is_a_report_of_the_rest(tmp_path):
    make_run(tmp_path, methods=("lora",), shots=(8,), items=30, dev=False, recipes=())

    def fail(content):
        content["cells"] = [c for c in content["cells"] if c["governance"] != "all"]
        content["missing"] = {"lora.seed-0.shots-8.governance-all": "killed"}
        content["data"]["romanised"] = ["test-0-ar"]

    edit(tmp_path, fail)
    (part,) = build(load_study([tmp_path])).parts
    assert "Governance of the training rows" in [section.title for section in part.sections]
    assert "Cut" in dict(part.findings)


def test_of_many_methods_only_what_is_told_apart_is_described(tmp_path):
    make_run(tmp_path, seeds=(0,), shots=(8, 32), ablated=(), recipes=("upper_case",), dev=False)

    def more(content):
        for kind, method in (("lora", "lora"), ("hybrid", "hybrid")):
            own = [cell for cell in content["cells"] if cell["method"] == kind]
            names = [f"{kind}-{i}" for i in range(4)]
            content["cells"] += [cell | {"method": name, "label": name} for name in names for cell in own]
            content["config"]["methods"] += [{"name": name, "method": method} for name in names]
            content["methods"] += [{"name": name, "footprint": None} for name in names]

    edit(tmp_path, more)
    topics = dict(build(load_study([tmp_path])).parts[0].findings)
    assert "others" in topics["Accuracy"] and "lora-1" not in topics["Accuracy"]
    assert topics["Where the hybrid does not win"].count("hybrid-") == 0
    assert re.search(
        r" Of its ablations, \d+ comparisons are not told apart\.$", topics["Where the hybrid does not win"]
    )
    for topic in ("Shots", "Robustness"):
        assert "Hybrid r = 4 + 4" in topics[topic] and "hybrid-" not in topics[topic]


def test_what_joined_runs_do_not_share_is_said_first(tmp_path):
    options = {"shots": (8, 32), "recipes": (), "ablated": (), "dev": False, "items": 30, "seeds": (0,)}
    make_run(tmp_path / "a", methods=("lora", "boft"), **options)
    make_run(tmp_path / "b", methods=("hybrid",), **options)
    folders = [tmp_path / "a", tmp_path / "b"]
    (part,) = build(load_study(folders)).parts
    assert part.findings[0][0] == "Accuracy"

    def change(content):
        content["machine"]["cpu"] = "Other CPU"
        content["config"]["training"]["learning_rate"] = 1.0
        content["cells"] = [cell for cell in content["cells"] if cell["shots"] == 8]

    edit(tmp_path / "b", change)
    setting = load_study(folders)[0]
    (topic, text), *_ = build([setting]).parts[0].findings
    assert topic == "Not alike" and "differ in their settings of training" in text
    assert "They ran on Some CPU and Other CPU" in text
    labels = [one.label for one in cost.footprint_table(setting).rows]
    assert labels[0] == "LoRA r = 8 · PEFT, Some CPU" and labels[-1].endswith("this package, Other CPU")
    edit(tmp_path / "a", lambda c: [c["cells"].append(x | {"method": "hra"}) for x in c["cells"][-1:]])
    text = dict(build(load_study(folders)).parts[0].findings)["Not alike"]
    assert "BOFT (hra) has no result with 8 examples a language." in text


def test_one_cost_alone_is_no_finding(said):
    assert "Cost" not in said(methods=("hybrid",))


def test_the_winners_time_names_its_implementation(said):
    topics = said(seeds=(0,), skills={"lora": 2.5, "boft": -0.3, "hybrid": -0.3})
    assert "takes 1.00× the frozen model's time a step by this package's kernels." in topics["Cost"]


def test_translation_says_what_copying_scores(translation_folder):
    content = json.loads((translation_folder / "results.json").read_text())
    (part,) = build(load_study([translation_folder])).parts
    topics = dict(part.findings)
    text = topics["Translation"]
    means = {
        method: [
            sum(d["chrf"] for d in one["metrics"]["test"]["directions"].values()) / 4
            for one in content["cells"]
            if one["method"] == method
        ]
        for method in ("lora", "hybrid")
    }
    best = max(means, key=lambda method: sum(means[method]))
    label = {"lora": "LoRA r = 8", "hybrid": "Hybrid r = 4 + 4"}[best]
    assert text.startswith(f"{label} has the best mean chrF++ over directions: {sum(means[best]) / 2:.1f} ± ")
    assert "Hybrid r = 4 + 4 minus the best baseline, LoRA r = 8: +" in text
    assert "Handing in the source scores" in text
    for metric in ("chrF++ (", "BLEU (", "bits per byte ("):
        wins, losses = (topics.get(topic, "") for topic in STANDINGS)
        assert (metric in wins) + (metric in losses) == 1


def test_a_loss_in_translation_is_said_plainly(tmp_path):
    make_translation_run(tmp_path, methods=("hybrid", "lora"), seeds=(0,))
    topics = dict(build(load_study([tmp_path])).parts[0].findings)
    assert "chrF++ (behind LoRA r = 8, not told apart)" in topics["Where the hybrid does not win"]


def test_the_pretrained_model_has_no_spread_and_is_no_training(tmp_path):
    make_translation_run(tmp_path)

    def pretrained(content):
        cells = [c for c in content["cells"] if (c["method"], c["seed"]) != ("lora", 1)]
        content["cells"] = [c | {"train_loss": None} if c["method"] == "lora" else c for c in cells]

    edit(tmp_path, pretrained)
    (part,) = build(load_study([tmp_path])).parts
    assert not re.search("LoRA r = 8 has [^:]*: [0-9.]+ ±", part.findings[0][1])
    assert not re.search(r"LoRA r = 8 \([0-9.]+ ±", part.findings[0][1])
    table = part.sections[0].blocks[0]
    assert table.caption.startswith("Translation with 32 examples a direction")
    report = write_report([tmp_path])
    assert "2 methods with some-model" in report.read_text(encoding="utf-8")
    markdown = report.with_name("report.md").read_text(encoding="utf-8")
    assert "2 methods with some-model on sample: 2 trainings, 180 evaluation rows." in markdown
