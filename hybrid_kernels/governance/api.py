"""`govern`: the steps over a whole data set, on Hugging Face `datasets`."""

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from hybrid_kernels.governance.duplicates import band_keys, exact_keys, find_duplicates
from hybrid_kernels.governance.inputs import as_dataset, check_columns, checked_languages, checked_names
from hybrid_kernels.governance.language import assign_language, language_decision
from hybrid_kernels.governance.policy import Decision, GovernancePolicy
from hybrid_kernels.governance.quality import quality_decision
from hybrid_kernels.governance.text import excerpt

STEPS = ("quality", "language", "duplicates")
_EXAMPLES = 5
_UNDETERMINED = "und"


@dataclass(frozen=True)
class GovernanceResult:
    """The rows kept and the rows rejected, each in input order with its original columns, and a summary.

    `kept` gains a column `language` where languages were assigned; `rejected` gains that and `rejected_by`,
    `reason`, `detail`, `score` and `duplicate_of`. `summary` is plain JSON.
    """

    kept: Dataset
    rejected: Dataset
    summary: dict[str, Any]

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write kept.jsonl, rejected.jsonl and summary.json (last) into `folder`, each file atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("kept.jsonl", self.kept), ("rejected.jsonl", self.rejected)):
            _write_atomically(folder / name, (_json(row) for row in _rows(rows)))
        _write_atomically(folder / "summary.json", [json.dumps(self.summary, ensure_ascii=False, indent=2)])
        return folder


def govern(
    dataset: Dataset | Sequence[Mapping[str, Any]],
    languages: Sequence[str],
    *,
    text_columns: Sequence[str],
    language_column: str | None = None,
    policy: GovernancePolicy | None = None,
    id_column: str | None = None,
    num_proc: int | None = None,
    progress: bool = True,
) -> GovernanceResult:
    """Sort the rows of `dataset` into kept and rejected, without looking at labels.

    Steps, each a switch of the policy: quality, language, duplicates. The first that objects rejects the row.
    The steps run through `Dataset.map`: with a data set that lives on disk, an interrupted run continues at
    its last finished shard, and a changed policy recomputes only what depends on it.

    Args:
        dataset: rows; kept rows are handed back unchanged.
        languages: wanted language codes; see `supported_languages`.
        text_columns: the column(s) that make up a row's text, the shared one (an NLI premise) first. A row in
            which one of them is no text is rejected ("quality: not text"), whatever the policy.
        language_column: column with each row's language, which is then verified; without it a language is
            assigned (new column `language`).
        id_column: column that names a row in `duplicate_of`; without it the row's index does.
        num_proc: worker processes; None computes in this one.
        progress: show progress bars.

    Raises:
        TypeError: `dataset` is neither a Dataset nor a sequence of mappings, a text column holds no strings,
            or a column of a sequence mixes types.
        ValueError: a column is missing or has a name that govern adds, a language is unknown, or there are no
            rows or languages.
    """
    policy = policy or GovernancePolicy()
    languages = checked_languages(languages)
    text_columns = checked_names("text_columns", text_columns)
    rows, invalid = as_dataset(dataset, text_columns)
    check_columns(rows, text_columns, language_column, id_column)

    with _progress_bars(progress):
        verdicts = rows.map(
            _judge_batch,
            batched=True,
            remove_columns=rows.column_names,
            features=Features(
                {name: Value("string") for name in ("language", "rejected_by", "reason", "detail")}
                | {"score": Value("float64")}
            ),
            fn_kwargs={
                "text_columns": text_columns,
                "language_column": language_column,
                "languages": languages,
                "policy": policy.model_dump(include={"quality", "language"}),
                "revision": _revision(),
            },
            num_proc=num_proc,
            desc="quality and language",
        )
        language: list[str | None] = verdicts["language"][:]
        decisions: list[Decision | None] = [
            Decision(*fields) if fields[0] else None
            for fields in zip(
                *(verdicts[name][:] for name in ("rejected_by", "reason", "detail", "score")), strict=True
            )
        ]
        for row, detail in invalid.items():
            decisions[row] = Decision("quality", "not text", detail, 0.0)
        duplicate_of: dict[int, int] = {}
        if policy.duplicates.enabled:
            survivors = [row for row, decision in enumerate(decisions) if decision is None]
            for row, first, decision in _duplicates(
                rows, survivors, language, text_columns, policy, num_proc
            ):
                decisions[row] = decision
                duplicate_of[row] = first

        if language_column is None and policy.language.enabled:
            rows = rows.add_column("language", pa.array(language, pa.string()), feature=Value("string"))
        return _result(rows, decisions, duplicate_of, language, text_columns, id_column, languages, policy)


