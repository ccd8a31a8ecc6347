"""What a run found: metrics over seeds, the comparison table, and where it was measured."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

import hybrid_kernels
from hybrid_kernels.training.cells import Cell, expand, main_variant
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.files import load_predictions, read_json
from hybrid_kernels.training.plan import Plan
from hybrid_kernels.training.tasks import Arrays

METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece")


def groups(config: RunConfig) -> dict[str, list[Cell]]:
    """The reported cells that differ by the seed alone, by the method's name, with shots and variant if they vary."""
    cells = [cell for cell in expand(config) if cell.reported]
    swept = len({(cell.shots, cell.governance) for cell in cells}) > 1
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        name = f"{cell.method}.shots-{cell.shots}.governance-{cell.governance}" if swept else cell.method
        found.setdefault(name, []).append(cell)
    return found


def evaluate_predictions(predictions: list[Arrays], reference_language: str) -> dict[str, Any]:
    """`evaluation` and `spread` of results.json from the predictions of each seed.

    Metrics are means over seeds, parity that of the mean accuracies; the reliability diagram pools the seeds.
    """
    from hybrid_kernels.evaluation import macro_average, parity, per_language_metrics, reliability_bins

    probabilities = [np.exp(one["log_probabilities"].astype(np.float64)) for one in predictions]
    per_seed = [
        per_language_metrics(p, one["labels"], one["languages"].tolist())
        for p, one in zip(probabilities, predictions, strict=True)
    ]
    mean = {
        language: {metric: float(np.mean([one[language][metric] for one in per_seed])) for metric in METRICS}
        | {"n": per_seed[0][language]["n"]}
        for language in per_seed[0]
    }
    macro = [macro_average(one) for one in per_seed]
    values = {metric: [one[metric] for one in macro] for metric in METRICS}
    values["gap"] = [parity(one, reference_language)["gap"] for one in per_seed]
    return {
        "evaluation": {
            "macro": {metric: statistics.fmean(values[metric]) for metric in METRICS},
            "per_language": mean,
            "parity": parity(mean, reference_language),
            "reliability": reliability_bins(
                np.concatenate(probabilities), np.concatenate([one["labels"] for one in predictions])
            ),
        },
        "spread": {
            metric: statistics.stdev(seeds) if len(seeds) > 1 else None for metric, seeds in values.items()
        },
    }


def main_cells(config: RunConfig, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of the cells that stand for the run: with the most shots of the sweep, governed as it says."""
    chosen = (config.data.all_shots[-1], main_variant(config))
    return [cell for cell in cells if (cell["shots"], cell["governance"]) == chosen]


def method_results(plan: Plan, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`methods` of results.json: the `main_cells` of each, over the seeds that are done."""
    from hybrid_kernels.training.methods import backend

    config, found = plan.config, []
    for name, method in plan.methods.items():
        own = [one for one in main_cells(config, cells) if one["method"] == name]
        if not own:
            continue
        folders = [plan.folder / one["folder"] for one in own]
        trained = read_json(folders[0] / "trained.json")["result"]
        predictions = [load_predictions(folder / "predictions.npz")["test"] for folder in folders]
        found.append(
            {
                "name": name,
                "label": method.label,
                "backend": backend(method),
                "seeds": [one["seed"] for one in own],
                "trainable_parameters": trained["trainable_parameters"],
                "train_loss": statistics.fmean(one["train_loss"] for one in own),
                **evaluate_predictions(predictions, config.evaluation.reference_language),
                "adapter_bytes": trained["adapter_bytes"],
            }
        )
    return found


def missing_table(plan: Plan, missing: dict[str, str]) -> Table:
    """The cells without a result, and why."""
    table = Table(
        "cell", "why", title=f"{len(missing)} of {len(plan.cells)} cells are missing", box=box.SIMPLE_HEAD
    )
    for name, reason in missing.items():
        table.add_row(escape(name), escape(reason))
    table.caption = (
        f"tracebacks: {plan.folder / 'cells' / '*' / 'error.txt'}; run the same command again to try again"
    )
    return table


def results_table(results: dict[str, Any]) -> Table:
    """The comparison that a run ends in."""
    table = Table(title=results["title"], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("train\nloss", "accuracy", "calib.\nerror", "parity\ngap", "step\ntime", "peak\nMiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for method in results["methods"]:
        macro, parity = method["evaluation"]["macro"], method["evaluation"]["parity"]
        ratio, peak = method["step_time_ratio"], method["peak_memory_bytes"]
        table.add_row(
            method["label"],
            f"{method['train_loss']:.3f}",
            f"{macro['accuracy']:.1%}",
            f"{macro['ece']:.3f}",
            f"{parity['gap']:.1%}",
            "–" if ratio is None else f"{ratio:.2f}×",
            "–" if peak is None else f"{peak / 2**20:.0f}",
        )
    table.caption = (
        "accuracy and calibration error: mean over languages; parity gap: "
        f"{results['methods'][0]['evaluation']['parity']['reference']} − worst language; step time: a training step "
        "against the frozen model's forward and input gradient; peak memory: above the loaded model's"
    )
    return table


def commit() -> str | None:
    """The commit of the source tree this package runs from, if it is one."""
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    import psutil

    info = hybrid_kernels.info()
    return {
        "cpu": info["cpu"]["processor"],
        "cores": info["cpu"]["cores"],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": info["gpus"][0]["name"] if info["gpus"] else None,
        "platform": info["platform"],
    }


def versions() -> dict[str, str]:
    info = hybrid_kernels.info()
    return {
        "python": info["python"],
        "torch": info["torch"]["version"],
        **{name: info["packages"][name] for name in ("transformers", "peft")},
        "hybrid_kernels": info["hybrid_kernels"],
    }
