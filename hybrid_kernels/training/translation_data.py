"""Training examples for language models: parallel text, and NLI rows as prompt and verbaliser.

An example holds `input_ids` and `labels` (the loss is taken where a label is not −100). For a causal language model the
prompt, its completion and an EOS token are one sequence, and the prompt is masked; which tokens are the prompt's is the
rule of `evaluation.scoring`, so that training and scoring agree. For an encoder–decoder the prompt is the input, and
the completion with EOS the labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybrid_kernels.evaluation.parallel import Direction, Row, expand, rank
from hybrid_kernels.evaluation.prompting import encode_row, pad_token_id
from hybrid_kernels.evaluation.prompts import Prompt, prompt_for
from hybrid_kernels.evaluation.scoring import Encoded, encode, pad
from hybrid_kernels.evaluation.translation import completion, translation_prompt
from hybrid_kernels.governance.policy import GovernancePolicy

IGNORED = -100
# Rejected pairs of a step that a merged summary shows of each two languages.
EXAMPLES = 3
Example = dict[str, list[int]]


def govern_pairs(
    pairs: Sequence[Row],
    policy: GovernancePolicy | None = None,
    *,
    evaluation: Sequence[Row] | None = None,
    folder: Path | None = None,
    num_proc: int | None = None,
    progress: bool = True,
) -> tuple[list[Row], dict[str, Any]]:
    """Governance of parallel text: (pairs kept, summary as `GovernanceResult.summary`).

    Pairs of two languages are judged as translations of each other, each pair once: its two directions are the same
    text, and as rows they would be near-duplicates. Every two languages are governed apart, as English sentences
    recur in each.

    Args:
        pairs: of `evaluation.parallel.load_parallel`.
        policy: by default `GovernancePolicy()`.
        evaluation: pairs that no kept one may be a copy of.
        folder: where kept and rejected pairs and the summary go, in a folder for each two languages.
        num_proc, progress: as in `governance.govern`.

    Returns the pairs unchanged, in their order, and the summary of each two languages, by "de-en".
    """
    from hybrid_kernels.governance import govern

    kept: set[str] = set()
    summaries: dict[str, Any] = {}
    for languages, own in _by_languages(pairs).items():
        held = _by_languages(evaluation or ()).get(languages)
        result = govern(
            [_columns(pair) for pair in own],
            sorted(languages),
            text_columns=["source", "target"],
            language_column=["source_language", "target_language"],
            translation=True,
            policy=policy,
            id_column="id",
            evaluation=[_columns(pair) for pair in held] if held else None,
            num_proc=num_proc,
            progress=progress,
        )
        kept.update(result.kept["id"])
        summaries["-".join(languages)] = result.summary
        if folder is not None:
            result.write(folder / "-".join(languages))
    return [pair for pair in pairs if pair["id"] in kept], summaries


def merged_summary(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of `govern_pairs`' many: counts are sums, `by_language` has the two languages' names ("de-en")."""
    counts = ("rows", "kept", "rejected")
    found: dict[str, Any] = {name: sum(one[name] for one in summaries.values()) for name in counts}
    by_step: dict[str, dict[str, Any]] = {}
    examples: dict[str, list[Any]] = {}
    for one in summaries.values():
        for step, own in one["by_step"].items():
            merged = by_step.setdefault(step, {"rejected": 0, "reasons": Counter()})
            merged["rejected"] += own["rejected"]
            merged["reasons"].update(own["reasons"])
        for step, shown in one["examples"].items():
            examples.setdefault(step, []).extend(shown[:EXAMPLES])
    found["by_step"] = {
        step: {"rejected": one["rejected"], "reasons": dict(one["reasons"])} for step, one in by_step.items()
    }
    found["by_language"] = {
        languages: {name: one[name] for name in counts} for languages, one in summaries.items()
    }
    policy = next((one["policy"] for one in summaries.values() if "policy" in one), None)
    return found | {"examples": examples, "policy": policy}


