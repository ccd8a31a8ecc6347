"""Penalties on the orthogonal branch, to be added to the loss, and the defect they watch.

Orthogonality:      Σ_layers ‖I − ÛᵀÛ‖_F, Û the normalised reflection vectors.
Norm preservation:  with C = λ I + (1 − λ) H, CᵀC − I = λ(1 − λ)(H + Hᵀ − 2I) = −λ(1 − λ) V (T + Tᵀ) Vᵀ, because H is
                    orthogonal. Linear mixing of I and H shortens vectors where reflection angles are large: for 8
                    random reflections and λ = ½ the smallest singular value of C is about 0.02.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels.adapters.layers import require_adapters
from hybrid_kernels.nn.adapter import HybridAdapter


def orthogonality_penalty(model: nn.Module) -> Tensor:
    """Σ ‖I − ÛᵀÛ‖_F over the active hybrid adapters; a 0-dim tensor to be scaled by μ and added to the loss."""
    penalties = []
    for _, _, adapter in require_adapters(model):
        if not adapter.reflections:
            penalties.append(torch.zeros_like(adapter.mixing))
            continue
        v, _ = functional.householder_factors(adapter.householder_u)
        penalties.append(
            torch.linalg.matrix_norm(v.mT @ v - torch.eye(v.shape[1], dtype=v.dtype, device=v.device))
        )
    return _sum(penalties)


def norm_preservation_penalty(model: nn.Module) -> Tensor:
    """Σ ‖CᵀC − I‖_F over the active hybrid adapters: how far the mixed weights are from preserving norms."""
    return _sum([_defect(adapter) for _, _, adapter in require_adapters(model)])


def norm_preservation_defects(model: nn.Module, adapter_name: str | None = None) -> dict[str, float]:
    """‖CᵀC − I‖_F of every hybrid layer by its name; 0 means that mixing preserves norms."""
    with torch.no_grad():
        return {name: float(_defect(adapter)) for name, _, adapter in require_adapters(model, adapter_name)}


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def _defect(adapter: HybridAdapter) -> Tensor:
    if not adapter.reflections:
        return torch.zeros_like(adapter.mixing)
    v, t = functional.householder_factors(adapter.householder_u)
    coefficient = adapter.coefficient().to(v.dtype)
    # ‖V S Vᵀ‖_F² = tr(S G S G) for symmetric S = T + Tᵀ and G = VᵀV: n × n products only.
    product = (t + t.mT) @ (v.mT @ v)
    squared = (product * product.mT).sum()
    # The square root has no gradient at 0, which is where paired reflections start.
    root = torch.where(squared > 0, squared.clamp_min(torch.finfo(v.dtype).tiny), 1.0).sqrt()
    return coefficient * (1.0 - coefficient) * torch.where(squared > 0, root, 0.0)
