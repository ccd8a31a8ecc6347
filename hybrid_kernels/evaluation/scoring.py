"""Log-probabilities of completions after their prompts, in batches, each prompt computed once for all its completions.

**Tokens.** Tokenising a prompt and a completion apart is not tokenising their text: the end of one may merge with the
start of the other. So the joined text is tokenised, and a completion's tokens are those of the joined text that come
after the longest run of tokens shared by the prompt and all its joined texts. What merged across the border belongs to
the completion; what the sums leave out is the same for every completion, so that comparing them is exact. For an
encoder–decoder there is no such border: the prompt is the encoder's whole input, a completion the decoder's whole
output.

**Cache.** The shared run is computed once, and its keys and values serve every completion. Where all prompts of a batch
begin alike (worked examples, an instruction), that beginning is computed once for the batch.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Shown = str | Callable[[int, int], None] | None

# A beginning shared by a batch that is shorter than this (tokens) is not worth a pass of its own.
LEAST_SHARED = 16


@dataclass(frozen=True)
class Encoded:
    """A prompt and its completions as token ids; `prompt` is what all of them share."""

    prompt: list[int]
    completions: list[list[int]]


def encode(
    tokenizer: Any, prompt: str, completions: Sequence[str], *, encoder_decoder: bool = False
) -> Encoded:
    """Token ids by the rule at the head of this module.

    The tokenizer's special tokens come in front as it puts them. One it puts at the end (EOS) is left out, but for the
    input of an encoder.

    Raises ValueError for an empty completion, or one that adds no token of its own.
    """
    if not completions or not all(completion.strip() for completion in completions):
        raise ValueError(f"completions must be texts that are not blank, got {list(completions)!r}")
    if encoder_decoder:
        whole = list(tokenizer(prompt)["input_ids"])
        return Encoded(whole, [open_ids(tokenizer, completion.strip()) for completion in completions])
    joined = [open_ids(tokenizer, prompt + completion) for completion in completions]
    shared = shared_prefix([open_ids(tokenizer, prompt), *joined])
    if not shared:
        raise ValueError(
            f"prompt {prompt[:80]!r} has no token that stays one before its completions; it must not be empty where "
            "the tokenizer puts no token in front"
        )
    if short := [text for text, ids in zip(completions, joined, strict=True) if len(ids) == shared]:
        raise ValueError(f"completion {short[0]!r} adds no token to prompt {prompt[-80:]!r}")
    return Encoded(joined[0][:shared], [ids[shared:] for ids in joined])


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of what all rows begin with."""
    return next(
        (i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows))
    )


