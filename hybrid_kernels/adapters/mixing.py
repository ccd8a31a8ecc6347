"""Layer-wise mixing of the low-rank and the orthogonal branch by their gradient norms.

    λ = clip(n_L / (n_L + n_O + ε), λ_min, λ_max)

n_L and n_O are exponential moving averages of the root-mean-square gradient of the low-rank parameters (A, B) and of
the reflection vectors (u) of one layer, each divided by its branch's own coefficient, λ or 1 − λ. Without that division
the rule feeds on itself, since a branch's gradient is proportional to its coefficient: on a small BERT, from λ = 0.3,
0.5 or 0.7 alike, all layers reached the bound 0.9 within six steps (after the first: 0.49–0.77, 0.69–0.88, 0.84–0.9);
with it, λ after the first step is 0.69–0.88 whatever it was before, and the layers stay apart. The rule is our choice;
the paper's is not public.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hybrid_kernels.adapters.layers import named_adapters, require_adapters
from hybrid_kernels.nn.adapter import HybridAdapter

EPSILON = 1e-12


class GradientNormMixing(TrainerCallback):
    """Moves λ of every layer whose mixing rule is "gradient_norm", once an optimizer step.

    Give it to a `transformers.Trainer` as a callback, or call `step` in a hand-written loop between ``backward`` and
    ``optimizer.step``. Everything stays on the device: nothing waits for the host. The averages are buffers of the
    adapters, so a checkpoint resumes where it stopped.

    Args:
        decay: of the moving averages, in [0, 1).
        minimum, maximum: bounds of λ, 0 ≤ minimum ≤ maximum ≤ 1.
    """

    def __init__(self, decay: float = 0.9, minimum: float = 0.1, maximum: float = 0.9) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        if not 0.0 <= minimum <= maximum <= 1.0:
            raise ValueError(
                f"minimum, maximum are {minimum}, {maximum}; 0 ≤ minimum ≤ maximum ≤ 1 must hold"
            )
        self.decay, self.minimum, self.maximum = decay, minimum, maximum

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step(kwargs["model"])

    @torch.no_grad()
    def step(self, model: nn.Module) -> None:
        """Update λ from the gradients now in ``.grad``; layers without gradients keep theirs."""
        adapters = [
            adapter
            for _, _, adapter in named_adapters(model)
            if adapter.mixing_rule == "gradient_norm" and _has_gradients(adapter)
        ]
        by_device: dict[torch.device, list[HybridAdapter]] = {}
        for adapter in adapters:
            by_device.setdefault(adapter.mixing.device, []).append(adapter)
        for group in by_device.values():
            self._step_group(group)

    def _step_group(self, adapters: list[HybridAdapter]) -> None:
        current = _gradient_norms(adapters)
        averages = torch.stack([adapter.gradient_norms for adapter in adapters])
        # A step whose gradients overflowed is skipped by the optimizer, and here.
        finite = torch.isfinite(current).all(dim=1, keepdim=True)
        averages = torch.where(finite, averages.lerp(current.to(averages.dtype), 1.0 - self.decay), averages)
        low_rank, orthogonal = averages.unbind(dim=1)
        mixing = (low_rank / (low_rank + orthogonal + EPSILON)).clamp(self.minimum, self.maximum)
        mixing = torch.where(
            low_rank + orthogonal > 0, mixing, torch.stack([adapter.mixing for adapter in adapters])
        )
        torch._foreach_copy_([adapter.mixing for adapter in adapters], list(mixing.unbind()))
        torch._foreach_copy_([adapter.gradient_norms for adapter in adapters], list(averages.unbind()))


def _has_gradients(adapter: HybridAdapter) -> bool:
    return all(p.grad is not None for p in (adapter.lora_A, adapter.lora_B, adapter.householder_u))


def _gradient_norms(adapters: list[HybridAdapter]) -> Tensor:
    """(layers, 2): root-mean-square gradient of (A, B) over λ, and of u over 1 − λ."""
    parameters = [p for a in adapters for p in (a.lora_A, a.lora_B, a.householder_u)]
    gradients: list[Any] = [p.grad for p in parameters]
    norms = torch.stack(list(torch._foreach_norm(gradients))).view(-1, 3).float()
    counts = torch.tensor(
        [[a.lora_A.numel() + a.lora_B.numel(), a.householder_u.numel()] for a in adapters],
        dtype=torch.float32,
    ).to(norms.device, non_blocking=True)
    squared = norms.square()
    rms = torch.stack([squared[:, 0] + squared[:, 1], squared[:, 2]], dim=1).div(counts).sqrt()
    mixing = torch.stack([a.mixing for a in adapters]).float()
    return rms / torch.stack([mixing, 1.0 - mixing], dim=1).clamp_min(EPSILON)


def mixing_values(model: nn.Module, adapter_name: str | None = None) -> dict[str, float]:
    """λ of every hybrid layer by its name (waits for the device)."""
    found = require_adapters(model, adapter_name)
    values = torch.stack([adapter.coefficient().detach().float().cpu() for _, _, adapter in found])
    return dict(zip((name for name, _, _ in found), values.tolist(), strict=True))
