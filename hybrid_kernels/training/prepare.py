"""The rows of a run: loaded, governed once per variant, divided into parts, and with their spelling changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import hybrid_kernels
from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.training.cells import Cell, main_variant, variants
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.data import (
    NliData,
    Row,
    available_splits,
    load_nli,
    sample_shots,
    split_by_premise,
    write_jsonl,
)
from hybrid_kernels.training.files import content_key, stage
from hybrid_kernels.training.tasks import TASKS

_GOVERNED_FIELDS = ("id", "item", "language", "premise", "hypothesis", "label")


@dataclass
class Loaded:
    """Rows before governance, by what they are for, and the records that could not be read."""

    train: list[Row]
    test: list[Row]
    dev: list[Row]
    source: list[Row]
    malformed: list[Row]


@dataclass
class Rows:
    """What the cells train on and predict.

    `kept` has the training rows of each governance variant, `source` those of the source stage; `parts` are predicted:
    "test", "dev" where there is one, and "perturbed/RECIPE". `summaries`: governance's own of each variant.
    """

    raw: int
    malformed: int
    kept: dict[str, list[Row]]
    source: list[Row]
    parts: dict[str, list[Row]]
    summaries: dict[str, dict[str, Any] | None]

    def of(self, config: RunConfig, cell: Cell) -> list[Row]:
        """The training rows of a cell: fewer shots are the first of more, in another choice for each seed."""
        if cell.is_source:
            return self.source
        shots = None if cell.shots == "all" else cell.shots
        return sample_shots(self.kept[cell.governance], shots, config.data.seed + cell.seed)

    def parts_of(self, config: RunConfig, cell: Cell) -> dict[str, list[Row]]:
        """What a cell predicts."""
        if not cell.reported:
            return {}
        robustness = config.evaluation.robustness
        perturbed = robustness is not None and robustness.shots in (None, cell.shots)
        return {name: rows for name, rows in self.parts.items() if perturbed or "/" not in name}


def prepare(config: RunConfig, folder: Path, console: Console) -> Rows:
    """Loads and governs a run's rows, and leaves them in `folder`; ValueError where a cell would have none."""
    loaded = load_data(config)
    write_jsonl(loaded.malformed, folder / "malformed.jsonl")
    if loaded.malformed:
        first = loaded.malformed[0]
        console.print(
            f"{len(loaded.malformed)} malformed records skipped, the first at {first['file']}:{first['line']}"
            f" ({first['reason']}); all in {folder / 'malformed.jsonl'}"
        )
    parts = {"test": loaded.test} | ({"dev": loaded.dev} if loaded.dev else {})
    parts |= perturbed_parts(config, loaded.test)
    for name, part in (*parts.items(), ("source", loaded.source)):
        if part:
            write_jsonl(part, folder / "data" / f"{name}.jsonl")
    kept, summaries = {}, {}
    for variant, policy in variants(config).items():
        kept[variant], summaries[variant] = _govern(variant, policy, loaded, folder, console)
    source = loaded.source
    if source and config.governance is not None:
        by_itself = Loaded(source, loaded.test, loaded.dev, [], [])
        source, _ = _govern("source", config.governance, by_itself, folder, console)
    rows = Rows(len(loaded.train), len(loaded.malformed), kept, source, parts, summaries)
    main = kept[main_variant(config)]
    write_jsonl(main, folder / "data" / "train.jsonl")
    _warn_of_missing_shots(config, main, console)
    return rows


def load_data(config: RunConfig) -> Loaded:
    """The run's rows before governance; ValueError or FileNotFoundError names what does not fit."""
    data = config.data
    splits = available_splits(data.source)
    for name in ("train_split", "evaluation_split", "dev_split"):
        if getattr(data, name) is not None and getattr(data, name) not in splits:
            raise ValueError(
                f"data.{name} is {getattr(data, name)!r}, but {data.source!r} has only {', '.join(splits)}"
            )
    malformed: list[Row] = []

    def load(source: str, split: str, languages: list[str] | None, limit: int | None) -> list[Row]:
        found: NliData = load_nli(source, split, languages, rows_per_language=limit)
        malformed.extend(found.malformed)
        return found.rows

    limit = data.rows_per_language
    languages = config.evaluation.languages or data.languages

    def evaluated(rows: list[Row]) -> list[Row]:
        own = [row for row in rows if languages is None or row["language"] in languages]
        return sample_shots(own, config.evaluation.max_rows_per_language, data.seed, same_items=True)

    train = load(data.source, data.train_split, data.languages, limit)
    if data.train_split == data.evaluation_split:
        train, test = split_by_premise(train, data.evaluation_fraction, data.seed)
    else:
        test = load(data.source, data.evaluation_split, languages, limit)
    dev: list[Row] = []
    if data.dev_fraction:
        test, dev = split_by_premise(test, data.dev_fraction, data.seed)
    elif data.dev_split is not None:
        reported = {(row["language"], row["premise"]) for row in test}
        dev = [
            row
            for row in load(data.source, data.dev_split, languages, limit)
            if (row["language"], row["premise"]) not in reported
        ]
    test, dev = evaluated(test), evaluated(dev)
    reference = config.evaluation.reference_language
    there = {row["language"] for row in test}
    if missing := sorted({reference, *(config.evaluation.languages or ())} - there):
        raise ValueError(
            f"no evaluation rows in {', '.join(missing)}; there are rows in {', '.join(sorted(there))}"
        )
    source: list[Row] = []
    if (first := config.source_stage) is not None:
        source = load(first.source or data.source, first.split, first.languages or [reference], None)
        # No premise of the evaluation rows, where both come from one split.
        held_out = {(row["language"], row["premise"]) for row in (*test, *dev)}
        source = [row for row in source if (row["language"], row["premise"]) not in held_out]
        source = sample_shots(source, first.rows_per_language, data.seed)
        if not source:
            raise ValueError(
                f"source_stage: every row of split {first.split!r} shares a premise with the evaluation rows"
            )
    return Loaded(train, test, dev, source, malformed)


