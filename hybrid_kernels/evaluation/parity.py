"""How evenly a quality is spread over languages, over scripts, and over classes of resources.

`per_language` maps a language code to its metrics, as `per_language_metrics` returns them. What is compared is
accuracy, a fraction; so are all results but the Gini coefficient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

UNKNOWN = "unknown"

#: Classes of Joshi et al. 2020, "The State and Fate of Linguistic Diversity and Inclusion in the NLP World" (ACL 2020,
#: arXiv 2004.09095), by labelled and unlabelled data there are, from 0 (least) to 5, for the languages of XNLI. From
#: the list of all languages that the authors publish: microsoft.github.io/linguisticdiversity/assets/lang2tax.txt.
RESOURCE_CLASSES = {
    "ar": 5, "de": 5, "en": 5, "es": 5, "fr": 5, "zh": 5,
    "hi": 4, "ru": 4, "tr": 4, "vi": 4,
    "bg": 3, "el": 3, "th": 3, "ur": 3,
    "sw": 2,
}  # fmt: skip


def parity(per_language: Mapping[str, Mapping[str, float]], reference: str = "en") -> dict[str, Any]:
    """How evenly accuracy is spread over languages.

    Returns:
        reference, reference_accuracy.
        worst_language, worst_accuracy: the first in the alphabet of those that share the lowest accuracy.
        gap: accuracy of `reference` − accuracy of the worst language (the reference included, so gap ≥ 0).
        transfer_gap: accuracy of `reference` − mean accuracy of the other languages (Hu et al. 2020, arXiv
            2003.11080, section 5.1), 0 where there is none; negative where the others are better.
        std: population standard deviation over the languages.
        gini: `gini` of the accuracies.
    """
    if reference not in per_language:
        raise ValueError(
            f"reference language {reference!r} is not among the languages {sorted(per_language)}"
        )
    accuracy = _accuracies(per_language)
    others = [value for language, value in accuracy.items() if language != reference]
    return {
        "reference": reference,
        "reference_accuracy": accuracy[reference],
        **_spread(accuracy, accuracy[reference]),
        "transfer_gap": accuracy[reference] - float(np.mean(others)) if others else 0.0,
    }


def gini(values: Any) -> float:
    """Σ_i Σ_j |x_i − x_j| / (2 n² mean), in [0, 1): 0 where all are equal (or all 0). (n,) values ≥ 0."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all() or (x < 0).any():
        raise ValueError(f"values must be one or more finite numbers ≥ 0, got {values!r}")
    if not x.any():
        return 0.0
    # |x_i − x_j| summed over the sorted values: the k-th, from 0, is subtracted from n − 1 − k others.
    n = len(x)
    return float(((2 * np.arange(n) - n + 1) * np.sort(x)).sum() / (n * x.sum()))


def script_of(language: str) -> str:
    """The script of a language or a tag that names one (`zho_Hant`, `hi-Latn`): "Latin", "Han", or "unknown"."""
    from hybrid_kernels.governance.scripts import name_in_words, read_tag

    tag = read_tag(language)
    return " or ".join(sorted(map(name_in_words, tag.letters))) if tag else UNKNOWN


def resource_class_of(language: str) -> str:
    """The language's class in `RESOURCE_CLASSES`, "5" to "2", whatever script is named; or "unknown"."""
    from hybrid_kernels.governance.scripts import read_tag

    tag = read_tag(language)
    return str(RESOURCE_CLASSES.get(tag.language, UNKNOWN)) if tag else UNKNOWN


def parity_by_script(
    per_language: Mapping[str, Mapping[str, float]], reference: str = "en"
) -> dict[str, Any]:
    """`parity_by_group` of `script_of`."""
    return parity_by_group(
        per_language, {language: script_of(language) for language in per_language}, reference
    )


def parity_by_resource_class(
    per_language: Mapping[str, Mapping[str, float]], reference: str = "en"
) -> dict[str, Any]:
    """`parity_by_group` of `resource_class_of`."""
    groups = {language: resource_class_of(language) for language in per_language}
    return parity_by_group(per_language, groups, reference)


def parity_by_group(
    per_language: Mapping[str, Mapping[str, float]], groups: Mapping[str, str], reference: str = "en"
) -> dict[str, Any]:
    """Parity inside each group of languages, and between the groups.

    Args:
        groups: language → group; those it lacks form the group "unknown".

    Returns:
        groups: by group, sorted: `languages`, mean `accuracy`, and as `parity` says, over the group's languages only,
            `worst_language`, `worst_accuracy`, `std`, `gini`; `gap`: accuracy of the `reference` language, whatever
            its group, − that of the worst language of the group (negative where all are better); `mean_gap`: the same
            to the group's mean accuracy.
        between: `parity` of the groups' mean accuracies; its reference is the group of the reference language.
    """
    if reference not in per_language:
        raise ValueError(
            f"reference language {reference!r} is not among the languages {sorted(per_language)}"
        )
    accuracy = _accuracies(per_language)
    members: dict[str, dict[str, float]] = {}
    for language, value in accuracy.items():
        members.setdefault(groups.get(language, UNKNOWN), {})[language] = value
    means = {group: float(np.mean(list(inside.values()))) for group, inside in sorted(members.items())}
    return {
        "groups": {
            group: {
                "languages": list(members[group]),
                "accuracy": mean,
                "mean_gap": accuracy[reference] - mean,
                **_spread(members[group], accuracy[reference]),
            }
            for group, mean in means.items()
        },
        "between": parity(
            {group: {"accuracy": mean} for group, mean in means.items()}, groups.get(reference, UNKNOWN)
        ),
    }


def _accuracies(per_language: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    require(per_language, ("accuracy",))
    return {language: float(row["accuracy"]) for language, row in sorted(per_language.items())}


def _spread(accuracy: Mapping[str, float], reference: float) -> dict[str, Any]:
    worst = min(accuracy, key=accuracy.__getitem__)
    return {
        "worst_language": worst,
        "worst_accuracy": accuracy[worst],
        "gap": reference - accuracy[worst],
        "std": float(np.std(list(accuracy.values()))),
        "gini": gini(list(accuracy.values())),
    }


def require(per_language: Mapping[str, Mapping[str, float]], metrics: tuple[str, ...]) -> None:
    """ValueError unless every language has these metrics."""
    for language, row in per_language.items():
        missing = [metric for metric in metrics if metric not in row]
        if missing:
            raise ValueError(f"per_language[{language!r}] lacks {', '.join(missing)}")
