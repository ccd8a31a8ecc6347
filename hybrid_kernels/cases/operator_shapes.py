"""Sizes of the operators' cases (named in `operator_inputs`): to validate, to measure, and families of one size."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from .base import Shape


def sizes(names: str, *rows: Sequence[int]) -> tuple[Shape, ...]:
    return tuple(dict(zip(names.split(), row, strict=True)) for row in rows)


#: Odd and even ones, one row, more ranks than features; the two that tell most come first.
VALIDATED: dict[str, tuple[Shape, ...]] = {
    "low_rank_linear": sizes(
        "m k n r bias dropped",
        (67, 65, 33, 5, 1, 0),
        (33, 40, 72, 6, 0, 4),
        (1, 129, 70, 1, 0, 0),
        (90, 7, 1, 3, 1, 3),
        (130, 96, 80, 32, 1, 0),
        (16, 64, 66, 65, 0, 0),
        (300, 256, 200, 24, 1, 0),
    ),
    "low_rank_linear_many": sizes(
        "m k n r layers uneven bias",
        (67, 65, 33, 5, 3, 1, 1),
        (34, 48, 40, 8, 2, 0, 0),
        (1, 33, 70, 1, 3, 1, 0),
        (9, 20, 12, 3, 1, 0, 1),
        (130, 96, 64, 16, 3, 0, 1),
        (200, 160, 96, 12, 4, 1, 0),
    ),
    "low_rank_add": sizes(
        "m k n r dropped",
        (67, 65, 33, 5, 0),
        (33, 40, 72, 6, 4),
        (1, 129, 70, 1, 0),
        (90, 7, 1, 3, 3),
        (16, 64, 66, 65, 0),
        (300, 256, 200, 24, 0),
    ),
    "rotated_low_rank_linear": sizes(
        "m blocks b n r bias",
        (67, 5, 6, 33, 5, 1),
        (70, 4, 16, 48, 8, 0),
        (1, 7, 9, 70, 1, 0),
        (9, 33, 2, 20, 3, 1),
        (130, 3, 32, 80, 24, 1),
        (33, 1, 65, 40, 4, 0),
    ),
    "scale_features": sizes(
        "m n bias", (67, 33, 1), (130, 65, 0), (1, 129, 1), (5, 1, 0), (64, 96, 0), (500, 300, 1)
    ),
    "householder_factors": sizes(
        "k reflections empty", (65, 7, 1), (129, 16, 0), (3, 1, 0), (6, 6, 2), (40, 33, 0), (512, 24, 0)
    ),
    "householder_factors_many": sizes(
        "k reflections layers uneven empty",
        (65, 6, 3, 1, 1),
        (96, 8, 2, 0, 0),
        (5, 1, 2, 1, 0),
        (33, 3, 1, 0, 0),
        (200, 15, 4, 1, 0),
    ),
    "householder_rotate": sizes(
        "m k reflections empty transpose",
        (67, 65, 7, 1, 0),
        (70, 96, 16, 0, 1),
        (1, 33, 3, 0, 0),
        (5, 6, 6, 2, 1),
        (130, 40, 33, 0, 0),
        (260, 256, 24, 0, 0),
    ),
    "hybrid_factors": sizes(
        "k n r reflections empty",
        (65, 33, 5, 7, 1),
        (96, 80, 8, 16, 0),
        (7, 1, 1, 1, 0),
        (33, 40, 3, 33, 2),
        (256, 200, 24, 24, 0),
    ),
    "hybrid_linear": sizes(
        "m k n r reflections empty bias dropped",
        (67, 65, 33, 5, 7, 1, 1, 0),
        (33, 40, 72, 6, 4, 0, 0, 1),
        (1, 65, 70, 1, 2, 0, 0, 0),
        (5, 8, 6, 2, 8, 0, 1, 1),
        (130, 96, 80, 16, 16, 0, 1, 0),
        (260, 200, 160, 12, 20, 0, 0, 0),
    ),
    "cayley": sizes(
        "blocks b norm refine",
        (5, 33, 1, 0),
        (3, 17, 300, 1),
        (7, 2, 1, 0),
        (4, 1, 1, 0),
        (9, 8, 100, 0),
        (2, 65, 10, 1),
        (2, 130, 1, 0),
    ),
    "cayley_packed": sizes(
        "blocks b norm refine",
        (5, 17, 1, 0),
        (3, 8, 300, 1),
        (7, 2, 1, 0),
        (33, 4, 1, 0),
        (9, 8, 100, 0),
        (1, 33, 10, 0),
    ),
    "cayley_packed_many": sizes(
        "blocks b layers uneven", (3, 7, 3, 1), (5, 8, 2, 0), (1, 2, 2, 1), (2, 5, 1, 0), (4, 16, 4, 1)
    ),
    "cayley_neumann_packed": sizes(
        "blocks b terms", (5, 17, 5), (7, 8, 6), (3, 2, 4), (33, 4, 3), (2, 6, 2), (2, 5, 1), (2, 33, 5)
    ),
    "block_rotate": sizes(
        "m blocks b",
        (67, 5, 6),
        (70, 4, 16),
        (1, 3, 7),
        (5, 33, 1),
        (130, 9, 8),
        (65, 2, 33),
        (200, 8, 32),
    ),
    "butterfly_rotate": sizes(
        "m levels blocks b",
        (67, 2, 6, 6),
        (70, 3, 8, 8),
        (1, 2, 4, 2),
        (33, 1, 3, 5),
        (130, 2, 10, 16),
        (80, 4, 8, 4),
        (100, 2, 6, 32),
    ),
    "structured_unitary": sizes(
        "m k empty", (35, 45, 1), (20, 64, 0), (1, 7, 0), (24, 2, 0), (5, 12, 2), (70, 128, 0)
    ),
}

_LAYERS = {
    "cpu": ((512, 768, 768), (1024, 2048, 2048), (2048, 1024, 4096)),
    "cuda": (
        (8192, 4096, 4096),
        (2048, 4096, 4096),
        (512, 4096, 4096),
        (8192, 4096, 14336),
        (8192, 5120, 5120),
        (8192, 8192, 8192),
        (256, 4096, 4096),
    ),
}
_ROTATED = {"cpu": ((512, 768), (1024, 2048)), "cuda": ((8192, 4096), (2048, 4096), (8192, 8192))}
_CAYLEY = {
    "cpu": ((1024, 32), (4096, 8), (2048, 16), (512, 64), (128, 128), (32, 256), (8, 512), (2, 1024)),
    "cuda": ((8192, 32), (2048, 64), (1024, 128), (4096, 8), (2048, 16), (128, 256), (16, 512)),
}
RANK, REFLECTIONS, BLOCK = 32, 16, 32


def _layers(device: str, **more: int) -> tuple[Shape, ...]:
    return tuple({"m": m, "k": k, "n": n} | more for m, k, n in _LAYERS[device])


def _rotated(device: str, **more: int) -> tuple[Shape, ...]:
    return tuple({"m": m, "k": k} | more for m, k in _ROTATED[device])


def _in_blocks(shapes: tuple[Shape, ...], **more: int) -> tuple[Shape, ...]:
    """The same with k in blocks."""
    return tuple(
        {"m": shape["m"], "blocks": shape["k"] // BLOCK, "b": BLOCK}
        | {name: size for name, size in shape.items() if name not in "mk"}
        | more
        for shape in shapes
    )


def _measured(device: str) -> dict[str, tuple[Shape, ...]]:
    hybrid = {"r": 16, "reflections": REFLECTIONS}
    factors = tuple(
        {name: size for name, size in s.items() if name != "m"} for s in _layers(device, **hybrid)
    )
    rotated = tuple({"k": shape["k"], "reflections": REFLECTIONS} for shape in _rotated(device))
    cayley = sizes("blocks b", *_CAYLEY[device])
    few = sizes("blocks b", *((blocks, b) for blocks, b in _CAYLEY[device] if b <= 128))
    return {
        "low_rank_linear": _layers(device, r=RANK),
        "low_rank_linear_many": _layers(device, r=RANK, layers=3)[:3],
        "low_rank_add": _layers(device, r=RANK),
        "rotated_low_rank_linear": _in_blocks(_layers(device, r=RANK)[:3]),
        "scale_features": tuple({"m": s["m"], "n": s["k"]} for s in _rotated(device)),
        "householder_factors": _distinct(rotated),
        "householder_factors_many": _distinct(tuple({**shape, "layers": 24} for shape in rotated)),
        "householder_rotate": _rotated(device, reflections=REFLECTIONS),
        "hybrid_factors": _distinct(factors),
        "hybrid_linear": _layers(device, **hybrid),
        "cayley": cayley,
        "cayley_packed": cayley,
        "cayley_packed_many": tuple(
            {"blocks": s["blocks"] // 8, "b": s["b"], "layers": 8} for s in few if s["blocks"] >= 512
        ),
        "cayley_neumann_packed": tuple({**s, "terms": 5} for s in few),
        "block_rotate": _in_blocks(_rotated(device)),
        "butterfly_rotate": tuple(
            {"m": s["m"], "levels": 2, "blocks": s["blocks"], "b": BLOCK}
            for s in _in_blocks(_rotated(device))
        ),
        "structured_unitary": _rotated(device),
    }


def _distinct(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    return tuple({tuple(shape.items()): shape for shape in shapes}.values())


#: {device type: {operator: shapes}}, of the first of which the sweeps are made.
MEASURED = {device: _measured(device) for device in ("cpu", "cuda")}


def shapes_of(text: str) -> list[Shape]:
    """ "m512-k768-n768,…", as the names of cases have it, or "512x768x768,…", which is MxKxN; ValueError for others."""
    shapes: list[Shape] = []
    for part in text.split(","):
        if re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", part.strip()):
            shapes.append(dict(zip("mkn", map(int, part.split("x")), strict=True)))
        elif re.fullmatch(r"[a-z]+\d+(-[a-z]+\d+)*", part.strip()):
            shapes.append({name: int(size) for name, size in re.findall(r"([a-z]+)(\d+)", part)})
        else:
            raise ValueError(f"shapes has {part!r}; it may have m512-k768-n768-r32, sizes by name, or MxKxN")
    return shapes


def _scaled(shape: Shape, names: Sequence[str], factor: Fraction) -> Shape:
    scaled = {name: shape[name] * factor for name in names if name in shape}
    if not scaled or any(size.denominator != 1 for size in scaled.values()):
        return {}
    return dict(shape) | {name: int(size) for name, size in scaled.items()}


def _tokens(shape: Shape, factor: Fraction) -> Shape:
    return _scaled(shape, ["m"], factor)


def _width(shape: Shape, factor: Fraction) -> Shape:
    """in_ and out_features; blocks of a rotation stay as large as they are. Matrices alone have no width."""
    return _scaled(shape, ["k", "n", *(["blocks"] if "m" in shape else [])], factor)


def _rank(shape: Shape, factor: Fraction) -> Shape:
    return _scaled(shape, ["r"], factor)


def _reflections(shape: Shape, factor: Fraction) -> Shape:
    scaled = _scaled(shape, ["reflections"], factor)
    return scaled if scaled and scaled["reflections"] <= scaled["k"] else {}


def _blocks(shape: Shape, factor: Fraction) -> Shape:
    """Of another size, and as many fewer or more, so that blocks · b stays."""
    if "b" not in shape or (shape["blocks"] / factor).denominator != 1:
        return {}
    fewer = int(shape["blocks"] / factor)
    scaled = _scaled(shape, ["b"], factor)
    fits = fewer % 2 ** (shape.get("levels", 1) - 1) == 0
    return {**scaled, "blocks": fewer} if scaled and fits else {}


_Factors = tuple[Fraction, ...]
_FOURTH_TO_FOUR: _Factors = tuple(map(Fraction, ("1/4", "1/2", "1", "2", "4")))
_SWEEPS: Mapping[str, tuple[Callable[[Shape, Fraction], Shape], _Factors]] = {
    "tokens": (_tokens, tuple(map(Fraction, ("1/16", "1/4", "1", "2", "4")))),
    "width": (_width, tuple(map(Fraction, ("1/4", "1/2", "1", "3/2", "2")))),
    "rank": (_rank, _FOURTH_TO_FOUR),
    "reflections": (_reflections, _FOURTH_TO_FOUR),
    "blocks": (_blocks, _FOURTH_TO_FOUR),
}
SWEEPS = tuple(_SWEEPS)


def swept(shape: Shape, sweep: str) -> tuple[Shape, ...]:
    """The family of shapes around this one in which only that size varies; empty where there is no such size."""
    vary, factors = _SWEEPS[sweep]
    family = [vary(shape, factor) for factor in factors]
    return tuple(member for member in family if member)
