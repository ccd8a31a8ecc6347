"""The perplexity step: bits per byte of each text under a causal language model of the user's.

Per byte and not per token, so that models and languages compare: −log₂ p(tokens) / bytes in UTF-8 (Gao et al.,
arXiv 2101.00027, §3.1). The first token has no context and counts only where the tokenizer sets one before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from hybrid_kernels.governance import thresholds
from hybrid_kernels.governance.batch import Batch, Bounds, Columns, Features, Objection
from hybrid_kernels.governance.policy import GovernancePolicy

STEP = "perplexity"
MEASURED = ("perplexity.model", "perplexity.max_tokens")
_TOKENS_AT_ONCE = 4096


def fields(columns: Columns, policy: GovernancePolicy) -> dict[str, pa.DataType]:
    """`bits_per_byte_i` of each text column."""
    return {f"bits_per_byte_{i}": pa.float64() for i in range(len(columns.texts))}


def check(policy: GovernancePolicy) -> None:
    """Loads the model, so that one that is none is found before any work.

    Raises:
        ValueError: no model is named, or what is named is no causal language model with a tokenizer.
    """
    if policy.perplexity.enabled:
        _load(policy.perplexity.model)


def measure(batch: Batch, policy: GovernancePolicy) -> Features:
    """NaN where there is no text, or none of more than a token."""
    model, tokenizer = _load(policy.perplexity.model)
    return {
        f"bits_per_byte_{i}": np.array(_bits_per_byte(texts, model, tokenizer, policy.perplexity.max_tokens))
        for i, texts in enumerate(batch.texts)
    }


def objections(batch: Batch, features: Features, policy: GovernancePolicy, bounds: Bounds) -> list[Objection]:
    """What is improbable beyond the bound that the data of its language gives."""
    languages = tuple(list(features[f"row_language_{i}"]) for i in range(len(batch.texts)))
    found = []
    for i, column in enumerate(batch.columns.texts):
        name = f"bits_per_byte_{i}"
        values = np.asarray(features[name], np.float64)
        _, high = thresholds.limits(name, thresholds.languages_of(name, languages), bounds)
        rows = np.flatnonzero(values > high)
        details = [f"{values[row]:.2f} bits per byte, at most {high[row]:.2f}" for row in rows.tolist()]
        found.append(Objection(STEP, "improbable text", column, rows, values[rows], high[rows], details))
    return found


@lru_cache(maxsize=1)
def _load(name: str | None) -> tuple[Any, Any]:
    if name is None:
        raise ValueError(
            "perplexity.model names no model: a Transformers folder or a hub name of a causal language model"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"perplexity.model: {name!r} is no causal language model: {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _bits_per_byte(texts: Sequence[str | None], model: Any, tokenizer: Any, max_tokens: int) -> list[float]:
    found = [math.nan] * len(texts)
    tokens = {row: _tokens(text, tokenizer, max_tokens) for row, text in enumerate(texts) if text}
    rows = sorted(
        (row for row, ids in tokens.items() if len(ids[0]) > 1), key=lambda row: len(tokens[row][0])
    )
    start = 0
    while start < len(rows):
        # The longest of a batch comes last; all are padded to it.
        stop = start + 1
        while stop < len(rows) and (stop - start + 1) * len(tokens[rows[stop]][0]) <= _TOKENS_AT_ONCE:
            stop += 1
        chosen = rows[start:stop]
        bits = _bits([tokens[row][0] for row in chosen], model)
        for row, spent in zip(chosen, bits, strict=True):
            found[row] = spent / tokens[row][1]
        start = stop
    return found


def _tokens(text: str, tokenizer: Any, max_tokens: int) -> tuple[list[int], int]:
    """(tokens, bytes that they stand for)."""
    # Characters that cannot reach the last token are not tokenised: no token of 512 is longer than 64 characters.
    encoded = tokenizer(
        text[: max_tokens * 64],
        truncation=True,
        max_length=max_tokens,
        return_offsets_mapping=tokenizer.is_fast,
    )
    ids = list(encoded["input_ids"])
    end = max((stop for _, stop in encoded["offset_mapping"]), default=0) if tokenizer.is_fast else len(text)
    return ids, max(len(text[:end].encode("utf-8", "replace")), 1)


def _bits(sequences: Sequence[Sequence[int]], model: Any) -> list[float]:
    """−log₂ p of each but its first token."""
    import torch

    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    spent = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return ((spent * mask[:, 1:]).sum(dim=1) / math.log(2)).tolist()
