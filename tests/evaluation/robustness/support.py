"""FLORES-200 dev in the languages that the recipes are judged on."""

from functools import lru_cache

import pytest

from tests.governance.quality_support import DATA
from tests.governance.quality_support import FLORES as FLORES_CODES

FLORES = DATA / "flores200_dataset" / "dev"
needs_data = pytest.mark.skipif(
    not FLORES.is_dir(), reason=f"no real text at {DATA} (set HYBRID_KERNELS_DATA)"
)

CODES = {**FLORES_CODES, "zh-Hant": "zho_Hant"}


@lru_cache
def flores(language: str) -> tuple[str, ...]:
    return tuple((FLORES / f"{CODES[language]}.dev").read_text(encoding="utf-8").splitlines())
