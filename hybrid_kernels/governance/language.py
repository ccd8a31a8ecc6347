"""The language step: is a text in the language it claims, and if it claims none, in which of the wanted ones?

Features are of two kinds: what a text looks like (`language_i`, `confidence_i`, `likeliest_i`, `script_i`), and how the
language it is judged by fares (`judged_i`, `probability_i`, `own_script_i`). A text is judged by the language that it
claims; the two texts of a pair that claims none by the one that is likeliest for both together, each by itself.

A text is rejected on strong evidence only: its language must be improbable *and* another one probable. Probabilities
are calibrated by length, so a short text seldom yields that evidence.

Romanised text (`hi-Latn` where wanted) is nothing that the model has seen. It is taken for what is in Latin letters
and in no other wanted language nor in English; a row that claims nothing is assigned to it only if no known language
is probable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch, Bounds, Columns, Features, Objection
from hybrid_kernels.governance.identify import known_languages, model
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.reading import Reading, read, read_together, wanted_of
from hybrid_kernels.governance.scripts import Tag, allowed_scripts, read_tag
from hybrid_kernels.governance.verification import Judge

#: No feature depends on the policy.
MEASURED: tuple[str, ...] = ()

#: Values of the policy's fields that are worth trying.
VARIATIONS: dict[str, list[Any]] = {
    "min_expected": [0.0001, 0.001, 0.01, 0.1],
    "min_wanted": [0.0001, 0.001, 0.01, 0.1],
    "min_rival": [0.3, 0.5, 0.7, 0.9],
    "min_assigned": [0.3, 0.5, 0.7],
    "min_script": [0.1, 0.2, 0.4],
    "romanised": ["keep", "reject"],
    "wrong_script": ["keep", "reject"],
    "code_switched": ["keep", "reject"],
}

_STRINGS = ("judged", "language", "likeliest", "assigned", "assigned_rival", "script", "switched_to")
_NUMBERS = (
    "confidence",
    "probability",
    "wanted",
    "likeliest_probability",
    "assigned_probability",
    "assigned_rival_probability",
    "own_script",
    "switched",
)
_COUNTS = ("foreign_letters", "simplified", "traditional")


def supported_languages() -> tuple[str, ...]:
    """Sorted language codes (ISO 639-1, else 639-3) that can be identified. Each may name a script: `zh-Hant`,
    `hi-Latn`."""
    return known_languages()


def checked_languages(languages: Sequence[str]) -> list[str]:
    """The wanted languages as this package writes them, `en`, `zh-Hant`, without repetitions.

    Raises:
        TypeError: it is no sequence of strings.
        ValueError: it is empty, a language or script is unknown, or one language allows what another one does.
    """
    if isinstance(languages, str) or not all(isinstance(name, str) for name in languages):
        raise TypeError(f"languages must be a sequence of strings, got {languages!r}")
    if not languages:
        raise ValueError("languages is empty; name at least one")
    tags: list[Tag] = []
    for name in languages:
        tag = read_tag(name)
        if tag is None:
            raise ValueError(_unknown(name))
        if tag not in tags:
            tags.append(tag)
    for tag in tags:
        for other in tags:
            if tag != other and tag.accepts(other):
                raise ValueError(f"languages: {tag} allows all that {other} does; name one of them")
    return [str(tag) for tag in tags]


def _unknown(name: str) -> str:
    language = read_tag(name.replace("_", "-").split("-")[0])
    if language is None:
        return f"unknown language code {name!r} in languages; known are {', '.join(supported_languages())}"
    scripts = ", ".join(sorted(allowed_scripts(language.language)))
    return f"languages: {name!r} is no language with a script it may have; {language.language} may have {scripts}"


def fields(columns: Columns, policy: GovernancePolicy) -> dict[str, pa.DataType]:
    """The features of each text column i.

    Of the text: `language_i`, the wanted language it looks most like, and `confidence_i`, the calibrated probability
    of that among the wanted; `wanted_i`, the probability of all wanted languages among all known, and `likeliest_i`
    of these with `likeliest_probability_i`; `script_i`, the script of most letters; `simplified_i`, `traditional_i`,
    Chinese characters that only this variant has.

    Of a row that claims no language: `assigned_i` and `assigned_probability_i` among all known languages, and the
    likeliest of those, `assigned_rival_i`, `assigned_rival_probability_i`.

    As judged: `judged_i`, by which language, none where a claim is outside the wanted; `probability_i`, that
    language's among the wanted; `own_script_i`, share of letters in its scripts, and `foreign_letters_i`, the number
    of others; `switched_i`, share of letters in segments in another language, `switched_to_i`.
    """
    kinds = (_STRINGS, pa.string()), (_NUMBERS, pa.float64()), (_COUNTS, pa.int32())
    return {f"{name}_{i}": kind for i in range(len(columns.texts)) for names, kind in kinds for name in names}


def measure(batch: Batch, policy: GovernancePolicy) -> Features:
    """See `fields`. Each distinct text of a column is read once."""
    wanted, claims = wanted_of(batch.languages), _claims(batch)
    sides = [read(texts, claim, wanted) for texts, claim in zip(batch.texts, claims, strict=True)]
    together = _together(batch, claims[0], *sides) if batch.columns.kind == "pair" else None
    features: Features = {}
    for i, side in enumerate(sides):
        present = np.array([text is not None for text in batch.texts[i]], bool)
        for name, values in _measure_text(side, together or side, claims[i], present).items():
            features[f"{name}_{i}"] = values
    return features


def _claims(batch: Batch) -> list[list[str | None]]:
    """Per text column. A pair is in one language, so what one side claims holds for a side that claims nothing."""
    claims = [[claim if claim and claim.strip() else None for claim in column] for column in batch.expected]
    if batch.columns.kind == "pair":
        first, second = claims
        return [
            [a or b for a, b in zip(first, second, strict=True)],
            [b or a for a, b in zip(first, second, strict=True)],
        ]
    return claims


def _together(batch: Batch, claims: list[str | None], first: Reading, second: Reading) -> Reading:
    """Both texts of each row that claims nothing, as one."""
    rows = np.array([claim is None for claim in claims], bool)
    texts = [
        f"{one or ''}\n{other or ''}"
        for claim, one, other in zip(claims, *batch.texts, strict=True)
        if claim is None
    ]
    return read_together(first, second, rows, texts)


def _measure_text(
    side: Reading, together: Reading, claims: list[str | None], present: NDArray[np.bool_]
) -> Features:
    wanted = side.wanted
    names = np.array([*map(str, wanted.tags), None], object)
    judged, assigned = _judged(side, together, claims, present)
    likeness = side.likeness
    has_letters = present & (side.total > 0)
    likeliest, likeliest_probability = side.top
    rival, rival_probability = together.top
    languages = np.array([*model().languages, None], object)
    probability, own_script = np.full(len(judged), np.nan), np.full(len(judged), np.nan)
    foreign = np.zeros(len(judged), np.int32)
    for tag in np.unique(judged[judged >= 0]).tolist():
        rows = np.flatnonzero((judged == tag) & has_letters)
        own, total = side.own_letters(tag, rows), side.total[rows]
        probability[rows], own_script[rows] = side.probability(tag, rows), own / total
        foreign[rows] = total - own
    unclaimed = assigned >= 0

    def where(condition: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[Any]:
        missing = np.array(None if values.dtype == object else np.nan, values.dtype)
        return np.where(condition, values, missing)

    return {
        "judged": names[judged],
        "language": where(has_letters, names[likeness.tag]),
        "likeliest": where(has_letters, likeliest),
        "assigned": names[assigned],
        "assigned_rival": where(unclaimed, rival),
        "script": where(present, side.script),
        "switched_to": where(present, languages[side.switched_to[side.place]]),
        "confidence": where(has_letters, likeness.confidence),
        "probability": probability,
        "wanted": where(has_letters, side.mass),
        "likeliest_probability": where(has_letters, likeliest_probability),
        "assigned_probability": where(unclaimed, together.likeness.probability),
        "assigned_rival_probability": where(unclaimed, rival_probability),
        "own_script": own_script,
        "switched": where(present, side.switched[side.place]),
        "foreign_letters": foreign,
        "simplified": side.letters.simplified[side.place].astype(np.int32),
        "traditional": side.letters.traditional[side.place].astype(np.int32),
    }


def _judged(
    side: Reading, together: Reading, claims: list[str | None], present: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(the wanted tag that each row is judged by, the one it was assigned because it claims nothing); −1: none."""
    meant = {claim: side.wanted.claimed(claim) for claim in set(claims)}
    only = {claim: tags[0] if tags else -1 for claim, tags in meant.items()}
    judged = np.array([only[claim] for claim in claims], np.intp)
    for claim, tags in meant.items():
        if tags and len(tags) > 1:
            rows = np.array([i for i, other in enumerate(claims) if other == claim], np.intp)
            judged[rows] = side.fitting(tags, rows)
    unclaimed = np.array([claim is None for claim in claims], bool) & present & (together.total > 0)
    assigned = np.where(unclaimed, together.likeness.tag, -1)
    return np.where(unclaimed, assigned, judged), assigned


