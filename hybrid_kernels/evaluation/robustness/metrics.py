"""What variation costs: accuracy, and whether predictions stay, on the same rows as they are and as varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hybrid_kernels.evaluation.metrics import classification_metrics
from hybrid_kernels.governance.scripts import read_tag

#: What `paired_metrics` gives, besides `n`; means of these are taken over languages.
METRICS = (
    "clean_accuracy",
    "accuracy",
    "accuracy_drop",
    "consistency",
    "total_variation",
    "jensen_shannon",
)


def paired_metrics(clean: ArrayLike, varied: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Predictions for n varied rows against those for the same rows as they are.

    Args:
        clean, varied: (n, classes) class probabilities, labels: (n,); as `classification_metrics` has them.

    Returns:
        clean_accuracy, accuracy: of the rows as they are, and as varied; accuracy_drop: the one minus the other.
        consistency: share of rows whose predicted class is the same.
        total_variation: mean of ½ Σ |p − q|, in [0, 1].
        jensen_shannon: mean Jensen–Shannon divergence (Lin 1991, eq. 4.1, equal weights) in bits, in [0, 1].
        n: number of rows.
    """
    p, q = np.asarray(clean), np.asarray(varied)
    # Both are checked here.
    clean_accuracy, accuracy = (classification_metrics(x, np.asarray(labels))["accuracy"] for x in (p, q))
    if p.shape != q.shape:
        raise ValueError(
            f"clean has shape {p.shape}, varied has shape {q.shape}; they must be the same rows and classes"
        )
    p, q = p.astype(np.float64), q.astype(np.float64)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return {
        "clean_accuracy": clean_accuracy,
        "accuracy": accuracy,
        "accuracy_drop": clean_accuracy - accuracy,
        "consistency": float((p.argmax(1) == q.argmax(1)).mean()),
        "total_variation": float(np.abs(p - q).sum(1).mean() / 2),
        "jensen_shannon": float(divergence.mean()),
        "n": len(p),
    }


def robustness_metrics(
    clean: ArrayLike,
    labels: Sequence[int] | NDArray[Any],
    languages: Sequence[str],
    varied: Mapping[str, tuple[ArrayLike, ArrayLike]],
) -> dict[str, Any]:
    """`paired_metrics` by language and recipe, and by script and recipe.

    A recipe need not have been run on all rows: not on languages that it is not offered for, and not on rows that it
    leaves as they are. Whether those are among `rows` decides what share they have in the figures.

    Args:
        clean: (n, classes) class probabilities of the rows as they are; labels: (n,); languages: (n,) codes.
        varied: of each recipe `(rows, probabilities)`: (m,) distinct positions in the n rows, and (m, classes).

    Returns:
        per_language: language → recipe → `paired_metrics`.
        per_script: script (ISO 15924, joined by + for a language in several) → recipe → the mean of each of `METRICS`
            over the languages in it, `n` rows and `languages`: every language counts the same.

    Raises:
        ValueError: malformed arrays, a position out of range or twice, an unknown language.
    """
    p, y = np.asarray(clean), np.asarray(labels)
    classification_metrics(p, y)  # both are checked here
    codes = np.asarray(list(languages), dtype=object)
    if len(codes) != len(y):
        raise ValueError(
            f"languages has {len(codes)} entries, labels has {len(y)}; they must be equally long"
        )
    scripts = {code: script_code(code) for code in sorted(set(codes.tolist()))}
    per_language: dict[str, dict[str, dict[str, float]]] = {}
    for recipe, (positions, probabilities) in varied.items():
        rows, q = np.asarray(positions), np.asarray(probabilities)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer) or len(rows) != len(q):
            raise ValueError(
                f"varied[{recipe!r}] has rows of {rows.dtype} and shape {rows.shape} for {len(q)} probabilities;"
                " they must be as many integers"
            )
        if len(rows) and (rows.min() < 0 or rows.max() >= len(y) or len(np.unique(rows)) != len(rows)):
            raise ValueError(f"varied[{recipe!r}] has rows that occur twice or are not in [0, {len(y)})")
        of_row = codes[rows]
        for code in sorted(set(of_row.tolist())):
            here = of_row == code
            per_language.setdefault(code, {})[recipe] = paired_metrics(p[rows[here]], q[here], y[rows[here]])
    per_language = dict(sorted(per_language.items()))

    per_script: dict[str, dict[str, dict[str, float]]] = {}
    for script in sorted({scripts[code] for code in per_language}):
        members = [table for code, table in per_language.items() if scripts[code] == script]
        per_script[script] = {
            recipe: _mean([table[recipe] for table in members if recipe in table])
            for recipe in varied
            if any(recipe in table for table in members)
        }
    return {"per_language": per_language, "per_script": per_script}


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ p log₂(p / q) by row; q is positive where p is."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return (p * np.log2(ratio)).sum(1)


def _mean(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {metric: float(np.mean([table[metric] for table in tables])) for metric in METRICS}
    return means | {"n": sum(table["n"] for table in tables), "languages": len(tables)}


def script_code(code: str) -> str:
    """The key in `per_script` of a language."""
    tag = read_tag(code)
    if tag is None:
        raise ValueError(f"languages has {code!r}; it must be a language code, like zh-Hant")
    return "+".join(sorted(tag.scripts))
