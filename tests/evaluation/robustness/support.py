"""FLORES-200 dev in the languages that the recipes are judged on."""

import os
from functools import lru_cache
from pathlib import Path

import pytest

DATA = Path(os.environ.get("HYBRID_KERNELS_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
FLORES = DATA / "flores200_dataset" / "dev"
needs_data = pytest.mark.skipif(
    not FLORES.is_dir(), reason=f"no real text at {DATA} (set HYBRID_KERNELS_DATA)"
)

CODES = {
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
    "zh-Hant": "zho_Hant",
}


@lru_cache
def flores(language: str) -> tuple[str, ...]:
    return tuple((FLORES / f"{CODES[language]}.dev").read_text(encoding="utf-8").splitlines())
