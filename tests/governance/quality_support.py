"""The quality step over texts, as the pipeline runs it."""

import os
from pathlib import Path

import numpy as np
import pytest

from hybrid_kernels.governance import quality, thresholds
from hybrid_kernels.governance.batch import Batch, Columns
from hybrid_kernels.governance.policy import GovernancePolicy

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "ntrex").is_dir(), reason=f"no real text at {DATA} (set HYBRID_KERNELS_DATA)"
)
FLORES = {
    "ar": "arb_Arab",
    "bg": "bul_Cyrl",
    "de": "deu_Latn",
    "el": "ell_Grek",
    "en": "eng_Latn",
    "es": "spa_Latn",
    "fr": "fra_Latn",
    "hi": "hin_Deva",
    "ru": "rus_Cyrl",
    "sw": "swh_Latn",
    "th": "tha_Thai",
    "tr": "tur_Latn",
    "ur": "urd_Arab",
    "vi": "vie_Latn",
    "zh": "zho_Hans",
}


def lines(*parts):
    return DATA.joinpath(*parts).read_text(encoding="utf-8").split("\n")[:-1]


def flores(language):
    return lines("flores200_dataset", "dev", f"{FLORES[language]}.dev")


def ntrex(language):
    return lines("ntrex", f"ntrex.{language}.txt")


def governance(**fields):
    """A policy with these fields in its section `quality`."""
    return GovernancePolicy.model_validate({"quality": fields})


def batch(*texts, translation=False):
    names = ("a", "b")[: len(texts)]
    nothing = tuple([None] * len(side) for side in texts)
    return Batch(tuple(map(list, texts)), nothing, Columns(names, translation=translation), ("en",))


def measured(rows, languages=None, policy=None):
    """Features of a batch whose columns are in these languages."""
    features = quality.measure(rows, policy or GovernancePolicy())
    for i, language in enumerate(languages or [None] * len(rows.texts)):
        side = language if isinstance(language, list) else [language] * len(rows)
        features[f"row_language_{i}"] = np.array(side, object)
    return features


def histograms(features):
    found = thresholds.Histograms()
    names = sorted(name for name in features if name.startswith("row_language_"))
    found.add(features, [list(features[name]) for name in names])
    return found


def judged(*texts, languages=None, translation=False, policy=None, from_data=False):
    """The objections to rows."""
    policy = policy or GovernancePolicy()
    rows = batch(*texts, translation=translation)
    features = measured(rows, languages, policy)
    bounds = thresholds.bounds(histograms(features), policy) if from_data else {}
    return quality.objections(rows, features, policy, bounds)


def rejected(objections, column=...):
    """Rows that any of the objections (to a column) is about."""
    return {row for o in objections if column in (..., o.column) for row in o.rows.tolist()}


def reasons(objections, row=0):
    return [o.reason for o in objections if row in o.rows]