def perturbed_parts(config: RunConfig, test: list[Row]) -> dict[str, list[Row]]:
    """ "perturbed/RECIPE" → the test rows of the languages that the recipe is for, with their texts changed.

    A row keeps its id and item, by which it is compared with the unchanged one.
    """
    robustness = config.evaluation.robustness
    if robustness is None:
        return {}
    from hybrid_kernels.evaluation.robustness import perturb, recipes_for

    rows = sample_shots(test, robustness.max_rows_per_language, config.data.seed, same_items=True)
    by_language: dict[str, list[Row]] = {}
    for row in rows:
        by_language.setdefault(row["language"], []).append(row)
    offered = {language: recipes_for(language) for language in sorted(by_language)}
    known = sorted({recipe for recipes in offered.values() for recipe in recipes})
    wanted = known if robustness.recipes == "all" else robustness.recipes
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(
            f"evaluation.robustness.recipes has {', '.join(unknown)}; for {', '.join(offered)} there are "
            f"{', '.join(known)}"
        )
    parts: dict[str, list[Row]] = {}
    for recipe in wanted:
        changed: list[Row] = []
        for language in (language for language, recipes in offered.items() if recipe in recipes):
            own = by_language[language]
            columns = {
                column: perturb(
                    [row[column] for row in own],
                    language,
                    recipe,
                    seed=robustness.seed,
                    rate=robustness.rate,
                )
                for column in TASKS[config.task].text_columns
            }
            changed += [
                row | {column: texts[i] for column, texts in columns.items()} for i, row in enumerate(own)
            ]
        parts[f"perturbed/{recipe}"] = changed
    return parts


def govern_rows(
    policy: GovernancePolicy, rows: list[Row], evaluation: list[Row], folder: Path
) -> dict[str, Any]:
    """Governs rows, writes kept and rejected ones to `folder`; returns the ids kept and the summary."""
    from hybrid_kernels.governance import govern

    def governed(rows: list[Row]) -> list[Row]:
        return [{name: row[name] for name in _GOVERNED_FIELDS} for row in rows]

    result = govern(
        governed(rows),
        sorted({row["language"] for row in rows}),
        text_columns=["premise", "hypothesis"],
        language_column="language",
        policy=policy,
        id_column="id",
        evaluation=governed(evaluation),
    )
    result.write(folder)
    return {"kept": list(result.kept["id"]), "summary": result.summary}


def _govern(
    variant: str, policy: GovernancePolicy | None, loaded: Loaded, folder: Path, console: Console
) -> tuple[list[Row], dict[str, Any] | None]:
    if policy is None:
        return loaded.train, None
    evaluation = loaded.test + loaded.dev
    own = folder / "governance" / variant
    key = content_key(hybrid_kernels.__version__, policy.model_dump(mode="json"), loaded.train, evaluation)
    result, there = stage(own / "done.json", key, lambda: govern_rows(policy, loaded.train, evaluation, own))
    summary = result["summary"]
    console.print(
        f"governance, {variant}: {'(done before) ' * there}kept {summary['kept']} of {summary['rows']} rows"
    )
    ids = set(result["kept"])
    kept = [row for row in loaded.train if row["id"] in ids]
    if not kept:
        raise ValueError(f"governance kept none of {len(loaded.train)} training rows; see {own}")
    return kept, summary


def _warn_of_missing_shots(config: RunConfig, rows: list[Row], console: Console) -> None:
    counts = Counter(row["language"] for row in rows)
    wanted = [shots for shots in config.data.all_shots if shots != "all"]
    if wanted and (few := {name: n for name, n in sorted(counts.items()) if n < wanted[-1]}):
        console.print(
            f"fewer than {wanted[-1]} training rows in: {', '.join(f'{k} ({n})' for k, n in few.items())}"
        )
