"""Label-free data governance: language identification, near-duplicate removal and a quality filter.

>>> from hybrid_kernels.governance import govern
>>> result = govern(rows, ["en", "sw"], text_columns=["premise", "hypothesis"], language_column="language")
>>> result.kept, result.rejected, result.summary
>>> result.write("cleaned/")

The per-document rules (`quality_decision`, `language_decision`, `assign_language`, `shingles`, `band_keys`)
are pure functions of texts and policy, so that an engine other than `datasets` reaches the same decisions.
"""

from hybrid_kernels.governance.duplicates import band_keys, find_duplicates, pair_similarity
from hybrid_kernels.governance.govern import GovernanceResult, govern
from hybrid_kernels.governance.language import assign_language, language_decision, supported_languages
from hybrid_kernels.governance.policy import (
    Decision,
    DuplicatePolicy,
    GovernancePolicy,
    LanguagePolicy,
    QualityPolicy,
)
from hybrid_kernels.governance.quality import quality_decision
from hybrid_kernels.governance.text import normalise, script_counts, shingles

__all__ = [
    "Decision",
    "DuplicatePolicy",
    "GovernancePolicy",
    "GovernanceResult",
    "LanguagePolicy",
    "QualityPolicy",
    "assign_language",
    "band_keys",
    "find_duplicates",
    "govern",
    "language_decision",
    "normalise",
    "pair_similarity",
    "quality_decision",
    "script_counts",
    "shingles",
    "supported_languages",
]
