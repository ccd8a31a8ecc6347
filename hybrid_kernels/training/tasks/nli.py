"""Natural language inference, whatever predicts the label: its rows, their governance, and the metrics."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.training.config import RunConfig, Shots
from hybrid_kernels.training.data import (
    NliData,
    Row,
    available_splits,
    load_nli,
    sample_shots,
    split_by_premise,
)
from hybrid_kernels.training.tasks.base import Arrays, Loaded

_GOVERNED_FIELDS = ("id", "item", "language", "premise", "hypothesis", "label")


@dataclass
class Inference:
    """The part of `Task` that needs no model; predictions are `log_probabilities` (n, classes) and `labels` (n,)."""

    config: RunConfig

    text_columns = ("premise", "hypothesis")
    text_language = "language"
    groups = "languages"

    def load_data(self) -> Loaded:
        config, data = self.config, self.config.data
        evaluation_source = data.evaluation_source or data.source
        malformed: list[Row] = []
        for name, source in (
            ("train_split", data.source),
            ("evaluation_split", evaluation_source),
            ("dev_split", evaluation_source),
        ):
            split = getattr(data, name)
            if split is not None and split not in (splits := available_splits(source)):
                raise ValueError(f"data.{name} is {split!r}, but {source!r} has only {', '.join(splits)}")

        def load(source: str, split: str, languages: list[str] | None, limit: int | None) -> list[Row]:
            found: NliData = load_nli(source, split, languages, rows_per_language=limit)
            malformed.extend(found.malformed)
            return found.rows

        limit = data.rows_per_language
        languages = config.evaluation.languages or data.languages

        def evaluated(rows: list[Row]) -> list[Row]:
            own = [row for row in rows if languages is None or row["language"] in languages]
            return self.sample(own, config.evaluation.max_rows_per_language)

        train = load(data.source, data.train_split, data.languages, limit)
        if data.divides_one_split:
            train, test = split_by_premise(train, data.evaluation_fraction, data.seed)
        else:
            test = load(evaluation_source, data.evaluation_split, languages, limit)
        dev: list[Row] = []
        if data.dev_fraction:
            test, dev = split_by_premise(test, data.dev_fraction, data.seed)
        elif data.dev_split is not None:
            reported = {(row["language"], row["premise"]) for row in test}
            dev = [
                row
                for row in load(evaluation_source, data.dev_split, languages, limit)
                if (row["language"], row["premise"]) not in reported
            ]
        test, dev = evaluated(test), evaluated(dev)
        reference = config.evaluation.reference_language
        there = {row["language"] for row in test}
        if missing := sorted({reference, *(config.evaluation.languages or ())} - there):
            raise ValueError(
                f"no evaluation rows in {', '.join(missing)}, of evaluation.reference_language ({reference!r}) or "
                f"evaluation.languages; there are rows in {', '.join(sorted(there))}"
            )
        first_rows: list[Row] = []
        if (first := config.source_stage) is not None:
            first_rows = load(first.source or data.source, first.split, first.languages or [reference], None)
            # No premise of the evaluation rows, where both come from one split.
            held_out = {(row["language"], row["premise"]) for row in (*test, *dev)}
            first_rows = [row for row in first_rows if (row["language"], row["premise"]) not in held_out]
            first_rows = sample_shots(first_rows, first.rows_per_language, data.seed)
            if not first_rows:
                raise ValueError(
                    f"source_stage: every row of split {first.split!r} shares a premise with the evaluation rows"
                )
        return Loaded(train, test, dev, first_rows, malformed)

    def govern(
        self, policy: GovernancePolicy, records: Sequence[Row], held_out: Sequence[Row], folder: Path
    ) -> tuple[list[str], dict[str, Any]]:
        from hybrid_kernels.governance import govern

        def governed(rows: Sequence[Row]) -> list[Row]:
            return [{name: row[name] for name in _GOVERNED_FIELDS} for row in rows]

        result = govern(
            governed(records),
            self.languages(records),
            text_columns=["premise", "hypothesis"],
            language_column="language",
            policy=policy,
            id_column="id",
            evaluation=governed(held_out),
        )
        result.write(folder)
        return list(result.kept["id"]), result.summary

    def training_rows(self, records: Sequence[Row], shots: Shots, seed: int) -> list[Row]:
        return sample_shots(list(records), None if shots == "all" else shots, self.config.data.seed + seed)

    def sample(self, rows: Sequence[Row], most: int | None) -> list[Row]:
        return sample_shots(list(rows), most, self.config.data.seed, same_items=True)

    def worked_examples(self, records: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
        return []

    def languages(self, rows: Sequence[Row]) -> list[str]:
        return sorted({row["language"] for row in rows})

    def metrics(self, predictions: Arrays) -> dict[str, Any]:
        from hybrid_kernels.evaluation import macro_average, parity, per_language_metrics

        reference = self.config.evaluation.reference_language
        per_language = per_language_metrics(
            np.exp(predictions["log_probabilities"].astype(np.float64)),
            predictions["labels"],
            predictions["languages"].tolist(),
        )
        return {
            "macro": macro_average(per_language),
            "per_language": per_language,
            # An orthographic variant need not exist in the reference language.
            "parity": parity(per_language, reference) if reference in per_language else None,
        }

    def over_seeds(self, predictions: Sequence[Arrays]) -> dict[str, Any]:
        """Every number is the mean over seeds, the parity gap too: the gap of mean accuracies would be smaller.

        The worst language is that of the mean accuracies; the reliability diagram pools the seeds.
        """
        from hybrid_kernels.evaluation import parity, reliability_bins

        per_seed = [self.metrics(one) for one in predictions]
        mean = means(per_seed)
        worst = parity(mean["per_language"], self.config.evaluation.reference_language)["worst_language"]
        mean["parity"]["worst_language"] = worst
        mean["reliability"] = reliability_bins(
            np.concatenate([np.exp(one["log_probabilities"].astype(np.float64)) for one in predictions]),
            np.concatenate([one["labels"] for one in predictions]),
        )
        values = {metric: [one["macro"][metric] for one in per_seed] for metric in mean["macro"]}
        values["gap"] = [one["parity"]["gap"] for one in per_seed]
        return {"evaluation": mean, "spread": deviations(values)}

    def columns(self, evaluation: Mapping[str, Any]) -> dict[str, str]:
        macro, parity = evaluation["macro"], evaluation["parity"]
        return {
            "accuracy": f"{macro['accuracy']:.1%}",
            "calib.\nerror": f"{macro['ece']:.3f}",
            "parity\ngap": f"{parity['gap']:.1%}",
            "macro F1": f"{macro['macro_f1']:.3f}",
            "NLL": f"{macro['nll']:.3f}",
            "worst": parity["worst_language"],
        }

    @property
    def caption(self) -> str:
        return (
            "accuracy and calibration error: means over languages; parity gap: "
            f"{self.config.evaluation.reference_language} − worst language"
        )


def deviations(values: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """The standard deviation of each metric over seeds; None of one seed."""
    return {name: statistics.stdev(seeds) if len(seeds) > 1 else None for name, seeds in values.items()}


def means(values: Sequence[Any]) -> Any:
    """Means of the numbers in equal structures; of what is no floating-point number, the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: means([one[key] for one in values]) for key in first}
    return statistics.fmean(values) if isinstance(first, float) else first
