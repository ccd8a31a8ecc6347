"""The operators as one writes them in plain PyTorch: the factor form, left to autograd, of arguments by name.

Without dropout; reflections of zeros divide by zero here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
    return nn.functional.linear(x, weight, bias) + (x @ down.T) @ up.T


def low_rank_linear_many(
    x: Tensor, weights: list[Tensor], biases: list[Tensor | None], downs: list[Tensor], ups: list[Tensor]
) -> list[Tensor]:
    return [low_rank_linear(x, *layer) for layer in zip(weights, biases, downs, ups, strict=True)]


def low_rank_add(base: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return base + (x @ down.T) @ up.T


def block_rotate(x: Tensor, q: Tensor) -> Tensor:
    return torch.einsum("...kb,kbc->...kc", x.unflatten(-1, q.shape[:2]), q).flatten(-2)


def rotated_low_rank_linear(
    x: Tensor, q: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> Tensor:
    return low_rank_linear(block_rotate(x, q), weight, bias, down, up)


def butterfly_rotate(x: Tensor, q: Tensor) -> Tensor:
    """Of a level i, block j of a group of b·2^i features joins its half-blocks j and j + 2^i."""
    b = q.shape[-1]
    for level in reversed(range(q.shape[0])):
        halves = x.unflatten(-1, (-1, 2, 2**level, b // 2)) if level else x.unflatten(-1, (-1, 1, 1, b))
        y = block_rotate(halves.transpose(-3, -2).flatten(-4), q[level])
        x = y.unflatten(-1, (-1, 2**level, 2 if level else 1, b // 2 if level else b))
        x = x.transpose(-3, -2).flatten(-4)
    return x


def scale_features(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return y * scale if bias is None else y * scale + bias


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _reflections(u: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors v, and S = ½ I + striu(vᵀv), of which t is the inverse: in float32 or wider, for the solve."""
    u = wide(u)
    v = u / torch.linalg.vector_norm(u, dim=0)
    return v, torch.triu(v.T @ v, diagonal=1) + 0.5 * torch.eye(u.shape[1], dtype=u.dtype, device=u.device)


def householder_factors(u: Tensor) -> tuple[Tensor, Tensor]:
    v, s = _reflections(u)
    identity = torch.eye(u.shape[1], dtype=s.dtype, device=s.device)
    return v, torch.linalg.solve_triangular(s, identity, upper=True)


def householder_factors_many(us: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [householder_factors(u) for u in us]


def householder_rotate(x: Tensor, u: Tensor, transpose: bool) -> Tensor:
    v, s = _reflections(u)
    z = torch.linalg.solve_triangular(s.T if transpose else s, v, upper=not transpose, left=False).to(x.dtype)
    return x - (x @ v.to(x.dtype)) @ z.T


def hybrid_factors(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, u: Tensor, mixing: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    v, s = _reflections(u)
    z = torch.linalg.solve_triangular(s, v, upper=True, left=False)
    rotated = weight @ z.to(weight.dtype)
    return torch.cat([wide(lora_A), v.T]), torch.cat(
        [mixing * scaling * wide(lora_B), (mixing - 1) * wide(rotated)], dim=1
    )


def hybrid_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    u: Tensor,
    mixing: Tensor,
    scaling: float,
) -> Tensor:
    down, up = hybrid_factors(weight, lora_A, lora_B, u, mixing, scaling)
    return low_rank_linear(x, weight, bias, down.to(x.dtype), up.to(x.dtype))


def cayley(skew: Tensor, refine: bool = False) -> Tensor:
    """2 (I + A)⁻¹ − I."""
    skew = wide(skew)
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return 2.0 * torch.linalg.inv(identity + (skew - skew.mH) / 2) - identity


def unpacked(packed: Tensor, block_size: int) -> Tensor:
    """A with the strict upper triangle ``packed``, row by row."""
    packed = wide(packed)
    row, column = torch.triu_indices(block_size, block_size, offset=1, device=packed.device)
    a = packed.new_zeros(*packed.shape[:-1], block_size, block_size)
    a[..., row, column] = packed
    return a - a.mH


def cayley_packed(packed: Tensor, block_size: int, refine: bool = False) -> Tensor:
    a = unpacked(packed, block_size)
    identity = torch.eye(block_size, dtype=a.dtype, device=a.device)
    return 2.0 * torch.linalg.inv(identity + a) - identity


def cayley_packed_many(packed: list[Tensor], block_sizes: list[int]) -> list[Tensor]:
    return [cayley_packed(each, b) for each, b in zip(packed, block_sizes, strict=True)]


def cayley_neumann_packed(packed: Tensor, block_size: int, terms: int) -> Tensor:
    """I + 2A + 2A² + …, the last power with coefficient 1; from three terms on."""
    a = unpacked(packed, block_size)
    series, power = torch.eye(block_size, dtype=a.dtype, device=a.device) + 2.0 * a, a
    for _ in range(max(terms, 4) - 3):
        power = power @ a
        series = series + 2.0 * power
    return series + power @ a


def structured_unitary(x: Tensor, phases: Tensor, reflections: Tensor, permutation: Tensor) -> Tensor:
    """x, and all else, real: pairs of neighbours are complex numbers."""
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    d1, d2, d3 = torch.polar(torch.ones_like(phases), phases)
    v1, v2 = torch.view_as_complex(
        reflections / torch.linalg.vector_norm(reflections, dim=(1, 2), keepdim=True)
    )
    z = torch.fft.fft(z * d1, norm="ortho")
    z = z - 2.0 * (z @ v1.conj())[..., None] * v1
    z = torch.fft.ifft(z[..., permutation] * d2, norm="ortho")
    z = (z - 2.0 * (z @ v2.conj())[..., None] * v2) * d3
    return torch.view_as_real(z).flatten(-2)
