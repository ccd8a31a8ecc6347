"""Runs that are killed, fail in part, share a folder, or are spread over processes."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from rich.console import Console

from hybrid_kernels.training import pool
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.display import Display
from hybrid_kernels.training.files import load_predictions, read_json
from hybrid_kernels.training.run import NoResult, evaluate_run, run
from tests.training.support import HYBRID

QUIET = Console(quiet=True)
ROOT = Path(__file__).parents[2]


def run_quietly(values, **options):
    return run(RunConfig.model_validate(values), footprint=False, report=False, console=QUIET, **options)


def cells_of(values) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in Path(values["output"]).glob("cells/*/result.json")}


@pytest.fixture
def four_cells(values):
    """Two methods after a source stage: four cells, two of which others start from."""
    values["training"] |= {"steps": 8, "checkpoint_steps": 1}
    values |= {"source_stage": {"steps": 8}, "methods": [values["methods"][0], HYBRID]}
    values["data"]["shots"] = [0, 8]
    return values


def test_a_run_killed_at_any_point_goes_on_to_the_same_predictions(four_cells, tmp_path):
    """Processes of a server that has the libraries loaded, so that most of the time is the run's own."""
    whole = four_cells | {"output": str(tmp_path / "whole")}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hybrid_kernels.training.run", "hybrid_kernels.training.trainer"])

    def start(values):
        process = context.Process(target=run_quietly, args=(values,))
        process.start()
        return process

    # The server starts with its first process, which is none of the run's time.
    first = context.Process(target=int)
    first.start()
    first.join()
    begun = time.monotonic()
    undisturbed = start(whole)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    seconds = time.monotonic() - begun
    draw = random.Random()
    kills, finished = 0, {}
    for _ in range(60):
        process = start(four_cells)
        if kills:
            process.join(draw.uniform(0.1, 0.9) * seconds)
        else:  # so that one hits for certain, however busy the machine is
            while process.is_alive() and not any(Path(four_cells["output"]).glob("cells/*/checkpoints/*")):
                time.sleep(0.01)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        for name, folder in cells_of(four_cells).items():
            stamp = (folder / "predictions.npz").stat().st_mtime_ns
            # What was finished before is as it was.
            assert finished.setdefault(name, stamp) == stamp, name
    assert process.exitcode == 0 and kills > 0
    for name, stamp in finished.items():
        assert (cells_of(four_cells)[name] / "predictions.npz").stat().st_mtime_ns == stamp, name
    assert len(cells_of(four_cells)) == len(cells_of(whole)) == 4
    for name, folder in cells_of(four_cells).items():
        other = cells_of(whole)[name]
        assert (folder / "predictions.npz").read_bytes() == (other / "predictions.npz").read_bytes(), name
        first, second = (read_json(one / "trained.json")["result"] for one in (folder, other))
        assert first == second, name


def test_a_pool_goes_on_without_what_fails_and_what_dies(values):
    """Of two seeds by two methods one method diverges, and the process of one other cell is killed."""
    lora = values["methods"][0]
    values["methods"] = [lora, lora | {"name": "diverging", "learning_rate": 1e30}]
    values["training"] |= {"seeds": [0, 1], "steps": 40}
    victim = Path(values["output"]) / "cells" / "lora.seed-0.shots-all.governance-none"

    def kill_first_worker():
        while not (victim / "checkpoints").is_dir():
            time.sleep(0.01)
        workers = [
            p for p in psutil.Process().children() if any("spawn_main" in part for part in p.cmdline())
        ]
        min(workers, key=lambda p: p.create_time()).kill()

    killer = threading.Thread(target=kill_first_worker)
    killer.start()
    results = run_quietly(values, workers=2)
    killer.join()
    assert set(results["missing"]) == {victim.name} | {
        f"diverging.seed-{seed}.shots-all.governance-none" for seed in (0, 1)
    }
    assert results["missing"][victim.name] == "its process died (killed by SIGKILL)"
    diverged = "diverging.seed-0.shots-all.governance-none"
    assert "FloatingPointError: the training loss is" in results["missing"][diverged]
    assert "Traceback" in (victim.parent / diverged / "error.txt").read_text()
    assert [(one["name"], one["seeds"]) for one in results["methods"]] == [("lora", [1])]
    again = run_quietly(values)
    assert set(again["missing"]) == set(results["missing"]) - {victim.name}
    assert again["methods"][0]["seeds"] == [0, 1] and not (victim / "error.txt").exists()


def test_a_worker_that_dies_while_nobody_listens_fails_its_cell_alone(values, monkeypatch):
    """All workers are killed when the first cell is done: one is idle then, the other holds a cell."""
    lora = values["methods"][0]
    values["methods"] = [lora | {"name": name} for name in ("short", "long", "later")]
    values["methods"][1]["learning_rate"] = 0.001
    values["training"] |= {"steps": 40}
    finish, killed = Display.finish, []

    def finish_and_kill(self, *arguments):
        finish(self, *arguments)
        if not killed:
            killed.extend(p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline()))
            for process in killed:
                process.kill()
            while any(process.status() != psutil.STATUS_ZOMBIE for process in killed):
                time.sleep(0.01)

    monkeypatch.setattr(Display, "finish", finish_and_kill)
    results = run_quietly(values, workers=2)
    assert len(killed) == 2
    assert len(results["methods"]) == 2
    assert list(results["missing"].values()) == ["its process died (killed by SIGKILL)"]


