"""Natural language inference by a classification head on an encoder or a decoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hybrid_kernels.training.data import LABELS, Row
from hybrid_kernels.training.tasks.base import Arrays, Progress
from hybrid_kernels.training.tasks.nli import Inference

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Classification(Inference):
    kind: Literal["classification"] = "classification"
    loss_over_rows = True

    def settings(self, method: Any) -> Any:
        return None

    def load_model(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[PreTrainedModel, list[str]]:
        from hybrid_kernels.training import methods

        return methods.load_classifier(self.config.model.name, _pad(tokenizer), seed)

    def load_trained(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> PeftModel | PreTrainedModel:
        from hybrid_kernels.training import methods

        with warnings.catch_warnings():
            # PEFT asks Transformers for an attribute by its former name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return methods.load_trained(folder, self.config.model.name, _pad(tokenizer), seed)

    def check_rows(
        self, tokenizer: PreTrainedTokenizerBase, training: Iterable[Row], predicted: Iterable[Row]
    ) -> None:
        """Whatever is too long is cut."""

    def examples(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Premise–hypothesis pairs as token ids with `labels`; the longer part of a long pair is cut."""
        encoded = tokenizer(
            [row["premise"] for row in rows],
            [row["hypothesis"] for row in rows],
            truncation="longest_first",
            max_length=self.config.model.max_length,
        )
        return [
            {name: values[i] for name, values in encoded.items()} | {"labels": row["label"]}
            for i, row in enumerate(rows)
        ], []

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
        method: Any,
        worked_examples: Sequence[Row],
        progress: Progress,
        path: Path | None,
        key: str,
    ) -> Arrays:
        """`log_probabilities` (n, classes) float32 and `labels` (n,) int64; batches hold pairs of like length."""
        import torch

        examples, _ = self.examples(tokenizer, rows)
        order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
        collate = self.collator(tokenizer)
        device = next(model.parameters()).device
        found = np.empty((len(rows), len(LABELS)), dtype=np.float32)
        batch_size = self.config.evaluation.batch_size
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


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id)
