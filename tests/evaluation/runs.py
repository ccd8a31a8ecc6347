"""Folders of runs as the engine leaves them, made of synthetic predictions."""

import json

import numpy as np

from hybrid_kernels.evaluation.translation import evaluate_translations
from hybrid_kernels.training.config import DEMO_CONFIG, RunConfig
from hybrid_kernels.training.files import save_predictions
from hybrid_kernels.training.tasks import task_of

#: English is its reference language
CLASSIFICATION = task_of(RunConfig.load(DEMO_CONFIG))
BACKENDS = {"lora": "peft", "boft": "peft", "hra": "peft", "hybrid": "hybrid-kernels"}
LABELS = {"lora": "LoRA r = 8", "boft": "BOFT", "hra": "HRA", "hybrid": "Hybrid r = 4 + 4"}
#: logits of the right class, of each method: the hybrid is the best, LoRA and HRA are the same
SKILLS = {"lora": 1.0, "boft": 1.2, "hra": 1.0, "hybrid": 1.8}


def classifier(generator, languages, items, skill, *, noise=None, sharpness=1.0, name="test"):
    """Arrays of one part: three classes, items in clusters of three, shared by the languages.

    The noise is of the item and part alone, so that methods are right on the same rows more often than by chance.
    """
    labels = np.tile(np.arange(items) % 3, len(languages))
    n = len(labels)
    shared = np.random.default_rng(5).normal(size=(n, 3))
    logits = shared + 0.4 * generator.normal(size=(n, 3))
    logits[np.arange(n), labels] += skill
    logits[np.repeat(np.array(languages), items) == "sw", :] *= 0.5
    if noise is not None:
        logits += noise * generator.normal(size=(n, 3))
    logits *= sharpness
    item = np.tile(np.arange(items), len(languages))
    codes = np.repeat(languages, items)
    return {
        "log_probabilities": (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32),
        "labels": labels,
        "ids": np.array([f"{name}-{i}-{code}" for i, code in zip(item, codes, strict=True)]),
        "items": np.array([f"{name}-{i}" for i in item]),
        "languages": codes,
        "clusters": np.array([f"{name}-{i // 3 * 3}" for i in item]),
    }


def subset(arrays, keep):
    return {name: values[keep] for name, values in arrays.items()}


def history(method, seed):
    """One step more of each seed, as where shots differ in number."""
    entries, steps = [], 8 + seed
    for step in range(1, steps + 1):
        entry = {"step": step, "epoch": step / steps, "loss": 1 / step + 0.01 * seed, "grad_norm": 0.5 * step}
        if step % 2 == 0:
            entry["branch_gradient_norms"] = {"low_rank": 0.1 * step, "head": 1.0}
            if method == "hybrid":
                entry["branch_gradient_norms"]["reflections"] = 0.2 * step
                entry["orthogonality_defect"] = {"a": 1e-7 * step, "b": 2e-7 * step}
        entries.append(entry)
    mixing = [
        {"step": step, "values": {f"encoder.{layer}.query": 0.5 + 0.01 * step * layer for layer in range(3)}}
        for step in range(2, steps + 1, 2)
    ]
    return {"history": entries, "mixing_history": mixing if method == "hybrid" else []}


def footprint(method):
    stock = "hybrid-kernels" if method == "hybrid" else "peft"
    found = []
    for place, implementation in enumerate([stock] if method == "hybrid" else [stock, "accelerated"]):
        seconds = {"lora": 0.02, "boft": 0.08, "hra": 0.05, "hybrid": 0.025}[method] / (1 + place)
        found.append(
            {
                "implementation": implementation,
                "step_time_ratio": seconds / 0.01,
                "step_time_spread": [seconds / 0.01 - 0.05, seconds / 0.01 + 0.05],
                "step_seconds": seconds,
                "tokens_per_second": 800 / seconds,
                "peak_memory_bytes": 2**27 * (4 - place),
                "trainable_parameters": 123_456,
                "joules_per_step": None,
            }
        )
    return found


def cell(run, method, seed, shots, variant, parts, train_rows=96):
    folder = run / "cells" / f"{method}.seed-{seed}.shots-{shots}.governance-{variant}"
    save_predictions(folder / "predictions.npz", parts)
    (folder / "trained.json").write_text(json.dumps({"key": "k", "result": history(method, seed)}))
    return {
        "method": method,
        "seed": seed,
        "shots": shots,
        "governance": variant,
        "reported": True,
        "label": LABELS[method],
        "backend": BACKENDS[method],
        "folder": str(folder.relative_to(run)),
        "train_rows": train_rows,
        "seconds": 1.0,
        "trainable_parameters": 123_456,
        "train_loss": 0.875,
        "adapter_bytes": 5 * 2**20,
        "metrics": {name: CLASSIFICATION.metrics(arrays) for name, arrays in parts.items()},
    }


def configured(methods):
    return [{"method": name} for name in methods]


def edit(run, change):
    """Changes the content of a run's results.json in place."""
    content = json.loads((run / "results.json").read_text())
    change(content)
    (run / "results.json").write_text(json.dumps(content))


