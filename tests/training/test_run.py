import io
import json
import mmap
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.run import _UNMEASURED, evaluate_run, run
from hybrid_kernels.training.tasks import task_of
from hybrid_kernels.training.tasks.nli import Inference
from tests.training.support import HRA, HYBRID

QUIET = Console(quiet=True)


def run_quietly(values, **kwargs):
    return run(RunConfig.model_validate(values), footprint=False, report=False, console=QUIET, **kwargs)


def modified(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_results_of_all_methods(values, monkeypatch):
    """The whole way: governance, three methods, two seeds, footprint, report."""
    from hybrid_kernels.evaluation.results import parse_results
    from hybrid_kernels.training import footprint

    monkeypatch.setattr(footprint, "ROUNDS", 3)
    values["methods"] += [HRA, HYBRID]
    values["training"]["seeds"] = [0, 1]
    # The texts are words at random: many break off after "the".
    values["governance"] = {
        "language": {"enabled": False},
        "duplicates": {"enabled": False},
        "quality": {"reject_truncated": False},
    }
    results = run(RunConfig.model_validate(values), console=QUIET)
    folder = Path(values["output"])
    assert json.loads((folder / "results.json").read_text()) == results
    parse_results(results)
    assert [(one["name"], one["backend"]) for one in results["methods"]] == [
        ("lora", "peft"),
        ("hra", "peft"),
        ("hybrid", "hybrid-kernels"),
    ]
    assert results["data"]["train_rows_raw"] == 48
    assert results["governance"]["kept"] == results["data"]["train_rows"] == 48
    assert results["data"]["evaluation_rows"] == 24
    for method in results["methods"]:
        assert method["step_time_ratio"] > 0
        lower, upper = method["step_time_spread"]
        assert lower <= method["step_time_ratio"] <= upper
        assert method["peak_memory_bytes"] > 0
        assert method["adapter_bytes"] > 4 * method["trainable_parameters"]
        assert set(method["evaluation"]["per_language"]) == {"de", "en"}
        assert method["spread"]["accuracy"] is not None
        assert sum(one["count"] for one in method["evaluation"]["reliability"]) == 2 * 24
        first, *others = method["footprint"]
        assert [one["implementation"] for one in method["footprint"]] == (
            ["hybrid-kernels"] if method["name"] == "hybrid" else ["peft", "accelerated"]
        )
        assert first["step_time_ratio"] == method["step_time_ratio"]
        for one in (first, *others):
            assert one["trainable_parameters"] == method["trainable_parameters"]
            # Eight pairs of 3 special tokens, 6 words and 2 words.
            assert one["tokens_per_second"] * one["step_seconds"] == pytest.approx(8 * 11)
            assert one["peak_memory_bytes"] > 0
    # LoRA r = 4 on two 32 × 32 layers of each of two blocks; pooler and classifier are trained as well.
    head = 32 * 32 + 32 + 3 * 32 + 3
    counts = [method["trainable_parameters"] for method in results["methods"]]
    assert counts == [4 * 2 * 4 * 32 + head, 4 * 4 * 32 + head, 4 * (2 * 4 + 2) * 32 + head]
    assert (folder / "report.html").is_file()
    before = modified(folder / "cells")
    again = run(RunConfig.model_validate(values), console=QUIET)
    assert modified(folder / "cells") == before
    assert again["methods"] == results["methods"]


def test_only_what_changed_is_done_again(values):
    values["methods"].append(HRA)
    run_quietly(values)
    folder = Path(values["output"]) / "cells"
    before = modified(folder)
    values["methods"][1] = HRA | {"r": 2}
    # A checkpoint's distance does not change the result.
    values["training"]["checkpoint_steps"] = 3
    run_quietly(values)
    after = modified(folder)
    assert all(after[name] == stamp for name, stamp in before.items() if name.startswith("lora"))
    marker = "hra.seed-0.shots-all.governance-none/result.json"
    assert after[marker] != before[marker]


def test_changed_rows_train_again(values, tiny_data, tmp_path):
    run_quietly(values)
    marker = Path(values["output"]) / "cells" / "lora.seed-0.shots-all.governance-none" / "result.json"
    before = marker.stat().st_mtime_ns
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (data / name).write_text((tiny_data / name).read_text().replace("cat", "dog", 1))
    values["data"]["source"] = str(data)
    run_quietly(values)
    assert marker.stat().st_mtime_ns != before


def test_malformed_rows_are_written_and_counted(values, tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (data / name).write_text((tiny_data / name).read_text() + "{broken\n")
    values["data"]["source"] = str(data)
    results = run_quietly(values)
    assert results["data"]["malformed_rows"] == 2
    lines = [
        json.loads(line) for line in (Path(values["output"]) / "malformed.jsonl").read_text().splitlines()
    ]
    assert [(Path(one["file"]).name, one["line"]) for one in lines] == [
        ("train.jsonl", 49),
        ("test.jsonl", 25),
    ]


def test_saved_adapters_evaluate_to_the_results(values):
    values["methods"].append(HYBRID)
    results = run_quietly(values)
    found = evaluate_run(Path(values["output"]), console=QUIET)
    for method in results["methods"]:
        for metric, value in method["evaluation"]["macro"].items():
            assert found[method["name"]]["evaluation"]["macro"][metric] == value


@pytest.mark.parametrize("divided", [False, True])
def test_other_data_needs_evaluation_rows_alone(values, tiny_data, tmp_path, divided):
    """Of a run that divides its one split, too, all of another source's are evaluated."""
    test = (tiny_data / "test.jsonl").read_text()
    if divided:
        (tmp_path / "dev.jsonl").write_text((tiny_data / "train.jsonl").read_text())
        one_split = {
            "source": str(tmp_path),
            "train_split": "dev",
            "evaluation_split": "dev",
            "dev_fraction": 0.5,
        }
        values["data"] = one_split
    results = run_quietly(values)
    folder, other = Path(values["output"]), tmp_path / "other"
    other.mkdir()
    with pytest.raises(FileNotFoundError, match="has no file named like"):
        evaluate_run(folder, str(other), console=QUIET)
    (other / ("dev.jsonl" if divided else "test.jsonl")).write_text(test)
    found = evaluate_run(folder, str(other), console=QUIET)["lora"]["evaluation"]
    assert sum(one["count"] for one in found["reliability"]) == 24
    if not divided:
        assert found["macro"] == results["methods"][0]["evaluation"]["macro"]
    # A training that was cut off while its adapter was written.
    (folder / "cells" / "lora.seed-0.shots-all.governance-none" / "trained.json").unlink()
    with pytest.raises(ValueError, match="has no trained adapter yet"):
        evaluate_run(folder, console=QUIET)


def test_seeds_differ_and_are_averaged(values):
    one = run_quietly(values | {"output": values["output"] + "-one"})
    values["training"]["seeds"] = [0, 1]
    both = run_quietly(values)
    assert one["methods"][0]["spread"]["nll"] is None
    assert both["methods"][0]["spread"]["nll"] > 0
    both_losses, one_loss = ([cell["train_loss"] for cell in run["cells"]] for run in (both, one))
    assert both_losses[0] == one_loss[0] != both_losses[1]


def test_means_over_seeds_by_hand(values):
    labels, languages = np.array([0, 1, 0, 1]), np.array(["en", "en", "sw", "sw"])
    right = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]])
    wrong = np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    seeds = [
        {"log_probabilities": np.log(one), "labels": labels, "languages": languages} for one in (right, wrong)
    ]
    found = task_of(RunConfig.model_validate(values)).over_seeds(seeds)
    assert found["evaluation"]["per_language"]["en"]["accuracy"] == pytest.approx(0.75)
    assert found["evaluation"]["per_language"]["sw"]["accuracy"] == pytest.approx(0.25)
    assert found["evaluation"]["macro"]["accuracy"] == pytest.approx(0.5)
    assert found["evaluation"]["parity"]["gap"] == pytest.approx(0.5)
    # Accuracy 0.75 and 0.25, gap 0.5 and 0.5.
    assert found["spread"]["accuracy"] == pytest.approx(np.std([0.75, 0.25], ddof=1))
    assert found["spread"]["gap"] == pytest.approx(0.0)


