"""Inputs of the operators: drawn in float64 where the generator is, so that every dtype sees the same numbers, rounded.

Names of sizes: m rows, k in_features, n out_features, r rank, ``reflections``; ``blocks`` of b × b, of which k is the
product; ``levels`` of a butterfly, ``terms`` of a series, ``layers``. Those that default to 0: ``bias``; ``dropped``,
the rows of down (for `hybrid_linear` only whether) that see x with elements dropped; ``uneven``, layers of unlike
sizes; ``empty`` reflections, "no reflection"; ``transpose``; ``refine``. ``norm``, about the spectral norm of a skew
matrix, is 1 unless given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Inputs, Shape

DROPOUT = 0.25
SCALING = 0.5


def maker(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Callable[..., Tensor]:
    """make(*sizes, scale=1): normal numbers with that deviation; ``real`` for those of a complex operator."""
    wide = torch.complex128 if dtype.is_complex else torch.float64

    def make(*sizes: int, scale: float = 1.0, real: bool = False) -> Tensor:
        kind = torch.float64 if real else wide
        drawn = torch.randn(*sizes, dtype=kind, generator=generator, device=generator.device) * scale
        return drawn.to(device, dtype.to_real() if real else dtype)

    return make


def _dropout(shape: Shape, device: torch.device) -> Inputs:
    if not shape.get("dropped"):
        return {}
    # Of all 64 bits: a kernel that takes 32 of them makes another mask.
    return {"dropout": DROPOUT, "seed": torch.tensor(-(2**62) + 20, device=device)}


def low_rank_linear(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    make = maker(dtype, device, generator)
    m, k, n, r = (shape[name] for name in "mknr")
    drawn: Inputs = {
        "x": make(m, k),
        "weight": make(n, k, scale=k**-0.5),
        "bias": make(n) if shape.get("bias") else None,
        "down": make(r, k, scale=k**-0.5),
        "up": make(n, r, scale=r**-0.5),
    }
    if shape.get("dropped"):
        drawn |= _dropout(shape, device) | {"dropped_rank": shape["dropped"]}
    return drawn


def low_rank_add(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    drawn = low_rank_linear(shape, dtype, device, generator)
    del drawn["weight"], drawn["bias"]
    return {"base": maker(dtype, device, generator)(shape["m"], shape["n"]), **drawn}


def low_rank_linear_many(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    """Of uneven layers each is wider than the one before, of one rank more, and every second one has a bias."""
    make = maker(dtype, device, generator)
    m, k, n, r, layers = (shape[name] for name in ("m", "k", "n", "r", "layers"))
    uneven = shape.get("uneven", 0)
    sizes = [(n + 3 * i * uneven, r + i * uneven) for i in range(layers)]
    return {
        "x": make(m, k),
        "weights": [make(wide, k, scale=k**-0.5) for wide, _ in sizes],
        "biases": [
            make(wide) if shape.get("bias") and not (uneven and i % 2) else None
            for i, (wide, _) in enumerate(sizes)
        ],
        "downs": [make(rank, k, scale=k**-0.5) for _, rank in sizes],
        "ups": [make(wide, rank, scale=rank**-0.5) for wide, rank in sizes],
    }


def rotated_low_rank_linear(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    drawn = low_rank_linear({**shape, "k": shape["blocks"] * shape["b"]}, dtype, device, generator)
    q = maker(dtype, device, generator)(shape["blocks"], shape["b"], shape["b"], scale=shape["b"] ** -0.5)
    return {"x": drawn.pop("x"), "q": q, **drawn}


def scale_features(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    make = maker(dtype, device, generator)
    m, n = shape["m"], shape["n"]
    return {"y": make(m, n), "scale": make(n), "bias": make(n) if shape.get("bias") else None}


def _reflections(k: int, count: int, empty: int, make: Callable[..., Tensor]) -> Tensor:
    """(k, count), the last ``empty`` of the first half and of the second all zero."""
    u = make(k, count)
    for i in range(empty):
        u[:, (i + 1) * count // (empty + 1) - 1] = 0
    return u


def householder_factors(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    make = maker(dtype, device, generator)
    return {"u": _reflections(shape["k"], shape["reflections"], shape.get("empty", 0), make)}


def householder_factors_many(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    """Of uneven layers each has more features and one reflection more than the one before."""
    make, uneven = maker(dtype, device, generator), shape.get("uneven", 0)
    return {
        "us": [
            _reflections(
                shape["k"] + 5 * i * uneven, shape["reflections"] + i * uneven, shape.get("empty", 0), make
            )
            for i in range(shape["layers"])
        ]
    }


def householder_rotate(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    drawn = householder_factors(shape, dtype, device, generator)
    x = maker(dtype, device, generator)(shape["m"], shape["k"])
    return {"x": x, **drawn, "transpose": bool(shape.get("transpose"))}


def hybrid_factors(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    make = maker(dtype, device, generator)
    k, n, r = (shape[name] for name in "knr")
    return {
        "weight": make(n, k, scale=k**-0.5),
        "lora_A": make(r, k, scale=k**-0.5),
        "lora_B": make(n, r, scale=r**-0.5),
        "u": _reflections(k, shape["reflections"], shape.get("empty", 0), make),
        "mixing": maker(torch.float64, device, generator)(1).sigmoid()[0].to(dtype),
        "scaling": SCALING,
    }


def hybrid_linear(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    make = maker(dtype, device, generator)
    drawn = hybrid_factors(shape, dtype, device, generator)
    bias = make(shape["n"]) if shape.get("bias") else None
    x = make(shape["m"], shape["k"])
    return {"x": x, "weight": drawn.pop("weight"), "bias": bias, **drawn, **_dropout(shape, device)}


def cayley(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
    """Of normal numbers the largest singular value of X − Xᴴ is about √(2b) times twice their deviation."""
    b = shape["b"]
    scale = shape.get("norm", 1) / (2 * b) ** 0.5
    skew = maker(dtype, device, generator)(shape["blocks"], b, b, scale=scale)
    return {"skew": skew, "refine": bool(shape.get("refine"))}


def _packed(blocks: int, b: int, norm: float, make: Callable[..., Tensor]) -> Tensor:
    return make(blocks, b * (b - 1) // 2, scale=norm / (2 * b**0.5))


def cayley_packed(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    packed = _packed(shape["blocks"], shape["b"], shape.get("norm", 1), maker(dtype, device, generator))
    return {"packed": packed, "block_size": shape["b"], "refine": bool(shape.get("refine"))}


def cayley_packed_many(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    """Of uneven layers each has one block more, and every second one blocks that are larger by one."""
    make, uneven = maker(dtype, device, generator), shape.get("uneven", 0)
    sizes = [shape["b"] + i % 2 * uneven for i in range(shape["layers"])]
    packed = [
        _packed(shape["blocks"] + i * uneven, b, shape.get("norm", 1), make) for i, b in enumerate(sizes)
    ]
    return {"packed": packed, "block_sizes": sizes}


def cayley_neumann_packed(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    """Of a norm of about ½, so that the series converges."""
    packed = _packed(shape["blocks"], shape["b"], 0.5, maker(dtype, device, generator))
    return {"packed": packed, "block_size": shape["b"], "terms": shape["terms"]}


def block_rotate(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    make, b = maker(dtype, device, generator), shape["b"]
    return {"x": make(shape["m"], shape["blocks"] * b), "q": make(shape["blocks"], b, b, scale=b**-0.5)}


def butterfly_rotate(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    make, b = maker(dtype, device, generator), shape["b"]
    q = make(shape["levels"], shape["blocks"], b, b, scale=b**-0.5)
    return {"x": make(shape["m"], shape["blocks"] * b), "q": q}


def structured_unitary(
    shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    """k complex features: x (m, k) of a complex dtype, (m, 2k) of a real one."""
    make, k = maker(dtype, device, generator), shape["k"]
    vectors = make(2, k, 2, real=True)
    vectors[: shape.get("empty", 0)] = 0
    return {
        "x": make(shape["m"], k if dtype.is_complex else 2 * k),
        "phases": make(3, k, real=True),
        "reflections": vectors,
        "permutation": torch.randperm(k, generator=generator, device=generator.device).to(device),
    }
