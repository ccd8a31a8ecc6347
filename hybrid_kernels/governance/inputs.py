"""What `govern` accepts, checked before any work is done."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hybrid_kernels.governance.language import supported_languages

VERDICT_COLUMNS = ("rejected_by", "reason", "detail", "score", "duplicate_of")


def checked_names(argument: str, names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument} must be a sequence of strings, got {names!r}")
    unique = list(dict.fromkeys(names))
    if not unique:
        raise ValueError(f"{argument} is empty; name at least one")
    return unique


def checked_languages(languages: Sequence[str]) -> list[str]:
    languages = checked_names("languages", languages)
    if unknown := [code for code in languages if code not in supported_languages()]:
        raise ValueError(
            f"unknown language codes {unknown} in languages; known are {list(supported_languages())}"
        )
    return languages


def check_columns(
    rows: Dataset, text_columns: list[str], language_column: str | None, id_column: str | None
) -> None:
    if len(rows) == 0:
        raise ValueError("dataset has no rows")
    named = [("text_columns", name) for name in text_columns]
    named += [("language_column", language_column)] if language_column is not None else []
    named += [("id_column", id_column)] if id_column is not None else []
    for argument, name in named:
        if name not in rows.column_names:
            raise ValueError(
                f"{argument}: no column {name!r} in the data set; its columns are {rows.column_names}"
            )
    for name in text_columns:
        feature = rows.features[name]
        if getattr(feature, "dtype", None) not in ("string", "large_string", "null"):
            raise TypeError(f"text_columns: column {name!r} holds {feature}, not strings")
    added = [*VERDICT_COLUMNS, *(["language"] if language_column is None else [])]
    if taken := [name for name in added if name in rows.column_names]:
        raise ValueError(
            f"columns {taken} of the data set are what govern adds; rename them"
            + (" or pass language_column='language'" if "language" in taken else "")
        )


def as_dataset(
    dataset: Dataset | Sequence[Mapping[str, Any]], text_columns: list[str]
) -> tuple[Dataset, dict[int, str]]:
    """`dataset` as a Dataset, and what is wrong with each text that cannot be stored (null there), by row."""
    if isinstance(dataset, Dataset):
        return dataset.with_format(None), {}
    if not isinstance(dataset, Sequence) or isinstance(dataset, (str, bytes)):
        raise TypeError(
            f"dataset must be a datasets.Dataset or a list of dictionaries, got {type(dataset).__name__}"
            + ("; choose one of its splits" if isinstance(dataset, dict) else "")
        )
    if not dataset:
        raise ValueError("dataset has no rows")
    names: dict[str, None] = {}
    for index, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            raise TypeError(f"dataset: row {index} is no dictionary but {type(row).__name__}: {row!r:.80}")
        names.update(dict.fromkeys(row))
    invalid: dict[int, str] = {}
    columns = {}
    for name in names:
        values = [row.get(name) for row in dataset]
        if name in text_columns:
            for index, value in enumerate(values):
                if value is not None and (problem := _not_text(value)):
                    invalid.setdefault(index, f"{name} {problem}")
                    values[index] = None
        try:
            columns[name] = pa.array(values, pa.string() if name in text_columns else None)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
            raise TypeError(f"dataset: column {name!r} cannot be stored in one type: {error}") from None
    return Dataset(pa.table(columns)), invalid


def _not_text(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"is {type(value).__name__}: {value!r:.80}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"holds a lone surrogate: {value!a:.80}"
    return None
