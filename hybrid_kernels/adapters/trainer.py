"""`transformers.Trainer` with the hybrid's loss and mixing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hybrid_kernels.adapters.acceleration import AccelerateCallback
from hybrid_kernels.adapters.acceleration.entry import can_accelerate, switched
from hybrid_kernels.adapters.layers import named_adapters
from hybrid_kernels.adapters.mixing import GradientNormMixing
from hybrid_kernels.adapters.regularization import norm_preservation_penalty, orthogonality_penalty


class HybridTrainer(Trainer):
    """A Trainer whose training loss is L + μ · orthogonality_penalty + ν · norm_preservation_penalty.

    Where the model has adapters that mix by gradient norm, `GradientNormMixing` is added unless a callback of that
    class is given. Evaluation losses carry no penalty. Models without hybrid adapters train as with a plain Trainer,
    and where the environment variable HYBRID_KERNELS_ACCELERATE is 1 and they have PEFT layers that `accelerate` takes,
    `AccelerateCallback` is added unless one is given.

    Args:
        orthogonality_weight: μ ≥ 0.
        norm_preservation_weight: ν ≥ 0.
        Everything else goes to `transformers.Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        orthogonality_weight: float = 0.0,
        norm_preservation_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        weights = {
            "orthogonality_weight": orthogonality_weight,
            "norm_preservation_weight": norm_preservation_weight,
        }
        for name, weight in weights.items():
            if not weight >= 0.0:
                raise ValueError(f"{name} is {weight}; it must be at least 0")
        super().__init__(*args, **kwargs)
        self.orthogonality_weight = orthogonality_weight
        self.norm_preservation_weight = norm_preservation_weight
        self.last_penalty: Tensor = torch.zeros(())
        model: Any = self.model
        self.is_hybrid = any(True for _ in named_adapters(model))
        mixes = any(adapter.mixing_rule == "gradient_norm" for _, _, adapter in named_adapters(model))
        if mixes and not self._has_callback(GradientNormMixing):
            self.add_callback(GradientNormMixing())
        if switched() and can_accelerate(model) and not self._has_callback(AccelerateCallback):
            self.add_callback(AccelerateCallback())

    def _has_callback(self, kind: type[TrainerCallback]) -> bool:
        return any(isinstance(callback, kind) for callback in self.callback_handler.callbacks)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """What is added to the training loss of ``model`` (unwrapped); None for nothing."""
        terms = []
        if self.is_hybrid and self.orthogonality_weight:
            terms.append(self.orthogonality_weight * orthogonality_penalty(model))
        if self.is_hybrid and self.norm_preservation_weight:
            terms.append(self.norm_preservation_weight * norm_preservation_penalty(model))
        return sum(terms[1:], terms[0]) if terms else None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        penalty = self.penalty(self.accelerator.unwrap_model(model)) if model.training else None
        if penalty is None:
            return result
        self.last_penalty = penalty.detach()
        return (result[0] + penalty, result[1]) if return_outputs else result + penalty
