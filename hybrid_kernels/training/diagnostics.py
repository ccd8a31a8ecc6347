"""What training curves show of a method's inside: distance from orthogonality, and gradients by branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hybrid_kernels import functional

BRANCHES = {
    "lora_": "low_rank",
    "householder_": "reflections",
    "hra_u": "reflections",
    "cayley_skew": "unitary",
    "oft_R": "unitary",
    "boft_R": "unitary",
    "urnn_": "unitary",
    "boft_s": "scale",
    "mixing_logit": "mixing",
}
HEADS = ("classifier", "score")


def branch_gradient_norms(model: nn.Module) -> dict[str, float]:
    """The 2-norm of the gradients now in ``.grad`` of each branch of a model from `methods.add_adapter`.

    Keys, as far as there are such gradients: "low_rank"; "reflections", "unitary" (rotations of OFT, BOFT, uRNN and the
    hybrid); "scale" (BOFT's); "mixing" (where λ is learned); "head" (a classification head and what else is trained
    whole); "base" (in full fine-tuning, all but the head).
    """
    adapted = any(isinstance(module, BaseTunerLayer) for module in model.modules())
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.numel():
            norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
            squares.setdefault(_branch(name, adapted), []).append(norm.square())
    if not squares:
        return {}
    # One wait for the device.
    sums = torch.stack(
        [torch.stack([n.to(one[0].device) for n in one]).sum().cpu() for one in squares.values()]
    )
    return dict(zip(squares, sums.sqrt().tolist(), strict=True))


def _branch(name: str, adapted: bool) -> str:
    for part, branch in BRANCHES.items():
        if f".{part}" in f".{name}":
            return branch
    return "head" if adapted or name.startswith(HEADS) else "base"


@torch.no_grad()
def orthogonality_defect(model: nn.Module) -> dict[str, float]:
    """‖QᵀQ − I‖_F of the structured part Q of each layer by its name, as it is computed in the parameters' precision.

    For layers of HRA, OFT, BOFT, uRNN and the hybrid (its reflections, and its rotation where it has one); from the
    factors, never from Q. Where Q is a product, the sum of its factors' defects, which to first order bounds its own.
    uRNN's Fourier transforms are taken for unitary. Empty for models without such layers.
    """
    defects = {}
    for name, layer in model.named_modules():
        terms = _terms(layer)
        if terms:
            defects[name] = torch.stack([term.cpu() for term in terms]).sum()
    return dict(zip(defects, torch.stack(list(defects.values())).tolist(), strict=True)) if defects else {}


def _terms(layer: Any) -> list[Tensor]:
    """The defects of the structured factors of a PEFT layer's active adapters."""
    from peft.tuners import boft, hra, oft

    from hybrid_kernels.adapters.acceleration.oft import blocks
    from hybrid_kernels.adapters.layer import HybridLayer
    from hybrid_kernels.adapters.structured import StructuredUnitaryLayer

    kinds: list[tuple[type, str, Callable[[str], list[Tensor]]]] = [
        (hra.HRALinear, "hra_u", lambda name: [_of_reflections(layer.hra_u[name])]),
        (oft.OFTLayer, "oft_R", lambda name: [_of_blocks(blocks(layer.oft_R[name]))]),
        (
            boft.BOFTLayer,
            "boft_R",
            lambda name: [_of_blocks(q) for q in functional.cayley(layer.boft_R[name])],
        ),
        (StructuredUnitaryLayer, "urnn_unitary", lambda name: _of_structured(layer.unitary(name))),
        (HybridLayer, "hybrid_adapters", lambda name: _of_hybrid(layer.adapter(name))),
    ]
    for kind, container, terms in kinds:
        if isinstance(layer, kind):
            held: Any = layer
            names = [name for name in held.active_adapters if name in getattr(held, container)]
            return [term for name in names for term in terms(name)]
    return []


def _of_blocks(q: Tensor) -> Tensor:
    """‖QᵀQ − I‖_F of the block-diagonal Q of q (k, b, b)."""
    q = q.double()
    return torch.linalg.vector_norm(q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype, device=q.device))


def _of_reflections(u: Tensor) -> Tensor:
    """‖HᵀH − I‖_F of the chain of the columns of u (K, n), from its compact WY form H = I − v t vᵀ.

    HᵀH − I = v (tᵀ g t − t − tᵀ) vᵀ with g = vᵀv, and ‖v m vᵀ‖_F² = tr(m g m g): n × n products only.
    """
    v, t = (factor.double() for factor in functional.householder_factors(u))
    g = v.mT @ v
    product = (t.mT @ g @ t - t - t.mT) @ g
    return (product * product.mT).sum().clamp_min(0.0).sqrt()


def _of_hybrid(adapter: Any) -> list[Tensor]:
    terms = [_of_reflections(adapter.householder_u)] if adapter.reflections else []
    return [*terms, _of_blocks(adapter.rotation())] if adapter.has_rotation else terms


def _of_structured(unitary: Any) -> list[Tensor]:
    """Of D = diag(exp(iω)) and R = I − 2 v vᴴ as they are computed: |d|² − 1, and (4 ‖v‖⁴ − 4 ‖v‖²).

    The real form of a complex matrix holds each of its entries twice: √2 times its norm.
    """
    phases, vectors = unitary.phases, unitary.reflections
    size = phases.cos().double().square() + phases.sin().double().square() - 1.0
    squared = vectors.square().sum((-2, -1), keepdim=True)
    unit = (vectors * torch.where(squared > 0, squared, 1.0).rsqrt()).double().square().sum((-2, -1))
    return [2**0.5 * size.norm(dim=1).sum(), 2**0.5 * (4.0 * unit.square() - 4.0 * unit).abs().sum()]
