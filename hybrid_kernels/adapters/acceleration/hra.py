"""HRA layers on the factor form.

    y = x (W H)ᵀ + b,  H = H₁ … Hₙ = I − v t vᵀ: down = vᵀ, up = −W v t        (compact WY, `ops.householder`)

Yuan et al., "Bridging the gap between low-rank and orthogonal adaptation via Householder reflection adaptation", arXiv
2405.17484. With Gram–Schmidt (``apply_GS``) the vectors are made orthonormal first, so H = I − 2 q qᵀ, which depends
on their span alone: q of a QR factorisation serves. Several active adapters multiply: W Hₐ H_b ….
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners import hra
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels._arguments import no_autocast
from hybrid_kernels.adapters.acceleration.base import (
    AcceleratedLayer,
    Plain,
    Update,
    apply_update,
    fits,
    low_rank_operators,
    projection,
    whole,
)
from hybrid_kernels.nn.hybrid_linear import READABLE_DTYPES, READABLE_TYPES
from hybrid_kernels.ops.precision import without_tf32


class AcceleratedHRALinear(AcceleratedLayer, hra.HRALinear):
    """HRA on `nn.Linear`."""

    container = "hra_u"
    method = "HRA"

    def unsupported(self, adapter_name: str) -> str | None:
        weight = self.base_layer.weight
        # A graph can hold no name of a module, so that of a plain tensor is not asked for.
        torchao = type(weight) not in READABLE_TYPES and type(weight).__module__.startswith("torchao")
        if torchao or not weight.is_floating_point():
            return "PEFT's HRA takes the stored numbers of a quantised weight for its values, or raises"
        if not whole(self.hra_u[adapter_name]):
            return "its hra_u cannot be read (sharded or offloaded)"
        return None

    def plain(self) -> Plain | None:
        return hra_plain(self)

    def _applied(self) -> list[str] | None:
        names = [name for name in self.active_adapters if name in self.hra_u]
        if any(self.unsupported(name) is not None for name in names):
            return None
        weight = getattr(self.base_layer, "weight", None)
        if weight is not None and weight.requires_grad:
            return None  # PEFT's forward gives the base weight no gradient
        return names

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(self, AcceleratedLayer):  # restored, but a wrapper kept this
            return type(self).forward(self, x, *args, **kwargs)
        names = None if args or kwargs or self.disable_adapters or self.merged else self._applied()
        plain = self.plain()
        if not names or not fits(x, plain):
            return super().forward(x, *args, **kwargs)
        if self._acceleration.group is not None and plain is not None:
            y = self._acceleration.group.forward(self, x)
            if y is not None:
                return y.to(x.dtype)
        return apply_update(self, x, plain, self.update(plain, names)).to(x.dtype)

    def shared_update(self, plain: Plain) -> Update | None:
        """The update of a forward that shares its projection of x with other layers; None where it cannot."""
        names = None if self.disable_adapters or self.merged else self._applied()
        return self.update(plain, names) if names else None

    def update(self, plain: Plain | None, names: Sequence[str]) -> Update:
        us = [self.hra_u[name] for name in names]
        return self.cached(
            f"factors of {names}",
            (*us, *self.base_layer.parameters()),
            lambda: hra_update(self, names, projection(self.base_layer, plain)),
        )

    def operators(self) -> dict[str, tuple[Any, ...]]:
        rank = sum(self.hra_r[name] for name in self.described())
        return low_rank_operators(self, rank)


def hra_plain(layer: Any) -> Plain | None:
    """As PEFT's HRA, which reads the weight below all layers and calls none of them: their hooks do not count."""
    weight = layer.get_base_layer().weight
    readable = whole(weight) and weight.dtype in READABLE_DTYPES
    return Plain(weight, layer.base_layer.bias) if readable else None


@without_tf32
def hra_update(layer: Any, names: Sequence[str], weight: Tensor | Callable[[Tensor], Tensor]) -> Update:
    """The factors of PEFT's `HRALinear` under these adapters, in float32 or their dtype if wider; ``weight`` is the
    base layer's W (out_features, in_features) or the function z ↦ W z."""
    u = layer.hra_u[names[0]]
    if len(names) == 1 and not layer.hra_apply_GS[names[0]]:
        # The hybrid's factors without a low-rank branch: λ = 0 and r = 0.
        empty = u.new_zeros(0, layer.in_features), u.new_zeros(layer.out_features, 0)
        return Update(*functional.hybrid_factors(weight, *empty, u, 0.0, 1.0))
    with no_autocast(u):
        v, t = _wy(u, layer.hra_apply_GS[names[0]])
        for name in names[1:]:
            v, t = _joined(v, t, *_wy(layer.hra_u[name], layer.hra_apply_GS[name]))
        z = v @ t
        rotated = weight(z) if callable(weight) else weight @ z.to(weight.dtype)
    return Update(v.mT, -rotated.to(v.dtype))


@without_tf32
def _wy(u: Tensor, gram_schmidt: bool) -> tuple[Tensor, Tensor]:
    """v (in_features, r), t (r, r) of H = I − v t vᵀ."""
    if not gram_schmidt:
        return functional.householder_factors(u)
    q, _ = torch.linalg.qr(u.to(torch.promote_types(u.dtype, torch.float32)))
    return q, 2.0 * torch.eye(u.shape[1], dtype=q.dtype, device=q.device)


@without_tf32
def _joined(v: Tensor, t: Tensor, w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Of the product of two chains: (I − v t vᵀ)(I − w s wᵀ) = I − [v w] [[t, −t vᵀ w s], [0, s]] [v w]ᵀ."""
    above = torch.cat([t, -t @ (v.mT @ w) @ s], dim=1)
    below = torch.cat([s.new_zeros(s.shape[0], t.shape[1]), s], dim=1)
    return torch.cat([v, w], dim=1), torch.cat([above, below])


HRA_CLASSES: dict[type[nn.Module], type[AcceleratedLayer]] = {hra.HRALinear: AcceleratedHRALinear}