def results(
    run, cells, methods, *, languages=("en", "ar", "sw"), rows=180, title="Adapters on inference", **changes
):
    governed = {code: {"rows": 110, "kept": 100, "rejected": 10} for code in languages}
    content = {
        "title": title,
        "created": "2025-01-02T03:04:05+00:00",
        "commit": "abc1234",
        "machine": {"cpu": "Some CPU", "cores": 2, "memory_gib": 7.75, "gpu": None, "platform": "Linux"},
        "versions": {"python": "3.11", "torch": "2.13", "peft": None},
        "config": {
            "task": "classification",
            "training": {"learning_rate": 0.001},
            "methods": configured(methods),
            "evaluation": {"reference_language": "en"},
        },
        "model": {"name": "some-model", "parameters": 1_000_000},
        "data": {
            "source": "sample",
            "languages": list(languages),
            "train_rows_raw": 330,
            "train_rows": 96,
            "evaluation_rows": rows,
            "malformed_rows": 4,
            "romanised": [],
        },
        "governance": {
            "rows": 330,
            "kept": 300,
            "rejected": 30,
            "by_step": {
                "language": {"rejected": 20, "reasons": {"wrong language": 15, "wrong script": 5}},
                "quality": {"rejected": 10, "reasons": {"symbols": 10}},
            },
            "by_language": governed,
            "examples": {
                "language": [
                    {
                        "text": "قال إنه سيعود",
                        "language": "ar",
                        "reason": "wrong language",
                        "detail": "en 0.9",
                    }
                ],
                "quality": [],
            },
        },
        "governance_variants": {
            name: {"kept": kept, "summary": None}
            for name, kept in {"all": 300, "none": 330, "only-language": 310, "only-quality": 320}.items()
        },
        "methods": [{"name": name, "footprint": footprint(name)} for name in methods],
        "step_time_note": "Medians of 30 interleaved steps.",
        "cells": cells,
        "missing": {},
    } | changes
    (run / "results.json").write_text(json.dumps(content))
    return content


def make_run(
    run,
    methods=("lora", "boft", "hybrid"),
    *,
    seeds=(0, 1, 2),
    shots=(8, 32),
    languages=("en", "ar", "sw"),
    items=60,
    dev=True,
    recipes=("romanisation", "upper_case"),
    ablated=("lora",),
    skills=None,
    **changes,
):
    """A run folder; returns the content of its results.json. More shots are better; robustness is of the most."""
    languages = list(languages)
    skills = SKILLS | (skills or {})
    cells = []
    for place, method in enumerate(methods):
        for seed in seeds:
            for number in shots:
                variants = ["all"]
                if method in ablated and number == shots[-1]:
                    variants += ["none", "only-language", "only-quality"]
                for variant in variants:
                    generator = np.random.default_rng([place, seed, number, len(variant)])
                    skill = skills[method] + 0.02 * number - 0.3 * (variant == "none")
                    options = {"sharpness": 1.5}
                    parts = {"test": classifier(generator, languages, items, skill, **options)}
                    if dev:
                        parts["dev"] = classifier(generator, languages, 30, skill, name="dev", **options)
                    if number == shots[-1] and variant == "all":
                        for recipe in recipes:
                            varied = classifier(generator, languages, items, skill, noise=1.0, **options)
                            own = varied["languages"] != ("en" if recipe == "romanisation" else "ar")
                            parts[f"perturbed/{recipe}"] = subset(varied, own)
                    cells.append(cell(run, method, seed, number, variant, parts))
    return results(run, cells, methods, languages=languages, rows=items * len(languages), **changes)


def make_translation_run(run, methods=("lora", "hybrid"), *, seeds=(0, 1), languages=("de", "sw")):
    """A run of the translation task: sixteen sentences in each of four directions, some words wrong."""
    rows = [
        {
            "id": f"{i}-{source}-{target}",
            "item": str(i),
            "source_language": source,
            "target_language": target,
            "source": f"{source} number {i} is said here",
            "target": f"{target} number {i} is said here in full",
        }
        for language in languages
        for source, target in ((language, "en"), ("en", language))
        for i in range(16)
    ]
    cells = []
    for place, method in enumerate(methods):
        for seed in seeds:
            generator = np.random.default_rng([place, seed])
            wrong = generator.random(len(rows)) < 0.3 - 0.1 * place
            translations = [
                row["target"].replace("number", "count") if bad else row["target"]
                for row, bad in zip(rows, wrong, strict=True)
            ]
            nats = generator.gamma(20, size=len(rows))
            found = evaluate_translations(rows, translations, nats)
            part = {
                "nats": nats,
                "ids": np.array([row["id"] for row in rows]),
                "clusters": np.array([row["item"] for row in rows]),
                "languages": np.array([f"{row['source_language']}-{row['target_language']}" for row in rows]),
                "source_languages": np.array([row["source_language"] for row in rows]),
                "target_languages": np.array([row["target_language"] for row in rows]),
                "references": np.array([row["target"] for row in rows]),
                "translations": np.array(translations),
                "bytes": np.array([len(row["target"].encode()) for row in rows]),
            }
            one = cell(run, method, seed, 32, "none", {}, 64)
            save_predictions(run / one["folder"] / "predictions.npz", {"test": part})
            cells.append(one | {"metrics": {"test": found}})
    return results(
        run,
        cells,
        methods,
        title="Translation",
        governance=None,
        governance_variants={"none": {"kept": 300, "summary": None}},
        config={"task": "translation", "methods": configured(methods), "evaluation": {}},
    )


def row(table, start):
    (one,) = [row for row in table.rows if row.label.startswith(start)]
    return one
