"""What texts look like, seen from the languages that are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from hybrid_kernels.governance.identify import model, posterior, walks
from hybrid_kernels.governance.scripts import SCRIPTS, Letters, Tag, letters, read_tag
from hybrid_kernels.governance.switching import switching


@dataclass(frozen=True)
class Wanted:
    """The wanted languages. `hi-Latn` and its like, which the model cannot tell, are kept apart."""

    tags: tuple[Tag, ...]

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Those of the tags that the model can tell, once each."""
        return tuple(dict.fromkeys(tag.language for tag in self.tags if not tag.is_romanised))

    @cached_property
    def columns(self) -> NDArray[np.intp]:
        """Their positions in the model's languages."""
        return np.array([model().position(language) for language in self.languages], np.intp)

    @cached_property
    def romanised(self) -> tuple[int, ...]:
        """Positions of the romanised ones in `tags`."""
        return tuple(i for i, tag in enumerate(self.tags) if tag.is_romanised)

    def tags_of(self, language: str) -> list[int]:
        """Positions of the tags of a language that the model can tell: several where it is wanted in several
        scripts."""
        return [i for i, tag in enumerate(self.tags) if tag.language == language and not tag.is_romanised]

    def claimed(self, claim: str | None) -> list[int] | None:
        """Positions of the tags that a claim may mean: none where it is outside, several where it leaves the script
        open and several are wanted. None: it claims nothing."""
        if claim is None or not claim.strip():
            return None
        tag = read_tag(claim)
        if tag is None:
            return []
        if accepting := [i for i, wanted in enumerate(self.tags) if wanted.accepts(tag)]:
            return accepting
        return self.tags_of(tag.language) if tag.script is None else []


@lru_cache(maxsize=64)
def wanted_of(languages: tuple[str, ...]) -> Wanted:
    """`languages`: as `checked_languages` gives them."""
    tags = [read_tag(name) for name in languages]
    return Wanted(tuple(tag for tag in tags if tag is not None))