def row_languages(batch: Batch, features: Features, policy: GovernancePolicy) -> tuple[list[str | None], ...]:
    """Per text column the language each row claims, as this package writes it, else the one it is assigned; None:
    neither."""
    languages = []
    for i, claims in enumerate(_claims(batch)):
        judged = features[f"judged_{i}"]
        probability: NDArray[Any] = features[f"assigned_probability_{i}"]
        sure = probability >= policy.language.min_assigned
        written = {claim: str(read_tag(claim) or claim.strip()) for claim in set(claims) if claim is not None}
        languages.append(
            [
                (tag if is_sure else None) if claim is None else tag or written[claim]
                for claim, tag, is_sure in zip(claims, judged.tolist(), sure.tolist(), strict=True)
            ]
        )
    return tuple(languages)


def objections(batch: Batch, features: Features, policy: GovernancePolicy, bounds: Bounds) -> list[Objection]:
    """At most one a text: outside the wanted languages, undetermined (a pair: the row), romanised, wrong script, wrong
    language, code-switched. Rows that the policy keeps though they are romanised, in the wrong script or
    code-switched are flagged."""
    pair = batch.columns.kind == "pair"
    found: list[Objection] = []
    for i, (column, claims) in enumerate(zip(batch.columns.texts, _claims(batch), strict=True)):
        names = (*_STRINGS, *_NUMBERS, *_COUNTS)
        judge = Judge(
            {name: features[f"{name}_{i}"] for name in names},
            claims,
            np.array([text is not None for text in batch.texts[i]], bool),
            batch.languages,
            policy.language,
        )
        if not pair or i == 0:
            found += judge.assignment(None if pair else column)
        found += judge.verification(column)
    return found
