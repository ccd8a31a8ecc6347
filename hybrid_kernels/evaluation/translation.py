"""Translation with a language model: prompts, bits per byte, and the scores of every direction.

A prompt names the task and both languages in English, shows k worked examples in the form of what follows, and ends
where the translation begins:

    Translate from German to English.

    German: Guten Morgen.
    English: Good morning.

    German: <source>
    English:

A translation follows after one space. Rows are those of `evaluation.parallel.expand`; `generation.generate` decodes the
prompts, given the rows' sources.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_kernels.evaluation.parallel import LANGUAGES, Row, rank
from hybrid_kernels.evaluation.prompting import pad_token_id
from hybrid_kernels.evaluation.scoring import Shown, completion_log_probabilities, encode
from hybrid_kernels.evaluation.translation_scores import averaged, directional_balance, score_translations


def translation_prompt(row: Mapping[str, Any], examples: Sequence[Mapping[str, Any]] = ()) -> str:
    """The prompt at the head of this module; `examples` are rows of the same direction."""
    source, target = (language_name(row[name]) for name in ("source_language", "target_language"))
    blocks = [f"{source}: {one['source']}\n{target}: {one['target']}" for one in examples]
    return "\n\n".join(
        [f"Translate from {source} to {target}.", *blocks, f"{source}: {row['source']}\n{target}:"]
    )


def completion(row: Mapping[str, Any]) -> str:
    """What follows the prompt: the reference translation after one space."""
    return f" {row['target']}"


def language_name(code: str) -> str:
    """English name of a language; ValueError for a code that `LANGUAGES` lacks."""
    names = {key: name for one, (name, flores) in LANGUAGES.items() for key in (one, flores)}
    if code not in names:
        raise ValueError(f"language {code!r} has no name for prompts (known: {', '.join(LANGUAGES)})")
    return names[code]


def translation_prompts(
    rows: Sequence[Row], examples: Sequence[Row] = (), *, shots: int = 0, seed: int = 0
) -> list[str]:
    """Every row's prompt, with `shots` worked examples of its direction, the same for all rows of a direction.

    Args:
        examples: rows to draw from, of a part that is not scored. The draw goes by the seed and the items' names: fewer
            shots are a part of more, and directions show the same sentences.

    Raises ValueError where a direction has too few examples, or an example is among the rows that are scored.
    """
    if shots < 0:
        raise ValueError(f"shots must not be negative, got {shots}")
    drawn: dict[tuple[str, str], list[Row]] = defaultdict(list)
    if shots:
        _check_apart(examples, rows)
        for example in sorted(examples, key=lambda row: rank(seed, row["item"])):
            if len(of_direction := drawn[_direction(example)]) < shots:
                of_direction.append(example)
    for direction in {_direction(row) for row in rows}:
        if len(drawn[direction]) < shots:
            raise ValueError(
                f"shots is {shots}, but there are {len(drawn[direction])} examples from "
                f"{direction[0]} to {direction[1]}"
            )
    return [translation_prompt(row, drawn[_direction(row)]) for row in rows]


def reference_nats(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    prompts: Sequence[str],
    *,
    batch_size: int = 8,
    description: Shown = None,
) -> np.ndarray:
    """−ln p(reference | prompt) of each row, teacher-forced: (n,) float64, nats. The end of the text is not scored."""
    encoder_decoder = model.config.is_encoder_decoder
    encoded = [
        encode(tokenizer, prompt, [completion(row)], encoder_decoder=encoder_decoder)
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    values, _ = completion_log_probabilities(
        model, encoded, pad_token_id=pad_token_id(tokenizer), batch_size=batch_size, description=description
    )
    return -values[:, 0]


def bits_per_byte(rows: Sequence[Row], nats: Sequence[float] | np.ndarray) -> float:
    """Σ nats / ln 2 / Σ UTF-8 bytes of the references, over all rows; the space before a reference is no byte."""
    if not rows or len(rows) != len(nats):
        raise ValueError(
            f"rows and nats must be equally many and at least one, got {len(rows)} and {len(nats)}"
        )
    return float(np.sum(nats)) / math.log(2) / sum(len(row["target"].encode()) for row in rows)


def evaluate_translations(
    rows: Sequence[Row],
    translations: Sequence[str] | None = None,
    nats: Sequence[float] | np.ndarray | None = None,
) -> dict[str, Any]:
    """Everything about translations of several directions that a table shows; JSON-able.

    Args:
        rows: all directions together.
        translations: (n,) or None; nats: (n,) of `reference_nats`, or None. At least one of the two.

    Returns:
        directions: {"de-en": what `score_translations` returns; `copy`, the bleu and chrf of the sources handed in as
            translations; `empty`, the share of empty ones; `bits_per_byte`}, without what was not given;
        balance: {metric: `directional_balance` of the directions that are `averaged`}.
    """
    if translations is None and nats is None:
        raise ValueError("give translations, nats or both")
    for name, values in (("translations", translations), ("nats", nats)):
        if values is not None and len(values) != len(rows):
            raise ValueError(f"{name} must have one entry a row, got {len(values)} for {len(rows)} rows")
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[_direction(row)].append(i)
    found: dict[str, dict[str, Any]] = {}
    for (source, target), indices in members.items():
        own = [rows[i] for i in indices]
        result: dict[str, Any] = {"n": len(own)}
        if translations is not None:
            mine = [translations[i] for i in indices]
            references = [row["target"] for row in own]
            copied = score_translations([row["source"] for row in own], references, target)
            result |= score_translations(mine, references, target)
            result["copy"] = {name: copied[name] for name in ("bleu", "chrf")}
            result["empty"] = sum(not text for text in mine) / len(mine)
        if nats is not None:
            result["bits_per_byte"] = bits_per_byte(own, [nats[i] for i in indices])
        found[f"{source}-{target}"] = result
    metrics = ["bleu", "chrf"] * (translations is not None) + ["bits_per_byte"] * (nats is not None)
    return {
        "directions": found,
        "balance": {
            metric: directional_balance({name: found[name] for name in averaged(found, metric)}, metric)
            for metric in metrics
        },
    }


def _direction(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["source_language"], row["target_language"]


def _check_apart(examples: Sequence[Row], rows: Sequence[Row]) -> None:
    scored = {text for row in rows for text in (row["source"], row["target"])}
    shared = next((row for row in examples if row["source"] in scored or row["target"] in scored), None)
    if shared:
        raise ValueError(
            f"examples must come from a part that is not scored, but {shared['id']!r} is among the rows as well"
        )
