"""Unitary transforms of the features of x as modules, after the unitary recurrent networks: structured, and full."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hybrid_kernels import functional
from hybrid_kernels.nn.rotations import blocks_on_pairs


class StructuredUnitary(nn.Module):
    """x ↦ x Wᵀ, W h for each row h, with W = D₃ R₂ F⁻¹ D₂ Π R₁ F D₁: any number of features in O(n) parameters.

    The parameterisation of Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", arXiv 1511.06464:
    D = diag(exp(iω)), R = I − 2 v vᴴ/‖v‖², F the unitary Fourier transform, Π a fixed permutation. W is unitary for all
    parameters, so that they go to any optimizer.

    Args:
        features: 2n, even: the pairs x₀ + i x₁, x₂ + i x₃, … of real features are the n complex ones that W acts on.
        identity_start: W = I at the start, for an adapter; otherwise drawn as in the paper.
        generator: of the draws, on ``device``; None for torch's own.

    x is (..., 2n) real or (..., n) complex; the output has its shape and dtype. Parameters, real: ``phases`` (3, n), ω
    of D₁, D₂, D₃, from U(−π, π); ``reflections`` (2, n, 2), real and imaginary parts of v of R₁, R₂, from U(−1, 1), of
    any length, a zero vector for "no reflection". Buffer: ``permutation`` (n,), random, in the state dict.

    The paper's start is never the identity: there F⁻¹ Π F is no product of reflections and diagonals for a random Π.
    ``identity_start`` therefore sets Π = I for good, zero phases and v₂ = F⁻¹ v₁, since then R₂ F⁻¹ R₁ F = R₂² = I.
    The pair is v₁ = √n e₁, v₂ = (1, …, 1), of one length and exact in every dtype, as R does not depend on the
    rounding of √n. x is reproduced up to the rounding of the two transforms, and every gradient is live.
    """

    permutation: Tensor

    def __init__(
        self,
        features: int,
        identity_start: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(
                f"features is {features}; it must be even and at least 2: pairs are complex numbers"
            )
        self.features = features
        n = features // 2
        self.phases = nn.Parameter(torch.zeros(3, n, device=device, dtype=dtype))
        self.reflections = nn.Parameter(torch.zeros(2, n, 2, device=device, dtype=dtype))
        if identity_start:
            permutation = torch.arange(n, device=device)
            with torch.no_grad():
                self.reflections[0, 0, 0] = math.sqrt(n)
                self.reflections[1, :, 0] = 1.0
        else:
            permutation = torch.randperm(n, generator=generator, device=device)
            nn.init.uniform_(self.phases, -math.pi, math.pi, generator)
            nn.init.uniform_(self.reflections, -1.0, 1.0, generator)
        self.register_buffer("permutation", permutation)

    def forward(self, x: Tensor) -> Tensor:
        return functional.structured_unitary(x, self.phases, self.reflections, self.permutation)

    def matrix(self) -> Tensor:
        """Q (features, features), orthogonal, such that the module computes x Q of real x."""
        return self(torch.eye(self.features, device=self.phases.device, dtype=self.phases.dtype))

    def extra_repr(self) -> str:
        return f"features={self.features}"


class FullUnitary(nn.Module):
    """x ↦ x Q for a block-diagonal Q = diag(q₁, …, q_k) that is itself the parameter; the identity at the start.

    After Wisdom, Powers, Hershey, Le Roux and Atlas, "Full-capacity unitary recurrent neural networks", arXiv
    1611.00035. An ordinary optimizer's step leaves the unitary matrices: train it with `unitary_parameter_groups` and
    `enable_unitary_groups`. Orthogonal blocks keep their determinant, 1 from the start.

    Args:
        features: size of the last dimension of x.
        block_size: b, the size of a block. It must divide ``features``; with ``complex_blocks``, 2b must. None for one
            block.
        complex_blocks: unitary instead of orthogonal blocks, on pairs of features as in `CayleyRotation`.

    x is (..., features) real; the output has its shape and dtype. The parameter ``u`` is (k, b, b), or complex
    (k, b, b, 2), real and imaginary parts. It is float32 for a half ``dtype``, in which it would not be unitary.
    """

    def __init__(
        self,
        features: int,
        block_size: int | None = None,
        complex_blocks: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        pair = 2 if complex_blocks else 1
        if block_size is None:
            block_size = max(features // pair, 1)
        if block_size < 1 or features < 1 or features % (block_size * pair):
            raise ValueError(
                f"block_size is {block_size}; it must be at least 1 and {'twice it' if complex_blocks else 'it'} must "
                f"divide features = {features}"
            )
        self.features = features
        self.block_size = block_size
        self.complex_blocks = complex_blocks
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        identity = torch.eye(block_size, device=device, dtype=wide)
        u = identity.repeat(features // (block_size * pair), 1, 1)
        if complex_blocks:
            u = torch.stack([u, torch.zeros_like(u)], dim=-1)
        self.u = nn.Parameter(u)

    def blocks(self) -> Tensor:
        """The real orthogonal blocks q (k, width, width), width = b, or 2b for complex blocks."""
        if not self.complex_blocks:
            return self.u
        wide = self.u.to(
            torch.promote_types(self.u.dtype, torch.float32)
        )  # a model cast to bfloat16 casts u along
        return blocks_on_pairs(torch.complex(*wide.unbind(-1)))

    def forward(self, x: Tensor) -> Tensor:
        return functional.block_rotate(x, self.blocks())

    def matrix(self) -> Tensor:
        """Q (features, features), such that the module computes x Q."""
        return torch.block_diag(*self.blocks())

    def extra_repr(self) -> str:
        return f"features={self.features}, block_size={self.block_size}, complex_blocks={self.complex_blocks}"
