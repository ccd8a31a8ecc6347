from pathlib import Path

import pytest
from rich.console import Console

from hybrid_kernels.adapters.layers import named_adapters
from hybrid_kernels.training import footprint, methods
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import load_nli
from hybrid_kernels.training.files import read_json
from hybrid_kernels.training.run import run
from hybrid_kernels.training.tasks import task_of
from hybrid_kernels.training.trainer import batches
from tests.training.support import HYBRID


@pytest.mark.parametrize(
    "method",
    [
        {"method": "lora_ga", "r": 4, "alpha": 8, "target_modules": ["query", "value"]},
        HYBRID,
        HYBRID | {"gradient_aligned": False},
        HYBRID | {"r": 0, "gradient_aligned": False},
    ],
    ids=["lora_ga", "hybrid", "unaligned", "reflections"],
)
def test_what_is_measured_is_what_is_trained(method, values, tiny_data):
    """The same factors, with the frozen start of a gradient-aligned branch, which costs time and memory."""
    config = RunConfig.model_validate(values | {"methods": [method]})
    (own,) = config.methods
    task, tokenizer = task_of(config), methods.load_tokenizer(config.model.name)
    trained = methods.add_adapter(*task.load_model(tokenizer, 0), own, 0, task.kind)
    examples, _ = task.examples(tokenizer, load_nli(tiny_data, "train").rows)
    methods.initialize(trained, own, batches(task, tokenizer, examples, 8, "cpu"))
    measured = footprint._adapted(config, (method["method"], False), *task.load_model(tokenizer, 0))
    ranks = [[adapter.total_rank for _, _, adapter in named_adapters(model)] for model in (trained, measured)]
    assert ranks[0] == ranks[1] and ranks[0]
    shapes = [
        {name: value.shape for name, value in model.state_dict().items()} for model in (trained, measured)
    ]
    assert shapes[0] == shapes[1]


def test_only_methods_with_results_are_measured(values, monkeypatch):
    """A method whose cells failed would fail there, too."""
    lora = values["methods"][0]
    values["methods"] = [lora | {"name": "diverging", "learning_rate": 1e30}, lora]
    values |= {"governance": {"language": {"enabled": False}, "quality": {"reject_truncated": False}}}
    values |= {"governance_ablation": {"methods": ["diverging"], "shots": 4}}
    sides = []
    monkeypatch.setattr(footprint, "ROUNDS", 2)
    monkeypatch.setattr(
        footprint, "_peak_memory_in_new_process", lambda config, side, rows: sides.append(side) or 1
    )
    results = run(RunConfig.model_validate(values), report=False, console=Console(quiet=True))
    assert sides == [("lora", False), ("lora", True)]
    assert [one["name"] for one in results["methods"]] == ["lora"] and results["methods"][0]["footprint"]


def test_a_footprint_that_fails_costs_no_results(values, monkeypatch, command, write_config):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(footprint, "_peak_memory_in_new_process", fail)
    folder, path = Path(values["output"]), str(write_config(values))
    code, out, _ = command("run", path)
    assert code == 0 and "footprint: not measured: RuntimeError: out of memory (traceback: " in out
    results = read_json(folder / "results.json")
    assert results["methods"][0]["footprint"] is None and results["step_time_note"] == "Not measured."
    assert (folder / "report.html").is_file()
    assert "Traceback" in (folder / "footprint_error.txt").read_text()
    code, out, _ = command("run", path, "--no-footprint")
    assert code == 0 and "footprint:" not in out
    monkeypatch.setattr(footprint, "ROUNDS", 2)
    monkeypatch.setattr(footprint, "_peak_memory_in_new_process", lambda *arguments: 1)
    assert command("run", path)[0] == 0
    assert read_json(folder / "results.json")["methods"][0]["footprint"]
    assert not (folder / "footprint_error.txt").exists()
