"""Text that its writers romanised: the real thing beside the recipe `romanisation`.

About 6 % of XNLI's Urdu hypotheses and 3 % of its Hindi ones are in Latin letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hybrid_kernels.evaluation.metrics import classification_metrics
from hybrid_kernels.governance.reading import read, wanted_of
from hybrid_kernels.governance.scripts import SCRIPTS, Tag, letters, read_tag

# Names and terms in Latin letters occur in text of every script; so may a stray letter of it among Latin ones.
_STRAY = 1
# Probability from which a text is English. In XNLI dev romanised rows full of English names reach 0.994, English ones
# begin at 0.997 (one in capitals) and are else above 0.9998: a row or two is all that a near value would change.
_ENGLISH = 0.995


def natural_romanised(rows: Sequence[Mapping[str, Any]], column: str = "hypothesis") -> NDArray[np.bool_]:
    """Which rows have a romanised text in `column`: in Latin letters, though their language is not, and not English.

    Args:
        rows: n rows with a `language` (a tag as `read_tag` takes it) and the text.

    Returns:
        (n,) bool.

    Raises:
        ValueError: a row without one of these, or of an unknown language.
    """
    for key in ("language", column):
        if missing := [i for i, row in enumerate(rows) if not isinstance(row.get(key), str)]:
            raise ValueError(f"rows[{missing[0]}] has no text in {key!r}; every row must")
    codes = {str(row["language"]) for row in rows}
    tags: dict[str, Tag] = {}
    for code in sorted(codes):
        tag = read_tag(code)
        if tag is None:
            raise ValueError(f"rows have language {code!r}; it must be a language code, like hi or hin_Deva")
        tags[code] = tag
    texts = [str(row[column]) for row in rows]
    counted = letters(texts)
    latin = counted.of(frozenset({SCRIPTS["Latn"]}))
    candidates = (latin > _STRAY) & (counted.total - latin <= _STRAY)
    candidates &= np.array(["Latn" not in tags[str(row["language"])].scripts for row in rows], bool)
    places = np.flatnonzero(candidates)
    if len(places):
        english = read([texts[i] for i in places], [None] * len(places), wanted_of(("en",)))
        candidates[places] = english.likeness.probability < _ENGLISH
    return candidates


def romanised_metrics(
    probabilities: ArrayLike,
    labels: ArrayLike,
    languages: Sequence[str],
    romanised: NDArray[np.bool_],
) -> dict[str, dict[str, Any]]:
    """Per language that has both kinds of rows: how well the romanised ones are classified, against the others.

    Args:
        probabilities, labels: (n, classes) and (n,), as `classification_metrics` has them.
        languages: (n,) language codes.
        romanised: (n,), from `natural_romanised`.

    Returns:
        Per language: `native` and `romanised`, the metrics of these rows; `accuracy_drop`, the native accuracy minus
        the romanised; `interval`, its 95 % interval. The rows are different ones, so the interval is that of two
        independent proportions (Newcombe 1998, Statistics in Medicine 17, method 10: from Wilson's intervals).
    """
    p, y, mask = np.asarray(probabilities), np.asarray(labels), np.asarray(romanised)
    codes = np.asarray(list(languages), dtype=object)
    if not len(p) == len(y) == len(codes) == len(mask) or mask.dtype != bool:
        raise ValueError(
            f"probabilities, labels, languages and romanised have {len(p)}, {len(y)}, {len(codes)} and {len(mask)}"
            f" entries, romanised is {mask.dtype}; they must be equally long, romanised bool"
        )
    table: dict[str, dict[str, Any]] = {}
    for code in sorted(set(codes[mask].tolist())):
        of_language = codes == code
        if not (of_language & ~mask).any():
            continue
        native = classification_metrics(p[of_language & ~mask], y[of_language & ~mask])
        other = classification_metrics(p[of_language & mask], y[of_language & mask])
        table[code] = {
            "native": native,
            "romanised": other,
            "accuracy_drop": native["accuracy"] - other["accuracy"],
            "interval": _interval(native, other),
        }
    return table


def _interval(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[float, float]:
    from scipy.stats import binomtest

    a, b = first["accuracy"], second["accuracy"]
    (low_a, high_a), (low_b, high_b) = (
        binomtest(round(m["accuracy"] * m["n"]), int(m["n"])).proportion_ci(method="wilson")
        for m in (first, second)
    )
    low = a - b - float(np.hypot(a - low_a, high_b - b))
    high = a - b + float(np.hypot(high_a - a, b - low_b))
    return low, high