def _judge_batch(
    batch: dict[str, list[Any]],
    *,
    text_columns: list[str],
    language_column: str | None,
    languages: list[str],
    policy: dict[str, Any],
    revision: str,
) -> dict[str, list[Any]]:
    """Quality and language of a batch. `revision` only takes part in the cache key."""
    rules = GovernancePolicy.model_validate(policy)
    claims = batch[language_column] if language_column else [None] * len(batch[text_columns[0]])
    verdicts: dict[str, list[Any]] = {
        name: [] for name in ("language", "rejected_by", "reason", "detail", "score")
    }
    for claim, *values in zip(claims, *(batch[name] for name in text_columns), strict=True):
        texts = dict(zip(text_columns, values, strict=True))
        language, decision = _judge_row(texts, claim, language_column, languages, rules)
        verdicts["language"].append(language)
        verdicts["rejected_by"].append(decision and decision.step)
        verdicts["reason"].append(decision and decision.reason)
        verdicts["detail"].append(decision and decision.detail)
        verdicts["score"].append(decision and decision.score)
    return verdicts


def _judge_row(
    texts: dict[str, Any],
    claim: Any,
    language_column: str | None,
    languages: list[str],
    policy: GovernancePolicy,
) -> tuple[str | None, Decision | None]:
    """The language of a row (claimed or assigned) and the first objection to it."""
    language = None if claim is None else str(claim)
    for column, text in texts.items():
        if not isinstance(text, str):
            return language, Decision("quality", "not text", f"{column} is missing", 0.0)
    decision = quality_decision(texts, policy.quality) if policy.quality.enabled else None
    if decision or not policy.language.enabled:
        return language, decision
    if language_column is None:
        return assign_language(texts, languages, policy.language)
    if language not in languages:
        detail = f"{language_column} is {language!r}, wanted are {', '.join(languages)}"
        return language, Decision("language", "outside the wanted languages", detail, 0.0)
    return language, language_decision(texts, language, languages, policy.language)


def _band_batch(
    batch: dict[str, list[str]], *, text_columns: list[str], policy: dict[str, Any], revision: str
) -> dict[str, Any]:
    rules = GovernancePolicy.model_validate(policy).duplicates
    return {"bands": band_keys([batch[name] for name in text_columns], rules)}


