"""Texts that a causal language model of the user's finds improbable: a step of its own, off unless a model is named.

The score is bits per byte: −log₂ of the text's probability by its bytes in UTF-8. Unlike perplexity per token it does
not depend on how the model cuts a text into tokens (Gao et al., 2020, *The Pile*, §3.1). It does depend on the
language, so a text is held against its language's own distribution.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybrid_kernels.governance.batch import Batch, Bounds, Columns, Features, Objection, Range
from hybrid_kernels.governance.policy import GovernancePolicy

MEASURED = ("perplexity.model", "perplexity.max_tokens")
#: Values of the policy's fields worth trying.
VARIATIONS: dict[str, list[float]] = {"spread": [3.0, 4.0, 6.0, 8.0, 12.0]}

#: Tokens of a batch, padding included.
_BATCH_TOKENS = 8192
#: Characters of a text that are tokenised for each token that is read; more are never needed.
_CHARACTERS_PER_TOKEN = 32


def check(policy: GovernancePolicy) -> str | None:
    """Before any work: is there such a model, and is it a causal one? The model is loaded, and let go.

    Returns:
        What tells this model's content from another's of the same name; None: the step is off.

    Raises:
        ValueError: no model is named, or it is not a causal language model.
        OSError: it cannot be loaded.
    """
    if not policy.perplexity.enabled:
        return None
    name = _name(policy)
    _load(name)
    # Of an earlier run in this process, whose content may have been another.
    _scorer.cache_clear()
    return _digest(name)


def _digest(name: str) -> str:
    """Of the names and contents of the model's files, in its folder or in the cache of the hub."""
    from transformers.utils import cached_file

    config = cached_file(name, "config.json")
    assert config is not None  # it was loaded
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in Path(config).parent.iterdir() if path.is_file()):
        of_file = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                of_file.update(part)
        digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0" + of_file.digest())
    return digest.hexdigest()


def fields(columns: Columns, policy: GovernancePolicy) -> dict[str, pa.DataType]:
    """`bits_per_byte_i` of each text column; NaN for no text."""
    return {f"bits_per_byte_{i}": pa.float32() for i in range(len(columns.texts))}


def measure(batch: Batch, policy: GovernancePolicy) -> Features:
    """See `fields`. On a GPU where there is one; only the first `max_tokens` tokens of a text count."""
    scorer = _scorer(_name(policy))
    return {
        f"bits_per_byte_{i}": scorer.bits_per_byte(texts, policy.perplexity.max_tokens)
        for i, texts in enumerate(batch.texts)
    }


def objections(batch: Batch, features: Features, policy: GovernancePolicy, bounds: Bounds) -> list[Objection]:
    """Texts above their language's bound (`thresholds.bounds`); a language of few rows has none."""
    found = []
    for i, column in enumerate(batch.columns.texts):
        name = f"bits_per_byte_{i}"
        languages = list(features.get(f"row_language_{i}", np.full(len(batch), None, object)))
        most = np.array([bounds.get((name, language), Range()).high for language in languages], float)
        values = np.asarray(features[name], float)
        rows = np.flatnonzero(values > most)
        if len(rows):
            details = [
                f"{values[row]:.2f} bits per byte under the model, at most {most[row]:.2f} in {languages[row]}"
                for row in rows
            ]
            score, bound = np.round(values[rows], 6), np.round(most[rows], 6)
            found.append(
                Objection("perplexity", "improbable", column, rows.astype(np.int64), score, bound, details)
            )
    return found


def _name(policy: GovernancePolicy) -> str:
    if not policy.perplexity.model:
        raise ValueError(
            "policy perplexity.model is None; it must name a causal language model, a Transformers folder or hub name"
        )
    return policy.perplexity.model


def _load(name: str) -> tuple[Any, Any]:
    """(tokenizer, model) on the CPU."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(f"policy perplexity.model, {name!r}, could not be loaded: {error}") from error
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    classes = config.architectures or [causal]
    # BERT's family has a causal head too, which is one only in a model trained as a decoder.
    encoder = config.is_encoder_decoder or not {causal} & {*classes} or _is_encoder(config, causal)
    if causal is None or encoder:
        raise ValueError(
            f"policy perplexity.model, {name!r}, is a {', '.join(map(str, classes))} ({config.model_type}); it "
            "must be a causal language model"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(f"policy perplexity.model, {name!r}, could not be loaded: {error}") from error
    # Without its files Transformers makes one that knows no token.
    words, places = len(tokenizer), model.get_input_embeddings().num_embeddings
    if not tokenizer("a", add_special_tokens=False)["input_ids"] or words > places:
        raise OSError(
            f"policy perplexity.model, {name!r}, has no tokenizer of its own: {words} tokens, the model knows {places}"
        )
    return tokenizer, model.eval()


def _is_encoder(config: Any, causal: str | None) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_decoder


class _Scorer:
    def __init__(self, name: str) -> None:
        import torch

        self.tokenizer, model = _load(name)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        start = self.tokenizer.bos_token_id
        self.start = self.tokenizer.eos_token_id if start is None else start
        if self.start is None:
            raise ValueError(
                f"the tokenizer of policy perplexity.model, {name!r}, has neither a BOS nor an EOS token"
            )

    def bits_per_byte(self, texts: Sequence[str | None], most: int) -> NDArray[np.float32]:
        places = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        most = int(min(most, places - 1))
        found = np.full(len(texts), np.nan, np.float32)
        tokens: dict[int, list[int]] = {}
        sizes = {}
        for row, text in enumerate(texts):
            if text:
                start = text[: most * _CHARACTERS_PER_TOKEN]
                ids = self.tokenizer(start, add_special_tokens=False)["input_ids"]
                if ids:
                    tokens[row] = ids[:most]
                    whole = len(ids) <= most and len(start) == len(text)
                    read = text if whole else self.tokenizer.decode(ids[:most])
                    sizes[row] = max(1, len(read.encode("utf-8", "surrogatepass")))
        for rows in _batches(tokens):
            bits = self._bits([tokens[row] for row in rows])
            found[rows] = bits / np.array([sizes[row] for row in rows])
        return found

    def _bits(self, tokens: list[list[int]]) -> NDArray[np.float64]:
        """−log₂ of each sequence's probability, given the start token."""
        import torch

        width = max(map(len, tokens))
        # Padding comes last, so nothing that counts looks at it.
        ids = torch.full((len(tokens), width + 1), self.start)
        counts = torch.zeros((len(tokens), width))
        for row, sequence in enumerate(tokens):
            ids[row, 1 : len(sequence) + 1] = torch.tensor(sequence)
            counts[row, : len(sequence)] = 1
        ids, counts = ids.to(self.device), counts.to(self.device)
        with torch.inference_mode():
            mask = torch.cat([torch.ones_like(counts[:, :1]), counts], dim=1).long()
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return ((nats * counts).sum(dim=1).double() / math.log(2)).cpu().numpy()


def _batches(tokens: dict[int, list[int]]) -> Iterator[list[int]]:
    """Rows of about the same length together."""
    rows: list[int] = []
    for row in sorted(tokens, key=lambda row: (len(tokens[row]), row)):
        if rows and (len(rows) + 1) * (len(tokens[row]) + 1) > _BATCH_TOKENS:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


@lru_cache(maxsize=1)
def _scorer(name: str) -> _Scorer:
    """Loaded once a process."""
    return _Scorer(name)
