"""Natural language inference by a prompt and the probability of each label's verbaliser after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_kernels.training.config import PromptConfig
from hybrid_kernels.training.data import Row
from hybrid_kernels.training.tasks.base import Arrays, Progress
from hybrid_kernels.training.tasks.decoder import Decoder
from hybrid_kernels.training.tasks.nli import Inference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptClassification(Decoder, Inference):
    @property
    def prompt(self) -> PromptConfig:
        assert self.config.prompt is not None
        return self.config.prompt

    def settings(self, method: Any) -> Any:
        return self.prompt.model_dump()

    def check_rows(
        self, tokenizer: PreTrainedTokenizerBase, training: Iterable[Row], predicted: Iterable[Row]
    ) -> None:
        """A prompt is cut no further than to its row's hypothesis."""
        from hybrid_kernels.evaluation.prompting import encode_row
        from hybrid_kernels.evaluation.prompts import prompt_for

        length = self.config.model.max_length
        # The end of a training example is a token more.
        for use, rows, most in (("training", training, length - 1), ("evaluation", predicted, length)):
            for row in {(row["language"], row["hypothesis"]): row for row in rows}.values():
                try:
                    prompt = prompt_for(row["language"], self.prompt.prompts)
                    encode_row(tokenizer, prompt, row | {"premise": ""}, most)
                except ValueError as error:
                    raise ValueError(
                        f"{use} row {row['id']!r} does not fit model.max_length {length} or prompt.prompts "
                        f"{self.prompt.prompts!r}: {error}"
                    ) from None

    def examples(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Prompt and the label's verbaliser, which the loss is of; a long premise is cut."""
        from hybrid_kernels.training.translation_data import prompt_examples

        length = self.config.model.max_length
        return list(prompt_examples(tokenizer, rows, length, prompts=self.prompt.prompts)), []

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
        """`log_probabilities` (n, classes) float32, normalised over the verbalisers, and `labels` (n,) int64."""
        from hybrid_kernels.evaluation.prompting import score_prompts

        scores = score_prompts(
            model,
            tokenizer,
            rows,
            prompts=self.prompt.prompts,
            max_length=self.config.model.max_length,
            batch_size=self.config.evaluation.batch_size,
            description=progress,
        )
        probabilities = scores.probabilities(
            length_normalized=self.prompt.length_normalized, calibrated=self.prompt.calibrated
        )
        # A probability of zero in double precision would be a log-probability that JSON has no number for.
        least = np.finfo(np.float64).tiny
        return {
            "log_probabilities": np.log(np.maximum(probabilities, least)).astype(np.float32),
            "labels": np.array([row["label"] for row in rows], dtype=np.int64),
        }
