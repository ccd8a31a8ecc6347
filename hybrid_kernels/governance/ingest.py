"""Sources into shards on disk; a source that was read in part is read on from there, one that is there not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
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


def source_keys(
    sources: Sequence[Readable],
    fingerprints: Sequence[Mapping[str, Any]],
    columns: Columns,
    revision: Any,
) -> list[str]:
    """Of each source: what its shards depend on; the name of their folder."""
    names = [columns.texts, columns.expected, columns.id]
    return [
        content_key(dict(fingerprint), source.output_name, source.evaluation, names, revision)
        for source, fingerprint in zip(sources, fingerprints, strict=True)
    ]


def shards_of(source: Readable, folder: Path) -> Iterator[tuple[str, int, float]]:
    """(file name, rows, seconds to read them) of each shard of a source; those that are not there are written."""
    done = folder / "done.json"
    if done.exists():
        for name, rows, seconds in json.loads(done.read_text(encoding="utf-8")):
            yield name, rows, seconds
        return
    shards: list[tuple[str, int, float]] = []
    start = None
    while (path := folder / _name(len(shards))).exists():
        table = read_table(path)
        start, seconds = json.loads(table.schema.metadata[b"read"])
        shards.append((path.name, len(table), seconds))
        yield shards[-1]
    started = time.process_time()
    for table, position in source.batches(start):
        path = folder / _name(len(shards))
        seconds = time.process_time() - started
        write_table(table.replace_schema_metadata({"read": json.dumps([position, seconds])}), path)
        shards.append((path.name, len(table), seconds))
        yield shards[-1]
        started = time.process_time()
    write_file(done, json.dumps(shards))


def _name(number: int) -> str:
    return f"{number:06d}.arrow"