def balanced_rows(
    pairs: Sequence[Row], wanted: Sequence[Direction], seed: int, most: int | None = None
) -> list[Row]:
    """Training rows: as many of each direction as the scarcest one has, at most `most`.

    A direction takes its pairs in a seeded order of their items, so that both directions of two languages take the same
    pairs, and a smaller choice is a part of a larger one. Rows are in the order of the pairs, direction by direction.

    Raises ValueError for a direction without a pair.
    """
    rows = expand(pairs, wanted)
    by_direction: dict[Direction, list[Row]] = {direction: [] for direction in wanted}
    for row in rows:
        by_direction[row["source_language"], row["target_language"]].append(row)
    count = min(map(len, by_direction.values()))
    if not count:
        empty = next("-".join(direction) for direction, own in by_direction.items() if not own)
        raise ValueError(f"there is no pair to train direction {empty} on")
    count = count if most is None else min(count, most)
    chosen = {
        row["id"]
        for own in by_direction.values()
        for row in sorted(own, key=lambda row: rank(seed, row["item"]))[:count]
    }
    return [row for row in rows if row["id"] in chosen]


def translation_examples(
    tokenizer: Any, rows: Sequence[Row], max_length: int, *, encoder_decoder: bool = False
) -> tuple[list[Example], list[str]]:
    """(examples of zero-shot prompts and their translations, ids of rows left out as too long).

    A row is never cut: a translation that ends early would be learnt. Its prompt, translation and EOS together (of an
    encoder–decoder: each side) have at most `max_length` tokens. Raises ValueError if no row fits.
    """
    examples, long = [], []
    for row in rows:
        encoded = encode(
            tokenizer, translation_prompt(row), [completion(row)], encoder_decoder=encoder_decoder
        )
        example = _example(tokenizer, encoded, 0, encoder_decoder)
        if max(map(len, example.values())) > max_length:
            long.append(row["id"])
        else:
            examples.append(example)
    if rows and not examples:
        raise ValueError(f"max_length {max_length} is too short for every one of {len(rows)} rows")
    return examples, long


def prompt_examples(
    tokenizer: Any,
    rows: Sequence[Row],
    max_length: int,
    *,
    prompts: str | Mapping[str, Prompt] = "own",
    encoder_decoder: bool = False,
) -> list[Example]:
    """NLI rows as prompt and the label's verbaliser; a long premise is cut as `prompting.score_prompts` cuts it."""
    return [
        _example(
            tokenizer,
            # One token less: the EOS.
            encode_row(tokenizer, prompt_for(row["language"], prompts), row, max_length - 1, encoder_decoder),
            row["label"],
            encoder_decoder,
        )
        for row in rows
    ]


def _example(tokenizer: Any, encoded: Encoded, index: int, encoder_decoder: bool) -> Example:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to end examples with; set tokenizer.eos_token")
    answer = [*encoded.completions[index], tokenizer.eos_token_id]
    if encoder_decoder:
        return {"input_ids": encoded.prompt, "labels": answer}
    return {"input_ids": encoded.prompt + answer, "labels": [IGNORED] * len(encoded.prompt) + answer}


@dataclass(frozen=True)
class CompletionCollator:
    """Pads examples into a batch of `input_ids`, `attention_mask`, `labels`, all int64 (n, longest).

    padding_side: of the inputs, "left" or "right". Training is the same either way for a model whose positions follow
    the attention mask (then `position_ids` come with the batch); "right" suits every model. Labels of an
    encoder–decoder are padded on the right always.
    """

    pad_token_id: int
    padding_side: str = "right"
    encoder_decoder: bool = False

    def __post_init__(self) -> None:
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {self.padding_side!r}")

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any, padding_side: str = "right") -> CompletionCollator:
        return cls(pad_token_id(tokenizer), padding_side, bool(model.config.is_encoder_decoder))

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        ids, mask = pad([one["input_ids"] for one in examples], self.pad_token_id, self.padding_side, "cpu")
        side = "right" if self.encoder_decoder else self.padding_side
        labels, _ = pad([one["labels"] for one in examples], IGNORED, side, "cpu")
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if self.padding_side == "left" and not self.encoder_decoder:
            # Models count positions from the first column unless they are told.
            batch["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return batch


def _by_languages(pairs: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for pair in pairs:
        found[tuple(pair["languages"])].append(pair)
    return found


def _columns(pair: Row) -> Row:
    first, second = pair["languages"]
    return {
        "id": pair["id"],
        "source_language": first,
        "target_language": second,
        "source": pair["texts"][first],
        "target": pair["texts"][second],
    }
