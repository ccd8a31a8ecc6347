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
from hybrid_kernels.training.data import Row, write_jsonl
from hybrid_kernels.training.files import content_key, stage
from hybrid_kernels.training.tasks import Loaded, Task, task_of


@dataclass
class Rows:
    """What the cells train on and predict.

    `kept` has the training records of each governance variant (`tasks.base.Task` says what those are), `source` those
    of the source stage; `parts` are predicted: "test", "dev" where there is one, and "perturbed/RECIPE".
    `worked_examples` are for prompts to show. `summaries`: governance's own of each variant.
    """

    raw: int
    malformed: int
    kept: dict[str, list[Row]]
    source: list[Row]
    parts: dict[str, list[Row]]
    worked_examples: list[Row]
    summaries: dict[str, dict[str, Any] | None]

    def of(self, config: RunConfig, cell: Cell) -> list[Row]:
        """The training rows of a cell."""
        if not config.named_methods[cell.method].trains:
            return []
        task = task_of(config)
        if cell.is_source:
            return task.training_rows(self.source, "all", cell.seed)
        return task.training_rows(self.kept[cell.governance], cell.shots, cell.seed)

    def parts_of(self, config: RunConfig, cell: Cell) -> dict[str, list[Row]]:
        """What a cell predicts."""
        if not cell.reported:
            return {}
        robustness = config.evaluation.robustness
        perturbed = robustness is not None and robustness.shots in (None, cell.shots)
        return {name: rows for name, rows in self.parts.items() if perturbed or "/" not in name}


def prepare(config: RunConfig, folder: Path, console: Console) -> Rows:
    """Loads and governs a run's rows, and leaves them in `folder`; ValueError where a cell would have none."""
    task = task_of(config)
    loaded = task.load_data()
    write_jsonl(loaded.malformed, folder / "malformed.jsonl")
    if loaded.malformed:
        first = loaded.malformed[0]
        console.print(
            f"{len(loaded.malformed)} malformed records skipped, the first at {first['file']}:{first['line']}"
            f" ({first['reason']}); all in {folder / 'malformed.jsonl'}"
        )
    parts = {"test": loaded.test} | ({"dev": loaded.dev} if loaded.dev else {})
    perturbed = perturbed_parts(task, loaded.test)
    parts |= perturbed
    _warn_of_idle_recipes(task, perturbed, console)
    for name, part in (*parts.items(), ("source", loaded.source)):
        if part:
            write_jsonl(part, folder / "data" / f"{name}.jsonl")
    kept, summaries = {}, {}
    for variant, policy in variants(config).items():
        kept[variant], summaries[variant] = _govern(task, variant, policy, loaded, folder, console)
    source = loaded.source
    if source and config.governance is not None:
        by_itself = Loaded(source, loaded.test, loaded.dev, [], [])
        source, _ = _govern(task, "source", config.governance, by_itself, folder, console)
    main = kept[main_variant(config)]
    shown = task.worked_examples(main, loaded.test + loaded.dev)
    write_jsonl(main, folder / "data" / "train.jsonl")
    write_jsonl(shown, folder / "data" / "worked_examples.jsonl")
    _warn_of_missing_shots(task, main, console)
    return Rows(len(loaded.train), len(loaded.malformed), kept, source, parts, shown, summaries)


def perturbed_parts(task: Task, test: list[Row]) -> dict[str, list[Row]]:
    """ "perturbed/RECIPE" → the test rows that the recipe changes, changed; none where it changes no row.

    A row keeps its id and item, by which it is compared with the unchanged one. Rows that stay as they are would make
    the recipe look harmless: in some languages it changes hardly any.
    """
    robustness = task.config.evaluation.robustness
    if robustness is None:
        return {}
    from hybrid_kernels.evaluation.robustness import perturb, recipes_for

    by_language: dict[str, list[Row]] = {}
    for row in task.sample(test, robustness.max_rows_per_language):
        by_language.setdefault(row[task.text_language], []).append(row)
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
                for column in task.text_columns
            }
            varied = [
                row | {column: texts[i] for column, texts in columns.items()} for i, row in enumerate(own)
            ]
            changed += [new for new, row in zip(varied, own, strict=True) if new != row]
        if changed:
            parts[f"perturbed/{recipe}"] = changed
    return parts


def _warn_of_idle_recipes(task: Task, perturbed: dict[str, list[Row]], console: Console) -> None:
    """Of those that were asked for by name."""
    robustness = task.config.evaluation.robustness
    if robustness is None or robustness.recipes == "all":
        return
    if idle := [recipe for recipe in robustness.recipes if f"perturbed/{recipe}" not in perturbed]:
        console.print(f"robustness: no evaluation row is changed by {', '.join(idle)}; left out")


def _govern(
    task: Task,
    variant: str,
    policy: GovernancePolicy | None,
    loaded: Loaded,
    folder: Path,
    console: Console,
) -> tuple[list[Row], dict[str, Any] | None]:
    if policy is None:
        return loaded.train, None
    evaluation = loaded.test + loaded.dev
    own = folder / "governance" / variant
    key = content_key(hybrid_kernels.__version__, policy.model_dump(mode="json"), loaded.train, evaluation)
    (chosen, summary), there = stage(
        own / "done.json", key, lambda: task.govern(policy, loaded.train, evaluation, own)
    )
    console.print(
        f"governance, {variant}: {'(done before) ' * there}kept {summary['kept']} of {summary['rows']} rows"
    )
    ids = set(chosen)
    kept = [row for row in loaded.train if row["id"] in ids]
    if not kept:
        raise ValueError(f"governance kept none of {len(loaded.train)} training rows; see {own}")
    return kept, summary


def _warn_of_missing_shots(task: Task, records: list[Row], console: Console) -> None:
    counts = Counter(row["language"] for row in task.training_rows(records, "all", 0))
    wanted = [shots for shots in task.config.data.all_shots if shots != "all"]
    if wanted and (few := {name: n for name, n in sorted(counts.items()) if n < wanted[-1]}):
        console.print(
            f"fewer than {wanted[-1]} training rows in: {', '.join(f'{k} ({n})' for k, n in few.items())}"
        )
