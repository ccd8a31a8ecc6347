"""BOFT layers: a product of butterfly rotations of x before the base layer, and a scale of its features.

    y = base₀(x B) · s + b,  B = M_m ⋯ M₁, M_i = P_i diag(q_i1, …, q_ik) P_iᵀ, q = (I − A)(I + A)⁻¹

with base₀ the base layer without its bias b.

Liu et al., "Parameter-efficient orthogonal finetuning via butterfly factorization", arXiv 2311.06243. No permutation is
ever a matrix (`functional.butterfly_rotate`). Of several active adapters the last rotates first, and their scales
multiply.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from peft.tuners.boft import layer as boft
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels._arguments import autocast_dtype
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer, fits, sample, whole, without_bias


class AcceleratedBOFTLinear(AcceleratedLayer, boft.Linear):
    """BOFT on `nn.Linear` and the quantised layers that PEFT takes."""

    container = "boft_R"
    method = "BOFT"

    def unsupported(self, adapter_name: str) -> str | None:
        if whole(self.boft_R[adapter_name], self.boft_s[adapter_name]):
            return None
        return "its boft_R and boft_s cannot be read (sharded or offloaded)"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(self, AcceleratedLayer):  # restored, but a wrapper kept this
            return type(self).forward(self, x, *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.boft_R]
        plain = self.plain()
        stock = args or kwargs or self.disable_adapters or self.merged or not names or not fits(x, plain)
        if stock or any(self.unsupported(name) is not None for name in names):
            return super().forward(x, *args, **kwargs)
        rotated, scale = x.to(autocast_dtype(x) or x.dtype), None
        for name in reversed(names):
            r = self.boft_R[name]
            # PEFT's dropout replaces blocks, at random, by the identity.
            q = self.boft_dropout[name](self.cached(f"blocks of {name}", (r,), partial(functional.cayley, r)))
            rotated = functional.butterfly_rotate(rotated, q)
            s = self.boft_s[name].flatten()
            scale = s if scale is None else scale * s
        assert scale is not None
        if plain is not None:
            y, bias = nn.functional.linear(rotated, plain.weight), plain.bias
        else:
            bias = self.base_layer.bias
            y = without_bias(self.base_layer(rotated.to(x.dtype)), bias)
        return functional.scale_features(y, scale, bias).to(x.dtype)

    def operators(self) -> dict[str, tuple[Any, ...]]:
        x = sample(self)
        q = x.new_zeros(1).expand(self.boft_R[self.described()[0]].shape)
        return {"block_rotate": (x, q[0])} if len(q) == 1 else {"butterfly_rotate": (x, q)}


BOFT_CLASSES: dict[type[nn.Module], type[AcceleratedLayer]] = {boft.Linear: AcceleratedBOFTLinear}
