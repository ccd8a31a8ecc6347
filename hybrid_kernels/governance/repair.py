"""Text mended, for a column beside the original."""

from __future__ import annotations


def repaired(text: str) -> str:
    """`text` with wrong encodings undone, HTML entities resolved and line breaks unified (ftfy); NFC."""
    import ftfy

    return ftfy.fix_text(text)
