"""One adapted linear layer: forward, and backward to its input and to every adapter parameter.

Shapes are m rows of x (m, k) through a layer of weight (n, k) with a bias. Adapter parameters have x's dtype on every
side, and are off their start, where some are zero. All sides of a case share x, the weights and the output gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import hybrid_kernels as hk

from . import peers as peer
from .base import BenchmarkCase, Builders, Shape, Side
from .layer import Holder, Layer

FROZEN, HYBRID = "frozen layer", "hybrid 16 + 16"
SWEPT_HYBRID = "hybrid"
SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": (
        {"m": 512, "k": 768, "n": 768},
        {"m": 1024, "k": 2048, "n": 2048},
        {"m": 2048, "k": 1024, "n": 4096},
    ),
    "cuda": (
        {"m": 512, "k": 4096, "n": 4096},
        {"m": 4096, "k": 4096, "n": 4096},
        {"m": 8192, "k": 4096, "n": 4096},
        {"m": 4096, "k": 4096, "n": 14336},
    ),
}
#: The sizes that a sweep varies, by device type; the others stay at the first of the shapes.
SWEEPS: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {
        "tokens": (32, 128, 512, 2048, 8192),
        "width": (256, 512, 1024, 2048, 4096),
        "rank": (4, 8, 16, 32, 64),
        "reflections": (4, 8, 16, 32, 64),
    },
    "cuda": {
        "tokens": (128, 512, 2048, 8192, 32768),
        "width": (1024, 2048, 4096, 6144, 8192),
        "rank": (4, 8, 16, 32, 64),
        "reflections": (4, 8, 16, 32, 64),
    },
}
TRITON_VARIANTS = ("addmm", "accumulate", "epilogue", "one_pass")
# The forward kernel that repeats the projection in every tile of columns is meant for few rows.
ONE_PASS_ROWS = 256


def cases(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape] | None = None,
    features: bool = False,
    sweep: str | None = None,
    compiled: bool = True,
    peers: bool = True,
) -> list[BenchmarkCase]:
    """For each of ``shapes`` ({"m", "k", "n"}; `SHAPES` of the device if None): the hybrid against the frozen layer,
    plain PyTorch and PEFT ("linear"), and each PEFT method against itself accelerated ("accelerate-…").

    ``features``: instead, on the first shape, what each feature of the hybrid costs. ``sweep``: instead, a family of
    cases in which "tokens", "width", "rank" or "reflections" varies and the rest is that of the first shape.
    ``compiled``: with torch.compile. ``peers``: with PEFT, and Unsloth where installed. ValueError for another sweep or
    a shape without positive m, k, n.
    """
    given = tuple(shapes or SHAPES[device.type])
    for shape in given:
        if set(shape) != set("mkn") or min(shape.values()) < 1:
            raise ValueError(f"shapes has {dict(shape)}; each must have m, k and n of at least 1")
    if sweep is not None:
        return _sweep(sweep, given[0], dtype, device, peers)
    if features:
        return [
            _case("features", given[0], dtype, device, functools.partial(_feature_sides, peers=peers), HYBRID)
        ]
    result = []
    for shape in given:
        sides = functools.partial(_linear_sides, compiled=compiled, peers=peers)
        methods = peer.BESIDE_HYBRID if peers else ()
        result.append(_case("linear", shape, dtype, device, sides, HYBRID, methods, work=True))
        for method in peer.ACCELERATED if peers else ():
            name = f"accelerate-{method.replace(' ', '-')}"
            sides = functools.partial(_accelerated_sides, method=method)
            result.append(_case(name, shape, dtype, device, sides, peer.accelerated(method), (method,)))
    return result


def _case(
    name: str,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    sides: Callable[[Layer, Shape], Builders],
    ours: str,
    methods: tuple[str, ...] = (),
    work: bool = False,
    sweep: str | None = None,
) -> BenchmarkCase:
    notes = peer.notes(methods, device)
    if name == "linear" and (unsloth := peer.version("unsloth")) and methods:
        notes += (
            f"Unsloth {unsloth}: without the bias; importing it patches Transformers and PEFT from then on",
        )

    def builders() -> Mapping[str, Callable[[], Side]]:
        return sides(Layer(name, shape, dtype, device), shape)

    return BenchmarkCase(
        kind="layer",
        name=name,
        shape=shape,
        dtype=dtype,
        device=device,
        builders=builders,
        ours=ours,
        floor=FROZEN,
        work=functools.partial(work_of, shape, dtype) if work else None,
        sweep=sweep,
        notes=notes,
    )


def work_of(shape: Shape, dtype: torch.dtype, part: str) -> tuple[float, float]:
    """(floating-point operations, least bytes moved) of the hybrid: products of the layer and of its factors.

    Forward x Wᵀ, p = x downᵀ and p upᵀ, and W times the reflections; backward dy W, q = dy up, q down, dyᵀ p, qᵀ x and
    Wᵀ times the reflections' gradient. Everything is read or written once in each.
    """
    m, k, n = (shape[size] for size in "mkn")
    reflections = shape.get("reflections", peer.REFLECTIONS)
    rank = shape.get("rank", peer.RANK) + reflections
    factors = rank * (k + n)
    forward = 2 * m * k * n + 2 * m * factors + 2 * k * n * reflections
    backward = 2 * m * k * n + 4 * m * factors + 2 * k * n * reflections
    read_and_written = {
        "forward": m * k + n * k + factors + m * n + m * rank,
        "backward": m * n + n * k + 2 * factors + 2 * m * k + m * rank,
    }
    operations = {"forward": forward, "backward": backward}
    parts = ("forward", "backward") if part == "both" else (part,)
    return sum(operations[p] for p in parts), dtype.itemsize * sum(read_and_written[p] for p in parts)


def _linear_sides(layer: Layer, shape: Shape, compiled: bool, peers: bool) -> Builders:
    hybrid = functools.cache(lambda: layer.hybrid(peer.RANK, peer.REFLECTIONS))
    result: Builders = {
        FROZEN: lambda: layer.side(layer.linear()),
        HYBRID: lambda: layer.side(hybrid()),
        "hybrid, eager": lambda: layer.side(hybrid(), "eager"),
    }
    if layer.device.type == "cuda":
        for variant in TRITON_VARIANTS:
            if variant != "one_pass" or shape["m"] <= ONE_PASS_ROWS:
                triton = functools.partial(lambda variant: layer.side(hybrid(), "triton", variant), variant)
                result[f"hybrid, Triton {variant}"] = triton
    result["plain PyTorch 16 + 16"] = lambda: layer.plain(hybrid())
    if compiled:
        result["torch.compile 16 + 16"] = lambda: layer.plain(hybrid(), compiled=True)
    if peers:
        for method in peer.BESIDE_HYBRID:
            stock = functools.partial(lambda method: layer.side(layer.under_peft(method)), method)
            result[peer.stock(method)] = stock
        if peer.version("unsloth"):  # last: its import patches PEFT
            result["Unsloth LoRA r=32"] = lambda: _unsloth(layer)
    return result


def _unsloth(layer: Layer) -> Side:
    lora = layer.under_peft("LoRA r=32", bias=False)
    return layer.side_of(peer.unsloth_lora(lora, layer.device), peer.trained(lora))


def _accelerated_sides(layer: Layer, shape: Shape, method: str) -> Builders:
    return {FROZEN: lambda: layer.side(layer.linear()), **layer.accelerated_pair(method)}


def _feature_sides(layer: Layer, shape: Shape, peers: bool) -> Builders:
    r, n = peer.RANK, peer.REFLECTIONS

    def hybrid(**options: Any) -> Side:
        return layer.side(layer.hybrid(r, n, **{"mixing": "fixed", **options}))

    def low_rank() -> Side:
        adapter = layer.hybrid(r, n).adapter
        leaves = [adapter.lora_A, adapter.lora_B]
        return layer.side_of(
            lambda x: hk.functional.low_rank_linear(
                x, layer.weight, layer.bias, leaves[0], adapter.scaling * leaves[1]
            ),
            leaves,
        )

    def reflections() -> Side:
        u = layer.hybrid(r, n).adapter.householder_u

        def forward(x: Tensor) -> Tensor:
            v, t = hk.functional.householder_factors(u)
            up = -(layer.weight @ (v @ t).to(layer.weight.dtype))
            return hk.functional.low_rank_linear(x, layer.weight, layer.bias, v.mT.to(up.dtype), up)

        return layer.side_of(forward, [u])

    def gradient_aligned() -> Side:
        module = layer.hybrid(r, n, mixing="fixed")
        adapter = module.adapter
        adapter.set_start(adapter.lora_A.detach().clone(), adapter.lora_B.detach().clone())
        return layer.side(peer.moved(module))

    result: Builders = {
        FROZEN: lambda: layer.side(layer.linear()),
        f"low rank {r}": low_rank,
        f"reflections {n}": reflections,
        HYBRID: hybrid,
        "+ learned mixing": lambda: hybrid(mixing="learned"),
        "+ dropout 0.05": lambda: hybrid(dropout=0.05),
        "+ gradient-aligned start": gradient_aligned,
        "+ unitary rotation b=32": lambda: hybrid(unitary_block_size=32),
    }
    if peers:
        result["accelerated DoRA r=32"] = lambda: layer.side(
            peer.on_our_operators(Holder(layer.under_peft("DoRA r=32"))).linear
        )
    return result


def _sweep(
    sweep: str, shape: Shape, dtype: torch.dtype, device: torch.device, peers: bool
) -> list[BenchmarkCase]:
    sizes = SWEEPS[device.type]
    if sweep not in sizes:
        raise ValueError(f"sweep is {sweep!r}; it may be one of {', '.join(map(repr, sizes))}")
    varied = {"tokens": ("m",), "width": ("k", "n")}.get(sweep, (sweep,))
    whole = {**shape, "rank": peer.RANK, "reflections": peer.REFLECTIONS}
    sides = functools.partial(_swept_sides, peers=peers)
    return [
        _case(
            f"linear-by-{sweep}",
            {**whole, **dict.fromkeys(varied, size)},
            dtype,
            device,
            sides,
            SWEPT_HYBRID,
            work=True,
            sweep=sweep,
        )
        for size in sizes[sweep]
    ]


def _swept_sides(layer: Layer, shape: Shape, peers: bool) -> Builders:
    rank, reflections = shape["rank"], shape["reflections"]
    hybrid = functools.cache(lambda: layer.hybrid(rank, reflections))
    result: Builders = {
        FROZEN: lambda: layer.side(layer.linear()),
        SWEPT_HYBRID: lambda: layer.side(hybrid()),
        "plain PyTorch": lambda: layer.plain(hybrid()),
    }
    if peers:
        result["PEFT LoRA, same rank"] = lambda: layer.side(
            layer.under_peft("LoRA r=32", {"r": rank + reflections})
        )
        result["PEFT HRA, same reflections"] = lambda: layer.side(
            layer.under_peft("HRA r=16", {"r": reflections})
        )
    return result
