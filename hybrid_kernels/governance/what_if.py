"""What other thresholds would do: the cheap `objections` of every step under other policies, over kept features."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch, Bounds, Features, Objection
from hybrid_kernels.governance.engine import Engine
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.steps import Job, Rows, Shard, batch_of, input_objections
from hybrid_kernels.governance.storage import read_table
from hybrid_kernels.governance.summary import by_key, count_masks, language_key, reason_masks

if TYPE_CHECKING:
    from hybrid_kernels.governance.pipeline import Judgement

#: Of `thresholds.spread`.
SPREADS = (4.0, 6.0, 8.0, 12.0)
#: Similarities to try, those above the policy's.
SIMILARITIES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
#: Rows that are judged under other policies, and shards that they are taken from; of more, as many at even distances.
MAX_ROWS, MAX_SHARDS = 8192, 64


class Judging(Protocol):
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
        variations: section → field → values, as ``{"quality": quality.VARIATIONS}``. Sections that are off are left
            out.
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


def sample(rows: Sequence[int]) -> tuple[list[int], int]:
    """(the shards to look at, how many rows of all shards to spread the rows over), for shards with so many rows.

    Always the same; see `_chosen` for the rows.
    """
    most = min(len(rows), MAX_SHARDS)
    chosen = [i * len(rows) // most for i in range(most)]
    return chosen, sum(rows[i] for i in chosen)


def _chosen(first: int, rows: int, total: int) -> NDArray[np.int64]:
    """Positions in a shard, from running number `first` on, so that of `total` rows `MAX_ROWS` are looked at."""
    number = np.arange(first, first + rows + 1) * min(MAX_ROWS, total) // total
    return np.flatnonzero(np.diff(number))


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
    """Outcomes of the policy in force and of the alternatives, in their order; can be pickled, and two
    of them added."""

    rows: dict[str, int] = field(default_factory=dict)
    in_force: Outcome = field(default_factory=Outcome)
    others: list[Outcome] = field(default_factory=list)

    def merge(self, other: WhatIf) -> None:
        """Add what another shard, or other shards, came to under the same alternatives."""
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
    steps: Mapping[str, Judging],
    policy: GovernancePolicy,
    bounds: Bounds,
    others: Sequence[Alternative],
) -> WhatIf:
    """One shard under the policy in force and under each alternative.

    Args:
        batch, features, languages: the rows, all steps' features of them, and each row's language.
        fixed: objections that no policy changes (those of the step `input`).
        steps: section of the policy → the module whose objections it decides; those that are on. An alternative in
            another section (`thresholds`) has the objections of all of them made again.
        policy, bounds: those in force.
        others: of `alternatives`.
    """
    keys = [language_key(language) for language in languages]
    current = {name: step.objections(batch, features, policy, bounds) for name, step in steps.items()}
    rejected, in_force = _outcome([*fixed, *_all(current)], keys, None)
    found = WhatIf(dict(Counter(keys)), in_force)
    for other in others:
        section = other.field.partition(".")[0]
        again = [section] if section in steps else list(steps)
        changed = {
            name: steps[name].objections(batch, features, other.policy, other.bounds) for name in again
        }
        found.others.append(_outcome([*fixed, *_all(current | changed)], keys, rejected)[1])
    return found


def _all(objections: Mapping[str, list[Objection]]) -> list[Objection]:
    return list(itertools.chain.from_iterable(objections.values()))


def _outcome(
    objections: Sequence[Objection], keys: Sequence[str], before: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_], Outcome]:
    """(which rows are rejected, counts); `before`: which are under the policy in force."""
    masks = reason_masks(objections, len(keys))
    against = count_masks(masks, len(keys))
    rejected = against > 0
    before = rejected if before is None else before
    return rejected, Outcome(
        rejected=by_key(keys, rejected),
        reasons={key: int(mask.sum()) for key, mask in masks.items()},
        alone={key: int((mask & (against == 1)).sum()) for key, mask in masks.items()},
        newly_rejected=by_key(keys, rejected & ~before),
        newly_kept=by_key(keys, before & ~rejected),
    )


def table(
    found: WhatIf, others: Sequence[Alternative], policy: GovernancePolicy, rows: int
) -> dict[str, Any]:
    """What the report shows.

    Args:
        found: the merged outcomes of what was looked at.
        others: the alternatives they were judged under.
        policy: the one in force.
        rows: how many there are.

    Returns:
        JSON: {"rows": looked at, "of_rows": that there are; "rejected": under the policy in force; "lines"}.
        A line has a "field" and a "value" of it, whether it is "in_force", the rows "rejected" by all steps but
        duplicates and leakage, those "newly_rejected" and "newly_kept" against the policy in force, the language of
        which the largest share of rows changes ("worst": {"language", "rows", "change": a signed share} or None), and
        the "reasons" that the field decides: {"step: reason": {"rows", "alone": nothing else speaks against these}}.
    """
    lines: list[dict[str, Any]] = []
    for name in dict.fromkeys(other.field for other in others):
        mine = [
            (other.value, outcome)
            for other, outcome in zip(others, found.others, strict=True)
            if other.field == name
        ]
        section, _, option = name.partition(".")
        mine.append((getattr(getattr(policy, section), option), found.in_force))
        rule = _moved([outcome for _, outcome in mine])
        lines += [
            _line(name, value, outcome, found, rule)
            for value, outcome in sorted(mine, key=lambda entry: entry[0])
        ]
    return {
        "rows": sum(found.rows.values()),
        "of_rows": rows,
        "rejected": sum(found.in_force.rejected.values()),
        "lines": lines,
    }


def _moved(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """The reasons that a field decides: those whose rows are not the same under all of its values."""
    reasons = dict.fromkeys(key for outcome in outcomes for key in outcome.reasons)
    return [key for key in reasons if len({outcome.reasons.get(key, 0) for outcome in outcomes}) > 1]


def _line(
    name: str, value: Any, outcome: Outcome, found: WhatIf, rule: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    return {
        "field": name,
        "value": value,
        "in_force": outcome is found.in_force,
        "rejected": sum(outcome.rejected.values()),
        "newly_rejected": sum(outcome.newly_rejected.values()),
        "newly_kept": sum(outcome.newly_kept.values()),
        "worst": _worst(outcome.newly_rejected, outcome.newly_kept, found.rows),
        "reasons": {
            f"{step}: {reason}": {
                "rows": outcome.reasons.get((step, reason), 0),
                "alone": outcome.alone.get((step, reason), 0),
            }
            for step, reason in rule
        },
    }


def _worst(
    more: Mapping[str, int], fewer: Mapping[str, int], rows: Mapping[str, int]
) -> dict[str, Any] | None:
    """The language of which the largest share of rows changes sides, in the direction in which more of them do."""
    changed = {code: (more.get(code, 0), fewer.get(code, 0)) for code in sorted({*more, *fewer})}
    if not changed:
        return None
    code = max(changed, key=lambda code: sum(changed[code]) / rows[code])
    signed = max(changed[code]) if changed[code][0] >= changed[code][1] else -max(changed[code])
    return {"language": code, "rows": abs(signed), "change": signed / rows[code]}


def duplicate_lines(
    row: NDArray[np.int64],
    linked_to: NDArray[np.int64],
    similarity: NDArray[np.float64],
    thresholds: Sequence[float],
    in_force: float,
) -> list[dict[str, Any]]:
    """Rows that duplicates cost at each threshold above the one in force.

    A removed row stays removed only if the row that it is most similar to is as similar as the threshold asks, so that
    no more go than there are such rows. At least so many go as these links bring into groups, less a row for each:
    groups may also hang together by pairs that were not the most similar ones.

    Args:
        row, linked_to, similarity: the removed rows, to which row each is most similar, and how much.
        thresholds: to try.
        in_force: the threshold in force.

    Returns:
        [{"threshold", "in_force", "at_least", "at_most"}], ascending.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, ends = np.unique(np.concatenate([row, linked_to]), return_inverse=True)
    ends = ends.reshape(2, -1)
    lines = []
    for threshold in sorted({in_force, *(value for value in thresholds if value > in_force)}):
        of = similarity >= threshold
        links = coo_array((np.ones(of.sum(), bool), (ends[0, of], ends[1, of])), shape=2 * (len(nodes),))
        groups = connected_components(links, directed=False)[0] if len(nodes) else 0
        here = threshold == in_force
        most = int(of.sum())
        least = most if here else min(most, len(nodes) - int(groups))
        lines.append({"threshold": threshold, "in_force": here, "at_least": least, "at_most": most})
    return lines


