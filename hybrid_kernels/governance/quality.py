"""The quality step: rules on the characters of texts, in the manner of Gopher (arXiv 2112.11446) and C4 (1910.10683).

No rule counts words but one on repetition: Chinese and Thai do not separate them. Numeric bounds are per language where the
data gives some (`thresholds`); what a rule saw is said again from the text, for the rows it rejects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance import characters, endings, mojibake, pairs, thresholds
from hybrid_kernels.governance.batch import Batch, Bounds, Columns, Features, Objection
from hybrid_kernels.governance.characters import CodePoints
from hybrid_kernels.governance.phrases import BOILERPLATE, LINK, MARKUP, WORD_RUN
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.text import excerpt, shingle_list

STEP = "quality"
#: Beyond `max_characters` a text is not looked into.
MEASURED = ("quality.max_characters",)
#: For the what-if table.
VARIATIONS: dict[str, list[Any]] = {
    "min_letters": [0, 2, 5, 10, 20],
    "max_characters": [500, 1000, 2000, 10_000],
    "max_repetition": [0.5, 0.6, 0.65, 0.7, 0.8],
    "max_character_run": [5, 10, 15, 30],
    "max_symbols": [0.2, 0.3, 0.5, 0.7],
    "max_digits": [0.2, 0.3, 0.5, 0.7],
    "max_links": [0.1, 0.3, 0.5],
    "min_vowels": [0.1, 0.2, 0.25, 0.3],
    "reject_markup": [True, False],
    "reject_boilerplate": [True, False],
    "reject_mojibake": [True, False],
    "reject_truncated": [True, False],
    "reject_identical": [True, False],
    "max_length_ratio": [2.0, 3.0, 6.0, 10.0],
    "min_number_agreement": [0.0, 0.5, 0.75, 1.0],
    "max_punctuation_difference": [2, 4, 6, 10],
    "max_copied": [0.5, 0.7, 0.8, 0.9],
}
#: Letters from which a text without a sentence mark is no headline.
MIN_MARKED = 30

_TEXT = (
    "characters letters repetition shingles run symbols digits links vowels vowel_letters word_run mojibake markup "
    "boilerplate walk terminal ending"
).split()
_Detail = Callable[[str, float, float], str]


def fields(columns: Columns, policy: GovernancePolicy) -> dict[str, pa.DataType]:
    """Of text i: lengths `characters_i`, `letters_i`, shares `repetition_i` (of `shingles_i`), `symbols_i`, `digits_i`,
    `links_i`, `vowels_i` (of `vowel_letters_i`), the longest `run_i` of a character, 1 where there are `mojibake_i`,
    `markup_i`, `boilerplate_i`, a keyboard `walk_i`, a `word_run_i`, a sentence mark at the end (`terminal_i`); the bits
    of `endings.ending` in `ending_i`. Of rows with two texts those of `pairs`."""
    names = [f"{name}_{i}" for i in range(len(columns.texts)) for name in _TEXT]
    names += ["identical"] * (len(columns.texts) == 2)
    names += pairs.TRANSLATION if columns.kind == "translation" else ()
    return {name: pa.float64() for name in names}


def measure(batch: Batch, policy: GovernancePolicy) -> Features:
    """See `fields`; NaN where there is no text or, but for its length, a text that is too long."""
    longest = policy.quality.max_characters
    features: Features = {}
    for i, texts in enumerate(batch.texts):
        read = np.array([text is not None and len(text) <= longest for text in texts], bool)
        chosen = [text for text, there in zip(texts, read, strict=True) if there and text is not None]
        for name, values in _measured(chosen).items():
            features[f"{name}_{i}"] = np.full(len(batch), np.nan)
            features[f"{name}_{i}"][read] = values
        features[f"characters_{i}"] = np.array([np.nan if text is None else len(text) for text in texts])
    if len(batch.texts) == 2:
        short = Batch(
            tuple([t if t is None or len(t) <= longest else None for t in texts] for texts in batch.texts),
            batch.expected,
            batch.columns,
            batch.languages,
        )
        features |= pairs.measure(short)
    return features


def _measured(texts: Sequence[str]) -> dict[str, Any]:
    points = CodePoints(texts)
    visible = np.maximum(points.lengths - points.count(characters.BLANK), 1)
    letters = points.count(characters.LETTER)
    small, others = points.count(characters.ALPHABET), points.count(characters.OTHER)
    vowels = points.count_all(characters.ALPHABET | characters.VOWEL)
    # Where most letters are of other scripts what is left is names.
    alphabetic = np.where(small > others, small, 0)
    grams = [shingle_list(text, 3) for text in texts]
    ends = [endings.ending(text) for text in texts]
    return {
        "characters": points.lengths,
        "letters": letters,
        "repetition": [1 - len(set(found)) / len(found) for found in grams],
        "shingles": [len(found) for found in grams],
        "run": points.runs,
        "symbols": points.count(characters.SYMBOL) / visible,
        "digits": points.count(characters.NUMBER) / visible,
        "links": [_link_share(text) for text in texts],
        "vowels": np.where(alphabetic > 0, vowels / np.maximum(small, 1), np.nan),
        "vowel_letters": alphabetic,
        "word_run": [WORD_RUN.search(text) is not None for text in texts],
        "mojibake": [sign is not None for sign in mojibake.signs(texts, points)],
        "markup": [MARKUP.search(text) is not None for text in texts],
        "boilerplate": [BOILERPLATE.search(text) is not None for text in texts],
        "walk": points.walks >= 0,
        "terminal": [marked for marked, _ in ends],
        "ending": [bits for _, bits in ends],
    }


def _link_share(text: str) -> float:
    if "@" not in text and "www." not in text.lower() and "://" not in text:
        return 0.0
    return sum(len(match.group()) for match in LINK.finditer(text)) / len(text)


def objections(batch: Batch, features: Features, policy: GovernancePolicy, bounds: Bounds) -> list[Objection]:
    """One a rule and text column; all that a row breaks."""
    languages = tuple(list(features[f"row_language_{i}"]) for i in range(len(batch.texts)))
    found: list[Objection] = []
    for i, column in enumerate(batch.columns.texts):
        rules = _Rules(batch.texts[i], column, i, features, languages, bounds, policy)
        found += [*rules.numeric(), *rules.patterns(), *rules.endings()]
    if len(batch.texts) == 2:
        found += _of_rows(batch, features, languages, policy, bounds)
    return [objection for objection in found if len(objection.rows)]


class _Rules:
    """Of one text column."""

    def __init__(
        self,
        texts: list[str | None],
        column: str,
        i: int,
        features: Features,
        languages: tuple[list[str | None], ...],
        bounds: Bounds,
        policy: GovernancePolicy,
    ) -> None:
        self.texts, self.column, self.i, self.features, self.bounds = texts, column, i, features, bounds
        self.languages, self.policy = languages, policy.quality
        self.codes = thresholds.languages_of(f"characters_{i}", languages)
        # Only what has a letter, a digit or a sign has more to be said of it than that it is empty.
        self.empty = (
            (self["characters"] > 0) & (self["symbols"] + self["digits"] == 0) & (self["letters"] == 0)
        )
        self.empty |= self["characters"] == 0

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return np.asarray(self.features[f"{name}_{self.i}"], np.float64)

    def numeric(self) -> list[Objection]:
        shingles, vowel_letters = self["shingles"], self["vowel_letters"]
        long_enough = shingles >= self.policy.min_shingles
        typed = vowel_letters >= self.policy.min_vowel_letters
        empty = self._flag("empty", self.empty, lambda text: "no characters but white space")
        return [
            empty,
            self._above("too long", "characters", _length),
            self._below("too short", "letters", lambda text, v, b: f"{v:.0f} letters, at least {b:.0f}"),
            self._above("repetition", "run", _run),
            self._above("repetition", "repetition", _share("of the shingles repeat"), long_enough),
            self._above("symbols", "symbols", _share("are punctuation or symbols")),
            self._above("digits", "digits", _share("are digits")),
            self._above("links", "links", _share("of the characters are links")),
            self._below(
                "keyboard mash",
                "vowels",
                lambda text, v, b: f"{v:.0%} of the letters are vowels, at least {b:.0%}",
                typed,
            ),
        ]

    def patterns(self) -> list[Objection]:
        wanted = self.policy
        found = [
            self._flag("repetition", self["word_run"] == 1, _repeated_word),
            self._flag("keyboard mash", self["walk"] == 1, _walk),
        ]
        if wanted.reject_mojibake:
            found.append(self._flag("mojibake", self["mojibake"] == 1, _mojibake))
        if wanted.reject_markup:
            found.append(self._flag("markup", self["markup"] == 1, _contains(MARKUP)))
        if wanted.reject_boilerplate:
            found.append(self._flag("boilerplate", self["boilerplate"] == 1, _contains(BOILERPLATE)))
        return found

    def endings(self) -> list[Objection]:
        if not self.policy.reject_truncated:
            return []
        bits = np.nan_to_num(self["ending"]).astype(np.int64)
        known = np.array([endings.languages_bits(code) for code in self.codes], np.int64)
        cut = (bits & known) != 0
        low, _ = thresholds.limits(f"terminal_{self.i}", self.codes, self.bounds)
        unmarked = (self["terminal"] < low) & (self["letters"] >= MIN_MARKED) & ~cut
        return [
            self._flag("truncated", cut, endings.explain),
            self._flag(
                "truncated", unmarked, lambda text: f"no sentence mark at the end, {excerpt(text[-20:])!r}"
            ),
        ]

    def _above(
        self, reason: str, feature: str, detail: _Detail, where: NDArray[np.bool_] | None = None
    ) -> Objection:
        _, high = thresholds.limits(f"{feature}_{self.i}", self.codes, self.bounds)
        return self._bounded(reason, self[feature], self[feature] > high, high, detail, where)

    def _below(
        self, reason: str, feature: str, detail: _Detail, where: NDArray[np.bool_] | None = None
    ) -> Objection:
        low, _ = thresholds.limits(f"{feature}_{self.i}", self.codes, self.bounds)
        return self._bounded(reason, self[feature], (self[feature] < low) & ~self.empty, low, detail, where)

    def _bounded(
        self,
        reason: str,
        values: NDArray[np.float64],
        beyond: NDArray[np.bool_],
        limit: NDArray[np.float64],
        detail: _Detail,
        where: NDArray[np.bool_] | None,
    ) -> Objection:
        rows = np.flatnonzero(beyond if where is None else beyond & where)
        details = [detail(self.texts[row] or "", values[row], limit[row]) for row in rows.tolist()]
        return Objection(STEP, reason, self.column, rows, values[rows], limit[rows], details)

    def _flag(self, reason: str, where: NDArray[np.bool_], detail: Callable[[str], str]) -> Objection:
        rows = np.flatnonzero(where)
        details = [detail(self.texts[row] or "") for row in rows.tolist()]
        ones = np.ones(len(rows))
        return Objection(STEP, reason, self.column, rows, ones, np.full(len(rows), np.nan), details)


def _of_rows(
    batch: Batch,
    features: Features,
    languages: tuple[list[str | None], ...],
    policy: GovernancePolicy,
    bounds: Bounds,
) -> list[Objection]:
    found = []
    same = features["identical"] == 1
    if policy.quality.reject_identical:
        rows = np.flatnonzero(same)
        names = " = ".join(batch.columns.texts)
        details = [f"{names}: {excerpt(batch.texts[0][row] or '')}" for row in rows.tolist()]
        found.append(
            Objection(
                STEP, "identical columns", None, rows, np.ones(len(rows)), np.full(len(rows), np.nan), details
            )
        )
    if batch.columns.kind != "translation":
        return found
    for name, reason, text in (
        (
            "length_ratio",
            "length ratio",
            "lengths differ by a factor of {0:.1f}, usual are {1:.1f} to {2:.1f}",
        ),
        ("number_agreement", "numbers differ", "{0:.0%} of the numbers are on both sides, at least {1:.0%}"),
        (
            "punctuation_difference",
            "punctuation differs",
            "{0:.0f} sentence marks more on one side, at most {2:.0f}",
        ),
        ("copied", "untranslated", "{0:.0%} of the shingles are on both sides, at most {2:.0%}"),
    ):
        values = np.asarray(features[name], np.float64)
        low, high = thresholds.limits(name, thresholds.languages_of(name, languages), bounds)
        beyond = (values < low) | (values > high)
        rows = np.flatnonzero(beyond & ~same)
        shown = np.exp if name == "length_ratio" else np.asarray
        details = [text.format(*(float(shown(v[row])) for v in (values, low, high))) for row in rows.tolist()]
        limit = np.where(values < low, low, high)
        found.append(Objection(STEP, reason, None, rows, values[rows], limit[rows], details))
    return found


def _length(text: str, value: float, bound: float) -> str:
    return f"{value:.0f} characters, at most {bound:.0f}"


def _share(what: str) -> _Detail:
    return lambda text, value, bound: f"{value:.0%} {what}, at most {bound:.0%}"


def _run(text: str, value: float, bound: float) -> str:
    match = re.search(rf"(\S)\1{{{int(value) - 1}}}", text)
    return f"{match.group(1) if match else ''!r} {value:.0f} times in a row, at most {bound:.0f}"


def _contains(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def detail(text: str) -> str:
        match = pattern.search(text)
        return f"contains {excerpt(match.group(), 40) if match else ''!r}"

    return detail


def _repeated_word(text: str) -> str:
    match = WORD_RUN.search(text)
    return f"repeats {match.group(1) if match else ''!r}"


def _walk(text: str) -> str:
    start = int(CodePoints([text]).walks[0])
    return f"walks the keyboard: {text[start : start + characters.WALK]!r}"


def _mojibake(text: str) -> str:
    return mojibake.signs([text], CodePoints([text]))[0] or ""
