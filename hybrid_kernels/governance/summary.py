"""What became of the rows, counted: a `Tally` of each shard, merged to the summary of a run.

A tally stays small however many rows it counts: languages and reasons are few, and of examples it keeps the first ones
in the order of the inputs, so that shards can be merged in any order.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch, Objection

#: Steps in the order in which rows leave: a row is rejected by the first that objects.
STEPS = ("input", "quality", "language", "personal data", "perplexity", "duplicates", "leakage")
#: Examples of each reason, and of each side's text so many characters.
EXAMPLES, EXCERPT = 5, 300
#: A row without a language, and one that claims something that is no language code.
UNDETERMINED, MALFORMED = "und", "not a language code"

_CODE = re.compile(r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-[A-Z]{2})?")
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Other:
    """The row that a duplicate duplicates, or the evaluation row that a training row leaks.

    Attributes:
        source: name of its source.
        record: its place in the source.
        id: its name, where rows have one.
        texts: its texts.
    """

    source: str
    record: int
    texts: tuple[str | None, ...]
    id: str | None = None


@dataclass(frozen=True)
class Example:
    """A row that a reason speaks against (or flags). `row` is its running number over all inputs."""

    row: int
    source: str
    record: int
    id: str | None
    language: str
    texts: tuple[str, ...]
    column: str | None
    reason: str
    detail: str
    score: float | None
    bound: float | None
    other: Other | None

    def to_json(self) -> dict[str, Any]:
        return {"text": " | ".join(self.texts), **asdict(self)}


@dataclass
class Counts:
    """Rows of a language or a source. `rejected` is by the step that rejected them."""

    rows: int = 0
    flagged: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def merge(self, other: Counts) -> None:
        self.rows += other.rows
        self.flagged += other.flagged
        _add(self.rejected, other.rejected)

    def to_json(self) -> dict[str, Any]:
        rejected = sum(self.rejected.values())
        return {
            "rows": self.rows,
            "kept": self.rows - rejected,
            "rejected": rejected,
            "flagged": self.flagged,
            "by_step": dict(sorted(self.rejected.items(), key=lambda item: _position(item[0]))),
        }


@dataclass
class Tally:
    """Counts of rows and examples of reasons; can be pickled, and two of them added.

    Rows of evaluation sources, which are never judged, are not to be added.
    """

    total: Counts = field(default_factory=Counts)
    languages: dict[str, Counts] = field(default_factory=dict)
    sources: dict[str, Counts] = field(default_factory=dict)
    #: Step → rows that any of its reasons speaks against.
    objected: dict[str, int] = field(default_factory=dict)
    #: (step, reason) → rows it speaks against; those that nothing else speaks against; kept rows that it flags.
    reasons: dict[tuple[str, str], int] = field(default_factory=dict)
    alone: dict[tuple[str, str], int] = field(default_factory=dict)
    flags: dict[tuple[str, str], int] = field(default_factory=dict)
    #: (step, reason, whether it rejects) → the first `EXAMPLES` in the order of the inputs.
    examples: dict[tuple[str, str, bool], list[Example]] = field(default_factory=dict)
    #: Source of evaluation rows → training rows that duplicate one of them.
    leaked: dict[str, int] = field(default_factory=dict)
    #: Rows in a group of duplicates, the kept one too → such groups.
    group_sizes: dict[int, int] = field(default_factory=dict)
    #: Step → rows it has seen, and the seconds of all processes that took.
    cost: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(
        self,
        batch: Batch,
        objections: Iterable[Objection],
        languages: Sequence[str | None],
        *,
        source: str,
        first: int,
        records: Sequence[int] | None = None,
        ids: Sequence[str | None] | None = None,
        others: Mapping[int, Other] | None = None,
    ) -> NDArray[np.bool_]:
        """Count the rows of a batch. All objections to them have to be known, duplicates and leakage too.

        Args:
            batch: rows of one source, in its order.
            objections: what speaks against them, of all steps, in any order.
            languages: of each row (of the first text of a translation); None where it has none.
            source: the name of their source.
            first: running number, over all inputs, of the batch's first row.
            records: the rows' places in their source; None: `first` and on.
            ids: the rows' names.
            others: position → the other row, of duplicates and leaked rows.

        Returns:
            Which rows are kept.
        """
        rows, objections = len(batch), list(objections)
        keys = [language_key(language) for language in languages]
        rejecting = reason_masks(objections, rows)
        against = count_masks(rejecting, rows)
        kept = against == 0
        flagging = {key: mask & kept for key, mask in reason_masks(objections, rows, rejects=False).items()}
        for key, mask in rejecting.items():
            _count(self.reasons, key, mask)
            _count(self.alone, key, mask & (against == 1))
        for key, mask in flagging.items():
            _count(self.flags, key, mask)
        by_step = _by_step(rejecting)
        for step, mask in by_step.items():
            _count(self.objected, step, mask)

        flagged = count_masks(flagging, rows) > 0
        for code, counts in _by_language(keys, by_step, flagged).items():
            self.languages.setdefault(code, Counts()).merge(counts)
            self.sources.setdefault(source, Counts()).merge(counts)
            self.total.merge(counts)

        others = others or {}
        for position in np.flatnonzero(by_step.get("leakage", ())).tolist():
            if position in others:
                name = others[position].source
                self.leaked[name] = self.leaked.get(name, 0) + 1

        def example(objection: Objection, place: int) -> Example:
            position = int(objection.rows[place])
            paired = objection.step in ("duplicates", "leakage")
            return Example(
                row=first + position,
                source=source,
                record=int(records[position]) if records is not None else first + position,
                id=ids[position] if ids is not None else None,
                language=keys[position],
                texts=tuple(_excerpt(column[position] or "") for column in batch.texts),
                column=objection.column,
                reason=objection.reason,
                detail=_excerpt(objection.detail[place]),
                score=_finite(objection.score[place]),
                bound=_finite(objection.bound[place]),
                other=_cut(others[position]) if paired and position in others else None,
            )

        for objection in objections:
            shown = np.ones(len(objection.rows), bool) if objection.rejects else kept[objection.rows]
            found = [example(objection, place) for place in np.flatnonzero(shown)[:EXAMPLES].tolist()]
            self._keep_examples((objection.step, objection.reason, objection.rejects), found)
        return kept

    def _keep_examples(self, key: tuple[str, str, bool], found: Sequence[Example]) -> None:
        """The first few rows, each once, whichever of its columns a reason is about."""
        if not found:
            return
        by_row: dict[int, Example] = {}
        for example in sorted((*self.examples.get(key, ()), *found), key=lambda e: (e.row, e.column or "")):
            by_row.setdefault(example.row, example)
        self.examples[key] = list(by_row.values())[:EXAMPLES]

    def add_groups(self, sizes: Iterable[int]) -> None:
        """Count groups of duplicates by the rows in them, the kept one too (2 or more each)."""
        for size in sizes:
            self.group_sizes[int(size)] = self.group_sizes.get(int(size), 0) + 1

    def add_cost(self, step: str, rows: int, seconds: float) -> None:
        """Count the time of a step (or of "reading", "writing"): seconds of one process for so many rows."""
        before = self.cost.get(step, (0, 0.0))
        self.cost[step] = (before[0] + rows, before[1] + seconds)

    def merge(self, other: Tally) -> None:
        """Add what another tally counted; the order of merging makes no difference (but to the sum of seconds)."""
        self.total.merge(other.total)
        for mine, theirs in ((self.languages, other.languages), (self.sources, other.sources)):
            for name, counts in theirs.items():
                mine.setdefault(name, Counts()).merge(counts)
        _add(self.objected, other.objected)
        _add(self.reasons, other.reasons)
        _add(self.alone, other.alone)
        _add(self.flags, other.flags)
        _add(self.leaked, other.leaked)
        _add(self.group_sizes, other.group_sizes)
        for key, found in other.examples.items():
            self._keep_examples(key, found)
        for step, (rows, seconds) in other.cost.items():
            self.add_cost(step, rows, seconds)

    def to_json(self, languages: Sequence[str] = (), steps: Sequence[str] = ()) -> dict[str, Any]:
        """The summary.

        Args:
            languages: the wanted ones, which are listed even where they have no rows.
            steps: the steps that ran, which are listed even where they reject nothing.

        Returns:
            {"rows", "kept", "rejected", "flagged"}: of all rows; "flagged" are kept.
            "by_step": {step: {"rejected": rows it rejected, being the first to object, "objected": rows it objects to,
            "reasons": {reason: rows}, "alone": {reason: rows nothing else speaks against}}}.
            "by_language", "by_source": {name: {"rows", "kept", "rejected", "flagged", "by_step": {step: rejected}}}.
            "flags": {step: {reason: kept rows}}.
            "examples", "flag_examples": {step: [the fields of `Example`, and "text", its texts in one]}.
            "duplicate_groups": {size: groups}. "leakage": {evaluation source: training rows that duplicate one of it}.
            "cost": {step: {"rows", "seconds", "rows_per_second"}}, seconds of all processes together.
        """
        present = {step for step, _ in (*self.reasons, *self.flags)} | set(steps)
        order = sorted(present, key=_position)
        by_language = {code: Counts() for code in languages} | self.languages
        return {
            **{key: value for key, value in self.total.to_json().items() if key != "by_step"},
            "by_step": {
                step: {
                    "rejected": self.total.rejected.get(step, 0),
                    "objected": self.objected.get(step, 0),
                    "reasons": _of_step(self.reasons, step),
                    "alone": _of_step(self.alone, step),
                }
                for step in order
            },
            "by_language": {code: counts.to_json() for code, counts in sorted(by_language.items())},
            "by_source": {name: counts.to_json() for name, counts in self.sources.items()},
            "flags": {step: found for step in order if (found := _of_step(self.flags, step))},
            "examples": {step: self._examples_of(step, True) for step in order},
            "flag_examples": {step: shown for step in order if (shown := self._examples_of(step, False))},
            "duplicate_groups": {str(size): n for size, n in sorted(self.group_sizes.items())},
            "leakage": dict(sorted(self.leaked.items())),
            "cost": {
                step: {
                    "rows": rows,
                    "seconds": seconds,
                    "rows_per_second": rows / seconds if seconds else None,
                }
                for step, (rows, seconds) in self.cost.items()
            },
        }

    def _examples_of(self, step: str, rejects: bool) -> list[dict[str, Any]]:
        counts = _of_step(self.reasons if rejects else self.flags, step)
        return [
            example.to_json()
            for reason in counts
            for example in self.examples.get((step, reason, rejects), [])
        ]


def language_key(language: str | None) -> str:
    """Under what a row's language is counted: whatever a column claims, there are only so many."""
    if language is None:
        return UNDETERMINED
    return language if _CODE.fullmatch(language) else MALFORMED