def test_the_parity_gap_is_the_mean_of_the_seeds_gaps(values):
    """As in the report. The worst language varies: the gap of the mean accuracies is half as wide."""
    labels, languages = np.zeros(6, int), np.repeat(["de", "en", "sw"], 2)
    good, bad = [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]
    seeds = [
        {"log_probabilities": np.log(np.array(rows)), "labels": labels, "languages": languages}
        for rows in ([bad, bad, good, good, good, good], [good, good, good, good, bad, bad])
    ]
    found = task_of(RunConfig.model_validate(values)).over_seeds(seeds)
    parity = found["evaluation"]["parity"]
    assert (parity["gap"], parity["worst_accuracy"], found["spread"]["gap"]) == (1, 0, 0)
    assert parity["worst_language"] == "de" and parity["std"] == pytest.approx(np.std([0, 1, 1]))
    assert found["evaluation"]["macro"]["ece_equal_mass"] == pytest.approx(0.4)
    assert (
        found["spread"]["ece_equal_mass"] is not None and found["evaluation"]["per_language"]["de"]["n"] == 2
    )


def test_one_split_is_divided(values, tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "dev.jsonl").write_text((tiny_data / "train.jsonl").read_text())
    values["data"] = {"source": str(data), "train_split": "dev", "evaluation_split": "dev"}
    loaded = task_of(RunConfig.model_validate(values)).load_data()
    assert len(loaded.train) == len(loaded.test) == 24 and not loaded.dev
    assert not {row["item"] for row in loaded.train} & {row["item"] for row in loaded.test}
    values["data"]["dev_fraction"] = 0.25
    parts = task_of(RunConfig.model_validate(values)).load_data()
    assert parts.train == loaded.train
    assert len(parts.dev) == 6 and len(parts.test) == 18
    assert not {row["premise"] for row in parts.dev} & {row["premise"] for row in parts.test}


