"""Duplicates and leaked rows, as objections to the rows of a shard and with the row that each is a copy of."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels._files import write_file
from hybrid_kernels.governance.batch import Objection
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.steps import Shard
from hybrid_kernels.governance.storage import RowStore, read_table, write_table
from hybrid_kernels.governance.summary import Other
from hybrid_kernels.governance.text import excerpt

_REASONS = {
    ("duplicates", True): "exact duplicate",
    ("duplicates", False): "near duplicate",
    ("leakage", True): "exact duplicate of an evaluation row",
    ("leakage", False): "near duplicate of an evaluation row",
}


@dataclass(frozen=True)
class Places:
    """Where every row of a run is; cheap to pickle.

    Attributes:
        store: the rows of all shards, evaluation ones too.
        shards: theirs, in the same order.
        sources: names of the sources.
        masking: the policy whose personal data is not to be shown; None: all is.
    """

    store: RowStore
    shards: Sequence[Shard]
    sources: Sequence[str]
    masking: GovernancePolicy | None = None

    def name(self, row: int) -> dict[str, Any]:
        """Source, record and id of a row."""
        number, position = self.store.place(row)
        table = read_table(self.store.shards[number])
        return {
            "source": self.sources[self.shards[number].source],
            "record": table["record"][position].as_py(),
            "id": table["id"][position].as_py(),
        }

    def texts(self, row: int) -> tuple[str, ...]:
        """To be shown."""
        texts = tuple(text or "" for text in self.store.texts(row))
        if self.masking is None:
            return texts
        from hybrid_kernels.governance import personal

        number, position = self.store.place(row)
        table = read_table(self.store.shards[number])
        claims = [table[f"expected_{i}"][position].as_py() for i in range(len(texts))]
        return tuple(
            personal.masked(text, self.masking, claim) for text, claim in zip(texts, claims, strict=True)
        )

    def other(self, row: int) -> Other:
        return Other(texts=self.texts(row), **self.name(row))


def save_places(places: Places, folder: Path) -> Path:
    content = pickle.dumps(places)
    path = folder / "places" / f"{hashlib.blake2b(content, digest_size=10).hexdigest()}.pickle"
    write_file(path, content)
    return path


@lru_cache(maxsize=2)
def load_places(path: Path) -> Places:
    """Read once a process, so that a task need not carry what grows with the number of shards."""
    places: Places = pickle.loads(path.read_bytes())
    return places


@dataclass(frozen=True)
class Copies(Mapping[int, Other]):
    """Of the copies among the rows of a shard: position → the row it is a copy of, read when it is asked for.

    Attributes:
        rows: positions of the copies, ascending.
        duplicate_of, linked_to: running numbers of the kept row, and of the row that it was found similar to.
        similarity: to the latter.
        exact, leaked: normalised texts are equal; the kept row is an evaluation row.
    """

    places: Places
    rows: NDArray[np.int64]
    duplicate_of: NDArray[np.int64]
    linked_to: NDArray[np.int64]
    similarity: NDArray[np.float64]
    exact: NDArray[np.bool_]
    leaked: NDArray[np.bool_]

    def __getitem__(self, position: int) -> Other:
        link = self.link(position)
        if link is None:
            raise KeyError(position)
        return self.places.other(link[0])

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows.tolist())

    def __len__(self) -> int:
        return len(self.rows)

    def link(self, position: int) -> tuple[int, int, float] | None:
        """(kept row, row it is similar to, similarity) of a copy; None: it is none."""
        place = int(np.searchsorted(self.rows, position))
        if place == len(self.rows) or self.rows[place] != position:
            return None
        return int(self.duplicate_of[place]), int(self.linked_to[place]), float(self.similarity[place])

    def objections(self, policy: GovernancePolicy) -> list[Objection]:
        found = []
        for (step, exact), reason in _REASONS.items():
            chosen = (self.exact == exact) & (self.leaked == (step == "leakage"))
            if chosen.any():
                threshold = (policy.leakage if step == "leakage" else policy.duplicates).threshold
                rows, score = self.rows[chosen], self.similarity[chosen]
                detail = [
                    f"Jaccard similarity {similarity:.2f} with: {self._text(row)}"
                    for similarity, row in zip(score.tolist(), self.linked_to[chosen].tolist(), strict=True)
                ]
                bound = np.full(len(rows), threshold)
                found.append(Objection(step, reason, None, rows, score, bound, detail))
        return found

    def _text(self, row: int) -> str:
        return " | ".join(excerpt(text) for text in self.places.texts(row))


def write_copies(path: Path, found: Any, seconds: float) -> None:
    """Of `duplicates.Found`, and the seconds it took."""
    columns = {
        name: getattr(found, name) for name in ("row", "duplicate_of", "linked_to", "similarity", "exact")
    }
    columns["leaked"] = found.kind == "leakage"
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    write_table(table.replace_schema_metadata({"seconds": repr(seconds)}), path)


def copies_seconds(path: Path) -> float:
    return float(read_table(path).schema.metadata[b"seconds"])


def group_sizes(path: Path) -> list[int]:
    """Rows of each group of duplicates, the kept one too."""
    table = read_table(path)
    kept = table["duplicate_of"].to_numpy()[~table["leaked"].to_numpy(zero_copy_only=False)]
    return (np.unique(kept, return_counts=True)[1] + 1).tolist()


def copies_in(path: Path | None, places: Places, shard: Shard) -> Copies:
    """Of the copies listed in the file at `path` those in `shard`; none without a file."""
    if path is None:
        none = np.zeros(0, np.int64)
        return Copies(places, none, none, none, none.astype(float), none.astype(bool), none.astype(bool))
    table = read_table(path)
    rows = table["row"].to_numpy()
    first, last = np.searchsorted(rows, [shard.first, shard.first + shard.rows])
    part = {name: table[name].slice(first, last - first).to_numpy() for name in table.column_names}
    return Copies(
        places,
        part["row"] - shard.first,
        part["duplicate_of"],
        part["linked_to"],
        part["similarity"],
        part["exact"],
        part["leaked"],
    )
