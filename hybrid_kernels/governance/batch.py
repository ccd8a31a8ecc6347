"""What the steps of governance hand each other: a batch of rows, features of it, objections to it.

A step is three functions, in a module of its own:

    fields(columns, policy) -> dict[str, pa.DataType]              the features it adds, by name
    measure(batch, policy) -> dict[str, NDArray | list]            dear and pure: one value a row and feature
    objections(batch, features, policy, bounds) -> list[Objection] cheap: what speaks against a row

Features are kept on disk, so that another threshold costs no second reading, and so that a report can say what another
threshold would do. What `measure` computes may depend on the fields of the policy that its module names in ``MEASURED``
and on nothing else; what only `objections` reads may change without a feature being computed again. A feature of one
text column has the column's position behind its name, ``digits_0``; one of the row has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Of a feature's values, one a row; NaN (or None in a list) where a row has none, a text that is missing, say.
Features: TypeAlias = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        texts: the text columns, one or two.
        expected: where each text's language stands: a column's name, the same for both or one each; empty: nowhere.
        id: a column that names rows; None: its source and place do.
        translation: the two text columns are translations of each other (else a pair in one language, as in NLI).
    """

    texts: tuple[str, ...]
    expected: tuple[str, ...] = ()
    id: str | None = None
    translation: bool = False

    @property
    def kind(self) -> Literal["text", "pair", "translation"]:
        if len(self.texts) == 1:
            return "text"
        return "translation" if self.translation else "pair"


@dataclass(frozen=True)
class Batch:
    """Some rows, column by column; all lists have the same length.

    Attributes:
        texts: per text column its texts; None where there is none (missing, not a string, a malformed record).
        expected: per text column the language each text claims to be in; None where it claims none.
        columns: which columns these are.
        languages: the wanted languages, `en`, or with a script, `zh-Hant`, `hi-Latn`.
    """

    texts: tuple[list[str | None], ...]
    expected: tuple[list[str | None], ...]
    columns: Columns
    languages: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts[0])


@dataclass(frozen=True)
class Objection:
    """What one rule has against rows of a batch.

    Attributes:
        step: as in `summary.STEPS`, `quality` say.
        reason: countable, a few words: "too short".
        column: the text column it is about; None: the row.
        rows: positions in the batch, ascending, int64.
        score, bound: per position the value that decided and what it was held against, float64; NaN: none.
        detail: per position a sentence for a reader, without the column's name.
        rejects: False: the rows are flagged, and kept.
    """

    step: str
    reason: str
    column: str | None
    rows: NDArray[np.int64]
    score: NDArray[np.float64]
    bound: NDArray[np.float64]
    detail: list[str]
    rejects: bool = True


@dataclass(frozen=True)
class Range:
    """What a feature of one language may be; −inf or inf where it is not bounded on that side."""

    low: float = -np.inf
    high: float = np.inf


#: (feature, language) → what it may be, from the data and the policy (`thresholds.bounds`). Language None: all others.
Bounds: TypeAlias = dict[tuple[str, str | None], Range]
