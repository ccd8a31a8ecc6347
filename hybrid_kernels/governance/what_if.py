"""What other thresholds would do: the cheap `objections` of every step under other policies, over kept features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch, Bounds, Features, Objection
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.summary import language_key

#: Shards that are judged under other policies; of more, as many at even distances.
MAX_SHARDS = 32


class Step(Protocol):
    """A module of governance, as far as its objections go (see `hybrid_kernels.governance.batch`)."""

    def objections(
        self, batch: Batch, features: Features, policy: GovernancePolicy, bounds: Bounds
    ) -> list[Objection]: ...


@dataclass(frozen=True)
class Alternative:
    """A policy that differs in one field, "quality.max_digits" say, and the bounds that it leads to."""

    field: str
    value: Any
    policy: GovernancePolicy
    bounds: Bounds


def alternatives(
    policy: GovernancePolicy,
    variations: Mapping[str, Mapping[str, Sequence[Any]]],
    bounds: Callable[[GovernancePolicy], Bounds],
) -> list[Alternative]:
    """What to try beside the policy in force, which is not among them.

    Args:
        policy: the one in force.
        variations: section → field → values, as ``{"quality": quality.VARIATIONS}``. Sections that are off are left out.
        bounds: of a policy, from the histograms.
    """
    found = []
    for section, fields in variations.items():
        current = getattr(policy, section)
        if not current.enabled:
            continue
        for name, values in fields.items():
            for value in values:
                if value != getattr(current, name):
                    changed = type(current).model_validate(current.model_dump() | {name: value})
                    other = policy.model_copy(update={section: changed})
                    found.append(Alternative(f"{section}.{name}", value, other, bounds(other)))
    return found


def sample(shards: int, most: int = MAX_SHARDS) -> list[int]:
    """The shards to look at: all, or `most` of them at even distances, always the same."""
    return list(range(shards)) if shards <= most else [i * shards // most for i in range(most)]


@dataclass
class Outcome:
    """Rows under one policy, before duplicates are looked for.

    `rejected`: language → rows. `reasons`, `alone`: (step, reason) → rows, and rows nothing else speaks against.
    `newly_rejected`, `newly_kept`: language → rows, against the policy in force.
    """

    rejected: dict[str, int] = field(default_factory=dict)
    reasons: dict[tuple[str, str], int] = field(default_factory=dict)
    alone: dict[tuple[str, str], int] = field(default_factory=dict)
    newly_rejected: dict[str, int] = field(default_factory=dict)
    newly_kept: dict[str, int] = field(default_factory=dict)

    def merge(self, other: Outcome) -> None:
        for name in ("rejected", "reasons", "alone", "newly_rejected", "newly_kept"):
            mine = getattr(self, name)
            for key, number in getattr(other, name).items():
                mine[key] = mine.get(key, 0) + number


@dataclass
class WhatIf:
    """Outcomes of the policy in force and of the alternatives, in their order; can be pickled, and two of them added."""

    rows: dict[str, int] = field(default_factory=dict)
    shards: int = 0
    in_force: Outcome = field(default_factory=Outcome)
    others: list[Outcome] = field(default_factory=list)

    def merge(self, other: WhatIf) -> None:
        """Add what another shard, or other shards, came to under the same alternatives."""
        self.shards += other.shards
        for key, number in other.rows.items():
            self.rows[key] = self.rows.get(key, 0) + number
        self.in_force.merge(other.in_force)
        self.others = self.others or [Outcome() for _ in other.others]
        for mine, theirs in zip(self.others, other.others, strict=True):
            mine.merge(theirs)


def judge(
    batch: Batch,
    features: Features,
    languages: Sequence[str | None],
    fixed: Sequence[Objection],
    steps: Sequence[Step],
    policy: GovernancePolicy,
    bounds: Bounds,
    others: Sequence[Alternative],
) -> WhatIf:
    """One shard under the policy in force and under each alternative.

    Args:
        batch, features, languages: the rows, all steps' features of them, and each row's language.
        fixed: objections that no policy changes (those of the step `input`).
        steps: the modules whose objections are made again, all that are on.
        policy, bounds: those in force.
        others: of `alternatives`.
    """
    raise NotImplementedError


def table(found: WhatIf, others: Sequence[Alternative], shards: int) -> dict[str, Any]:
    """JSON for the report: a line for each field and value; `shards`: of how many the found ones are a sample."""
    raise NotImplementedError


def duplicate_table(
    pairs: Iterable[tuple[int, int, float]], thresholds: Sequence[float], language: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Rows that each threshold of the similarity would remove, of all verified pairs (row, row, similarity)."""
    raise NotImplementedError
