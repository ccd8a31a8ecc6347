"""What is asked of the data: one model, one YAML file, a section a step, each with its switch.

The thresholds are this project's choice, set on clean text of 15 languages so that each rule rejects next to nothing
there; the paper's are not public.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Action = Literal["keep", "reject"]


class Section(BaseModel):
    """A part of a policy: unknown keys are an error, and so are infinite numbers, which JSON has none of."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`max_digits: no` is meant to switch a rule off, and would be a bound of 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("a number is needed")
        return value


class LanguagePolicy(Section):
    """Thresholds on probabilities of languages, which are calibrated by the length of the text.

    A text is rejected on strong evidence only: its language must be improbable *and* another one probable. Most
    claims are right, which these probabilities know nothing of; hence the low bounds. A short text seldom falls below
    them and passes, while a long one in the wrong language always does.
    """

    enabled: bool = True
    min_expected: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="lowest probability of the expected language among the wanted ones",
    )
    min_wanted: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="lowest probability of all wanted languages together, among all known languages",
    )
    min_rival: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="probability another language must have for a row to be rejected in its favour",
    )
    min_assigned: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="lowest probability, among all known languages, of an assigned language",
    )
    min_script: float = Field(
        default=0.2, ge=0, le=1, description="lowest share of letters in the language's own script"
    )
    min_foreign_letters: int = Field(
        default=8,
        ge=1,
        description="letters of another script from which the script check applies (names are short)",
    )
    romanised: Action = Field(
        default="reject", description="rows in Latin letters of a language of another script"
    )
    wrong_script: Action = Field(
        default="reject", description="rows in another script, Traditional Chinese for zh-Hans say"
    )
    code_switched: Action = Field(
        default="keep", description="rows that change language; kept ones are flagged"
    )
    min_switched: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="share of the letters in another language from which a row is code-switched",
    )


class DuplicatePolicy(Section):
    """Near-duplicates: character shingles, MinHash LSH candidates, exact Jaccard similarity to verify.

    Rows are compared within a language. Duplicates form connected groups, of which the first row in the order of the
    inputs is kept.
    """

    enabled: bool = True
    near: bool = Field(
        default=True, description="near-duplicates too; off: only texts equal after normalisation"
    )
    threshold: float = Field(
        default=0.8, gt=0, le=1, description="Jaccard similarity that *every* text column must reach"
    )
    shingle_size: int = Field(
        default=3,
        ge=1,
        description="characters per shingle; half of it, rounded up, where ideographs dominate",
    )
    bands: int = Field(default=20, ge=1, description="LSH bands; rows per band follow from the threshold")


class LeakagePolicy(Section):
    """Training rows that duplicate a row of the evaluation files; used where such files are named."""

    enabled: bool = True
    threshold: float = Field(default=0.8, gt=0, le=1, description="Jaccard similarity to an evaluation row")
    match: Literal["auto", "all", "any"] = Field(
        default="auto",
        description="whether all text columns must match or any one; auto: all of a pair, any of a translation",
    )
    min_shingles: int = Field(
        default=20,
        ge=1,
        description="distinct shingles of a text from which it is evidence by itself (half where ideographs dominate)",
    )


class QualityPolicy(Section):
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
    max_word_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="largest share of the words that are one and the same, from 10 words on",
    )
    max_repeated_lines: float = Field(
        default=0.3, ge=0, le=1, description="largest share of the lines that came before"
    )
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
    reject_keyboard_walks: bool = Field(default=True, description="six keys beside each other in a row")
    reject_markup: bool = Field(default=True, description="HTML tags and script code")
    reject_boilerplate: bool = Field(default=True, description="placeholder and web-page boilerplate phrases")
    reject_mojibake: bool = Field(
        default=True, description="text decoded with the wrong encoding (ftfy), U+FFFD"
    )
    reject_truncated: bool = Field(default=True, description="texts cut off in the middle")
    reject_identical: bool = Field(
        default=True, description="rows whose text columns are all equal after normalisation"
    )
    max_length_ratio: float = Field(
        default=3.0,
        gt=1,
        description="translations: largest ratio of the sides' lengths, after their languages' usual one",
    )
    min_number_agreement: float = Field(
        default=0.3, ge=0, le=1, description="translations: smallest share of numbers that both sides have"
    )
    reject_question_mismatch: bool = Field(
        default=True, description="translations: a question beside a text without a question mark"
    )
    max_punctuation_difference: int = Field(
        default=3, ge=0, description="translations: most sentence marks that one side has more than the other"
    )
    max_copied: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="translations: largest share of shingles both sides have; more is a copy",
    )


class ThresholdPolicy(Section):
    """Bounds from the data: median ± spread · robust standard deviation of a feature, per language.

    They take the place of the fixed bounds only where they are the stricter ones and enough rows speak, and give way
    until they cut no more than a small share of the language's rows (`thresholds`).
    """

    enabled: bool = True
    spread: float = Field(
        default=8.0, gt=0, description="robust standard deviations (1.4826 · MAD) from the median"
    )
    pair_spread: float = Field(
        default=6.0, gt=0, description="the same for the length ratio of translations, which spreads evenly"
    )
    min_rows: int = Field(
        default=500, ge=2, description="rows of a language from which its own bounds are used"
    )
    min_terminated: float = Field(
        default=0.995,
        ge=0,
        le=1,
        description="share of a language's rows that end in a sentence mark, from which one without is cut off",
    )
    min_punctuated: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="share of a language's rows that end in a sentence mark, below which no end shows a truncated text",
    )


class PerplexityPolicy(Section):
    """Bits per byte under a causal language model of yours; off unless a model is named."""

    enabled: bool = False
    model: str | None = Field(default=None, description="a Transformers folder or hub name")
    spread: float = Field(
        default=6.0, gt=0, description="robust standard deviations above the language's median"
    )
    max_tokens: int = Field(default=512, ge=2, description="tokens of a text that are read")


class PersonalDataPolicy(Section):
    """E-mail addresses, phone numbers, IBANs and IP addresses."""

    enabled: bool = False
    action: Literal["mask", "reject", "flag"] = Field(
        default="mask",
        description="what becomes of a row with any; mask, in rejected rows and reports too, and flag keep it",
    )
    kinds: tuple[Literal["email", "phone", "iban", "ip"], ...] = Field(
        default=("email", "phone", "iban", "ip"), description="what is looked for"
    )


class GovernancePolicy(Section):
    """One switchable section a step. All but duplicates and leakage judge every row, so that a rejected row has all its
    reasons; duplicates are looked for among the rows that survive, so that the kept row of a group is one of them.
    """

    quality: QualityPolicy = QualityPolicy()
    thresholds: ThresholdPolicy = ThresholdPolicy()
    language: LanguagePolicy = LanguagePolicy()
    perplexity: PerplexityPolicy = PerplexityPolicy()
    personal_data: PersonalDataPolicy = PersonalDataPolicy()
    duplicates: DuplicatePolicy = DuplicatePolicy()
    leakage: LeakagePolicy = LeakagePolicy()
    repair: bool = Field(
        default=False, description="a column <text>_repaired beside each text, mended by ftfy"
    )
    annotate: bool = Field(
        default=False, description="columns with language, confidence and flags in the kept rows"
    )
    seed: int = Field(default=0, ge=0, description="of the hash functions of MinHash")
