"""Acceleration for the time of a `transformers.Trainer`'s training."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback

from hybrid_kernels.adapters.acceleration.entry import accelerate
from hybrid_kernels.adapters.acceleration.report import Report

logger = logging.getLogger("hybrid_kernels")


class AccelerateCallback(TrainerCallback):
    """`accelerate` when training begins, and back when it ends; what it did is in ``report`` and in the log.

    Also for trainers that are made of `transformers.Trainer`, such as TRL's. A Trainer whose training raises tells no
    callback: the model stays accelerated, with the same results, until its next training ends or `restore`.

    Args:
        share_inputs: as for `accelerate`.
    """

    def __init__(self, *, share_inputs: bool = True) -> None:
        self.share_inputs = share_inputs
        self.report: Report | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_train_end(args, state, control)  # of a training that raised
        self.report = accelerate(kwargs["model"], share_inputs=self.share_inputs)
        logger.info("%s", self.report)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.report is not None:
            self.report.__exit__(None, None, None)
