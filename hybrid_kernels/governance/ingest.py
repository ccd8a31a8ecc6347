"""Sources into shards on disk; a source that was read in part is read on from there, one that is there not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from hybrid_kernels._files import write_file
from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.steps import content_key
from hybrid_kernels.governance.storage import read_table, write_table


class Readable(Protocol):
    """What is asked of a source here; see `hybrid_kernels.governance.sources.base.Source`."""

    name: str
    output_name: str
    evaluation: bool

    def batches(self, start: dict[str, int] | None = None) -> Iterator[tuple[pa.Table, dict[str, int]]]: ...

    def fingerprint(self) -> dict[str, Any]: ...


def source_keys(sources: Sequence[Readable], columns: Columns, revision: Any) -> list[str]:
    """Of each source: what its shards depend on; the name of their folder."""
    names = [columns.texts, columns.expected, columns.id]
    return [
        content_key(source.fingerprint(), source.output_name, source.evaluation, names, revision)
        for source in sources
    ]


def shards_of(source: Readable, folder: Path) -> Iterator[tuple[str, int]]:
    """(file name, rows) of each shard of a source in `folder`, written as far as it is not there yet."""
    done = folder / "done.json"
    if done.exists():
        for number, rows in enumerate(json.loads(done.read_text(encoding="utf-8"))):
            yield _name(number), rows
        return
    counts: list[int] = []
    position = None
    while (path := folder / _name(len(counts))).exists():
        table = read_table(path)
        position = json.loads(table.schema.metadata[b"position"])
        yield path.name, len(table)
        counts.append(len(table))
    for table, position in source.batches(position):
        path = folder / _name(len(counts))
        write_table(table.replace_schema_metadata({"position": json.dumps(position)}), path)
        counts.append(len(table))
        yield path.name, len(table)
    write_file(done, json.dumps(counts))


def _name(number: int) -> str:
    return f"{number:06d}.arrow"
