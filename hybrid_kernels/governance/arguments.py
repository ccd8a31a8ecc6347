"""What `govern` and `govern_files` are given, checked before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.output import added_columns
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.sources import Source

#: Columns that `govern` adds to rejected rows.
VERDICT_COLUMNS = ("rejected_by", "reason", "detail", "score", "duplicate_of", "reasons")


def make_columns(
    texts: Sequence[str],
    language_column: str | Sequence[str] | None,
    expected: Sequence[str] | None,
    translation: bool,
    id_column: str | None,
) -> Columns:
    """Checks what is named, and that it goes together."""
    names = _names("text_columns", texts)
    if len(names) > 2:
        raise ValueError(f"text_columns must be one column or two, got {len(names)}: {', '.join(names)}")
    if translation and len(names) != 2:
        raise ValueError(f"translation needs two text columns, got {', '.join(names)}")
    if language_column is not None and expected is not None:
        raise ValueError("give either language_column or expected, not both")
    claims: list[str] = []
    if language_column is not None:
        one = [language_column] if isinstance(language_column, str) else language_column
        claims = _names("language_column", one)
    elif expected is not None:
        listed = [expected] if isinstance(expected, str) else list(expected)
        claims = [f"={code}" for code in listed]
    argument = "expected" if language_column is None else "language_column"
    if len(claims) not in (0, 1, len(names)):
        raise ValueError(f"{argument} must name one or, for each text column, one; got {len(claims)}")
    if translation and len(claims) == 1:
        raise ValueError(f"{argument} of a translation must name two, one for each text column")
    if id_column is not None and not isinstance(id_column, str):
        raise TypeError(f"id_column must be a column's name, got {id_column!r}")
    return Columns(tuple(names), tuple(claims), id_column, translation)


def _names(argument: str, names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument} must be a sequence of strings, got {names!r}")
    unique = list(dict.fromkeys(names))
    if not unique:
        raise ValueError(f"{argument} is empty; name at least one")
    return unique


def checked_languages(languages: Sequence[str]) -> list[str]:
    from hybrid_kernels.governance.language import checked_languages

    return list(checked_languages(languages))


def checked_policy(policy: GovernancePolicy | None) -> GovernancePolicy:
    if policy is not None and not isinstance(policy, GovernancePolicy):
        raise TypeError(f"policy must be a GovernancePolicy, got {type(policy).__name__}")
    return policy or GovernancePolicy()


def check_claims(columns: Columns, languages: Sequence[str]) -> None:
    claimed = [claim[1:] for claim in columns.expected if claim.startswith("=")]
    if unwanted := [code for code in claimed if code not in languages]:
        raise ValueError(f"expected names {', '.join(unwanted)}, wanted are only {', '.join(languages)}")


def checked_rows(argument: str, rows: Any) -> Any:
    if isinstance(rows, Dataset):
        if len(rows) == 0:
            raise ValueError(f"{argument} has no rows")
        return rows
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
        raise TypeError(
            f"{argument} must be a datasets.Dataset or a list of dictionaries, got {type(rows).__name__}"
            + ("; choose one of its splits" if isinstance(rows, datasets.DatasetDict) else "")
        )
    return rows


def check_free(rows: Dataset, columns: Columns, policy: GovernancePolicy) -> None:
    assigned = [] if columns.expected else ["language"]
    added = [*VERDICT_COLUMNS, *assigned, *added_columns(policy, columns.texts)]
    if taken := [name for name in added if name in rows.column_names]:
        raise ValueError(
            f"columns {taken} of the data set are what govern adds; rename them"
            + (" or pass language_column='language'" if "language" in taken else "")
        )


def check_additions(sources: Sequence[Source], columns: Columns, policy: GovernancePolicy) -> None:
    added = added_columns(policy, columns.texts)
    for source in sources:
        if added and not source.evaluation and not source.can_add_columns:
            raise ValueError(
                f"{source.name}: the policy adds the columns {', '.join(added)}, and a file of its format can hold none"
            )


def listed(inputs: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [inputs] if isinstance(inputs, (str, Path)) else list(inputs)


def check_outside(out: Path, inputs: Sequence[str | Path]) -> None:
    """An input inside of `out` would be replaced by the result; one around it would have the result read as input."""
    folder = out.resolve()
    for one in map(Path, inputs):
        if one.is_dir() and folder.is_relative_to(one.resolve()):
            raise ValueError(f"out {out} lies in the input folder {one}; name a folder outside of it")
        if one.exists() and folder in one.resolve().parents:
            raise ValueError(
                f"the input {one} lies in out {out}, whose files are replaced; name another folder"
            )


def check_apart(sources: Sequence[Source], fingerprints: Sequence[Mapping[str, Any]]) -> None:
    """An evaluation file that is an input too would have all of it removed as leaked."""
    contents = [{key: value for key, value in one.items() if key != "name"} for one in fingerprints]
    for source, content in zip(sources, contents, strict=True):
        for other, same in zip(sources, contents, strict=True):
            if other.evaluation and not source.evaluation and same == content:
                raise ValueError(f"the input {source.name} and the evaluation file {other.name} are the same")
