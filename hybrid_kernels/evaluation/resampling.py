"""Metrics of many resamples of the evaluation items at once.

Each metric is a function of a few sums over rows. They are summed for each cluster of rows once; a resample, which is
how often each cluster occurs, then costs one product with that table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hybrid_kernels.evaluation.calibration import NLL_CLIP, bin_rows
from hybrid_kernels.evaluation.predictions import Predictions

#: Of each metric: whether higher is better, and the range it has.
Directions = Mapping[str, tuple[bool, tuple[float, float]]]
#: The metrics of classifiers that can be resampled.
DIRECTIONS: Directions = {
    "accuracy": (True, (0.0, 1.0)),
    "macro_f1": (True, (0.0, 1.0)),
    "nll": (False, (0.0, np.inf)),
    "brier": (False, (0.0, 2.0)),
    "ece": (False, (0.0, 1.0)),
    "ece_equal_mass": (False, (0.0, 1.0)),
    "gap": (False, (0.0, 1.0)),
}
_CHUNK = 1 << 21  # numbers in the largest array that resamples are computed in


def resample(
    methods: Mapping[str, Sequence[Predictions]],
    metrics: Sequence[str],
    reference: str,
    resamples: int,
    bins: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Metrics of all runs, those of the first method's seeds first, on all rows and on resamples of the clusters.

    Returns:
        (runs, metrics) and (resamples, runs, metrics); resamples that missed a language are left out.
    """
    orders = _same_rows(methods)
    runs = [run for seeds in methods.values() for run in seeds]
    assert runs[0].clusters is not None
    clusters, cluster = np.unique(runs[0].clusters[orders[0]], return_inverse=True)
    languages, language = np.unique(runs[0].languages[orders[0]], return_inverse=True)
    if "gap" in metrics and reference not in languages:
        raise ValueError(f"reference language {reference!r} is not among the languages {languages.tolist()}")
    if len(clusters) < 2:
        raise ValueError(f"all rows are of cluster {str(clusters[0])!r}; at least two clusters are needed")

    cells = _Cells(cluster, language, len(clusters), len(languages))
    place = languages.tolist().index(reference) if "gap" in metrics else None
    sums = [
        _Sums(run.probabilities[order], run.labels[order], metrics, bins, cells, place)
        for run, order in zip(runs, orders, strict=True)
    ]
    rows = cells.total(np.ones((len(cluster), 1)))
    whole = np.stack([one.metrics(np.ones((1, len(clusters))), rows)[0] for one in sums])
    # A product in float32 takes half the time; what counts rows stays exact, other sums are good to six digits.
    for one in sums:
        one.table = one.table.astype(np.float32)
    widest = max(len(clusters), *(one.table.shape[1] for one in sums))
    parts = []
    for counts in draws(generator, len(clusters), resamples, max(1, _CHUNK // widest)):
        counts = counts[(counts @ rows > 0).all(axis=1)]
        parts.append(np.stack([one.metrics(counts, rows) for one in sums], axis=1))
    return whole, np.concatenate(parts)


def _same_rows(methods: Mapping[str, Sequence[Predictions]]) -> list[np.ndarray]:
    """The order that sorts each run's rows by id; ValueError unless all runs have the same rows."""
    orders: list[np.ndarray] = []
    first: Predictions | None = None
    for name, seeds in methods.items():
        for i, run in enumerate(seeds):
            order = np.argsort(run.ids)
            orders.append(order)
            if first is None:
                first, first_name = run, f"{name!r}, seed 0"
                continue
            which = f"methods: {name!r}, seed {i}, and {first_name}"
            if different := sorted(set(run.ids.tolist()) ^ set(first.ids.tolist())):
                raise ValueError(
                    f"{which}, differ in {len(different)} of their rows' ids, as {different[0]!r}"
                )
            for field in ("labels", "languages", "clusters"):
                unequal = getattr(run, field)[order] != getattr(first, field)[orders[0]]
                if unequal.any():
                    raise ValueError(
                        f"{which}, differ in the {field} of row {str(run.ids[order][unequal.argmax()])!r}"
                    )
            if run.probabilities.shape != first.probabilities.shape:
                raise ValueError(
                    f"{which}, have {run.probabilities.shape[1]} and {first.probabilities.shape[1]} classes"
                )
    return orders


class _Cells:
    """Sums of rows by cluster and language."""

    def __init__(self, cluster: np.ndarray, language: np.ndarray, clusters: int, languages: int) -> None:
        self.cell, self.clusters, self.languages = cluster * languages + language, clusters, languages

    def total(self, columns: np.ndarray) -> np.ndarray:
        """(rows, columns) → (clusters, languages · columns)."""
        size = self.clusters * self.languages
        sums = [np.bincount(self.cell, weights=column, minlength=size) for column in columns.T]
        return np.stack(sums, axis=-1).reshape(self.clusters, -1)


class _Sums:
    """What one run's metrics are computed from: `table` (clusters, languages · columns)."""

    def __init__(
        self,
        p: np.ndarray,
        y: np.ndarray,
        metrics: Sequence[str],
        bins: int,
        cells: _Cells,
        reference: int | None,
    ) -> None:
        self.names, self.languages, self.reference = metrics, cells.languages, reference
        columns = {name: _columns(name, p, y, bins, cells) for name in dict.fromkeys(map(_source, metrics))}
        ends = np.cumsum([one.shape[1] for one in columns.values()]).tolist()
        self.slices = {n: slice(end - columns[n].shape[1], end) for n, end in zip(columns, ends, strict=True)}
        self.columns = ends[-1]
        self.table = cells.total(np.concatenate(list(columns.values()), axis=1))

    def metrics(self, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(resamples, metrics) where cluster c occurs counts[r, c] times; `rows`: (clusters, languages)."""
        sums = (counts.astype(self.table.dtype) @ self.table).reshape(
            len(counts), self.languages, self.columns
        )
        n = counts @ rows
        found = []
        for name in self.names:
            by_language = _value(name, sums[..., self.slices[_source(name)]], n)
            if name == "gap":
                found.append(by_language[:, self.reference] - by_language.min(axis=1))
            else:
                found.append(by_language.mean(axis=1))
        return np.stack(found, axis=1)


def _source(metric: str) -> str:
    """The metric whose values by language this one is made of."""
    return "accuracy" if metric == "gap" else metric


def _columns(metric: str, p: np.ndarray, y: np.ndarray, bins: int, cells: _Cells) -> np.ndarray:
    """What each row adds to the sums that the metric is a function of: (n, columns)."""
    every, one_hot = np.arange(len(y)), np.eye(p.shape[1])
    predicted = p.argmax(axis=1)
    correct = (predicted == y).astype(np.float64)
    if metric == "accuracy":
        return correct[:, None]
    if metric == "nll":
        return -np.log(np.clip(p[every, y], NLL_CLIP, 1.0))[:, None]
    if metric == "brier":
        return ((p - one_hot[y]) ** 2).sum(axis=1, keepdims=True)
    if metric == "macro_f1":  # true positives, then 2 TP + FP + FN, by class
        return np.concatenate([correct[:, None] * one_hot[y], one_hot[y] + one_hot[predicted]], axis=1)
    # Accuracy − confidence, summed by bin; bins that are empty in all languages are left out.
    confidence, index = p.max(axis=1), np.empty(len(y), np.int64)
    for language in range(cells.languages):
        own = cells.cell % cells.languages == language
        index[own] = bin_rows(confidence[own], bins, "equal_width" if metric == "ece" else "equal_mass")[1]
    filled, index = np.unique(index, return_inverse=True)
    columns = np.zeros((len(y), len(filled)))
    columns[every, index] = correct - confidence
    return columns


def _value(metric: str, sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The metric by resample and language, from sums (resamples, languages, columns) and n (resamples, languages)."""
    if metric in ("ece", "ece_equal_mass"):
        value: np.ndarray = np.abs(sums).sum(axis=-1) / n
    elif metric == "macro_f1":
        positives, occurrences = np.split(sums, 2, axis=-1)
        f1 = 2 * positives / np.maximum(occurrences, 1)
        value = f1.sum(axis=-1) / (occurrences > 0).sum(axis=-1)
    else:
        value = sums[..., 0] / n
    return value


def draws(generator: np.random.Generator, n: int, resamples: int, chunk: int) -> Iterator[np.ndarray]:
    """How often each of n clusters is drawn in n draws: (at most chunk, n), until there are `resamples`."""
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
