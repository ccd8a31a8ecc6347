"""Text mended: wrong encodings undone, HTML entities and control characters resolved; nothing else is changed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hybrid_kernels.governance import mojibake


def repaired(text: str) -> str:
    """`text` as `ftfy` mends it, in Unicode's form NFC.

    Quotation marks, full-width characters, ligatures and line breaks stay as they are: they are right in some language.
    What went through an encoding that ftfy does not know is read again too (`mojibake.decoded`).
    """
    import ftfy

    if text.isascii() and "&" not in text and text.isprintable():
        return text
    before = mojibake.decoded(text)
    return ftfy.fix_text(text if before is None else before, config=_config())


@lru_cache(maxsize=1)
def _config() -> Any:
    import ftfy

    return ftfy.TextFixerConfig(
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        explain=False,
    )