@dataclass(frozen=True)
class Likeness:
    """What each row looks most like among the wanted languages.

    Attributes:
        tag: position of it in the wanted tags.
        probability: among all known languages.
        confidence: among the wanted ones.
    """

    tag: NDArray[np.intp]
    probability: NDArray[np.float64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """Some texts, one a row; distinct ones were read once, and rows without a text have the one of an empty text.

    Attributes:
        wanted: the wanted languages.
        place: of each row its distinct text.
        scores, sizes: by distinct text and class of the model; bytes of each.
        letters: of the distinct texts.
        switched, switched_to: see `switching`; of the distinct texts.
    """

    wanted: Wanted
    place: NDArray[np.intp]
    scores: NDArray[np.float32]
    sizes: NDArray[np.int64]
    letters: Letters
    switched: NDArray[np.float64]
    switched_to: NDArray[np.intp]

    @cached_property
    def posterior(self) -> NDArray[np.float64]:
        """By distinct text and language of the model."""
        return posterior(self.scores, self.sizes).astype(np.float64)

    @cached_property
    def total(self) -> NDArray[np.int64]:
        """Letters of each row."""
        return self.letters.total[self.place]

    @cached_property
    def script(self) -> NDArray[np.object_]:
        """Most letters of each row are in it; None without letters."""
        return np.array(self.letters.dominant(), object)[self.place]

    @cached_property
    def mass(self) -> NDArray[np.float64]:
        """Probability that each row is in any of the wanted languages, the romanised ones aside."""
        return self._mass[self.place]

    @cached_property
    def top(self) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
        """(the likeliest of all known languages, its probability) of each row."""
        names = np.array(model().languages, object)
        return names[self.posterior.argmax(1)][self.place], self.posterior.max(1)[self.place]

    @cached_property
    def likeness(self) -> Likeness:
        place = self.place
        tag, probability, confidence = self._likeness
        return Likeness(tag[place], probability[place], confidence[place])

    def probability(self, tag: int, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Of a wanted language among the wanted ones. Of a romanised one: that its rows are in no other wanted
        language and not in English."""
        place = self.place[rows]
        if tag in self.wanted.romanised:
            return self._romanised[place]
        column = model().position(self.wanted.tags[tag].language)
        return self.posterior[place, column] / np.maximum(self._mass[place], np.finfo(float).tiny)

    def own_letters(self, tag: int, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """Letters of the rows in a wanted language's scripts."""
        return self.letters.of(self.wanted.tags[tag].letters)[self.place[rows]]

    def fitting(self, tags: Sequence[int], rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Of tags that differ in their script, the one that fits each row; the first where none fits better."""
        return np.array(tags, np.intp)[self._fit(tags)[self.place[rows]]]

    @cached_property
    def _mass(self) -> NDArray[np.float64]:
        return self.posterior[:, self.wanted.columns].sum(1)

    @cached_property
    def _romanised(self) -> NDArray[np.float64]:
        english = model().position("en")
        other = self._mass if english in self.wanted.columns else self._mass + self.posterior[:, english]
        return np.where(self._is_latin, np.clip(1 - other, 0, 1), 0.0)

    @cached_property
    def _is_latin(self) -> NDArray[np.bool_]:
        return np.array([script == SCRIPTS["Latn"] for script in self.letters.dominant()], bool)

    def _fit(self, tags: Sequence[int]) -> NDArray[np.intp]:
        if len(tags) == 1:
            return np.zeros(len(self.posterior), np.intp)
        variants = {"Hans": self.letters.simplified, "Hant": self.letters.traditional}
        chosen = [self.wanted.tags[tag] for tag in tags]
        counts = [variants.get(tag.script or "", self.letters.of(tag.letters)) for tag in chosen]
        return np.stack(counts, 1).argmax(1)

    @cached_property
    def _likeness(self) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
        tag = np.full(len(self.posterior), -1, np.intp)
        probability, confidence = np.zeros(len(tag)), np.zeros(len(tag))
        if self.wanted.languages:
            among = self.posterior[:, self.wanted.columns]
            best = among.argmax(1)
            of_language = [self.wanted.tags_of(language) for language in self.wanted.languages]
            tags = np.stack([np.array(tags)[self._fit(tags)] for tags in of_language], 1)
            rows = np.arange(len(tag))
            tag, probability = tags[rows, best], among[rows, best]
            confidence = probability / np.maximum(self._mass, np.finfo(float).tiny)
        if self.wanted.romanised:
            # Several cannot be told apart.
            unknown = np.where(self._is_latin, 1 - self.posterior.max(1), 0.0) / len(self.wanted.romanised)
            romanised = unknown > probability
            tag[romanised] = self.wanted.romanised[0]
            probability = np.where(romanised, unknown, probability)
            confidence = np.where(romanised, unknown / np.maximum(self._mass + unknown, 1e-300), confidence)
        return tag, probability, confidence


def read(texts: Sequence[str | None], claims: Sequence[str | None], wanted: Wanted) -> Reading:
    """Read each distinct text, with its claim, once; the claim says which language a switch would be a switch from."""
    places: dict[tuple[str, str | None], int] = {("", None): 0}
    place = [
        0 if text is None else places.setdefault((text, claim), len(places))
        for text, claim in zip(texts, claims, strict=True)
    ]
    distinct = [text for text, _ in places]
    own = _claimed_columns([claim for _, claim in places], wanted)
    scores = np.empty((len(distinct), len(model().language)), np.float32)
    sizes = np.empty(len(distinct), np.int64)
    switched, switched_to = np.zeros(len(distinct)), np.full(len(distinct), -1, np.intp)
    for first, walk in walks(distinct):
        block = slice(first, first + walk.texts)
        scores[block], sizes[block] = walk.scores(walk.owner, walk.texts)
        if wanted.languages:
            likely = posterior(scores[block], sizes[block])[:, wanted.columns]
            best = wanted.columns[likely.argmax(1)]
            switched[block], switched_to[block] = switching(
                walk, np.where(own[block] == -2, best, own[block])
            )
    return Reading(wanted, np.array(place, np.intp), scores, sizes, letters(distinct), switched, switched_to)


def read_together(first: Reading, second: Reading, rows: NDArray[np.bool_], texts: Sequence[str]) -> Reading:
    """Some rows of two columns as one text each; all other rows have none.

    Naive Bayes adds the evidence of both. (What it makes of n-grams that both have, the logarithm of 1 + their
    number, is added up too; that is a little more than if the texts had been read as one.)

    Args:
        rows: which.
        texts: both texts of each of them, in one.
    """
    places = first.place[rows], second.place[rows]
    scores = first.scores[places[0]] + second.scores[places[1]]
    scores[(first.sizes[places[0]] > 0) & (second.sizes[places[1]] > 0)] -= model().log_prior
    sizes = first.sizes[places[0]] + second.sizes[places[1]]
    place = np.zeros(len(rows), np.intp)
    place[rows] = np.arange(1, len(texts) + 1)
    nothing = np.zeros(len(texts) + 1)
    return Reading(
        first.wanted,
        place,
        np.concatenate((np.zeros((1, scores.shape[1]), np.float32), scores)),
        np.concatenate((np.zeros(1, np.int64), sizes)),
        letters(["", *texts]),
        nothing,
        nothing.astype(np.intp) - 1,
    )


def _claimed_columns(claims: Sequence[str | None], wanted: Wanted) -> NDArray[np.intp]:
    """Position of each claimed language in the model's; −2 without a claim, −1 where it is none that the model can
    tell."""
    known: dict[str | None, int] = {}
    for claim in set(claims):
        tags = wanted.claimed(claim)
        told = [wanted.tags[tag] for tag in tags or () if tag not in wanted.romanised]
        known[claim] = -2 if tags is None else model().position(told[0].language) if told else -1
    return np.array([known[claim] for claim in claims], np.intp)
