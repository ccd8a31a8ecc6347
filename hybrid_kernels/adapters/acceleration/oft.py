"""OFT layers: a block-diagonal rotation of x before the base layer.

    y = base(x diag(q₁, …, q_k))
    q = (I − A)(I + A)⁻¹, or what PEFT has instead by default, the truncated series I + 2A + 2A² + … of its inverse

Qiu et al., "Controlling text-to-image diffusion by orthogonal finetuning", arXiv 2306.07280; Qiu et
al., "Orthogonal finetuning made scalable", arXiv 2506.19847. Several active adapters rotate one after the other.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners import oft
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels._arguments import autocast_dtype
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer, sample, whole


class AcceleratedOFTLinear(AcceleratedLayer, oft.Linear):
    """OFT on `nn.Linear` and the quantised layers that PEFT takes."""

    container = "oft_R"
    method = "OFT"

    def unsupported(self, adapter_name: str) -> str | None:
        module: Any = self.oft_R[adapter_name]
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return "its oft_R has hooks"
        return None if whole(module.weight) else "its oft_R cannot be read (sharded or offloaded)"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(self, AcceleratedLayer):  # restored, but a wrapper kept this
            return type(self).forward(self, x, *args, **kwargs)
        names = [name for name in self.active_adapters if name in self.oft_R]
        if self.disable_adapters or self.merged or any(self.unsupported(name) is not None for name in names):
            return super().forward(x, *args, **kwargs)
        rotated = x.to(autocast_dtype(x) or x.dtype)
        for name in names:
            module: Any = self.oft_R[name]
            q = self.cached(f"blocks of {name}", (module.weight,), partial(blocks, module))
            if module.block_share:  # one block for all: the blocks of a row are rows to it
                b = module.block_size
                rotated = functional.block_rotate(rotated.unflatten(-1, (-1, b)), q).flatten(-2)
            else:
                rotated = functional.block_rotate(rotated, q)
        return self.base_layer(rotated.to(x.dtype), *args, **kwargs).to(x.dtype)

    def operators(self) -> dict[str, tuple[Any, ...]]:
        x = sample(self)
        b = self.oft_block_size[self.described()[0]]
        return {"block_rotate": (x, x.new_zeros(1).expand(self.in_features // b, b, b))}


def blocks(module: Any) -> Tensor:
    """q (k, b, b), or (1, b, b) where the blocks share one, in float32 or the parameter's dtype if wider."""
    weight = module.weight
    if module.coft:  # PEFT projects the parameter itself on the constraint, at each forward
        with torch.no_grad():
            weight.copy_(module._project_batch(weight, eps=module.eps))
        weight = weight.clone()  # what a backward needs, whatever another forward writes
    if module.use_cayley_neumann:
        return functional.cayley_neumann_packed(weight, module.block_size, module.num_cayley_neumann_terms)
    return functional.cayley_packed(weight, module.block_size)


OFT_CLASSES: dict[type[nn.Module], type[AcceleratedLayer]] = {oft.Linear: AcceleratedOFTLinear}