@dataclass(frozen=True)
class _Task:
    job: Job
    shard: Shard
    total: int
    bounds: Bounds
    others: Sequence[Alternative]


def _judge(task: _Task) -> WhatIf:
    job, rows = task.job, Rows(task.job, task.shard)
    chosen = _chosen(task.shard.first, task.shard.rows, task.total)
    part = rows.table.take(chosen)
    features = {name: values[chosen] for name, values in rows.features().items()}
    return judge(
        batch_of(part, job.columns, job.languages),
        features,
        list(features["row_language_0"]),
        input_objections(part),
        {step.section: step.load() for step in job.steps},
        job.policy,
        task.bounds,
        task.others,
    )


def run(judgement: Judgement, engine: Engine) -> dict[str, Any]:
    """What the report shows, of a run that has judged its rows: `table`, and `duplicate_lines` as "duplicates".

    The values to try are the steps' ``VARIATIONS``: field → values.
    """
    from hybrid_kernels.governance import thresholds

    job = judgement.decisions.job
    sections = {step.section: getattr(step.load(), "VARIATIONS", {}) for step in job.steps}

    def bounds(policy: GovernancePolicy) -> Bounds:
        found = thresholds.bounds(judgement.histograms, policy)
        return judgement.bounds if found == judgement.bounds else found  # one object is pickled once

    others = alternatives(job.policy, sections | {"thresholds": {"spread": SPREADS}}, bounds)
    shards = [shard for shard in judgement.shards if not shard.evaluation]
    chosen, total = sample([shard.rows for shard in shards])
    tasks = [_Task(job, shards[i], total, judgement.bounds, others) for i in chosen]
    found = WhatIf()
    for _, one in engine.map(_judge, tasks, "other thresholds"):
        found.merge(one)
    duplicates = []
    if judgement.decisions.copies is not None and job.policy.duplicates.enabled:
        copies = read_table(judgement.decisions.copies)
        copies = copies.filter(pc.invert(copies["leaked"]))
        row, linked_to, similarity = (copies[name].to_numpy() for name in ("row", "linked_to", "similarity"))
        duplicates = duplicate_lines(
            row, linked_to, similarity, SIMILARITIES, job.policy.duplicates.threshold
        )
    return table(found, others, job.policy, sum(shard.rows for shard in shards)) | {"duplicates": duplicates}