def _duplicates(
    rows: Dataset,
    survivors: list[int],
    language: list[str | None],
    text_columns: list[str],
    policy: GovernancePolicy,
    num_proc: int | None,
) -> Iterator[tuple[int, int, Decision]]:
    """(row, kept row, decision) of each duplicate among the `survivors`, numbered as in `rows`."""
    if not survivors:
        return
    chosen = rows.select(survivors).select_columns(text_columns)
    bands = chosen.map(
        _band_batch,
        batched=True,
        remove_columns=text_columns,
        features=Features({"bands": datasets.List(Value("uint64"), length=policy.duplicates.bands)}),
        fn_kwargs={
            "text_columns": text_columns,
            "policy": policy.model_dump(include={"duplicates"}),
            "revision": _revision(),
        },
        num_proc=num_proc,
        desc="signatures",
    )
    found = find_duplicates(
        exact_keys([chosen[name] for name in text_columns]),
        np.asarray(bands.with_format("numpy")["bands"][:]),
        [language[row] or _UNDETERMINED for row in survivors],
        lru_cache(maxsize=4096)(lambda row: [chosen[row][name] for name in text_columns]),
        policy.duplicates,
    )
    for duplicate in found:
        reason = "exact duplicate" if duplicate.exact else "near duplicate"
        first = survivors[duplicate.duplicate_of]
        original = " | ".join(excerpt(rows[first][name]) for name in text_columns)
        detail = f"Jaccard similarity {duplicate.similarity:.2f} with: {original}"
        yield survivors[duplicate.row], first, Decision("duplicates", reason, detail, duplicate.similarity)


def _result(
    rows: Dataset,
    decisions: list[Decision | None],
    duplicate_of: dict[int, int],
    language: list[str | None],
    text_columns: list[str],
    id_column: str | None,
    languages: list[str],
    policy: GovernancePolicy,
) -> GovernanceResult:
    kept = [row for row, decision in enumerate(decisions) if decision is None]
    rejections = [(row, decision) for row, decision in enumerate(decisions) if decision is not None]
    rejected = rows.select([row for row, _ in rejections])
    for name in ("rejected_by", "reason", "detail", "score"):
        attribute = "step" if name == "rejected_by" else name
        kind = pa.float64() if name == "score" else pa.string()
        rejected = rejected.add_column(name, pa.array([getattr(d, attribute) for _, d in rejections], kind))
    firsts = [duplicate_of.get(row) for row, _ in rejections]
    if id_column:
        ids = rows[id_column][:]
        names = [None if first is None else ids[first] for first in firsts]
        rejected = rejected.add_column("duplicate_of", names, feature=rows.features[id_column])
    else:
        rejected = rejected.add_column("duplicate_of", pa.array(firsts, pa.int64()))

    by_step: dict[str, Any] = {step: {"rejected": 0, "reasons": Counter()} for step in STEPS}
    by_language: dict[str, Any] = defaultdict(lambda: {"rows": 0, "kept": 0, "rejected": 0})
    for code in languages if policy.language.enabled else ():
        by_language[code]  # a wanted language without rows is worth seeing
    examples: dict[str, list[dict[str, Any]]] = {step: [] for step in STEPS}
    for row, decision in enumerate(decisions):
        code = language[row] or _UNDETERMINED
        by_language[code]["rows"] += 1
        by_language[code]["kept" if decision is None else "rejected"] += 1
        if decision is None:
            continue
        by_step[decision.step]["rejected"] += 1
        by_step[decision.step]["reasons"][decision.reason] += 1
        if len(examples[decision.step]) < _EXAMPLES:
            text = " | ".join(excerpt(str(rows[row][name])) for name in text_columns)
            examples[decision.step].append(
                {"text": text, "language": code, "reason": decision.reason, "detail": decision.detail}
            )
    summary = {
        "rows": len(rows),
        "kept": len(kept),
        "rejected": len(rejections),
        "by_step": {
            step: {"rejected": found["rejected"], "reasons": dict(found["reasons"].most_common())}
            for step, found in by_step.items()
        },
        "by_language": dict(sorted(by_language.items())),
        "policy": policy.model_dump(mode="json"),
        "examples": examples,
    }
    return GovernanceResult(rows.select(kept), rejected, summary)


@lru_cache(maxsize=1)
def _revision() -> str:
    """Hash of the rules' code and their libraries' versions, so that no cached decision outlives its rule."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for library in ("py3langid", "rensa", "ftfy"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    were_disabled = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.disable_progress_bars if were_disabled else datasets.enable_progress_bars)()


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for batch in dataset.iter(batch_size=1000):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)


def _write_atomically(path: Path, lines: Iterable[str]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
