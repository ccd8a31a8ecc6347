"""Classification with a language model: a prompt, and the probability of each label's verbaliser after it.

The score of a label is its verbaliser's log-probability after the prompt, as `evaluation.scoring` takes it: the sum
over its tokens, or (length-normalised) their mean. Class probabilities are the softmax of the scores over the labels.

Contextual calibration (Zhao et al. 2021, arXiv 2102.09690, section 4): with p_cf the mean class probabilities of
prompts whose fields are content-free, q ∝ p / p_cf, that is W = diag(p_cf)⁻¹ and b = 0, normalised to sum 1 as in the
authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_kernels.evaluation.prompts import Prompt, prompt_for
from hybrid_kernels.evaluation.scoring import Encoded, Shown, completion_log_probabilities, encode

# Zhao et al.'s content-free inputs.
CONTENT_FREE = ("N/A", "[MASK]", "")


@dataclass(frozen=True)
class PromptScores:
    """Verbalisers' log-probabilities, from which probabilities of every kind are made.

    log_probabilities: (n, classes) float64, nats, summed over tokens. tokens: (n, classes) int64.
    languages: (n,). content_free: for each language the same two arrays (3, classes) for `CONTENT_FREE`.
    """

    log_probabilities: np.ndarray
    tokens: np.ndarray
    languages: Sequence[str]
    content_free: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def probabilities(self, *, length_normalized: bool = True, calibrated: bool = False) -> np.ndarray:
        """(n, classes) float64, rows sum to 1."""
        values = _softmax(self.log_probabilities, self.tokens, length_normalized)
        if not calibrated:
            return values
        priors = {
            language: _softmax(*scores, length_normalized).mean(axis=0)
            for language, scores in self.content_free.items()
        }
        values = values / np.stack([priors[language] for language in self.languages])
        return values / values.sum(axis=1, keepdims=True)


def score_prompts(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    prompts: str | Mapping[str, Prompt] = "own",
    max_length: int = 256,
    batch_size: int = 8,
    cache: bool = True,
    description: Shown = None,
) -> PromptScores:
    """Scores every label of every row, and of the content-free prompt of every language.

    Args:
        model: a causal language model (or an encoder–decoder), on the device where it is to run.
        rows: with `language`, `premise`, `hypothesis`.
        prompts: as in `prompts.prompt_for`.
        max_length: tokens of prompt and verbaliser; a longer prompt loses the end of its premise.
        batch_size, cache, description: as in `scoring.completion_log_probabilities`.

    Raises ValueError for a language without a prompt, or a hypothesis too long for `max_length`.
    """
    if not rows:
        raise ValueError("rows is empty; give at least one row")
    languages = [row["language"] for row in rows]
    encoder_decoder = model.config.is_encoder_decoder
    free = [
        {"language": language, "premise": text, "hypothesis": text}
        for language in sorted(set(languages))
        for text in CONTENT_FREE
    ]
    encoded = [
        encode_row(tokenizer, prompt_for(row["language"], prompts), row, max_length, encoder_decoder)
        for row in [*rows, *free]
    ]
    pad_id = pad_token_id(tokenizer)
    values, tokens = completion_log_probabilities(
        model, encoded, pad_token_id=pad_id, batch_size=batch_size, cache=cache, description=description
    )
    content_free = {
        language: (values[start : start + len(CONTENT_FREE)], tokens[start : start + len(CONTENT_FREE)])
        for language, start in zip(
            sorted(set(languages)), range(len(rows), len(encoded), len(CONTENT_FREE)), strict=True
        )
    }
    return PromptScores(values[: len(rows)], tokens[: len(rows)], languages, content_free)


def encode_row(
    tokenizer: Any, prompt: Prompt, row: Mapping[str, Any], max_length: int, encoder_decoder: bool = False
) -> Encoded:
    """Prompt and verbalisers of one row as token ids, at most `max_length` together; the premise gives way."""

    def encoded(characters: int) -> Encoded:
        text = prompt.fill(row["premise"][:characters].rstrip(), row["hypothesis"])
        return encode(tokenizer, text, prompt.verbalizers, encoder_decoder=encoder_decoder)

    def length(one: Encoded) -> int:
        return len(one.prompt) + max(map(len, one.completions))

    most = len(row["premise"])
    if length(whole := encoded(most)) <= max_length:
        return whole
    if (needed := length(encoded(0))) > max_length:
        raise ValueError(
            f"max_length {max_length} is too short for the {row['language']!r} prompt with hypothesis "
            f"{row['hypothesis'][:80]!r}, which needs {needed} tokens without a premise"
        )
    # Not by cutting its tokens and decoding them: that does not give back the text of every tokenizer.
    least = 0
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if length(encoded(middle)) <= max_length else (least, middle)
    return encoded(least)


def pad_token_id(tokenizer: Any) -> int:
    """Padding is masked wherever it occurs, so EOS serves where a tokenizer has no padding token."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None:
            return int(value)
    raise ValueError("the tokenizer has neither a padding nor an EOS token; set tokenizer.pad_token")


def _softmax(log_probabilities: np.ndarray, tokens: np.ndarray, length_normalized: bool) -> np.ndarray:
    scores = log_probabilities / tokens if length_normalized else log_probabilities
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))
