"""The cells of a run: what is trained, from what, and under which content key.

A cell is one training: a method, a seed, a number of shots, and what became of the training rows (its governance
variant). Where the run has a source stage, the 0-shot cell of a method and seed is that stage, and the other cells of
the method and seed start from its adapter. Where 0 shots are not reported, methods whose source stage is the same
training (they differ by `learning_rate` alone) start from one adapter, the first one's. The pretrained model itself
(method `none`) is one cell of 0 shots.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import hybrid_kernels
from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.files import content_key

#: raised when what a cell does changes, so that cells made before are made again
TRAINING_FORMAT = 3
PREDICTION_FORMAT = 4
#: the policy's sections that an ablation switches. `thresholds` are bounds of the quality and perplexity steps, and
#: `leakage` guards the test rows whatever else is asked of the training rows.
STEPS = ("quality", "language", "perplexity", "personal_data", "duplicates")
ALL, NONE = "all", "none"
#: of the configuration's training section: what changes nothing, and what `stage_of` has
_NOT_THE_TRAININGS = {"seeds", "checkpoint_steps", "tensorboard", "epochs", "steps", "learning_rate"}
#: of a method: its name, and what `stage_of` has
_NOT_THE_METHODS = {"name", "learning_rate", "source_learning_rate"}


@dataclass(frozen=True)
class Cell:
    """`governance` is a key of `variants`; a cell that is not reported exists for those that start from it."""

    method: str
    seed: int
    shots: int | Literal["all"]
    governance: str
    reported: bool = True

    @property
    def name(self) -> str:
        """Of its folder, too."""
        return f"{self.method}.seed-{self.seed}.shots-{self.shots}.governance-{self.governance}"

    @property
    def is_source(self) -> bool:
        return self.shots == 0


def variants(config: RunConfig) -> dict[str, GovernancePolicy | None]:
    """The policy of each governance variant by name, the run's own first; None leaves the rows as they are.

    With an ablation: `all`, `none` (but for leakage, if the policy has that on), `only-STEP` and `without-STEP` for
    each step that the policy has on. Of a policy with one step, `only-` that step is `all`, and so is left out, as
    `without-` is `none`.
    """
    policy = config.governance
    if policy is None:
        return {NONE: None}
    found: dict[str, GovernancePolicy | None] = {ALL: policy}
    if config.governance_ablation is None:
        return found
    # Rows of the test part are no training rows, whatever is ablated.
    found[NONE] = _switched(policy, set()) if policy.leakage.enabled else None
    steps = [name for name in STEPS if getattr(policy, name).enabled]
    if len(steps) > 1:
        found |= {f"only-{step}": _switched(policy, {step}) for step in steps}
    if len(steps) > 2:
        found |= {f"without-{step}": _switched(policy, set(steps) - {step}) for step in steps}
    return found


def _switched(policy: GovernancePolicy, on: set[str]) -> GovernancePolicy:
    off = {
        name: getattr(policy, name).model_copy(update={"enabled": False}) for name in STEPS if name not in on
    }
    return policy.model_copy(update=off)


def main_variant(config: RunConfig) -> str:
    return next(iter(variants(config)))


def expand(config: RunConfig) -> list[Cell]:
    """The run's cells, each after the one it starts from; seeds outermost, so that a part of a run compares methods."""
    main, ablation = main_variant(config), config.governance_ablation
    shots = config.data.all_shots
    cells: dict[str, Cell] = {}
    for seed in config.training.seeds:
        for method, settings in config.named_methods.items():
            if not settings.trains:
                # Neither seed nor shots change the pretrained model's predictions.
                only = Cell(method, config.training.seeds[0], 0, main)
                cells[only.name] = only
                continue
            own = [Cell(method, seed, number, main) for number in shots]
            if ablation is not None and method in ablation.methods:
                own += [Cell(method, seed, ablation.shots, variant) for variant in variants(config)]
            if config.source_stage is not None:
                source = _source(config, method, seed)
                own = [source, *(cell for cell in own if not cell.is_source)]
            cells |= {cell.name: cell for cell in own}
    return list(cells.values())


def source_of(config: RunConfig, cell: Cell) -> Cell | None:
    """The cell whose adapter this one starts from; None: it starts from the pretrained model, or is that."""
    if config.source_stage is None or cell.is_source:
        return None
    return _source(config, cell.method, cell.seed)


def _source(config: RunConfig, method: str, seed: int) -> Cell:
    """The source stage of a method and seed; if it is not reported, the first method's whose stage is the same."""
    reported = 0 in config.data.all_shots
    if not reported:
        wanted = _source_training(config, method)
        method = next(name for name in config.named_methods if _source_training(config, name) == wanted)
    return Cell(method, seed, 0, main_variant(config), reported)


def _source_training(config: RunConfig, name: str) -> Any:
    """What tells one method's source stage from another's; None of a method that does not train."""
    method = config.named_methods[name]
    if not method.trains:
        return None
    return stage_of(config, method, is_source=True), method.model_dump(exclude=_NOT_THE_METHODS)


@dataclass(frozen=True)
class Stage:
    """How long one training is and how fast it learns; exactly one of epochs and steps."""

    epochs: float | None
    steps: int | None
    learning_rate: float


def stage_of(config: RunConfig, method: Any, is_source: bool) -> Stage:
    """Of a method that trains."""
    training, source = config.training, config.source_stage
    if is_source and source is not None:
        own = method.source_learning_rate or method.learning_rate
        return Stage(source.epochs, source.steps, own or source.learning_rate or training.learning_rate)
    return Stage(training.epochs, training.steps, method.learning_rate or training.learning_rate)


def training_key(
    config: RunConfig, cell: Cell, method: Any, model: list[Any], rows: str, source_key: str | None
) -> str:
    """What the adapter of a cell depends on, as a digest.

    Args:
        method: the cell's method, as it is trained (fitted to the budget).
        model: `methods.model_fingerprint` of the pretrained model.
        rows: `content_key` of the training rows.
        source_key: the training key of the cell it starts from.
    """
    common = [TRAINING_FORMAT, hybrid_kernels.__version__, config.task, model, config.model.max_length]
    if not method.trains:
        return content_key(*common, method.model_dump(exclude={"name"}))
    return content_key(
        *common,
        None if config.prompt is None else config.prompt.prompts,
        config.training.model_dump(exclude=_NOT_THE_TRAININGS),
        asdict(stage_of(config, method, cell.is_source)),
        method.model_dump(exclude=_NOT_THE_METHODS),
        cell.seed,
        rows,
        source_key,
    )


def prediction_key(training: str, config: RunConfig, settings: Any, parts: dict[str, str]) -> str:
    """What a cell's predictions and their metrics depend on: its adapter, `Task.settings`, `content_key` of the rows
    of each part."""
    evaluation = config.evaluation.model_dump(include={"batch_size", "reference_language"})
    return content_key(PREDICTION_FORMAT, training, evaluation, settings, parts)