def write_translations(path: Path, languages, items=40, **fields):
    """Aligned pairs, one language after another, each premise in two pairs."""
    rows = [
        {
            "language": language,
            "premise": f"{language} premise {item // 2}",
            "hypothesis": f"{language} {item}",
        }
        | {"label": item % 3}
        | {name: make(item) for name, make in fields.items()}
        for language in languages
        for item in range(items)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_source_stage_trains_on_no_translation_of_what_is_predicted(values, tmp_path):
    """In a language that is not evaluated, and of pairs that a sample of the evaluation rows leaves out."""
    write_translations(tmp_path / "dev.jsonl", ("en", "fr", "de"), item=str)
    values["data"] = {"source": str(tmp_path), "train_split": "dev", "evaluation_split": "dev"}
    values["data"] |= {"languages": ["en", "fr"], "dev_fraction": 0.5}
    values["source_stage"] = {"split": "dev", "languages": ["de"], "steps": 1}
    values["evaluation"] = {"max_rows_per_language": 5}
    loaded = task_of(RunConfig.model_validate(values)).load_data()
    held_out = {int(row["item"]) // 2 for row in loaded.test + loaded.dev}
    assert len(loaded.test) == len(loaded.dev) == 10
    source = {row["item"] for row in loaded.source}
    assert source == {str(item) for item in range(40) if item // 2 not in held_out}
    # Items of another split are other pairs.
    write_translations(tmp_path / "train.jsonl", ("de",), item=str)
    values["source_stage"]["split"] = "train"
    assert len(task_of(RunConfig.model_validate(values)).load_data().source) == 40


@pytest.mark.parametrize("divided", ["train", "dev", "source stage"])
def test_a_split_without_items_is_not_divided(values, tmp_path, divided):
    """Lines of one file are no translations of each other that anything could tell."""
    write_translations(tmp_path / "dev.jsonl", ("en", "de"))
    write_translations(tmp_path / "train.jsonl", ("en", "de"))
    values["data"] = {"source": str(tmp_path), "train_split": "train", "evaluation_split": "dev"}
    if divided == "source stage":
        values["source_stage"] = {"split": "dev", "languages": ["de"], "steps": 1}
        values["evaluation"] = {"languages": ["en"], "max_rows_per_language": 5}
    else:
        values["data"] |= {"train_split": "dev"} if divided == "train" else {"dev_fraction": 0.5}

    def load(**changes):
        return task_of(RunConfig.model_validate(values | changes)).load_data()

    with pytest.raises(
        ValueError, match=r"split 'dev' is divided, .* several languages \(de, en\) without a field"
    ):
        load()
    if divided != "source stage":  # of one language nothing gets lost
        assert load(data=values["data"] | {"languages": ["en"]}).test
    write_translations(tmp_path / "dev.jsonl", ("en", "de"), item=str)
    assert load().test
    (tmp_path / "dev.jsonl").unlink()
    for language in ("en", "de"):
        write_translations(tmp_path / f"dev-{language}.jsonl", (language,))
    assert load().test
    # Not divided.
    write_translations(tmp_path / "test.jsonl", ("en", "de"))
    values["data"] |= {"train_split": "train", "evaluation_split": "test", "dev_fraction": 0.0}
    assert load(source_stage=None).test


def test_dev_rows_of_a_split_of_their_own(values, tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    train, test = ((tiny_data / f"{split}.jsonl").read_text() for split in ("train", "test"))
    (data / "train.jsonl").write_text(train)
    (data / "test.jsonl").write_text(test)
    # Some of it is in the test split, too.
    (data / "dev.jsonl").write_text((train + test).replace('"id": "', '"id": "dev-'))
    values["data"] = {"source": str(data), "dev_split": "dev"}
    loaded = task_of(RunConfig.model_validate(values)).load_data()
    assert [row["id"] for row in loaded.dev] == [f"dev-{row['id']}" for row in loaded.train]


def test_evaluation_rows_are_the_same_items_in_each_language(values):
    values["evaluation"]["max_rows_per_language"] = 5
    loaded = task_of(RunConfig.model_validate(values)).load_data()
    items = {
        language: [row["item"] for row in loaded.test if row["language"] == language]
        for language in ("en", "de")
    }
    assert items["en"] == items["de"] and len(items["en"]) == 5


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("data", {"train_split": "dev"}, "data.train_split is 'dev', but .* has only test, train"),
        ("data", {"languages": ["en", "sw"]}, "no rows in sw; it has de, en"),
        (
            "data",
            {"languages": ["de"]},
            r"no evaluation rows in en, of evaluation.reference_language \('en'\) or .*; there are rows in de",
        ),
        ("evaluation", {"reference_language": "fr"}, "no evaluation rows in fr"),
    ],
)
def test_data_that_does_not_fit(values, section, change, message):
    values[section] |= change
    with pytest.raises(ValueError, match=message):
        task_of(RunConfig.model_validate(values)).load_data()


def test_first_rows_of_one_label_alone_are_refused(values, tiny_data, tmp_path):
    """As of the machine-translated training files, which are ordered by label."""
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    rows += [row | {"id": f"again-{row['id']}"} for row in rows]
    ordered = sorted(rows, key=lambda row: row["label"])
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ordered))
    (tmp_path / "test.jsonl").write_text((tiny_data / "test.jsonl").read_text())
    values["data"] = {"source": str(tmp_path), "rows_per_language": 12}
    message = r"rows_per_language is 12, and the first 12 rows in 'en' of split 'train' .* have the label 'entailment'"
    with pytest.raises(ValueError, match=message):
        task_of(RunConfig.model_validate(values)).load_data()
    for enough in (18, None):
        values["data"]["rows_per_language"] = enough
        assert task_of(RunConfig.model_validate(values)).load_data().train


