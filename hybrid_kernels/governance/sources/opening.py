"""What the user names, as sources: files, folders, globs, data sets of the hub, rows in memory."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources.base import Source
from hybrid_kernels.governance.sources.delimited import Csv, Tsv
from hybrid_kernels.governance.sources.encodings import checked_encoding
from hybrid_kernels.governance.sources.json_lines import JsonLines
from hybrid_kernels.governance.sources.plain_text import PlainText
from hybrid_kernels.governance.sources.record_file import RecordFile
from hybrid_kernels.governance.sources.streams import COMPRESSIONS
from hybrid_kernels.governance.sources.tabular import InMemory, Parquet

Rows: TypeAlias = datasets.Dataset | Sequence[Mapping[str, Any]]
_HUB = "hub:"
_RECORD_FILES: dict[str, type[RecordFile]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonLines,
    ".csv": Csv,
    ".tsv": Tsv,
    ".txt": PlainText,
}
_KNOWN = f"{' '.join(_RECORD_FILES)}, each also with {' '.join(COMPRESSIONS)}, and .parquet"


def open_sources(
    inputs: Sequence[str | Path | Rows],
    columns: Columns,
    *,
    encoding: str = "utf-8",
    evaluation: bool = False,
) -> list[Source]:
    """Open all inputs and check what can be checked before any work.

    Args:
        inputs: files; folders, of which all data files are taken, sorted; globs, `**` too, sorted;
            `hub:NAME[/CONFIG][:SPLIT]` through `datasets.load_dataset`, NAME with its owner where CONFIG follows;
            `Dataset`s and lists of dictionaries.
        columns: which must be there; of evaluation sources the text columns alone.
        encoding: of all files but Parquet. A byte order mark of UTF-8 is passed over.
        evaluation: see `Source`.

    Raises:
        OSError: an input is not there or cannot be read.
        ValueError: no input, a glob or folder without a data file, an unknown suffix or encoding, a file twice, a
            column that is missing, no rows in memory.
        TypeError: an input is none of these, or a text column holds no strings.
    """
    if isinstance(inputs, (str, Path, Mapping, datasets.Dataset)) or not isinstance(inputs, Sequence):
        raise TypeError(
            f"inputs must be a list of paths or data sets, got {type(inputs).__name__}; put it into a list"
        )
    if not inputs:
        raise ValueError("inputs is empty; name at least one file or data set")
    encoding = checked_encoding(encoding)
    named: list[tuple[str, Path | Rows]] = []
    for i, one in enumerate(inputs):
        if isinstance(one, (str, Path)):
            named += _expand(one)
        else:
            named.append(("dataset" if len(inputs) == 1 else f"dataset-{i}", _checked_rows(one, i)))
    _check_unique([path for _, path in named if isinstance(path, Path)])
    outputs = output_names(
        [path if isinstance(path, Path) else Path(_file_name(name)) for name, path in named]
    )
    sources: list[Source] = []
    # Tasks that read a file may run in another folder.
    for (name, rows), output in zip(named, outputs, strict=True):
        if not isinstance(rows, Path):
            sources.append(InMemory(rows, name, output, columns, evaluation=evaluation))
        elif (suffixes := data_suffixes(rows)) == (".parquet", ""):
            sources.append(Parquet(rows.absolute(), name, output, columns, evaluation=evaluation))
        else:
            assert suffixes is not None
            kind, compression = _RECORD_FILES[suffixes[0]], suffixes[1]
            sources.append(
                kind(
                    rows.absolute(),
                    compression,
                    name,
                    output,
                    columns,
                    encoding=encoding,
                    evaluation=evaluation,
                )
            )
    return sources


def data_suffixes(path: Path) -> tuple[str, str] | None:
    """(suffix of the format, of the compression or ""); None: no data file."""
    suffix, compression = path.suffix.lower(), ""
    if suffix in COMPRESSIONS:
        compression, suffix = suffix, Path(path.stem).suffix.lower()
    if suffix in _RECORD_FILES or (suffix == ".parquet" and not compression):
        return suffix, compression
    return None


def output_names(paths: Sequence[Path]) -> list[str]:
    """File names, those that would be equal with as many of their folders before them as it takes."""
    names, taken = [path.name for path in paths], 1
    longest = max(len(path.parts) for path in paths)
    while clashing := {name for name, n in Counter(map(str.casefold, names)).items() if n > 1}:
        taken += 1
        for i, path in enumerate(paths):
            if names[i].casefold() in clashing:
                parts = [part.strip("/\\:") for part in path.parts[-taken:]]
                names[i] = (
                    "-".join(part for part in parts if part not in ("", ".."))
                    if taken <= longest
                    else f"{i}-{path.name}"
                )
    return names


def _expand(one: str | Path) -> list[tuple[str, Path | Rows]]:
    text = str(one)
    if text.startswith(_HUB):
        return [(text, _load(text))]
    path = Path(one)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
        files = [p for p in inside if data_suffixes(p)]
        if not files:
            there = f"; it has {', '.join(p.name for p in inside[:5])}" if inside else ""
            raise ValueError(f"folder {text} has no data file{there}. Data files end in {_KNOWN}")
    elif path.exists() or not glob.has_magic(text):
        files = [path]
    else:
        # Path.glob takes no absolute patterns.
        files = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file())  # noqa: PTH207
        if not files:
            raise ValueError(f"no file matches {text!r}")
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"no such file: {file}")
        if not file.is_file():
            raise OSError(f"{file} is no regular file")
        if data_suffixes(file) is None:
            raise ValueError(f"{file} has an unknown suffix {''.join(file.suffixes)!r}; known are {_KNOWN}")
    return [(str(file), file) for file in files]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _check_unique(paths: list[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        if (first := seen.setdefault(path.resolve(), path)) is not path:
            raise ValueError(f"{path} is there twice" + (f", as {first} too" if first != path else ""))


def _checked_rows(rows: Any, index: int) -> Rows:
    if isinstance(rows, datasets.Dataset) or (isinstance(rows, Sequence) and not isinstance(rows, bytes)):
        return rows
    raise TypeError(
        f"inputs[{index}] must be a path, a datasets.Dataset or a list of dictionaries, got {type(rows).__name__}"
        + ("; choose one of its splits" if isinstance(rows, datasets.DatasetDict) else "")
        + ("; put the list of rows into a list" if isinstance(rows, Mapping) else "")
    )


def _file_name(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in name.removeprefix(_HUB))
    return f"{kept.strip('-')}.parquet"


def _load(name: str) -> datasets.Dataset:
    repository, _, split = name.removeprefix(_HUB).partition(":")
    parts = repository.split("/")
    config = parts.pop() if len(parts) == 3 else None
    if not all(parts) or len(parts) > 2:
        raise ValueError(
            f"{name!r} names no data set; write hub:OWNER/NAME, hub:OWNER/NAME/CONFIG:SPLIT or hub:NAME"
        )
    try:
        loaded = datasets.load_dataset("/".join(parts), config, split=split or None)
    except Exception as error:  # whatever a data set's files, the network and the hub have to say
        raise OSError(f"{name} could not be loaded: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) > 1:
            raise ValueError(f"{name} has the splits {list(loaded)}; choose one: {name}:{next(iter(loaded))}")
        loaded = next(iter(loaded.values()))
    return loaded
