"""Translation by a decoder, in every direction of the run: decoded texts, and the references' bits per byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.training.config import RunConfig, Shots
from hybrid_kernels.training.data import Row
from hybrid_kernels.training.tasks.base import Arrays, Loaded, Progress
from hybrid_kernels.training.tasks.decoder import Decoder
from hybrid_kernels.training.tasks.nli import deviations, means

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_METRICS = ("chrf", "bleu", "bits_per_byte")
#: what the arrays hold of a row, by column
_STORED = {
    "sources": "source",
    "references": "target",
    "source_languages": "source_language",
    "target_languages": "target_language",
}


@dataclass
class Translation(Decoder):
    """Records are pairs of `evaluation.parallel`, governed as translations before their directions are told apart."""

    config: RunConfig

    text_columns = ("source",)
    text_language = "source_language"
    groups = "directions"

    @cached_property
    def directions(self) -> list[tuple[str, str]]:
        return self.config.directions

    def load_data(self) -> Loaded:
        from hybrid_kernels.evaluation.parallel import split_items

        data, load = self.config.data, self._load
        evaluation_source = data.evaluation_source or data.source
        train = load(data.source, data.train_split)
        if data.divides_one_split:
            train, test = split_items(train, data.evaluation_fraction, data.seed)
            train = _without(train, test)  # a sentence may be there twice, as two items
        else:
            test = load(evaluation_source, data.evaluation_split)
        dev: list[Row] = []
        if data.dev_fraction:
            test, dev = split_items(test, data.dev_fraction, data.seed)
            dev = _without(dev, test)
        elif data.dev_split is not None:
            dev = _without(load(evaluation_source, data.dev_split), test)
            if not dev:
                raise ValueError(f"data.dev_split {data.dev_split!r}: all of its pairs are evaluation pairs")
        self._check_apart(train, [*test, *dev])
        return Loaded(train, self._evaluated(test), self._evaluated(dev), [], [])

    def load_evaluation(self, source: str) -> list[Row]:
        return self._evaluated(self._load(source, self.config.data.evaluation_split))

    def _load(self, source: str, split: str) -> list[Row]:
        from hybrid_kernels.evaluation.parallel import load_parallel

        pairs, most = load_parallel(source, split, self.directions), self.config.data.rows_per_language
        return pairs if most is None else _first(pairs, most)

    def _evaluated(self, pairs: Sequence[Row]) -> list[Row]:
        return self.sample(self._rows(pairs), self.config.evaluation.max_rows_per_language)

    def _check_apart(self, train: Sequence[Row], held_out: Sequence[Row]) -> None:
        """ValueError where training pairs are to be predicted as well, and governance does not remove them."""
        shared = len(train) - len(_without(train, held_out))
        policy = self.config.governance
        removed = policy is not None and policy.leakage.enabled
        if shared == len(train) or (shared and not removed):
            raise ValueError(
                f"data.train_split {self.config.data.train_split!r}: {shared} of {len(train)} pairs are evaluation or "
                "dev pairs as well; name another source or split, have governance remove them (its step leakage), or "
                "give train_split and evaluation_split one name: evaluation_fraction of it is then held out"
            )

    def govern(
        self, policy: GovernancePolicy, records: Sequence[Row], held_out: Sequence[Row], folder: Path
    ) -> tuple[list[str], dict[str, Any]]:
        from hybrid_kernels.training.translation_data import govern_pairs, merged_summary

        # Both directions of one pair are the same text.
        pairs = {
            (row["item"], *languages): {
                "id": row["id"],
                "languages": languages,
                "texts": {
                    row["source_language"]: row["source"],
                    row["target_language"]: row["target"],
                },
            }
            for row in held_out
            for languages in [sorted((row["source_language"], row["target_language"]))]
        }
        kept, summaries = govern_pairs(
            records, policy, evaluation=list(pairs.values()), folder=folder, progress=False
        )
        return [pair["id"] for pair in kept], merged_summary(summaries)

    def training_rows(self, records: Sequence[Row], shots: Shots, seed: int) -> list[Row]:
        from hybrid_kernels.training.translation_data import balanced_rows

        most = None if shots == "all" else shots
        return _named(balanced_rows(records, self.directions, self.config.data.seed + seed, most))

    def sample(self, rows: Sequence[Row], most: int | None) -> list[Row]:
        from hybrid_kernels.evaluation.parallel import rank

        if most is None:
            return list(rows)
        by_direction: dict[str, list[Row]] = {}
        for row in sorted(rows, key=lambda row: rank(self.config.data.seed, row["item"])):
            by_direction.setdefault(row["language"], []).append(row)
        chosen = {row["id"] for own in by_direction.values() for row in own[:most]}
        return [row for row in rows if row["id"] in chosen]

    def worked_examples(self, records: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
        """As many rows of each direction as any method's prompts show, of the same items in each where there are."""
        from hybrid_kernels.evaluation.parallel import rank

        most = max(map(self.config.prompt_shots, self.config.methods))
        if not most:
            return []
        texts = {text for row in held_out for text in (row["source"], row["target"])}
        free = [
            row for row in self._rows(records) if row["source"] not in texts and row["target"] not in texts
        ]
        found: list[Row] = []
        for source, target in self.directions:
            own = [row for row in free if row["language"] == f"{source}-{target}"]
            if len(own) < most:
                raise ValueError(
                    f"prompts show {most} examples, but there are {len(own)} training rows from {source} to {target}"
                )
            found += sorted(own, key=lambda row: rank(self.config.data.seed, row["item"]))[:most]
        return found

    def settings(self, method: Any) -> Any:
        assert self.config.translation is not None
        return [self.config.translation.decoding.model_dump(), self.config.prompt_shots(method)]

    def languages(self, rows: Sequence[Row]) -> list[str]:
        return sorted({code for row in rows for code in row.get("languages") or row["language"].split("-")})

    def check_rows(
        self, tokenizer: PreTrainedTokenizerBase, training: Iterable[Row], predicted: Iterable[Row]
    ) -> None:
        """A long row is left out, or whole all the same; prompts name their languages."""
        from hybrid_kernels.evaluation.translation import language_name

        for code in {code for direction in self.directions for code in direction}:
            try:
                language_name(code)
            except ValueError as error:
                raise ValueError(f"data.languages: {error}") from None

    def examples(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Prompts without worked examples and their translations, which the loss is of; a long row is left out."""
        from hybrid_kernels.training.translation_data import translation_examples

        examples, long = translation_examples(tokenizer, rows, self.config.model.max_length)
        return list(examples), long

    def predict(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        *,
        method: Any,
        worked_examples: Sequence[Row],
        progress: Progress,
        path: Path | None,
        key: str,
    ) -> Arrays:
        """All (n,): `translations`, `sources`, `references`, `source_languages`, `target_languages`; `nats` of the
        references, float64; `bytes` of the references in UTF-8 and decoded `tokens`, int64; `stopped`, why."""
        from hybrid_kernels.evaluation.generation import Decoding, generate
        from hybrid_kernels.evaluation.translation import reference_nats, translation_prompts

        assert self.config.translation is not None
        size = self.config.evaluation.batch_size
        prompts = translation_prompts(
            rows, worked_examples, shots=self.config.prompt_shots(method), seed=self.config.data.seed
        )
        outputs = generate(
            model,
            tokenizer,
            prompts,
            [row["source"] for row in rows],
            decoding=Decoding(**self.config.translation.decoding.model_dump()),
            batch_size=size,
            path=path,
            key=key,
            description=progress,
        )
        nats = reference_nats(model, tokenizer, rows, prompts, batch_size=size, description=progress)
        texts = {name: np.array([row[column] for row in rows]) for name, column in _STORED.items()}
        return texts | {
            "translations": np.array([output.text for output in outputs]),
            "tokens": np.array([output.tokens for output in outputs], dtype=np.int64),
            "stopped": np.array([output.stopped for output in outputs]),
            "nats": nats,
            "bytes": np.array([len(row["target"].encode()) for row in rows], dtype=np.int64),
        }

    def metrics(self, predictions: Arrays) -> dict[str, Any]:
        """`evaluation.translation.evaluate_translations`, and `macro`, means over the directions that are averaged."""
        from hybrid_kernels.evaluation.translation import evaluate_translations
        from hybrid_kernels.evaluation.translation_scores import averaged

        columns = {column: predictions[name].tolist() for name, column in _STORED.items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        found = evaluate_translations(rows, predictions["translations"].tolist(), predictions["nats"])
        directions = found["directions"]
        of = {name: averaged(directions, name) for name in _METRICS}
        macro = {name: fmean(directions[one][name] for one in own) for name, own in of.items() if own}
        return {"macro": macro} | found

    def over_seeds(self, predictions: Sequence[Arrays]) -> dict[str, Any]:
        """Every number is the mean over seeds."""
        per_seed = [self.metrics(one) for one in predictions]
        values = {name: [one["macro"][name] for one in per_seed] for name in per_seed[0]["macro"]}
        return {"evaluation": means(per_seed), "spread": deviations(values)}

    def columns(self, evaluation: Mapping[str, Any]) -> dict[str, str]:
        macro, copied = evaluation["macro"], evaluation["directions"].values()
        balance = evaluation["balance"]["chrf"]["mean"]
        return {
            "chrF++": f"{macro['chrf']:.1f}",
            "copied\nchrF++": f"{fmean(one['copy']['chrf'] for one in copied):.1f}",
            "to − from\nEnglish": "–" if balance is None else f"{balance:+.1f}",
            "BLEU": f"{macro['bleu']:.1f}" if "bleu" in macro else "–",
            "bits per\nbyte": f"{macro['bits_per_byte']:.3f}",
        }

    @property
    def caption(self) -> str:
        return (
            "means over directions; copied: the source handed in as its translation; "
            "to − from English: chrF++ into English minus out of it, mean over languages"
        )

    def _rows(self, records: Sequence[Row]) -> list[Row]:
        from hybrid_kernels.evaluation.parallel import expand

        return _named(expand(records, self.directions))


def _named(rows: Sequence[Row]) -> list[Row]:
    """Rows of `evaluation.parallel` as the engine has them: `language` is the direction."""
    return [row | {"language": f"{row['source_language']}-{row['target_language']}"} for row in rows]


def _without(pairs: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The pairs whose two texts are those of no other."""

    def texts(pair: Row) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(pair["texts"].items()))

    there = set(map(texts, others))
    return [pair for pair in pairs if texts(pair) not in there]


def _first(pairs: Sequence[Row], most: int) -> list[Row]:
    """The first pairs of every two languages."""
    counts: dict[tuple[str, ...], int] = {}
    found = []
    for pair in pairs:
        languages = tuple(pair["languages"])
        counts[languages] = counts.get(languages, 0) + 1
        if counts[languages] <= most:
            found.append(pair)
    return found
