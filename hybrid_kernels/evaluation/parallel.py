"""Parallel text: `load_parallel` reads it, `directions` names what is to be translated, `expand` makes rows of it.

A *pair* is a dict with `id` (unique), `item` (the same for all translations of one sentence), `languages` (two codes)
and `texts`, by language. A *row* is one direction of a pair: `id`, `item`, `source_language`, `target_language`,
`source`, `target`. Pairs are what is cleaned and divided: both directions of one hold the same text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hybrid_kernels.training.data import read_lines

Row = dict[str, Any]
Direction = tuple[str, str]

# Languages (ISO 639-1): English name, as prompts give it, and FLORES-200's code.
LANGUAGES = {
    "ar": ("Arabic", "arb_Arab"),
    "bg": ("Bulgarian", "bul_Cyrl"),
    "de": ("German", "deu_Latn"),
    "el": ("Greek", "ell_Grek"),
    "en": ("English", "eng_Latn"),
    "es": ("Spanish", "spa_Latn"),
    "fr": ("French", "fra_Latn"),
    "hi": ("Hindi", "hin_Deva"),
    "ja": ("Japanese", "jpn_Jpan"),
    "ru": ("Russian", "rus_Cyrl"),
    "sw": ("Swahili", "swh_Latn"),
    "th": ("Thai", "tha_Thai"),
    "tr": ("Turkish", "tur_Latn"),
    "ur": ("Urdu", "urd_Arab"),
    "vi": ("Vietnamese", "vie_Latn"),
    "zh": ("Chinese", "zho_Hans"),
}
_FLORES_CODE = re.compile(r"^[a-z]{3}_[A-Z][a-z]{3}$")
# File names of one split that are not read as another: the evaluation rows may not be the training rows.
_OF_A_SPLIT = re.compile(r"(train|dev|devtest|valid|validation|test)(?![A-Za-z])")
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$")


def directions(languages: Sequence[str], wanted: str | Sequence[str] = "english") -> list[Direction]:
    """(source, target) pairs of language codes.

    Args:
        languages: codes.
        wanted: "english", from and into English for each other language; "all", every two languages both ways; or
            a list such as ["de-en", "fr-ru"].

    Raises ValueError for a language that is not among `languages`, or English missing where it is needed.
    """
    if len(set(languages)) < 2 or len(set(languages)) != len(languages):
        raise ValueError(f"languages must be at least two different codes, got {list(languages)!r}")
    if wanted == "english":
        if "en" not in languages:
            raise ValueError(f"languages must hold 'en' for directions with English, got {list(languages)!r}")
        return [d for other in languages if other != "en" for d in ((other, "en"), ("en", other))]
    if wanted == "all":
        return list(itertools.permutations(languages, 2))
    if isinstance(wanted, str):
        raise ValueError(f"wanted must be 'english', 'all' or a list such as ['de-en'], got {wanted!r}")
    found: list[Direction] = []
    for name in wanted:
        source, dash, target = name.partition("-")
        if not dash or source == target or not {source, target} <= set(languages):
            raise ValueError(
                f"direction {name!r} must be SOURCE-TARGET with two of the languages {', '.join(languages)}"
            )
        found.append((source, target))
    return list(dict.fromkeys(found))


def load_parallel(source: str | Path, split: str, wanted: Sequence[Direction]) -> list[Row]:
    """The pairs of a split that the directions wanted need.

    Args:
        source: a folder in FLORES-200's layout (`dev/deu_Latn.dev`); a folder with line-aligned files, one a
            language, named `NAME.LANG` or `NAME.LANG.txt`; a TSV file whose first line names the columns' languages,
            or a JSONL file, with one text a language in each record (directly or under `translation`); or a data
            set with such records on the hub, `owner/name` or `owner/name:configuration`.
        split: FLORES: "dev" or "devtest"; a hub data set's own. Of aligned files, those whose name begins with it as a
            whole word ("dev.de" for "dev", not "devtest.de"); if none does, those that name no split ("news.de"). A
            single file is one split, whatever it is called.
        wanted: directions of ISO 639-1 codes as in `LANGUAGES`, or of FLORES-200's.

    Pairs with a blank side are left out.

    Raises:
        FileNotFoundError: no such source, split or language in it.
        ValueError: files of different lengths, a record that cannot be read (with its line), no pair for a direction.
    """
    languages = list(dict.fromkeys(code for direction in wanted for code in direction))
    path = Path(source).expanduser()
    if path.is_dir():
        records = _aligned(_files(path, split, languages))
    elif path.is_file():
        records = _records(path)
    elif _HUB_NAME.match(str(source)) and not str(source).startswith("."):
        records = _hub_records(str(source), split)
    else:
        raise FileNotFoundError(
            f"parallel text {str(source)!r}: no such folder or file "
            "(allowed: a folder, a .tsv or .jsonl file, a hub name)"
        )
    couples = list(dict.fromkeys(tuple(sorted(direction)) for direction in wanted))
    pairs: list[Row] = []
    for item, texts in records:
        sides = {
            code: " ".join(texts[code].split()) for code in languages if isinstance(texts.get(code), str)
        }
        for first, second in couples:
            if sides.get(first) and sides.get(second):
                pairs.append(
                    {
                        "id": f"{split}-{item}-{first}-{second}",
                        "item": f"{split}-{item}",
                        "languages": [first, second],
                        "texts": {first: sides[first], second: sides[second]},
                    }
                )
    there = {tuple(pair["languages"]) for pair in pairs}
    if missing := ["-".join(couple) for couple in couples if couple not in there]:
        raise ValueError(
            f"parallel text {str(source)!r}, split {split!r} has no pair for {', '.join(missing)}"
        )
    return pairs


def expand(pairs: Iterable[Row], wanted: Sequence[Direction]) -> list[Row]:
    """The rows of the directions wanted, direction by direction, each in the order of the pairs."""
    by_languages: dict[frozenset[str], list[Row]] = defaultdict(list)
    for pair in pairs:
        by_languages[frozenset(pair["languages"])].append(pair)
    rows = []
    for source, target in wanted:
        for pair in by_languages[frozenset((source, target))]:
            rows.append(
                {
                    "id": f"{pair['item']}-{source}-{target}",
                    "item": pair["item"],
                    "source_language": source,
                    "target_language": target,
                    "source": pair["texts"][source],
                    "target": pair["texts"][target],
                }
            )
    return rows


def split_items(pairs: Sequence[Row], held: int | float, seed: int) -> tuple[list[Row], list[Row]]:
    """(the rest, held out): whole items, so that no sentence is on both sides in any language.

    Args:
        held: items to hold out, or a fraction of them below 1.

    The choice depends on the seed and the items' names alone. Raises ValueError where a side would be empty.
    """
    items = sorted({pair["item"] for pair in pairs}, key=lambda item: rank(seed, item))
    count = round(held * len(items)) if held < 1 else int(held)
    if not 0 < count < len(items):
        raise ValueError(f"held must leave something on both sides of {len(items)} items, got {held!r}")
    out = set(items[:count])
    return [p for p in pairs if p["item"] not in out], [p for p in pairs if p["item"] in out]


def sample_items(pairs: Sequence[Row], count: int, seed: int) -> list[Row]:
    """The pairs of `count` items, the same items for every two languages; a smaller sample is part of a larger one."""
    items = sorted({pair["item"] for pair in pairs}, key=lambda item: rank(seed, item))
    if not 0 < count <= len(items):
        raise ValueError(f"count must be from 1 to the number of items, {len(items)}, got {count}")
    chosen = set(items[:count])
    return [pair for pair in pairs if pair["item"] in chosen]


def rank(seed: int, item: str) -> bytes:
    """Sort key of a seeded order that does not change when items come or go."""
    return hashlib.blake2b(repr((seed, item)).encode()).digest()


# --- sources


def _files(folder: Path, split: str, languages: Sequence[str]) -> dict[str, Path]:
    """The file of each language."""
    codes = {code: LANGUAGES[code][1] if code in LANGUAGES else code for code in languages}
    if any(_FLORES_CODE.match(path.stem) for path in folder.glob("*/*.*")):
        if not (folder / split).is_dir():
            there = sorted(path.name for path in folder.iterdir() if path.is_dir())
            raise FileNotFoundError(
                f"folder {str(folder)!r} has no split {split!r}; it has {', '.join(there)}"
            )
        found = {code: folder / split / f"{flores}.{split}" for code, flores in codes.items()}
        if missing := [code for code, path in found.items() if not path.is_file()]:
            raise FileNotFoundError(f"folder {str(folder / split)!r} has no file for {', '.join(missing)}")
        return found
    found, whole = {}, re.compile(rf"{re.escape(split)}(?![A-Za-z0-9])")
    for code in languages:
        named = [
            path
            for path in sorted(folder.iterdir())
            if path.name.endswith((f".{code}", f".{code}.txt")) and path.is_file()
        ]
        own = [path for path in named if whole.match(path.name)]
        own = own or [path for path in named if not _OF_A_SPLIT.match(path.name)]
        if len(own) != 1:
            names = ", ".join(path.name for path in named) or "none"
            raise FileNotFoundError(
                f"folder {str(folder)!r} must have one file named like "
                f"{split}.{code} or NAME.{code}.txt, it has {names}"
            )
        found[code] = own[0]
    return found


def _aligned(files: dict[str, Path]) -> Iterator[tuple[str, dict[str, str]]]:
    # Split on line feeds only, as the files' other tools do.
    lines = {code: path.read_text(encoding="utf-8-sig").split("\n") for code, path in files.items()}
    lines = {code: side[:-1] if side[-1] == "" else side for code, side in lines.items()}
    counts = {str(files[code]): len(side) for code, side in lines.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{path} has {count}" for path, count in counts.items())
        raise ValueError(f"aligned files must have the same number of lines: {listed}")
    for number, texts in enumerate(zip(*lines.values(), strict=True), start=1):
        yield str(number), dict(zip(lines, texts, strict=True))


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    header: list[str] = []

    def parse(line: str) -> Row:
        if path.suffix == ".jsonl":
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"not a JSON object but {type(record).__name__}")
            return record
        columns = line.split("\t")
        if header and len(columns) != len(header):
            raise ValueError(f"{len(columns)} columns instead of {len(header)}")
        return dict(zip(header or map(str, range(len(columns))), columns, strict=True))

    if path.suffix not in (".jsonl", ".tsv"):
        raise ValueError(f"parallel text {str(path)!r} must be a .jsonl or .tsv file or a folder")
    for place, record in read_lines(path, parse):
        if "malformed" in record:
            raise ValueError(f"{path}:{place['line']}: {record['malformed']}")
        if path.suffix == ".tsv" and not header:
            header.extend(record.values())
            continue
        yield str(place["line"]), _texts(record)


def _hub_records(source: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    name, _, configuration = source.partition(":")
    try:
        data = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:
        raise FileNotFoundError(
            f"data set {source!r} is no folder here and could not be loaded from the hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    for number, record in enumerate(data, start=1):
        yield str(number), _texts(record)


def _texts(record: Row) -> dict[str, Any]:
    """Texts by language code; FLORES's columns on the hub are `sentence_deu_Latn`."""
    texts = record.get("translation", record)
    by_flores = {flores: code for code, (_, flores) in LANGUAGES.items()}
    plain = {name.removeprefix("sentence_"): text for name, text in texts.items()}
    return plain | {by_flores[name]: text for name, text in plain.items() if name in by_flores}
