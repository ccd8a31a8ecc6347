"""What a run needs to know of its task; the engine knows no more than this of labels, heads or decoders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from hybrid_kernels.training.data import LABELS, Row

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: (done, total) of something under way
Progress = Callable[[int, int], None]
Arrays = dict[str, np.ndarray]


class Task(Protocol):
    """One of `TASKS`. A row has at least `id`, `item` and `language` and the columns of `text_columns`."""

    @property
    def kind(self) -> Literal["classification", "causal_lm"]:
        """What the pretrained model is loaded as."""
        ...

    @property
    def text_columns(self) -> tuple[str, ...]:
        """What a reader reads of a row, and an orthographic variant changes."""
        ...

    @property
    def loss_over_rows(self) -> bool:
        """Whether the model's loss is a mean over rows, whatever their number of tokens."""
        ...

    def load_model(
        self, name: str, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> tuple[PreTrainedModel, list[str]]:
        """(pretrained model, names of its modules without pretrained weights, which are trained with any adapter)."""
        ...

    def load_trained(
        self, folder: Any, name: str, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> PeftModel | PreTrainedModel:
        """The pretrained model with the adapter that a cell saved."""
        ...

    def examples(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int
    ) -> list[dict[str, Any]]:
        """Training examples: token ids and `labels`, one for each row."""
        ...

    def collator(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Pads examples into a batch of tensors."""
        ...

    def predict(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        *,
        max_length: int,
        batch_size: int,
        progress: Progress,
    ) -> Arrays:
        """Arrays whose first dimension is the rows; the engine adds `ids`, `items`, `languages`, `clusters`."""
        ...

    def metrics(self, predictions: Arrays, reference_language: str) -> dict[str, Any]:
        """`macro`, `per_language` and `parity` of predictions (`predict`'s arrays and `languages`)."""
        ...


class Classification:
    """Natural language inference by a classification head on an encoder or a decoder."""

    kind: Literal["classification"] = "classification"
    text_columns = ("premise", "hypothesis")
    loss_over_rows = True

    def load_model(
        self, name: str, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> tuple[PreTrainedModel, list[str]]:
        from hybrid_kernels.training import methods

        return methods.load_classifier(name, _pad(tokenizer), seed)

    def load_trained(
        self, folder: Any, name: str, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> PeftModel | PreTrainedModel:
        from hybrid_kernels.training import methods

        with warnings.catch_warnings():
            # PEFT asks Transformers for an attribute by its former name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return methods.load_trained(folder, name, _pad(tokenizer), seed)

    def examples(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], max_length: int
    ) -> list[dict[str, Any]]:
        """Premise–hypothesis pairs as token ids with `labels`; the longer part of a long pair is cut."""
        encoded = tokenizer(
            [row["premise"] for row in rows],
            [row["hypothesis"] for row in rows],
            truncation="longest_first",
            max_length=max_length,
        )
        return [
            {name: values[i] for name, values in encoded.items()} | {"labels": row["label"]}
            for i, row in enumerate(rows)
        ]

    def collator(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def predict(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Row],
        *,
        max_length: int,
        batch_size: int,
        progress: Progress,
    ) -> Arrays:
        """`log_probabilities` (n, classes) float32 and `labels` (n,) int64; batches hold pairs of like length."""
        import torch

        examples = self.examples(tokenizer, rows, max_length)
        order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
        collate = self.collator(tokenizer)
        device = next(model.parameters()).device
        found = np.empty((len(rows), len(LABELS)), dtype=np.float32)
        model.eval()
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                own = order[start : start + batch_size]
                batch = collate([examples[i] for i in own])
                batch.pop("labels")
                logits = model(**{name: values.to(device) for name, values in batch.items()}).logits
                found[own] = logits.double().log_softmax(dim=-1).float().cpu().numpy()
                progress(start + len(own), len(order))
        return {
            "log_probabilities": found,
            "labels": np.array([row["label"] for row in rows], dtype=np.int64),
        }

    def metrics(self, predictions: Arrays, reference_language: str) -> dict[str, Any]:
        from hybrid_kernels.evaluation import macro_average, parity, per_language_metrics

        per_language = per_language_metrics(
            np.exp(predictions["log_probabilities"].astype(np.float64)),
            predictions["labels"],
            predictions["languages"].tolist(),
        )
        there = reference_language in per_language
        return {
            "macro": macro_average(per_language),
            "per_language": per_language,
            # An orthographic variant need not exist in the reference language.
            "parity": parity(per_language, reference_language) if there else None,
        }


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id)


TASKS: dict[str, Task] = {"classification": Classification()}