def open_ids(tokenizer: Any, text: str) -> list[int]:
    """The text's token ids without an EOS at the end, so that more may follow."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def completion_log_probabilities(
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad_token_id: int,
    batch_size: int = 8,
    cache: bool = True,
    description: Shown = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of ln p(token | everything before it) over each completion's tokens.

    Args:
        model: a causal language model, or an encoder–decoder (the prompt then goes into the encoder; a completion's
            tokens follow the decoder's start token). It is put into evaluation mode.
        rows: as `encode` makes them, all with the same number of completions c.
        pad_token_id: any id of the vocabulary; what it stands for is masked.
        batch_size: prompts a batch; a batch holds prompts of like length. Its logits are batch_size × c × (tokens of
            its longest completion) × vocabulary numbers.
        cache: compute each prompt once; otherwise once for each completion. The result is the same.
        description: of a progress bar, or what is told of each batch (done, total); nothing is shown without.

    Returns:
        (log-probabilities in nats (n, c) float64, numbers of tokens (n, c) int64). Softmaxes are in float32, or the
        model's dtype where that is wider.
    """
    counts = {len(row.completions) for row in rows}
    if len(counts) != 1:
        raise ValueError(f"rows must have the same number of completions each, found {sorted(counts)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    one_batch = _encoder_decoder_batch if model.config.is_encoder_decoder else _causal_batch
    values = np.empty((len(rows), counts.pop()))
    model.eval()
    batches = list(length_buckets([len(row.prompt) for row in rows], batch_size))
    with torch.inference_mode():
        for batch in progress(batches, description):
            values[batch] = one_batch(model, [rows[i] for i in batch], pad_token_id, cache)
    return values, np.array([[len(ids) for ids in row.completions] for row in rows])


def length_buckets(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, the longest first: what does not fit into memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def progress(batches: Sequence[Any], description: Shown) -> Iterable[Any]:
    if description is None:
        return batches
    if callable(description):
        return _told(batches, description)
    from rich.progress import track

    return track(batches, description=description)


def _told(batches: Sequence[Any], listener: Callable[[int, int], None]) -> Iterator[Any]:
    for done, batch in enumerate(batches, start=1):
        yield batch
        listener(done, len(batches))


def pad(
    rows: Sequence[Sequence[int]], value: int, side: str, device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask): int64 (n, longest), padded on the `side` "left" or "right"; the mask is 1 on what was there."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, at] = torch.tensor(row, dtype=torch.long)
        mask[i, at] = 1
    return ids.to(device), mask.to(device)


# --- a causal language model


def _causal_batch(model: Any, rows: list[Encoded], pad_id: int, cache: bool) -> np.ndarray:
    count = len(rows[0].completions)
    completions = [ids for row in rows for ids in row.completions]
    longest = max(map(len, completions))
    if not cache:
        joined = [row.prompt + ids for row in rows for ids in row.completions]
        ids, mask = pad(joined, pad_id, "left", model.device)
        logits = _forward(model, ids, mask, keep=longest + 1)[:, -longest - 1 : -1]
        sums = [
            _log_likelihood(one[longest - len(ids) :], ids)
            for one, ids in zip(logits, completions, strict=True)
        ]
        return np.array(sums).reshape(len(rows), count)

    state, ids, mask = prefill([row.prompt for row in rows], model, pad_id)
    first = _forward(model, ids, mask, state, keep=1)[:, -1].repeat_interleave(count, 0).unsqueeze(1)
    if longest == 1:
        logits = first
    else:
        state.batch_repeat_interleave(count)
        more, more_mask = pad([ids[:-1] for ids in completions], pad_id, "right", model.device)
        mask = torch.cat([mask.repeat_interleave(count, 0), more_mask], dim=1)
        logits = torch.cat([first, _forward(model, more, mask, state, keep=longest)], dim=1)
    sums = [_log_likelihood(one[: len(ids)], ids) for one, ids in zip(logits, completions, strict=True)]
    return np.array(sums).reshape(len(rows), count)


def prefill(prompts: list[list[int]], model: Any, pad_id: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A cache that holds what left-padded prompts begin with alike, the prompts' ids beyond it, and their whole mask.

    The beginning is computed for one row and shifted by each row's padding; where it would not pay, or the model's
    cache is not a plain one of keys and values, the cache is empty. At least one column is left to compute.
    """
    from transformers import DynamicCache

    ids, mask = pad(prompts, pad_id, "left", model.device)
    state = DynamicCache(config=model.config)
    shared = min(shared_prefix(prompts), min(map(len, prompts)) - 1)
    shifts = [ids.shape[1] - len(prompt) for prompt in prompts]
    # A row's padding takes as many columns from the end of what is shared: those are computed with the rest.
    if len(prompts) == 1 or shared - max(shifts) < LEAST_SHARED:
        return state, ids, mask
    alone = torch.tensor([prompts[0][:shared]], device=model.device)
    _forward(model, alone, torch.ones_like(alone), state, keep=1)
    if not all(_is_whole(layer, shared) for layer in state.layers):
        return DynamicCache(config=model.config), ids, mask
    source = torch.arange(shared, device=model.device) - torch.tensor(shifts, device=model.device)[:, None]
    for layer in state.layers:
        for name in ("keys", "values"):
            # (1, heads, shared, size) -> (rows, heads, shared, size); what lands on padding is masked.
            tensor = getattr(layer, name)[0][:, source.clamp(min=0)].transpose(0, 1).contiguous()
            setattr(layer, name, tensor)
    return state, ids[:, shared:], mask


def _is_whole(layer: Any, length: int) -> bool:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    plain = type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
    return plain and layer.keys is not None and layer.keys.shape[-2] == length


def _forward(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, state: Any = None, *, keep: int
) -> torch.Tensor:
    """Logits (n, keep, vocabulary) of the last `keep` columns of `ids`; `mask` covers what `state` holds too."""
    arguments: dict[str, Any] = {"use_cache": state is not None}
    accepted = inspect.signature(base_model(model).forward).parameters
    if state is not None:
        arguments[cache_argument(model)] = state
    if "position_ids" in accepted:
        arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = keep
    return model(input_ids=ids, attention_mask=mask, **arguments).logits[:, -keep:]


def cache_argument(model: Any) -> str:
    """The name of the forward's argument that takes a cache; Transformers 5.24 renamed it."""
    return (
        "cache" if "cache" in inspect.signature(base_model(model).forward).parameters else "past_key_values"
    )


def base_model(model: Any) -> Any:
    """The Transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _log_likelihood(logits: torch.Tensor, ids: list[int]) -> float:
    """Σ ln softmax(logits)[id]; logits (tokens, vocabulary), of one row: a large vocabulary is a lot of memory."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    picked = wide.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
    return float((picked.double() - wide.logsumexp(dim=1).double()).sum())


# --- an encoder–decoder


def _encoder_decoder_batch(model: Any, rows: list[Encoded], pad_id: int, cache: bool) -> np.ndarray:
    count = len(rows[0].completions)
    ids, mask = pad([row.prompt for row in rows], pad_id, "right", model.device)
    completions = [ids for row in rows for ids in row.completions]
    labels, _ = pad(completions, pad_id, "right", model.device)
    start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
    if cache:
        encoded = copy.copy(base_model(model).get_encoder()(input_ids=ids, attention_mask=mask))
        encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(count, 0)
        source: dict[str, Any] = {"encoder_outputs": encoded}
    else:
        source = {"input_ids": ids.repeat_interleave(count, 0)}
    logits = model(
        **source,
        attention_mask=mask.repeat_interleave(count, 0),
        decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1),
        use_cache=False,
    ).logits
    sums = [_log_likelihood(one[: len(ids)], ids) for one, ids in zip(logits, completions, strict=True)]
    return np.array(sums).reshape(len(rows), count)