def test_results_where_no_cell_of_the_most_shots_is_done(values, monkeypatch):
    values["data"]["shots"] = [4, 8]
    config = RunConfig.model_validate(values)
    original = pool.run_cell

    def fail_at_most_shots(plan, cell, *arguments):
        if cell.shots == 8:
            raise RuntimeError("no room")
        return original(plan, cell, *arguments)

    monkeypatch.setattr(pool, "run_cell", fail_at_most_shots)
    results = run(config, footprint=False, report=False, console=QUIET)
    assert [cell["shots"] for cell in results["cells"]] == [4] and results["methods"] == []
    assert list(results["missing"].values()) == ["RuntimeError: no room"]
    assert (Path(values["output"]) / "results.json").is_file()


@pytest.mark.parametrize("workers", [1, 2])
def test_cells_after_a_failed_source_stage_fail_with_it(values, command, write_config, workers):
    values |= {"source_stage": {"steps": 3, "learning_rate": 1e30}}
    values["data"]["shots"] = [0, 4]
    with pytest.raises(NoResult, match="no cell of the run has a result; the first one: FloatingPointError"):
        run_quietly(values, workers=workers)
    late = Path(values["output"]) / "cells" / "lora.seed-0.shots-4.governance-none" / "error.txt"
    assert late.read_text() == "lora.seed-0.shots-0.governance-none failed, it starts from that"
    code, out, err = command("train", str(write_config(values)))
    assert code == 1 and "2 of 2 cells are missing" in out and "no cell of the run has a result" in err


def test_two_runs_do_not_share_a_folder(values):
    from filelock import FileLock

    folder = Path(values["output"])
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(ValueError, match="is in use by another run"):
        run_quietly(values)
    with pytest.raises(ValueError, match="workers is 0; it must be at least 1"):
        run_quietly(values, workers=0)


def torchrun(path: Path, name: str = "train") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "-m", "hybrid_kernels.cli", name, str(path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_train_as_one(four_cells, tmp_path):
    """The same batches in two halves: the losses agree, and the predictions, of which each process makes half."""
    # Dropout is drawn by each process for itself.
    model = tmp_path / "model"
    shutil.copytree(four_cells["model"]["name"], model)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    four_cells["model"] = {"name": str(model), "max_length": 32}
    four_cells["evaluation"]["batch_size"] = 5
    both = four_cells | {"output": str(tmp_path / "both")}
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump(both))
    done = torchrun(path)
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count("[4/4]") == 1
    run_quietly(four_cells)
    assert len(cells_of(both)) == 4
    for name, folder in cells_of(both).items():
        other = cells_of(four_cells)[name]
        first, second = (read_json(one / "trained.json")["result"]["history"] for one in (folder, other))
        np.testing.assert_allclose([e["loss"] for e in first], [e["loss"] for e in second], rtol=1e-3)
        ours, theirs = (load_predictions(one / "predictions.npz")["test"] for one in (folder, other))
        assert ours["ids"].tolist() == theirs["ids"].tolist()
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        np.testing.assert_allclose(ours["log_probabilities"], theirs["log_probabilities"], atol=1e-3)
    path.write_text(yaml.safe_dump(both | {"training": both["training"] | {"batch_size": 7}}))
    done = torchrun(path)
    assert done.returncode != 0
    assert "training.batch_size is 7; it must be a multiple of the 2 processes" in done.stderr


def test_two_processes_evaluate_as_one(values):
    run_quietly(values)
    folder = Path(values["output"])
    evaluate_run(folder, console=QUIET)
    alone = read_json(folder / "evaluation.json")["lora"]["evaluation"]["macro"]
    (folder / "evaluation.json").unlink()
    done = torchrun(folder, "evaluate")
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count("evaluating") == done.stdout.count("per language: ") == 1
    assert read_json(folder / "evaluation.json")["lora"]["evaluation"]["macro"] == pytest.approx(
        alone, abs=1e-5
    )


def test_energy_counts_packages_and_wraps_around(tmp_path, monkeypatch):
    from hybrid_kernels.training import energy

    monkeypatch.setattr(energy, "_gpus", list)
    assert energy.EnergyMeter(tmp_path).joules() is None
    for name, microjoules in {"intel-rapl:0": 900_000, "intel-rapl:1": 5, "intel-rapl:0:0": 7}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text("1000000\n")
    meter = energy.EnergyMeter(tmp_path)
    assert meter.sources == ["RAPL"] and meter.joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500005\n")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("999\n")
    assert meter.joules() == pytest.approx(0.2 + 0.5)


def test_an_example_runs_by_its_name(command, monkeypatch, values, tmp_path):
    from hybrid_kernels.training import config

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "policy.yaml").write_text(json.dumps({"quality": {}}))
    monkeypatch.setattr(config, "EXAMPLES", tmp_path)
    assert command("train", "tiny")[0] == 0
    code, _, err = command("train", "huge")
    assert (
        code == 2
        and "no configuration file 'huge', and no example of that name; there are: demo, tiny" in err
    )
