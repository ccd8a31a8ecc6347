"""The tasks of a run: what they train on, what they predict, how that is measured."""

from __future__ import annotations

from hybrid_kernels.training.config import RunConfig
from hybrid_kernels.training.tasks.base import Arrays, Loaded, Progress, Task

__all__ = ["Arrays", "Loaded", "Progress", "Task", "task_of"]


def task_of(config: RunConfig) -> Task:
    """The task of a run, with the run's settings."""
    match config.task:
        case "classification":
            from hybrid_kernels.training.tasks.classification import Classification

            return Classification(config)
        case "prompt":
            from hybrid_kernels.training.tasks.prompt import PromptClassification

            return PromptClassification(config)
        case "translation":
            from hybrid_kernels.training.tasks.translation import Translation

            return Translation(config)
