"""What the tasks of a causal language model share: the model with its own head, and a loss over completions' tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hybrid_kernels.training.config import RunConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Decoder:
    """The part of `Task` that loads a causal language model."""

    config: RunConfig

    kind: Literal["causal_lm"] = "causal_lm"
    loss_over_rows = False

    def load_model(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[PreTrainedModel, list[str]]:
        from hybrid_kernels.training import methods

        return methods.load_decoder(self.config.model.name), []

    def load_trained(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> PeftModel | PreTrainedModel:
        from hybrid_kernels.evaluation.prompting import pad_token_id
        from hybrid_kernels.training import methods

        with warnings.catch_warnings():
            # PEFT asks Transformers for an attribute by its former name.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return methods.load_trained(
                folder, self.config.model.name, pad_token_id(tokenizer), seed, self.kind
            )

    def collator(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        from hybrid_kernels.evaluation.prompting import pad_token_id
        from hybrid_kernels.training.translation_data import CompletionCollator

        return CompletionCollator(pad_token_id(tokenizer))
