"""What the features of a text column say against its texts, by the thresholds of a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Objection
from hybrid_kernels.governance.identify import NO_LANGUAGE
from hybrid_kernels.governance.policy import LanguagePolicy
from hybrid_kernels.governance.reading import wanted_of
from hybrid_kernels.governance.scripts import (
    CHINESE_VARIANTS,
    SCRIPTS,
    Tag,
    in_words,
    name_in_words,
    scripts_of,
)

# Text in a script that its language is not written in is called another language, not romanised or in the wrong script,
# where that one is all but certain. Romanised Urdu, Hindi and Arabic are taken for Somali, Hausa or Javanese with such
# certainty, seldom for these.
_CERTAIN = 0.9
_TOLD_APART = "cs da de en es fi fr hu it nl no pl pt ro sv tr vi"
_UNMISTAKABLE = frozenset(_TOLD_APART.split())

# Characters of only one Chinese variant from which a text is in it.
_MIN_VARIANT = 2

Mask = NDArray[np.bool_]


class Judge:
    """One text column of a batch.

    Args:
        features: of the language step, without the column's position in their names.
        claims: what each row claims, None where nothing.
        present: where there is a text.
        languages: the wanted ones.
        policy: the thresholds.
    """

    def __init__(
        self,
        features: Mapping[str, NDArray[Any]],
        claims: Sequence[str | None],
        present: Mask,
        languages: Sequence[str],
        policy: LanguagePolicy,
    ) -> None:
        self.features, self.claims, self.present = features, claims, present
        self.languages, self.policy = languages, policy
        self.claimed = np.array([claim is not None for claim in claims], bool)
        tags = wanted_of(tuple(languages))
        self.tags, self.wanted = {str(tag): tag for tag in tags.tags}, frozenset(tags.languages)

    def assignment(self, column: str | None) -> list[Objection]:
        """Against texts that claim no language: none of the wanted ones is probable enough to assign it."""
        unclaimed = ~self.claimed & self.present
        probability, policy = self.features["assigned_probability"], self.policy
        letterless = unclaimed & np.isnan(probability)
        unsure = unclaimed & (probability < policy.min_assigned)
        rival, rival_probability = (
            self.features["assigned_rival"],
            self.features["assigned_rival_probability"],
        )
        unwanted = _each(lambda name: name is not None and name not in self.wanted, rival)
        outside = unsure & unwanted & (rival_probability >= policy.min_rival)

        def closest(row: int) -> str:
            return f"closest is {self.features['assigned'][row]} (p = {_shown(probability[row])})"

        def looks_like(row: int) -> str:
            return _looks_like(rival[row], rival_probability[row])

        least = policy.min_assigned
        return [
            *_objection("undetermined", column, letterless, probability, np.nan, lambda row: "no letters"),
            *_objection("undetermined", column, unsure & ~outside, probability, least, closest),
            *_objection("outside the wanted languages", column, outside, probability, least, looks_like),
        ]

    def verification(self, column: str) -> list[Objection]:
        """Against texts that are not in the language they are judged by, or claim one that is not wanted."""
        return [
            *self._claims_outside(column),
            *self._scripts(column),
            *self._languages(column),
            *self._switched(column),
        ]

    @cached_property
    def judged(self) -> Mask:
        """Texts with a language to be held against: those without letters say nothing."""
        assigned = self.features["assigned_probability"] >= self.policy.min_assigned
        return (self.claimed | assigned) & ~np.isnan(self.features["own_script"])

    @cached_property
    def resembles_other(self) -> Mask:
        """Another language than the one it is judged by is the likeliest of all."""
        differs = _each(
            lambda name, likeliest: name is not None and self._tag(name).language != likeliest,
            self.features["judged"],
            self.features["likeliest"],
        )
        return differs & self.judged

    @cached_property
    def in_foreign_script(self) -> Mask:
        """Hardly any letters in the scripts of its language, by Chinese variant where one is asked for. The posterior
        knows a text that is full of foreign names, but not one in a script that its language is written in too."""
        policy, features = self.policy, self.features
        native = _each(
            lambda name, script: name is not None and _is_written_in(self._tag(name).language, script),
            features["judged"],
            features["script"],
        )
        improbable = features["probability"] * features["wanted"] < 0.5
        foreign = (features["own_script"] < policy.min_script) & (
            features["foreign_letters"] >= policy.min_foreign_letters
        )
        return self.judged & ((foreign & (native | improbable)) | self.in_other_variant)

    @cached_property
    def in_other_variant(self) -> Mask:
        """Chinese of the variant that is not asked for."""
        simplified, traditional = self.features["simplified"], self.features["traditional"]
        total = simplified + traditional
        is_simplified = _each(lambda name: name == "zh-Hans", self.features["judged"])
        is_traditional = _each(lambda name: name == "zh-Hant", self.features["judged"])
        own = np.where(is_simplified, simplified, traditional) / np.maximum(total, 1)
        return (
            self.judged
            & (is_simplified | is_traditional)
            & (total >= _MIN_VARIANT)
            & (own < self.policy.min_script)
        )

    @cached_property
    def is_other_language(self) -> Mask:
        """Texts in a foreign script that are certainly in another language, one that is written in it."""
        features = self.features
        tellable = self.wanted | _UNMISTAKABLE
        fits = _each(
            lambda language, script: (
                _is_written_in(language, script) and (script != SCRIPTS["Latn"] or language in tellable)
            ),
            features["likeliest"],
            features["script"],
        )
        certain = features["likeliest_probability"] >= _CERTAIN
        return self.in_foreign_script & ~self.in_other_variant & self.resembles_other & fits & certain

    @cached_property
    def in_wrong_language(self) -> Mask:
        features, policy = self.features, self.policy
        improbable = features["probability"] < policy.min_expected
        romanised = _each(lambda name: name is not None and self._tag(name).is_romanised, features["judged"])
        improbable |= (features["wanted"] < policy.min_wanted) & ~romanised
        rival = self.resembles_other & (features["likeliest_probability"] >= policy.min_rival)
        return self.judged & ((~self.in_foreign_script & improbable & rival) | self.is_other_language)

    def _claims_outside(self, column: str) -> list[Objection]:
        judged_by_none = _each(lambda name: name is None, self.features["judged"])
        rows = self.claimed & self.present & judged_by_none
        wanted = ", ".join(self.languages)
        none = np.full(len(rows), np.nan)
        return _objection(
            "outside the wanted languages",
            column,
            rows,
            none,
            np.nan,
            lambda row: f"claims {self.claims[row]!r}, wanted are {wanted}",
        )

    def _scripts(self, column: str) -> list[Objection]:
        features, policy = self.features, self.policy
        rows = self.in_foreign_script & ~self.is_other_language
        romanised = ~self.in_other_variant & _each(
            lambda name, script: (
                name is not None
                and script == SCRIPTS["Latn"]
                and not _is_written_in(self._tag(name).language, script)
            ),
            features["judged"],
            features["script"],
        )
        variants = features["simplified"], features["traditional"]
        own = np.where(
            self.in_other_variant,
            np.minimum(*variants) / np.maximum(sum(variants), 1),
            features["own_script"],
        )

        def sentence(row: int) -> str:
            tag = self._tag(features["judged"][row])
            if self.in_other_variant[row]:
                written = CHINESE_VARIANTS["Hans" if tag.script == "Hant" else "Hant"]
                return f"{written} Chinese, expected {in_words(tag.scripts)}"
            written, share = name_in_words(features["script"][row]), 1 - features["own_script"][row]
            return f"expected {tag} in {in_words(tag.scripts)}, {share:.0%} of the letters are not, most are {written}"

        least, rejected = policy.min_script, "reject"
        return [
            *_objection(
                "romanised", column, rows & romanised, own, least, sentence, policy.romanised == rejected
            ),
            *_objection(
                "wrong script",
                column,
                rows & ~romanised,
                own,
                least,
                sentence,
                policy.wrong_script == rejected,
            ),
        ]

    def _languages(self, column: str) -> list[Objection]:
        features, policy = self.features, self.policy
        likeliest, probability = features["likeliest"], features["likeliest_probability"]
        unwanted = _each(lambda name: name not in self.wanted, likeliest)
        by_mass = features["wanted"] < policy.min_wanted
        score = np.where(by_mass, features["wanted"], features["probability"])
        bound = np.where(by_mass, policy.min_wanted, policy.min_expected)

        def sentence(row: int) -> str:
            return f"expected {features['judged'][row]}, {_looks_like(likeliest[row], probability[row])}"

        rows = self.in_wrong_language
        return [
            *_objection("wrong language", column, rows & ~unwanted, score, bound, sentence),
            *_objection("outside the wanted languages", column, rows & unwanted, score, bound, sentence),
        ]

    def _switched(self, column: str) -> list[Objection]:
        share, policy = self.features["switched"], self.policy
        rows = self.judged & (share >= policy.min_switched) & (share > 0)
        rows &= ~self.in_foreign_script & ~self.in_wrong_language

        def sentence(row: int) -> str:
            other = self.features["switched_to"][row]
            judged = self.features["judged"][row]
            return f"expected {judged}, {share[row]:.0%} of the letters look like {_named(other)}"

        rejects = policy.code_switched == "reject"
        return _objection("code-switched", column, rows, share, policy.min_switched, sentence, rejects)

    def _tag(self, name: str) -> Tag:
        return self.tags[name]


def _is_written_in(language: str | None, script: str | None) -> bool:
    """`script`: by Unicode's name."""
    return language is not None and any(SCRIPTS[code] == script for code in scripts_of(language))


