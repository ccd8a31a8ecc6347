"""What is asked of the data (`GovernancePolicy`) and what is answered about a row (`Decision`).

The thresholds are this project's choice, set on clean text of 15 languages so that each rule rejects next to
nothing there; the paper's thresholds are not public.
"""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class _Policy(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LanguagePolicy(_Policy):
    """Thresholds on the posterior of `py3langid`, which is tempered by √(bytes).

    A row is rejected on strong evidence only: its language must be improbable *and* another one probable.
    Tempering keeps the posterior of a short text flat, so a short text seldom yields that evidence and
    passes, while a long one in the wrong language always does; no bound depends on length beyond this.
    """

    enabled: bool = True
    min_expected: float = Field(
        default=0.2, ge=0, le=1, description="lowest posterior of the expected language among the wanted ones"
    )
    min_wanted: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="lowest posterior of all wanted languages together, among all known languages",
    )
    min_rival: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="posterior another language must have for a row to be rejected in its favour",
    )
    min_assigned: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="lowest posterior, among all known languages, of an assigned language",
    )
    min_script: float = Field(
        default=0.2, ge=0, le=1, description="lowest share of letters in the language's own script"
    )
    min_foreign_letters: int = Field(
        default=8,
        ge=1,
        description="letters of another script from which the script check applies (names are short)",
    )


class DuplicatePolicy(_Policy):
    """Near-duplicates: character shingles, MinHash LSH candidates, exact Jaccard similarity to verify."""

    enabled: bool = True
    threshold: float = Field(
        default=0.8, gt=0, le=1, description="Jaccard similarity that *every* text column must reach"
    )
    shingle_size: int = Field(
        default=3,
        ge=1,
        description="characters per shingle; half of it, rounded up, where ideographs dominate",
    )
    bands: int = Field(default=20, ge=1, description="LSH bands; rows per band follow from the threshold")
    seed: int = 0


class QualityPolicy(_Policy):
    """Bounds per text, in the manner of Gopher (arXiv 2112.11446, table A1) and C4 (1910.10683, §2.2)."""

    enabled: bool = True
    min_letters: int = Field(default=2, ge=0, description="fewest letters")
    max_characters: int = Field(default=10_000, ge=1, description="most characters")
    max_repetition: float = Field(
        default=0.65,
        ge=0,
        le=1,
        description="largest share of repeated shingles, from `min_shingles` shingles on",
    )
    min_shingles: int = Field(default=20, ge=1, description="shingles from which repetition is judged")
    max_character_run: int = Field(
        default=15, ge=1, description="longest run of one character (white space aside)"
    )
    max_symbols: float = Field(
        default=0.5, ge=0, le=1, description="largest share of punctuation and symbols"
    )
    max_digits: float = Field(default=0.5, ge=0, le=1, description="largest share of digits")
    max_links: float = Field(
        default=0.3, ge=0, le=1, description="largest share of characters in URLs and e-mail addresses"
    )
    min_vowels: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="smallest share of vowels in a text of Latin, Cyrillic or Greek letters",
    )
    min_vowel_letters: int = Field(
        default=12, ge=1, description="letters from which the vowel share is judged"
    )
    reject_markup: bool = Field(default=True, description="HTML tags and script code")
    reject_boilerplate: bool = Field(default=True, description="placeholder and web-page boilerplate phrases")
    reject_mojibake: bool = Field(
        default=True, description="text decoded with the wrong encoding (ftfy), U+FFFD"
    )
    reject_identical: bool = Field(
        default=True, description="rows whose text columns are all equal after normalisation"
    )


class GovernancePolicy(_Policy):
    """One switchable section per step. Steps run in the order quality, language, duplicates.

    Quality comes first, so that mojibake is named as such and not as a foreign language; duplicates last, so
    that the kept row of a group is one that survives.
    """

    quality: QualityPolicy = QualityPolicy()
    language: LanguagePolicy = LanguagePolicy()
    duplicates: DuplicatePolicy = DuplicatePolicy()


@dataclass(frozen=True)
class Decision:
    """Why a row is rejected: `step`, a countable `reason`, `detail` to read, and the value that decided."""

    step: str
    reason: str
    detail: str
    score: float