def test_governance_is_skipped_when_done(values, monkeypatch):
    values["governance"] = {"language": {"enabled": False}}
    first = run_quietly(values)
    monkeypatch.setattr(Inference, "govern", lambda *args: pytest.fail("governed again"))
    assert run_quietly(values)["governance"] == first["governance"]


def test_run_without_rows_left(values):
    values["governance"] = {"language": {"enabled": False}, "quality": {"min_letters": 1000}}
    with pytest.raises(ValueError, match="governance kept none of 48 training rows"):
        run_quietly(values)


def test_peak_memory_sees_an_allocation():
    from hybrid_kernels.training.memory import peak_rise

    def allocate():
        # Not by malloc, which may hand out memory that is resident already.
        with mmap.mmap(-1, 64 * 2**20) as block:
            block.write(bytes(64 * 2**20))
            time.sleep(0.02)

    assert 64 * 2**20 <= peak_rise(allocate, torch.device("cpu")) < 150 * 2**20


def test_cells_say_what_they_were_made_on(values, monkeypatch):
    """A later commit, and other versions, are those of the cells made then; figures of cost are measured again."""
    from hybrid_kernels.training import footprint, plan

    def made(commit, version):
        machine = {"cpu": f"CPU {version}", "cores": 2, "memory_gib": 4.0, "gpu": None, "platform": "Linux"}
        return {"commit": commit, "machine": machine, "versions": {"torch": version, "triton": None}}

    measured, now = [], {}
    monkeypatch.setattr(footprint, "measure", lambda *arguments: measured.append(1) or {"lora": _UNMEASURED})
    monkeypatch.setattr(plan, "circumstances", lambda: dict(now))
    for commit, version in (("first", "1.0"), ("second", "1.0"), ("third", "2.0")):
        now = made(commit, version)
        if commit == "third":
            values["methods"].append(HRA)
        results = run(RunConfig.model_validate(values), console=QUIET)
        assert results["commit"] == commit
        assert len(measured) == (2 if commit == "third" else 1)
    assert [cell["made"] for cell in results["cells"]] == [made("first", "1.0"), made("third", "2.0")]
    assert "on CPU 2.0 with torch 2.0" in results["step_time_note"]
    for report in ("report.md", "report.html"):
        shown = re.findall(r"Commit(?: \| |</dt><dd>)(\w+)", (Path(values["output"]) / report).read_text())
        assert shown == ["first", "third"]


def test_a_long_label_cuts_no_number_of_the_table(values):
    from hybrid_kernels.training.results import results_table

    config = RunConfig.model_validate(values)
    results = run(config, footprint=False, report=False, console=QUIET)
    results["methods"][0] |= {
        "label": "Hybrid r = 6 + 12 reflections + unitary, accelerated",
        "step_time_ratio": 1.07,
        "peak_memory_bytes": 650 * 2**20,
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table(results, task_of(config)))
    text = console.export_text()
    assert "…" not in text and "1.07×" in text and " 650 " in text