def _each(function: Callable[..., bool], *values: NDArray[Any]) -> Mask:
    """`function` row by row, called once for each distinct combination."""
    rows = list(zip(*(column.tolist() for column in values), strict=True))
    results = {row: function(*row) for row in set(rows)}
    return np.array([results[row] for row in rows], bool)


def _objection(
    reason: str,
    column: str | None,
    mask: Mask,
    score: NDArray[np.float64],
    bound: float | NDArray[np.float64],
    sentence: Callable[[int], str],
    rejects: bool = True,
) -> list[Objection]:
    """One, or none if no row is meant."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return []
    bounds = np.broadcast_to(np.asarray(bound, np.float64), mask.shape)[rows]
    details = [sentence(row) for row in rows.tolist()]
    return [
        Objection("language", reason, column, rows.astype(np.int64), score[rows], bounds, details, rejects)
    ]


def _looks_like(language: str, probability: float) -> str:
    return f"looks like {_named(language)} (p = {_shown(probability)})"


def _named(language: str) -> str:
    """For a reader: garbled text is most often of the model's class for what is no language."""
    return "no language" if language == NO_LANGUAGE else language


def _shown(probability: float) -> str:
    """Two digits, and never 1: nothing is that sure."""
    return f"{min(probability, 0.99):.2f}"
