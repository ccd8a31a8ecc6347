"""Data that ships inside the package: a small multilingual inference sample."""

from pathlib import Path

__all__ = ["nli_folder"]


def nli_folder() -> Path:
    """Return the folder that holds ``train.jsonl``, ``test.jsonl`` and their README."""
    return Path(__file__).parent / "nli"
