"""A small, complete results.json made from synthetic predictions, for the tests of the report."""

import numpy as np
import pytest

from hybrid_kernels.evaluation import macro_average, parity, per_language_metrics, reliability_bins


def example_method(name, label, languages, *, rows=60, skill=1.5, backend="peft", seed=0, **changes):
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(rows) % 3, len(languages))
    logits = generator.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    per_language = per_language_metrics(probabilities, labels, np.repeat(languages, rows).tolist())
    steps = range(1, 6)
    method = {
        "name": name,
        "label": label,
        "backend": backend,
        "seeds": [0],
        "trainable_parameters": 123_456,
        "train_loss": 0.875,
        "evaluation": {
            "macro": macro_average(per_language),
            "per_language": per_language,
            "parity": parity(per_language, languages[0]),
            "reliability": reliability_bins(probabilities, labels),
        },
        "spread": None,
        "step_time_ratio": 1.23,
        "step_time_spread": [1.2, 1.3],
        "peak_memory_bytes": 3 * 2**29,
        "adapter_bytes": 5 * 2**20,
        "history": [
            {"step": s, "epoch": s / 5, "loss": 1 / s, "grad_norm": 0.5 * s, "learning_rate": 1e-3}
            for s in steps
        ],
        "mixing_history": [],
    }
    if backend == "hybrid-kernels":
        method["mixing_history"] = [
            {"step": s, "values": {f"encoder.{layer}.query": 0.5 + 0.01 * s * layer for layer in range(3)}}
            for s in steps
        ]
    return method | changes


def example_results(methods=3, languages=("en", "ar", "zh")):
    languages = list(languages)
    made = [
        example_method(
            f"method{i}",
            f"Method {i}",
            languages,
            skill=1.5 - 0.1 * i,
            seed=i,
            backend="hybrid-kernels" if i == 2 else "peft",
        )
        for i in range(methods)
    ]
    return {
        "title": "Three adapters on inference",
        "created": "2025-01-02T03:04:05+00:00",
        "commit": "abc1234",
        "machine": {"cpu": "Some CPU", "cores": 2, "memory_gib": 7.75, "gpu": None, "platform": "Linux"},
        "versions": {"python": "3.11", "torch": "2.13", "peft": None},
        "config": {"seed": 0, "training": {"learning_rate": 0.001}},
        "model": {"name": "some-model", "parameters": 1_000_000},
        "data": {
            "source": "sample",
            "languages": languages,
            "train_rows_raw": 1100,
            "train_rows": 1000,
            "evaluation_rows": 60 * len(languages),
            "malformed_rows": 4,
        },
        "governance": {
            "rows": 1100,
            "kept": 1000,
            "rejected": 100,
            "by_step": {
                "language": {"rejected": 70, "reasons": {"wrong language": 50, "wrong script": 20}},
                "quality": {"rejected": 30, "reasons": {"symbols": 30}},
            },
            "by_language": {code: {"rows": 110, "kept": 100, "rejected": 10} for code in languages},
            "policy": {},
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
        "methods": made,
        "step_time_note": "Medians of 30 interleaved steps.",
    }


@pytest.fixture
def make_results():
    """(methods=3, languages=("en", "ar", "zh")) → the content of a results.json; method 2 is our own."""
    return example_results


@pytest.fixture
def results():
    return example_results()
