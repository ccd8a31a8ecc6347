"""What a run needs to know of its task; the engine knows no more than this of labels, heads or decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from hybrid_kernels.governance import GovernancePolicy
from hybrid_kernels.training.config import RunConfig, Shots
from hybrid_kernels.training.data import Row

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: (done, total) of something under way
Progress = Callable[[int, int], None]
Arrays = dict[str, np.ndarray]


@dataclass
class Loaded:
    """What was read, before governance, by what it is for, and the records that could not be read.

    `train` and `source` (of the source stage) are records as `Task.govern` and `Task.training_rows` take them; `test`
    and `dev` are rows.
    """

    train: list[Row]
    test: list[Row]
    dev: list[Row]
    source: list[Row]
    malformed: list[Row]


class Task(Protocol):
    """A task with the settings of its run (`task_of`).

    A *record* is what is cleaned: it has `id`. A *row* is what is trained on or predicted: it has `id`, `item` (the
    same for translations of one text), `language` (what figures are given for: a language, or a direction "de-en")
    and the columns of `text_columns`. A labelled pair is both; a pair of translations is a record with two rows.
    """

    config: RunConfig

    @property
    def kind(self) -> Literal["classification", "causal_lm"]:
        """What the pretrained model is loaded as."""
        ...

    @property
    def text_columns(self) -> tuple[str, ...]:
        """What an orthographic variant changes of a row: texts in the language of `text_language`."""
        ...

    @property
    def text_language(self) -> str:
        """The column that holds the language of `text_columns`."""
        ...

    @property
    def groups(self) -> str:
        """What a row's `language` is, in the plural."""
        ...

    @property
    def loss_over_rows(self) -> bool:
        """Whether the model's loss is a mean over rows, whatever their number of tokens."""
        ...

    def load_data(self) -> Loaded:
        """The run's data; ValueError or FileNotFoundError names what does not fit."""
        ...

    def load_evaluation(self, source: str) -> list[Row]:
        """The rows of `data.evaluation_split` in another source, none of them held back."""
        ...

    def govern(
        self, policy: GovernancePolicy, records: Sequence[Row], held_out: Sequence[Row], folder: Path
    ) -> tuple[list[str], dict[str, Any]]:
        """(ids of the records kept, summary); kept and rejected ones are written to `folder`.

        No record that is kept is a copy of a row that is `held_out`.
        """
        ...

    def training_rows(self, records: Sequence[Row], shots: Shots, seed: int) -> list[Row]:
        """The rows to train on: fewer shots are a part of more, in another choice for each seed."""
        ...

    def sample(self, rows: Sequence[Row], most: int | None) -> list[Row]:
        """At most so many rows of each `language`, the same items in each."""
        ...

    def worked_examples(self, records: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
        """Rows for prompts to show, none with a text of a row that is held out; empty where prompts show none."""
        ...

    def settings(self, method: Any) -> Any:
        """What the predictions of a method depend on besides its adapter, rows and batch size; JSON-able."""
        ...

    def languages(self, rows: Sequence[Row]) -> list[str]:
        """Codes of all languages in rows or records, sorted."""
        ...

    def load_model(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[PreTrainedModel, list[str]]:
        """(pretrained model, names of its modules without pretrained weights, which are trained with any adapter)."""
        ...

    def load_trained(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> PeftModel | PreTrainedModel:
        """The pretrained model with the adapter that a cell saved."""
        ...

    def check_rows(
        self, tokenizer: PreTrainedTokenizerBase, training: Iterable[Row], predicted: Iterable[Row]
    ) -> None:
        """ValueError, which names row and setting, where `examples` or `predict` could not take one of these."""
        ...

    def examples(
        self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """(training examples: token ids and `labels`, ids of the rows that have none because they are too long)."""
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
        method: Any,
        worked_examples: Sequence[Row],
        progress: Progress,
        path: Path | None,
        key: str,
    ) -> Arrays:
        """Arrays whose first dimension is the rows; the engine adds `ids`, `items` and `languages`.

        Args:
            path: what is done so far may be kept in this file, for a later call with the same `key` to go on from.
        """
        ...

    def metrics(self, predictions: Arrays) -> dict[str, Any]:
        """`macro` (means over `languages`, the leading one first) and more, of `predict`'s arrays and `languages`."""
        ...

    def over_seeds(self, predictions: Sequence[Arrays]) -> dict[str, Any]:
        """`evaluation` and `spread` of results.json from the predictions of each seed."""
        ...

    def columns(self, evaluation: Mapping[str, Any]) -> dict[str, str]:
        """What a table in a terminal shows of an `evaluation`, by heading, what matters most first."""
        ...

    @property
    def caption(self) -> str:
        """What the headings of `columns` mean."""
        ...
