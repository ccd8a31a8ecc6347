"""Natural language inference data: loading, few-shot sampling, splitting without leakage.

A row is a dict with `id` (unique), `item` (the same for the translations of one pair), `language`, `premise`,
`hypothesis`, `label` (0 entailment, 1 neutral, 2 contradiction) and whatever else its JSONL record carried.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

Row = dict[str, Any]

LABELS = ("entailment", "neutral", "contradiction")
# MultiNLI's translated training files say "contradictory".
_LABEL_IDS = {name: i for i, name in enumerate(LABELS)} | {"contradictory": 2, "0": 0, "1": 1, "2": 2}
SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parents[1] / "samples" / "nli"
_SPLIT_ALIASES = {"validation": "dev", "valid": "dev"}
_FILE_NAME = re.compile(
    r"^(?:.*[-_.])?(?P<split>train|dev|validation|valid|test)(?:[-_.](?P<language>[a-z]{2,3}))?\.(?:jsonl|tsv)$"
)
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass
class NliData:
    """Rows, and the records that could not be made into rows: dicts with `file`, `line`, `reason`, `text`.

    `linked`: whether translations of a pair have one item; not where a file has lines in several languages that name no
    item, each of which is then one of its own.
    """

    rows: list[Row] = field(default_factory=list)
    malformed: list[Row] = field(default_factory=list)
    linked: bool = True

    @property
    def languages(self) -> list[str]:
        return sorted({row["language"] for row in self.rows})


def load_nli(
    source: str | Path,
    split: str,
    languages: list[str] | None = None,
    *,
    rows_per_language: int | None = None,
) -> NliData:
    """Loads one split of an NLI data set.

    Args:
        source: `"sample"` (the one in this package); a folder with files named by split and language, such as
            `dev-sw.tsv` (premise, hypothesis, label; no header needed) or `train-de.jsonl`, or with the language in
            each JSONL record; a folder or hub name that `datasets` loads, such as `facebook/xnli`. A record's `item` is
            the number of its line if it has none.
        split: `"train"`, `"dev"` (also called validation) or `"test"`.
        languages: the languages wanted; all that are there if None.
        rows_per_language: keep only so many first records of each language.

    Raises:
        FileNotFoundError: no such folder, no such split in it.
        ValueError: a language is not there, or no record of the split is usable.
    """
    split = _SPLIT_ALIASES.get(split, split)
    folder = _folder(source)
    if folder is None:
        records = _hub_records(str(source), split, languages, rows_per_language)
    else:
        records = _folder_records(folder, split)
    data = NliData()
    wanted = None if languages is None else set(languages)
    counts: dict[str, int] = defaultdict(int)
    seen: set[str] = set()
    ids: set[str] = set()
    unnamed: dict[str, set[str]] = defaultdict(set)  # languages of each file's lines without an item
    line = None
    for place, record in records:
        language = record.get("language")
        if isinstance(language, str):
            if "item" not in record and place != line:  # a line may hold all translations of its pair
                unnamed[place["file"]].add(language)
            line = place
            seen.add(language)
            counts[language] += 1
            if (wanted is not None and language not in wanted) or counts[language] > (
                rows_per_language or 1e18
            ):
                continue
        row_id = str(record.get("id", f"{split}-{language}-{place['line']}"))
        reason = record.get("malformed") or _why_malformed(record)
        if reason is None and row_id in ids:
            reason = f"id {row_id!r} was used before"
        if reason:
            text = record.get("text") or json.dumps(record, ensure_ascii=False, default=str)
            data.malformed.append({**place, "reason": reason, "text": text[:500]})
        else:
            ids.add(row_id)
            item = str(record.get("item", place["line"]))
            label = _LABEL_IDS[str(record["label"]).strip().lower()]
            data.rows.append({**record, "id": row_id, "item": item, "label": label})
    data.linked = all(len(languages) == 1 for languages in unnamed.values())
    if missing := sorted((wanted or set()) - seen):
        raise ValueError(
            f"data source {str(source)!r}, split {split!r} has no rows in {', '.join(missing)}; "
            f"it has {', '.join(sorted(seen)) or 'no language at all'}"
        )
    if not data.rows:
        first = data.malformed[0] if data.malformed else None
        detail = f"; the first problem is {first['file']}:{first['line']}: {first['reason']}" if first else ""
        raise ValueError(f"data source {str(source)!r}, split {split!r} has no usable row{detail}")
    return data


def available_splits(source: str | Path) -> list[str]:
    """The splits of a data source, out of `["dev", "test", "train"]`."""
    folder = _folder(source)
    if folder is not None:
        return sorted({split for split, _, _ in _split_files(folder)})
    import datasets

    config = _call_datasets(str(source), datasets.get_dataset_config_names, str(source))[0]
    names = _call_datasets(str(source), datasets.get_dataset_split_names, str(source), config)
    return sorted({_SPLIT_ALIASES.get(name, name) for name in names} & {"train", "dev", "test"})


def clusters(rows: Sequence[Row], column: str) -> list[str]:
    """The group of each row: rows of one group are not independent of one another.

    Rows belong together if they share an item (translations of one pair) or, within a language, the text in `column`.
    A group has the name of its first item in the alphabet, whatever the order of the rows.
    """
    parent: dict[tuple[str, ...], tuple[str, ...]] = {}

    def root(key: tuple[str, ...]) -> tuple[str, ...]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for row in rows:
        # The lesser root stays root, and an item is less than a text.
        first, second = sorted((root(("item", row["item"])), root(("text", row["language"], row[column]))))
        parent[second] = first
    return [root(("item", row["item"]))[1] for row in rows]


def split_by_premise(rows: list[Row], evaluation_fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Splits rows into (train, evaluation) such that no premise, in any language, is on both sides.

    The `clusters` by premise go to the evaluation side in a seeded order until it has at least `evaluation_fraction` of
    the rows.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(clusters(rows, "premise")):
        groups[name].append(index)
    evaluation: set[int] = set()
    for group in sorted(groups, key=lambda name: _rank(seed, "item", name)):
        if len(evaluation) >= evaluation_fraction * len(rows):
            break
        evaluation.update(groups[group])
    if len(evaluation) == len(rows):
        raise ValueError(
            f"the {len(rows)} rows cannot be split for training and evaluation: they share premises or items "
            f"such that they form {len(groups)} group(s); give the data an `item` field or a split of its own"
        )
    train = [row for i, row in enumerate(rows) if i not in evaluation]
    return train, [row for i, row in enumerate(rows) if i in evaluation]


def sample_shots(rows: list[Row], shots: int | None, seed: int, *, same_items: bool = False) -> list[Row]:
    """`shots` rows of each language, balanced over labels; all rows if None. In the order of `rows`.

    The order of preference depends on the seed and a row's id alone; with `same_items` on its item, so that each
    language gets the translations of the same pairs. So a smaller sample is part of a larger one, and removing one row
    (as governance does) changes no other choice beyond its replacement.
    """
    if shots is None:
        return rows
    by_label: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))

    def key(row: Row) -> bytes:
        return _rank(seed, row["item"]) if same_items else _rank(seed, row["language"], row["id"])

    for row in sorted(rows, key=key):
        by_label[row["language"]][row["label"]].append(row)
    chosen: set[int] = set()
    for labels in by_label.values():
        in_turn = [
            row for turn in zip_longest(*(labels[label] for label in sorted(labels))) for row in turn if row
        ]
        chosen.update(id(row) for row in in_turn[:shots])
    return [row for row in rows if id(row) in chosen]


def _rank(seed: int, *key: str) -> bytes:
    return hashlib.blake2b(repr((seed, *key)).encode()).digest()


def _why_malformed(record: Row) -> str | None:
    for name in ("premise", "hypothesis", "language"):
        if name not in record:
            return f"no field {name!r}"
        if not isinstance(record[name], str):
            return f"field {name!r} is not text"
    if "label" not in record:
        return "no field 'label'"
    if str(record["label"]).strip().lower() not in _LABEL_IDS:
        return f"unknown label {record['label']!r} (known: {', '.join(LABELS)}, 0, 1, 2)"
    return None


# --- folders


def _folder(source: str | Path) -> Path | None:
    """The folder that `source` names, or None where it can only be a hub name or a folder for `datasets`."""
    if source == SAMPLE:
        return SAMPLE_FOLDER
    path = Path(source).expanduser()
    if path.is_dir():
        if _split_files(path):
            return path
        if any(path.rglob("*.parquet")):
            return None
        raise FileNotFoundError(
            f"data folder {str(path)!r} has no file named like train.jsonl, dev-en.tsv, test-sw.jsonl or *.parquet"
        )
    if path.exists():
        raise ValueError(f"data source {str(path)!r} is a file; name the folder it is in")
    if not _HUB_NAME.match(str(source)) or str(source).startswith("."):
        raise FileNotFoundError(
            f"data source {str(source)!r}: no such folder "
            f"(allowed: {SAMPLE!r}, a folder, a hub name such as facebook/xnli)"
        )
    return None


def _split_files(folder: Path) -> list[tuple[str, str | None, Path]]:
    """(split, language or None, file) of every data file of a folder, by name."""
    matches = [(_FILE_NAME.match(path.name), path) for path in sorted(folder.iterdir())]
    return [
        (_SPLIT_ALIASES.get(match["split"], match["split"]), match["language"], path)
        for match, path in matches
        if match
    ]


def _folder_records(folder: Path, split: str) -> Iterator[tuple[Row, Row]]:
    files = [(language, path) for name, language, path in _split_files(folder) if name == split]
    if not files:
        there = sorted({name for name, _, _ in _split_files(folder)})
        raise FileNotFoundError(
            f"data folder {str(folder)!r} has no {split!r} split; it has {', '.join(there)}"
        )
    for language, path in files:
        for place, record in read_lines(path, _parse_jsonl if path.suffix == ".jsonl" else _parse_tsv):
            if place["line"] == 1 and str(record.get("label")).lower() in ("label", "gold_label"):
                continue
            if language is not None:
                record["language"] = language
            yield place, record


def read_jsonl(path: Path) -> tuple[list[Row], list[Row]]:
    """(records of a JSONL file, its malformed lines as in `NliData`)."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    rows, malformed = [], []
    for place, record in read_lines(path, _parse_jsonl):
        if "malformed" in record:
            malformed.append({**place, "reason": record["malformed"], "text": record["text"][:500]})
        else:
            rows.append(record)
    return rows, malformed