def _position(step: str) -> int:
    if step not in STEPS:
        raise ValueError(f"a step is one of {', '.join(STEPS)}, got {step!r}")
    return STEPS.index(step)


def reason_masks(
    objections: Iterable[Objection], rows: int, rejects: bool = True
) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """(step, reason) → of so many rows those it is about, whichever of their columns; in the order of the steps."""
    masks: dict[tuple[str, str], NDArray[np.bool_]] = {}
    for objection in sorted(objections, key=lambda found: _position(found.step)):
        if objection.rejects is rejects and len(objection.rows):
            mask = masks.setdefault((objection.step, objection.reason), np.zeros(rows, bool))
            mask[objection.rows] = True
    return masks


def count_masks(masks: Mapping[tuple[str, str], NDArray[np.bool_]], rows: int) -> NDArray[np.int64]:
    """Of each row the reasons that are about it."""
    found = np.zeros(rows, np.int64)
    for mask in masks.values():
        found += mask
    return found


def _by_step(masks: Mapping[tuple[str, str], NDArray[np.bool_]]) -> dict[str, NDArray[np.bool_]]:
    found: dict[str, NDArray[np.bool_]] = {}
    for (step, _), mask in masks.items():
        found[step] = found[step] | mask if step in found else mask
    return found


def by_key(keys: Sequence[str], mask: NDArray[np.bool_]) -> dict[str, int]:
    """How often each key occurs where the mask is set."""
    return dict(Counter(itertools.compress(keys, mask.tolist())))


