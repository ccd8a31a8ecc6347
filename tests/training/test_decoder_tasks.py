"""Runs of a decoder: classification by prompts, and translation."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hybrid_kernels.training import methods
from hybrid_kernels.training.cells import expand
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import read_jsonl, write_jsonl
from hybrid_kernels.training.files import load_predictions, read_json
from hybrid_kernels.training.prepare import prepare
from hybrid_kernels.training.run import evaluate_run, run
from hybrid_kernels.training.tasks import task_of
from tests.evaluation.language_models import SIZES, causal_tokenizer

QUIET = Console(quiet=True)
LORA = {"method": "lora", "r": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}
HYBRID = LORA | {"method": "hybrid", "reflections": 2, "gradient_batches": 1}


def run_quietly(values, **options):
    return run(
        RunConfig.model_validate(values), report=False, console=QUIET, **{"footprint": False} | options
    )


def predictions_of(values, cell) -> dict:
    return load_predictions(Path(values["output"]) / cell["folder"] / "predictions.npz")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    causal_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompt_values(values, decoder):
    values |= {"task": "prompt", "prompt": {}, "methods": [{"method": "none"}, LORA]}
    values["model"] = {"name": decoder, "max_length": 256}
    values["training"] |= {"steps": 2, "batch_size": 4}
    values["evaluation"] = {"max_rows_per_language": 6}
    return values


def sentence(number: int, language: str) -> str:
    words = {"en": ("cat", "mat", "saw"), "de": ("Katze", "Matte", "sah"), "fr": ("chat", "natte", "voyait")}
    first, second, verb = words[language]
    return f"The {first} {number} {verb} {second} {chr(97 + number % 26)}{chr(97 + number // 26)}."


@pytest.fixture
def parallel(tmp_path) -> Path:
    """train.LL with 12 sentences, test.LL with 5 others, in three languages."""
    folder = tmp_path / "parallel"
    for split, numbers in (("train", range(12)), ("test", range(100, 105))):
        (folder / split).mkdir(parents=True)
        for language in ("en", "de", "fr"):
            lines = [sentence(number, language) for number in numbers]
            (folder / split / f"{split}.{language}").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def translation_values(values, decoder, parallel):
    values |= {"task": "translation", "translation": {"decoding": {"limit_ratio": 0, "limit_extra": 8}}}
    values["model"] = {"name": decoder, "max_length": 256}
    values["data"] = {
        "source": str(parallel / "train"),
        "evaluation_source": str(parallel / "test"),
        "languages": ["en", "de", "fr"],
        "shots": 3,
    }
    values["methods"] = [{"method": "none", "prompt_shots": 2}, LORA, HYBRID]
    values["training"] |= {"steps": 2, "batch_size": 4}
    return values


def test_prompts_of_a_decoder(prompt_values):
    """After a source stage, with variants: the arrays are what scoring the saved model directly gives."""
    from hybrid_kernels.evaluation.prompting import score_prompts

    prompt_values |= {"source_stage": {"steps": 2}, "prompt": {"prompts": "en", "calibrated": True}}
    prompt_values["data"]["shots"] = [0, 4]
    prompt_values["evaluation"]["robustness"] = {"recipes": ["upper_case"], "max_rows_per_language": 2}
    results = run_quietly(prompt_values)
    config = RunConfig.model_validate(prompt_values)
    task, tokenizer = task_of(config), methods.load_tokenizer(prompt_values["model"]["name"])
    rows = task.load_data().test
    assert [(cell["method"], cell["shots"]) for cell in results["cells"]] == [
        ("none", 0),
        ("lora", 0),
        ("lora", 4),
    ]
    for cell in results["cells"]:
        folder = Path(prompt_values["output"]) / cell["folder"]
        model = (
            task.load_model(tokenizer, 0)[0]
            if cell["method"] == "none"
            else task.load_trained(folder / "adapter", tokenizer, 0)
        )
        parts = predictions_of(prompt_values, cell)
        expected = score_prompts(model, tokenizer, rows, prompts="en").probabilities(calibrated=True)
        np.testing.assert_allclose(np.exp(parts["test"]["log_probabilities"]), expected, rtol=1e-4)
        assert parts["test"]["labels"].tolist() == [row["label"] for row in rows]
        right = expected.argmax(axis=1) == parts["test"]["labels"]
        languages = parts["test"]["languages"]
        macro = np.mean([right[languages == language].mean() for language in ("de", "en")])
        assert cell["metrics"]["test"]["macro"]["accuracy"] == pytest.approx(macro)
        assert len(parts["perturbed/upper_case"]["ids"]) == 4
    first, second, third = results["cells"]
    assert (first["train_rows"], first["trainable_parameters"], first["train_loss"]) == (0, 0, None)
    assert not (Path(prompt_values["output"]) / first["folder"] / "adapter").exists()
    assert second["train_loss"] > 0 and third["train_rows"] == 8
    assert [one["name"] for one in results["methods"]] == ["none", "lora"]


def test_the_pretrained_model_is_predicted_once(prompt_values):
    """Whatever the seeds, shots and the training; and not again when these change."""
    prompt_values["training"]["seeds"] = [0, 1]
    names = [cell.name for cell in expand(RunConfig.model_validate(prompt_values))]
    assert sum(name.startswith("none.") for name in names) == 1 and len(names) == 3
    prompt_values["training"]["seeds"] = [0]
    run_quietly(prompt_values)
    done = Path(prompt_values["output"]) / "cells" / "none.seed-0.shots-0.governance-none" / "result.json"
    before = done.stat().st_mtime_ns
    prompt_values["training"]["learning_rate"] = 0.1
    prompt_values["data"]["shots"] = 4
    run_quietly(prompt_values)
    assert done.stat().st_mtime_ns == before
    # How verbalisers are counted does change it.
    run_quietly(prompt_values | {"prompt": {"length_normalized": False}})
    assert done.stat().st_mtime_ns != before


def test_translation_in_both_directions(translation_values, monkeypatch):
    """Governed pairs, balanced directions; arrays and metrics are those of the saved models, and `evaluate` agrees."""
    from hybrid_kernels.evaluation.results import Governance
    from hybrid_kernels.evaluation.translation import (
        evaluate_translations,
        reference_nats,
        translation_prompts,
    )
    from hybrid_kernels.training import footprint

    monkeypatch.setattr(footprint, "ROUNDS", 2)
    monkeypatch.setattr(footprint, "_peak_memory_in_new_process", lambda *args: 1)
    translation_values["governance"] = {"language": {"enabled": False}}
    results = run_quietly(translation_values, footprint=True)
    summary = Governance.model_validate(results["governance"])
    assert (summary.rows, set(summary.by_language)) == (24, {"de-en", "en-fr"})
    config = RunConfig.model_validate(translation_values)
    task, tokenizer = task_of(config), methods.load_tokenizer(translation_values["model"]["name"])
    rows = task.load_data().test
    data = Path(translation_values["output"]) / "data"
    shown, _ = read_jsonl(data / "worked_examples.jsonl")
    assert len(rows) == 20 and len(shown) == 8
    for cell in results["cells"]:
        folder = Path(translation_values["output"]) / cell["folder"]
        own = predictions_of(translation_values, cell)["test"]
        shots = 2 if cell["method"] == "none" else 0
        model = (
            task.load_model(tokenizer, 0)[0]
            if cell["method"] == "none"
            else task.load_trained(folder / "adapter", tokenizer, 0)
        )
        nats = reference_nats(model, tokenizer, rows, translation_prompts(rows, shown, shots=shots))
        np.testing.assert_allclose(own["nats"], nats, rtol=1e-4)
        assert own["references"].tolist() == [row["target"] for row in rows]
        assert own["bytes"].tolist() == [len(row["target"].encode()) for row in rows]
        assert own["languages"].tolist() == [f"{r['source_language']}-{r['target_language']}" for r in rows]
        expected = evaluate_translations(rows, own["translations"].tolist(), own["nats"])
        found = cell["metrics"]["test"]
        assert {name: found[name] for name in expected} == expected
        assert set(found["directions"]) == {"de-en", "en-de", "fr-en", "en-fr"}
        chrf = np.mean([one["chrf"] for one in found["directions"].values()])
        assert found["macro"]["chrf"] == pytest.approx(chrf)
        assert cell["train_rows"] == (0 if cell["method"] == "none" else 12)
        assert not (folder / "decoding").exists()
    assert {one["name"]: one.get("footprint") is not None for one in results["methods"]} == {
        "none": False,
        "lora": True,
        "hybrid": True,
    }
    again = evaluate_run(Path(translation_values["output"]), console=QUIET)
    for one in results["methods"]:
        assert again[one["name"]]["evaluation"] == one["evaluation"]
    assert task.load_evaluation(translation_values["data"]["evaluation_source"]) == rows


def test_pairs_that_are_predicted_are_not_trained_on(translation_values, parallel):
    """One file is one split, whatever it is called."""
    file = parallel / "pairs.tsv"
    lines = ["en\tde", *(f"{sentence(i, 'en')}\t{sentence(i, 'de')}" for i in range(8))]
    file.write_text("\n".join(lines) + "\n")

    def load(governance=None, **data):
        translation_values["data"] = {"source": str(file), "languages": ["en", "de"]} | data
        translation_values["governance"] = governance
        return task_of(RunConfig.model_validate(translation_values)).load_data()

    for governance in (None, {}):
        with pytest.raises(
            ValueError, match=r"data\.train_split 'train': 8 of 8 pairs are evaluation or dev pairs as well"
        ):
            load(governance)
    divided = load(evaluation_split="train")
    assert len(divided.train) == 4 and len(divided.test) == 2 * 4
    with pytest.raises(ValueError, match="4 of 4 pairs are evaluation or dev pairs"):
        load(evaluation_split="train", dev_split="dev")
    other = parallel / "others.tsv"
    other.write_text("\n".join([*lines[:2], f"{sentence(20, 'en')}\t{sentence(20, 'de')}"]) + "\n")
    with pytest.raises(ValueError, match="1 of 8 pairs"):
        load(evaluation_source=str(other))
    # Where the one split is divided, a sentence that is there twice is on one side.
    file.write_text("\n".join([*lines, *lines[1:]]) + "\n")
    divided = load(evaluation_split="train")
    tested = {row["target"] for row in divided.test}
    assert divided.train and not [p for p in divided.train if tested & set(p["texts"].values())]
    divided = load(evaluation_split="train", dev_fraction=0.5)
    assert divided.dev and not {row["target"] for row in divided.dev} & {
        row["target"] for row in divided.test
    }
    file.write_text("\n".join(lines) + "\n")
    # Governance removes such a pair.
    assert len(load({}, evaluation_source=str(other)).train) == 8
    with pytest.raises(ValueError, match=r"data\.dev_split 'dev': all of its pairs are evaluation pairs"):
        load({}, evaluation_source=str(other), dev_split="dev")


def test_bleu_over_characters_is_in_no_mean(translation_values, monkeypatch, tmp_path):
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    translation_values["data"]["languages"] = ["en", "th"]
    task = task_of(RunConfig.model_validate(translation_values))

    def predicted(source, target):
        texts = {name: np.array(["a b c d e"] * 2) for name in ("translations", "sources", "references")}
        languages = {"source_languages": np.array([source] * 2), "target_languages": np.array([target] * 2)}
        return texts | languages | {"nats": np.array([1.0, 2.0])}

    away, to = predicted("en", "th"), predicted("th", "en")
    both = {name: np.concatenate([values, to[name]]) for name, values in away.items()}
    found = task.metrics(both)
    assert found["macro"]["bleu"] == found["directions"]["th-en"]["bleu"]
    assert "bleu" not in task.metrics(away)["macro"]
    result = task.over_seeds([away, away])
    assert task.columns(result["evaluation"])["BLEU"] == "–" and "bleu" not in result["spread"]


def test_governance_of_pairs(translation_values, parallel, tmp_path):
    """A sentence that is there twice is found in each two languages."""
    for language in ("en", "de", "fr"):
        path = parallel / "train" / f"train.{language}"
        path.write_text(path.read_text().replace(sentence(5, language), sentence(4, language)))
    translation_values |= {
        "methods": [LORA],
        "governance": {"language": {"enabled": False}},
    }
    rows = prepare(RunConfig.model_validate(translation_values), tmp_path, QUIET)
    assert {name: len(pairs) for name, pairs in rows.kept.items()} == {"all": 22}
    summary = rows.summaries["all"]
    assert summary["kept"] == 22 == sum(one["kept"] for one in summary["by_language"].values())
    assert summary["rejected"] == 2 == sum(step["rejected"] for step in summary["by_step"].values())
    assert (tmp_path / "governance" / "all" / "de-en" / "kept.jsonl").is_file()


def test_decoding_goes_on_where_it_was(translation_values, monkeypatch):
    from transformers import LlamaForCausalLM

    from hybrid_kernels.evaluation import translation

    translation_values["methods"] = [LORA]
    whole = translation_values | {"output": translation_values["output"] + "-whole"}
    expected = predictions_of(whole, run_quietly(whole)["cells"][0])["test"]

    calls = []
    plain = LlamaForCausalLM.generate
    monkeypatch.setattr(
        LlamaForCausalLM, "generate", lambda self, **kwargs: calls.append(1) or plain(self, **kwargs)
    )
    with monkeypatch.context() as patch:
        patch.setattr(translation, "reference_nats", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            run_quietly(translation_values)
    assert calls
    calls.clear()
    found = predictions_of(translation_values, run_quietly(translation_values)["cells"][0])["test"]
    assert not calls
    for name, values in expected.items():
        assert found[name].tolist() == values.tolist(), name


def test_long_translations_are_left_out_and_said_to_be(translation_values, parallel):
    for language in ("en", "de"):
        path = parallel / "train" / f"train.{language}"
        path.write_text(path.read_text().replace(sentence(3, language), sentence(3, language) * 20))
    translation_values |= {"methods": [LORA]}
    translation_values["data"]["shots"] = "all"
    (cell,) = run_quietly(translation_values)["cells"]
    used = read_json(Path(translation_values["output"]) / cell["folder"] / "training_rows.json")
    # Both ways with German; the French pair has the long English side.
    assert cell["train_rows"] == len(used) == 4 * 12 - 4
    assert not [name for name in used if name.startswith("train-4-")]


def test_seeds_choose_other_sentences_and_more_hold_fewer(translation_values):
    task = task_of(RunConfig.model_validate(translation_values))
    pairs = task.load_data().train
    ids = {
        (seed, shots): {row["id"] for row in task.training_rows(pairs, shots, seed)}
        for seed in (0, 1)
        for shots in (3, 6)
    }
    assert ids[0, 3] < ids[0, 6] and len(ids[0, 3]) == 12
    assert ids[0, 3] != ids[1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"translation": None}, "task is 'translation'; give its section `translation`"),
        ({"prompt": {}}, "task is 'translation'; it has no section `prompt`"),
        ({"source_stage": {"steps": 1}}, "source_stage is for classification and prompt"),
        ({"data": {"languages": None}}, "data.languages is null; translation needs the languages"),
        ({"data": {"shots": 0}}, "0 shots are no training; the pretrained model itself is the method"),
        ({"evaluation": {"languages": ["de"]}}, "give translation.directions"),
        ({"evaluation": {"reference_language": "de"}}, "the balance of translation is with 'en'"),
        ({"translation": {"directions": ["de-xx"]}}, "direction 'de-xx' must be SOURCE-TARGET"),
        ({"data": {"shots": [3, 6]}}, r"data.shots is \[3, 6\]; translation takes one number, or 'all'"),
        (
            {"governance": {}, "governance_ablation": {"methods": ["lora"]}},
            "governance_ablation is for classification and prompt; translation takes null",
        ),
        ({"evaluation": {"robustness": {}}}, "evaluation.robustness is for classification and prompt"),
    ],
)
def test_translation_that_is_not_possible(translation_values, change, message):
    for name, value in change.items():
        nested = isinstance(value, dict) and isinstance(translation_values.get(name), dict)
        translation_values[name] = translation_values[name] | value if nested else value
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(translation_values)


def test_prompts_that_are_not_possible(values, prompt_values):
    prompt_values["data"]["shots"] = [0, 4]
    with pytest.raises(ValueError, match="0 shots need a source_stage; the pretrained model itself is"):
        RunConfig.model_validate(prompt_values)
    prompt_values["data"]["shots"] = 4
    with pytest.raises(ValueError, match="method 'none': prompt_shots is for task translation"):
        RunConfig.model_validate(prompt_values | {"methods": [{"method": "none", "prompt_shots": 1}]})
    with pytest.raises(ValueError, match="does not train; task classification has a head to train"):
        RunConfig.model_validate(prompt_values | {"task": "classification", "prompt": None})


def test_too_few_rows_for_prompts_to_show(translation_values):
    translation_values["translation"]["prompt_shots"] = 13
    with pytest.raises(ValueError, match="prompts show 13 examples, but there are 12 training rows from de"):
        run_quietly(translation_values)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_row_too_long_for_its_prompt_is_found_while_planning(prompt_values, tiny_data, tmp_path, split):
    """Before any training, and where it is really to be used: of the training rows some are trained on."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "test"):
        rows, _ = read_jsonl(tiny_data / f"{name}.jsonl")
        if name == split:
            rows[0]["hypothesis"] = "cat " * 100
        write_jsonl(rows, data / f"{name}.jsonl")
    prompt_values["data"] = {"source": str(data)}
    prompt_values["evaluation"]["max_rows_per_language"] = None
    use = {"train": "training", "test": "evaluation"}[split]
    with pytest.raises(
        ValueError, match=rf"^{use} row '{split}-0-en' does not fit model.max_length 256 or .* needs "
    ):
        run_quietly(prompt_values)
    assert not (Path(prompt_values["output"]) / "cells").exists()
    if split == "train":
        prompt_values["data"]["shots"] = 1
        assert len(run_quietly(prompt_values)["cells"]) == 2


def test_a_language_without_a_prompt_is_found_while_planning(prompt_values, tiny_data, tmp_path):
    for name in ("train", "test"):
        text = (tiny_data / f"{name}.jsonl").read_text().replace('"language": "de"', '"language": "xx"')
        (tmp_path / f"{name}.jsonl").write_text(text)
    prompt_values["data"] = {"source": str(tmp_path)}
    with pytest.raises(
        ValueError, match=r"^training row .* prompt.prompts 'own': there is no prompt in language 'xx'"
    ):
        run_quietly(prompt_values)
    assert run_quietly(prompt_values | {"prompt": {"prompts": "en"}})["cells"]


def test_a_language_without_a_name_is_found_while_planning(translation_values, parallel):
    translation_values["data"]["languages"] = ["en", "xx"]
    for split in ("train", "test"):
        text = (parallel / split / f"{split}.de").read_text()
        (parallel / split / f"{split}.xx").write_text(text)
    with pytest.raises(ValueError, match=r"^data.languages: language 'xx' has no name for prompts"):
        run_quietly(translation_values)
    assert not (Path(translation_values["output"]) / "cells").exists()
