"""Natural language inference, whatever predicts the label: its rows, their governance, and the metrics."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.training.config import RunConfig, Shots
from hybrid_kernels.training.data import (
    LABELS,
    NliData,
    Row,
    available_splits,
    clusters,
    load_nli,
    sample_shots,
    split_by_premise,
)
from hybrid_kernels.training.tasks.base import Arrays, Loaded

_GOVERNED_FIELDS = ("id", "item", "language", "premise", "hypothesis", "label")
#: source and split
Place = tuple[str, str]


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
        loaded: dict[Place, list[NliData]] = defaultdict(list)
        self._check_split("train_split", data.source)
        for name in ("evaluation_split", "dev_split"):
            self._check_split(name, evaluation_source)

        def load(source: str, split: str, languages: list[str] | None, limit: int | None) -> list[Row]:
            found = load_nli(source, split, languages, rows_per_language=limit)
            loaded[source, split].append(found)
            return found.rows

        limit, languages = data.rows_per_language, self._evaluated_languages
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
        test, dev = self._evaluated(test), self._evaluated(dev)
        self._check_languages(test)
        reference = config.evaluation.reference_language
        first_rows: list[Row] = []
        if (first := config.source_stage) is not None:
            first_rows = load(first.source or data.source, first.split, first.languages or [reference], None)
            place = (first.source or data.source, first.split)
            for part, split in (
                (test, data.evaluation_split),
                (dev, data.dev_split or data.evaluation_split),
            ):
                first_rows = _apart(first_rows, part, same_items=place == (evaluation_source, split))
            first_rows = sample_shots(first_rows, first.rows_per_language, data.seed)
            if not first_rows:
                raise ValueError(
                    f"source_stage: every row of split {first.split!r} shares a premise or an item with the evaluation "
                    "rows"
                )
        self._check_linked(loaded)
        for (source, split), parts in loaded.items():
            self._check_labels(source, split, [row for one in parts for row in one.rows])
        malformed = [record for found in loaded.values() for one in found for record in one.malformed]
        return Loaded(train, test, dev, first_rows, malformed)

    def load_evaluation(self, source: str) -> list[Row]:
        data = self.config.data
        self._check_split("evaluation_split", source)
        found = load_nli(
            source, data.evaluation_split, self._evaluated_languages, rows_per_language=data.rows_per_language
        )
        rows = self._evaluated(found.rows)
        self._check_languages(rows)
        return rows

    @property
    def _evaluated_languages(self) -> list[str] | None:
        """None: all that are there."""
        return self.config.evaluation.languages or self.config.data.languages

    def _evaluated(self, rows: list[Row]) -> list[Row]:
        languages = self._evaluated_languages
        own = [row for row in rows if languages is None or row["language"] in languages]
        return self.sample(own, self.config.evaluation.max_rows_per_language)

    def _check_split(self, name: str, source: str) -> None:
        split = getattr(self.config.data, name)
        if split is not None and split not in (splits := available_splits(source)):
            raise ValueError(f"data.{name} is {split!r}, but {source!r} has only {', '.join(splits)}")

    def _check_languages(self, test: Sequence[Row]) -> None:
        reference = self.config.evaluation.reference_language
        there = {row["language"] for row in test}
        if missing := sorted({reference, *(self.config.evaluation.languages or ())} - there):
            raise ValueError(
                f"no evaluation rows in {', '.join(missing)}, of evaluation.reference_language ({reference!r}) or "
                f"evaluation.languages; there are rows in {', '.join(sorted(there))}"
            )

    def _check_labels(self, source: str, split: str, rows: Sequence[Row]) -> None:
        """ValueError where reading only the first rows of a file that is ordered by label leaves one label."""
        limit = self.config.data.rows_per_language
        labels: dict[str, Counter[int]] = defaultdict(Counter)
        for row in rows:
            labels[row["language"]][row["label"]] += 1
        for language, found in labels.items():
            # Of fewer rows it may be chance.
            if limit is not None and len(found) == 1 and found.total() > 10:
                (label,) = found
                raise ValueError(
                    f"data.rows_per_language is {limit}, and the first {found.total()} rows in {language!r} of split "
                    f"{split!r} of {source!r} all have the label {LABELS[label]!r}: the file is ordered by label; "
                    "leave the key out, or shuffle the file"
                )

    def _check_linked(self, loaded: Mapping[Place, Sequence[NliData]]) -> None:
        """ValueError where translations of a pair that is predicted may be trained on, as items do not tell them."""
        data, stage = self.config.data, self.config.source_stage
        source = data.evaluation_source or data.source
        trained = {(data.source, data.train_split)}
        if stage is not None:
            trained.add((stage.source or data.source, stage.split))
        held_out = {(source, data.evaluation_split), (source, data.dev_split or data.evaluation_split)}
        divided = trained & held_out | ({(source, data.evaluation_split)} if data.dev_fraction else set())
        for place in sorted(divided):
            languages = sorted({language for one in loaded[place] for language in one.languages})
            if len(languages) > 1 and not all(one.linked for one in loaded[place]):
                raise ValueError(
                    f"data source {place[0]!r}, split {place[1]!r} is divided, but translations of a pair cannot be "
                    f"kept on one side: a file has lines in several languages ({', '.join(languages)}) without a field "
                    "`item`; give translations of a pair one `item` and every other pair its own, or each language a "
                    f"file with the same lines, such as {place[1]}-{languages[0]}.jsonl"
                )

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


def _apart(rows: list[Row], held_out: list[Row], *, same_items: bool) -> list[Row]:
    """The rows in no group (`data.clusters`, by premise) with one that is held out, be it in another language.

    Args:
        same_items: whether both come from one split, in which an item's name means one pair.
    """
    own = rows if same_items else [row | {"item": f"of another split: {row['item']}"} for row in rows]
    names = clusters([*own, *held_out], "premise")
    held = set(names[len(rows) :])
    return [row for row, name in zip(rows, names, strict=False) if name not in held]
