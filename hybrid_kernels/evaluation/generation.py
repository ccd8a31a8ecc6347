"""Batched greedy and beam decoding of prompts, resumable: `generate`.

**Batches** hold prompts of like length and the same limit, padded on the left (the input of an encoder: on the
right), so that a prompt's output does not depend on its company. What the prompts of a batch begin with alike is
computed once.
**Stopping**: at an end-of-sequence token, at the first token that holds a line break once there is an answer (causal
models that were given examples go on with the next one otherwise), or at a limit that follows the source's length.
**Cleaning**: special tokens dropped, whatever follows the first line break dropped, runs of white space made one
space, none left at the ends. Nothing else is changed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from hybrid_kernels._files import write_file
from hybrid_kernels.evaluation.prompting import pad_token_id
from hybrid_kernels.evaluation.scoring import (
    Shown,
    cache_argument,
    length_buckets,
    open_ids,
    pad,
    prefill,
    progress,
)
from hybrid_kernels.training.files import content_key

# Limits are multiples of this, so that there are not as many batches as limits.
LIMIT_STEP = 32


@dataclass(frozen=True)
class Decoding:
    """How to decode.

    beams: 1 is greedy. length_penalty: of beam search, a hypothesis' log-probability is divided by its tokens to this
        power.
    limit_ratio, limit_extra: an answer has at most `limit_ratio · source tokens + limit_extra` tokens, rounded up to a
        multiple of `LIMIT_STEP`. The defaults are enough for every reference of FLORES-200 dev between any two of
        XNLI's 15 languages in Gemma 3's tokens.
    stop_at_newline: end an answer at a line break; encoder–decoders are always left to their EOS.
    """

    beams: int = 1
    length_penalty: float = 1.0
    limit_ratio: float = 3.0
    limit_extra: int = 16
    stop_at_newline: bool = True

    def __post_init__(self) -> None:
        for name, least in (("beams", 1), ("limit_ratio", 0), ("limit_extra", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Output:
    """text: cleaned. tokens: as decoded, without the stop. stopped: "eos", "newline" or "length"."""

    text: str
    tokens: int
    stopped: str


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    sources: Sequence[str],
    *,
    decoding: Decoding | None = None,
    batch_size: int = 8,
    path: str | Path | None = None,
    key: str = "",
    description: Shown = None,
) -> list[Output]:
    """The model's answer to each prompt.

    Args:
        model: a causal language model or an encoder–decoder, with Transformers' `generate`; put into evaluation mode.
        prompts: complete prompts, as the tokenizer is to see them.
        sources: (n,) the texts whose lengths set the limits.
        decoding: by default greedy.
        path: JSONL that keeps the outputs, written anew (atomically) after each batch. What it already has is not
            decoded again, if it was made from the same prompts, decoding and `key`; otherwise it is replaced.
        key: whatever else the outputs depend on, such as a fingerprint of the model and its adapter.
        description: as in `scoring.completion_log_probabilities`.

    Returns:
        (n,) outputs, in the order of `prompts`.

    Raises ValueError for prompts and sources that differ in number, or an empty prompt.
    """
    decoding = decoding or Decoding()
    if len(prompts) != len(sources):
        raise ValueError(f"prompts and sources must be equally many, got {len(prompts)} and {len(sources)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    encoder_decoder = model.config.is_encoder_decoder
    ids = [
        list(tokenizer(prompt)["input_ids"]) if encoder_decoder else open_ids(tokenizer, prompt)
        for prompt in prompts
    ]
    if empty := [i for i, one in enumerate(ids) if not one]:
        raise ValueError(f"prompts must not be empty, the one at index {empty[0]} is")
    limits = [
        _limit(len(tokenizer(text, add_special_tokens=False)["input_ids"]), decoding) for text in sources
    ]
    own_key = content_key(key, ids, limits, asdict(decoding))
    done = _read(Path(path), own_key) if path is not None else {}

    by_limit: dict[int, list[int]] = defaultdict(list)
    for i in range(len(ids)):
        if i not in done:
            by_limit[limits[i]].append(i)
    batches = [
        (limit, [members[j] for j in bucket])
        for limit, members in sorted(by_limit.items(), reverse=True)
        for bucket in length_buckets([len(ids[i]) for i in members], batch_size)
    ]
    stops = _stop_tokens(model, tokenizer, decoding.stop_at_newline and not encoder_decoder)
    model.eval()
    for limit, batch in progress(batches, description):
        answers = _decode(model, [ids[i] for i in batch], limit, decoding, stops, pad_token_id(tokenizer))
        for i, answer in zip(batch, answers, strict=True):
            done[i] = _output(tokenizer, answer, stops)
        if path is not None:
            lines: list[Any] = [{"key": own_key}, *({"index": i} | asdict(done[i]) for i in sorted(done))]
            write_file(Path(path), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return [done[i] for i in range(len(ids))]


def _decode(
    model: Any, rows: list[list[int]], limit: int, decoding: Decoding, stops: dict[int, str], pad_id: int
) -> list[list[int]]:
    """Generated ids of each row, stop token and padding included."""
    from transformers import GenerationConfig

    arguments: dict[str, Any] = {}
    if model.config.is_encoder_decoder:
        ids, mask = pad(rows, pad_id, "right", model.device)
    else:
        ids, mask = pad(rows, pad_id, "left", model.device)
        with torch.inference_mode():
            state, _, _ = prefill(rows, model, pad_id)
        if state.get_seq_length():
            state.batch_repeat_interleave(decoding.beams)
            arguments[cache_argument(model)] = state
    beam_search = {"num_beams": decoding.beams, "length_penalty": decoding.length_penalty}
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=limit,
        # An answer is at least one token: a line break right after the prompt is none.
        min_new_tokens=1,
        eos_token_id=sorted(stops),
        pad_token_id=pad_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        **(beam_search if decoding.beams > 1 else {"num_beams": 1}),
    )
    tokens = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **arguments)
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    return [list(map(int, row)) for row in tokens[:, start:].tolist()]


def _limit(source_tokens: int, decoding: Decoding) -> int:
    wanted = decoding.limit_ratio * source_tokens + decoding.limit_extra
    return int(-(-wanted // LIMIT_STEP)) * LIMIT_STEP


def _stop_tokens(model: Any, tokenizer: Any, newline: bool) -> dict[int, str]:
    """Token id -> what it means to stop there."""
    declared = getattr(model.generation_config, "eos_token_id", None)
    ends = declared if isinstance(declared, list) else [declared]
    stops = dict.fromkeys(_newline_tokens(tokenizer), "newline") if newline else {}
    return stops | {i: "eos" for i in [*ends, tokenizer.eos_token_id] if i is not None}


@lru_cache(maxsize=4)
def _newline_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Ids of all tokens that decode to text with a line break."""
    # As a vocabulary spells it: itself, GPT-2's byte alphabet, SentencePiece's byte token. "Ċ" may be a letter too.
    pieces = tokenizer.get_vocab().items()
    candidates = [i for piece, i in pieces if "\n" in piece or "Ċ" in piece or piece == "<0x0A>"]
    return tuple(sorted(i for i in candidates if "\n" in tokenizer.decode([i])))


def _output(tokenizer: Any, ids: list[int], stops: dict[int, str]) -> Output:
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    # The stop itself may begin with text (".\n"); what follows its line break goes.
    kept = ids[: end + 1] if end < len(ids) and stops[ids[end]] == "newline" else ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Output(clean(text), end, stops[ids[end]] if end < len(ids) else "length")


def clean(text: str) -> str:
    """The rule at the head of this module."""
    return " ".join(text.strip().split("\n", 1)[0].split())


def _read(path: Path, key: str) -> dict[int, Output]:
    """Outputs by index that a file made under the same key holds."""
    if not path.is_file():
        return {}
    try:
        first, *rows = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
        if first["key"] != key:
            return {}
        return {row.pop("index"): Output(**row) for row in rows}
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"path {str(path)!r} is there and does not hold outputs; name another, or remove it"
        ) from None