def _by_language(
    keys: Sequence[str], by_step: Mapping[str, NDArray[np.bool_]], flagged: NDArray[np.bool_]
) -> dict[str, Counts]:
    """`by_step` is in the order of the steps: the first that objects is the one that rejects."""
    found = {key: Counts(rows=number) for key, number in Counter(keys).items()}
    for key, number in by_key(keys, flagged).items():
        found[key].flagged = number
    left = np.ones(len(keys), bool)
    for step, mask in by_step.items():
        for key, number in by_key(keys, mask & left).items():
            found[key].rejected[step] = number
        left &= ~mask
    return found


def _count(counts: dict[_Key, int], key: _Key, mask: NDArray[np.bool_]) -> None:
    if number := int(np.count_nonzero(mask)):
        counts[key] = counts.get(key, 0) + number


def _add(counts: dict[_Key, int], more: Mapping[_Key, int]) -> None:
    for key, number in more.items():
        counts[key] = counts.get(key, 0) + number


def _of_step(counts: Mapping[tuple[str, str], int], step: str) -> dict[str, int]:
    """{reason: rows} of a step, the most frequent first, those of one frequency by name."""
    found = [(reason, number) for (owner, reason), number in counts.items() if owner == step]
    return dict(sorted(found, key=lambda item: (-item[1], item[0])))


def _excerpt(text: str) -> str:
    """`text` on one line, cut; only its beginning is read."""
    line = " ".join(text[: 4 * EXCERPT].split())
    return line if len(line) <= EXCERPT and len(text) <= 4 * EXCERPT else line[: EXCERPT - 1] + "…"


def _cut(other: Other) -> Other:
    return Other(other.source, other.record, tuple(_excerpt(text or "") for text in other.texts), other.id)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