def read_lines(path: Path, parse: Callable[[str], Row]) -> Iterator[tuple[Row, Row]]:
    """(place, record) of each line that is not blank; a line that is no record yields `malformed` and `text`."""
    # Split on line feeds only: JSON text may hold other line separators as they are.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse(line.decode("utf-8-sig").rstrip("\r"))
        except UnicodeDecodeError as error:
            record = {"malformed": f"not UTF-8 (byte {error.start})", "text": line.decode(errors="replace")}
        except ValueError as error:
            record = {"malformed": str(error), "text": line.decode()}
        yield {"file": str(path), "line": number}, record


def _parse_jsonl(line: str) -> Row:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {type(record).__name__}")
    return record


def _parse_tsv(line: str) -> Row:
    columns = line.split("\t")
    if len(columns) != 3:
        raise ValueError(f"{len(columns)} columns instead of 3 (premise, hypothesis, label)")
    return dict(zip(("premise", "hypothesis", "label"), columns, strict=True))


# --- data sets of the hub


def _hub_records(
    source: str, split: str, languages: list[str] | None, limit: int | None
) -> Iterator[tuple[Row, Row]]:
    import datasets

    configs = _call_datasets(source, datasets.get_dataset_config_names, source)
    if "all_languages" in configs and languages is None:
        languages = [name for name in configs if name != "all_languages"] or None
    per_language = [name for name in languages or [] if name in configs]
    if languages and set(per_language) == set(languages):
        chosen: list[tuple[str, str | None]] = [(name, name) for name in per_language]
    else:
        chosen = [("all_languages" if "all_languages" in configs else configs[0], None)]
    for config, language in chosen:
        names = _call_datasets(source, datasets.get_dataset_split_names, source, config)
        hub_split = next((name for name in names if _SPLIT_ALIASES.get(name, name) == split), None)
        if hub_split is None:
            raise FileNotFoundError(f"data set {source!r} has no {split!r} split; it has {', '.join(names)}")
        data = _call_datasets(source, datasets.load_dataset, source, config, split=hub_split)
        label_names = getattr(data.features.get("label"), "names", None)
        if limit is not None and (language is not None or config == "all_languages"):
            data = data.select(range(min(limit, len(data))))
        for index, record in enumerate(data):
            if label_names and isinstance(record["label"], int) and 0 <= record["label"] < len(label_names):
                record["label"] = label_names[record["label"]]
            place = {"file": f"{source}/{config}/{hub_split}", "line": index + 1}
            if isinstance(record.get("premise"), dict):
                yield from ((place, one) for one in _translations(record))
            else:
                yield place, record if language is None else {**record, "language": language}


def _translations(record: Row) -> Iterator[Row]:
    """The rows of one record of facebook/xnli's configuration `all_languages`."""
    hypotheses = dict(zip(record["hypothesis"]["language"], record["hypothesis"]["translation"], strict=True))
    for language, premise in record["premise"].items():
        yield {
            "language": language,
            "premise": premise,
            "hypothesis": hypotheses.get(language),
            "label": record["label"],
        }


def _call_datasets(source: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function of `datasets`; whatever goes wrong becomes one readable error."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise FileNotFoundError(
            f"data set {source!r} is no folder here and could not be loaded from the hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def write_jsonl(rows: Iterable[Row], path: Path) -> None:
    """One JSON object a line, atomically."""
    from hybrid_kernels._files import write_file

    write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
