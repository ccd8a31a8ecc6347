"""The single products behind one adapted layer, each against its ATen expression: where a missed target is lost.

    python benchmarks/products.py [--shapes 8192x4096x4096] [--dtype bfloat16] [--output FILE]

Shapes are M x K x N (rows, in_features, out_features), the rank 16 + 16. For each product: our kernel, in each variant
it has, and the ATen expression, interleaved and in medians; on a GPU also captured in a CUDA graph, which is what the
ratio and the rates are then taken from. Caches are cold. GB/s count the traffic that the product cannot do without,
every input read and every output written once: a side that reads something twice shows it as a lower rate. The share is
that of a copy within the device's memory, measured in the same run; for the products with the whole weight TFLOP/s tell
more.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

import triton_ops
from hybrid_kernels._files import write_file
from hybrid_kernels.benchmarking import machine, roofline, timing
from hybrid_kernels.benchmarking.timing import Step
from hybrid_kernels.cases.operator_shapes import shapes_of
from hybrid_kernels.ops import householder as householder_operator
from hybrid_kernels.ops import hybrid as hybrid_operator

RANK, REFLECTIONS, SCALING, LAYERS, BLOCK = 16, 16, 4.0, 32, 32
ATEN = "ATen"
ONE_PASS_ROWS = 256


class Product(NamedTuple):
    """What is computed, the bytes it cannot do without, its floating-point operations, and {side: step}."""

    name: str
    least_bytes: int
    flops: float
    sides: dict[str, Step]


def size(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# The ATen expressions of the factorise stage and of the hybrid's factor pair are the package's own eager ones.


def block_rotate(x: Tensor, q: Tensor) -> Tensor:
    blocks = x.unflatten(-1, q.shape[:2]).transpose(0, 1)
    return torch.bmm(blocks, q.to(x.dtype)).transpose(0, 1).flatten(1)


def products(m: int, k: int, n: int, device: torch.device, dtype: torch.dtype) -> list[Product]:
    """p = x downᵀ, y = x Wᵀ + b + p upᵀ and the rest of the apply stage, then the factorise stage and the rotations."""
    from triton_ops import (
        block_rotation,
        householder,
        householder_many,
        householder_rotation,
        low_rank,
        skinny,
    )
    from triton_ops import hybrid as hybrid_kernels

    torch.manual_seed(0)

    def random(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=kind)

    rank = RANK + REFLECTIONS
    x, dy, weight, bias = random(m, k), random(m, n), random(n, k), random(n)
    down, up = random(rank, k), random(n, rank)
    p, q, y, dx = random(m, rank), random(m, rank), random(m, n), random(m, k)
    u = random(k, REFLECTIONS, kind=torch.float32)
    v, t, z = householder.factors_with_product(u)
    c, dt = random(n, REFLECTIONS, kind=torch.float32), random(REFLECTIONS, REFLECTIONS, kind=torch.float32)
    narrow_v, narrow_z = v.to(dtype), z.to(dtype)
    wide = {"device": device, "dtype": torch.float32}
    lora_a, lora_b = torch.randn(RANK, k, **wide), torch.randn(n, RANK, **wide)
    mixing = torch.tensor(0.5, **wide)
    wide_down, wide_up = torch.randn(rank, k, **wide), torch.randn(n, rank, **wide)
    blocks = random(k // BLOCK, BLOCK, BLOCK) if k % BLOCK == 0 else None
    us = [random(k, REFLECTIONS, kind=torch.float32) for _ in range(LAYERS)]
    many = householder_many.factors_many(us)
    dvs, dts = [torch.randn_like(u)] * LAYERS, [dt] * LAYERS
    large, thin_x, thin_y = 2.0 * m * k * n, 2.0 * m * k * rank, 2.0 * m * n * rank

    def forward(variant: str, given: Tensor | None) -> Step:
        return lambda: low_rank.forward(x, weight, bias, down, up, None, variant, given)

    def epilogue_dx() -> Tensor:
        return low_rank._matmul_low_rank(dy, weight, q, down)

    def factors_eager(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v, t = householder_operator._eager(u)
        return v, t, v @ t

    def gradient_eager(u: Tensor, v: Tensor, t: Tensor, dv: Tensor, dt: Tensor) -> Tensor:
        return householder_operator._eager_backward(u, v, t, dv, dt)

    gradients = (wide_down, wide_up, weight, lora_b, u, v, t, c, mixing, SCALING, True, True, False)
    result = [
        Product(
            "p = x downᵀ",
            size(x, down, p),
            thin_x,
            {"ours": lambda: skinny.matmul(x, down.mT), ATEN: lambda: x @ down.mT},
        ),
        Product(
            "y += p upᵀ",
            size(y, y, p, up),
            thin_y,
            {
                "ours": lambda: low_rank._matmul_low_rank(None, None, p, up.mT, base=y, out=y),
                ATEN: lambda: y.addmm_(p, up.mT),
            },
        ),
        Product(
            "y from p",
            size(x, weight, bias, p, up, y),
            large + thin_y,
            {
                "epilogue": forward("epilogue", p),
                "addmm": forward("addmm", p),
                "x Wᵀ + b alone": lambda: linear(x, weight, bias),
                ATEN: lambda: linear(x, weight, bias).addmm_(p, up.mT),
            },
        ),
        Product(
            "p and y",
            size(x, weight, bias, down, up, p, y),
            large + thin_x + thin_y,
            {
                variant: forward(variant, None)
                for variant in (
                    "epilogue",
                    "addmm",
                    "accumulate",
                    *(["one_pass"] if m <= ONE_PASS_ROWS else []),
                )
            }
            | {ATEN: lambda: linear(x, weight, bias).addmm_(x @ down.mT, up.mT)},
        ),
        Product(
            "q = dy up, d_up = dyᵀ p",
            size(dy, up, p, q, up),
            2 * thin_y,
            {
                "fused": lambda: skinny.output_gradient(dy, up, p),
                "separate": lambda: (skinny.matmul(dy, up), skinny.matmul(dy.mT, p)),
                ATEN: lambda: (dy @ up, (p.mT @ dy).mT.contiguous()),
            },
        ),
        Product(
            "d_down = qᵀ x",
            size(x, q, down),
            thin_x,
            {"ours": lambda: skinny.matmul(x.mT, q, transposed=True), ATEN: lambda: q.mT @ x},
        ),
        Product(
            "dx += q down",
            size(dx, dx, q, down),
            thin_x,
            {
                "ours": lambda: low_rank._matmul_low_rank(None, None, q, down, base=dx, out=dx),
                ATEN: lambda: dx.addmm_(q, down),
            },
        ),
        Product(
            "dx from q",
            size(dy, weight, q, down, dx),
            large + thin_x,
            {
                "epilogue": epilogue_dx,
                "dy W alone": lambda: dy @ weight,
                ATEN: lambda: (dy @ weight).addmm_(q, down),
            },
        ),
        Product(
            "c = W z",
            size(weight, z, c),
            2.0 * n * k * REFLECTIONS,
            {
                "ours": lambda: skinny.matmul(weight, z, dtype=torch.float32, exact=True),
                ATEN: lambda: (weight @ z.to(dtype)).float(),
            },
        ),
        Product(
            "dz = Wᵀ dc",
            size(weight, z, c),
            2.0 * n * k * REFLECTIONS,
            {
                "ours": lambda: skinny.matmul(weight.mT, c, dtype=torch.float32, exact=True),
                ATEN: lambda: (weight.mT @ c.to(dtype)).float(),
            },
        ),
        Product(
            "v, t, z of u",
            size(u, v, t, z),
            0.0,
            {"ours": lambda: householder.factors_with_product(u), ATEN: lambda: factors_eager(u)},
        ),
        Product(
            "du",
            size(u, v, t, z, t, u),
            0.0,
            {
                "ours": lambda: householder.backward(u, v, t, z, dt),
                ATEN: lambda: gradient_eager(u, v, t, z, dt),
            },
        ),
        Product(
            f"v, t, z of {LAYERS} layers",
            LAYERS * size(u, v, t, z),
            0.0,
            {
                "ours": lambda: householder_many.factors_many(us),
                ATEN: lambda: [factors_eager(u) for u in us],
            },
        ),
        Product(
            f"du of {LAYERS} layers",
            LAYERS * size(u, v, t, z, t, u),
            0.0,
            {
                "ours": lambda: householder_many.backward_many(
                    us, [f[0] for f in many], [f[1] for f in many], dvs, dts
                ),
                ATEN: lambda: [
                    gradient_eager(u, v, t, dv, dt)
                    for u, (v, t, _), dv, dt in zip(us, many, dvs, dts, strict=True)
                ],
            },
        ),
        Product(
            "factor pair of the hybrid",
            size(weight, u, lora_a, lora_b, wide_down, wide_up),
            0.0,
            {
                "ours": lambda: hybrid_operator._triton(weight, lora_a, lora_b, u, mixing, SCALING),
                ATEN: lambda: hybrid_operator._eager(weight, lora_a, lora_b, u, mixing, SCALING),
            },
        ),
        Product(
            "gradient of the factor pair",
            size(weight, wide_down, wide_up, lora_b, u, v, c, u, lora_b),
            0.0,
            {
                "ours": lambda: hybrid_kernels.backward(*gradients),
                ATEN: lambda: hybrid_operator._eager_backward(*gradients),
            },
        ),
        Product(
            f"x Hᵀ, {REFLECTIONS} reflections",
            size(x, x, narrow_v, narrow_z),
            4.0 * m * k * REFLECTIONS,
            {
                "ours": lambda: householder_rotation.forward(x, narrow_v, narrow_z),
                ATEN: lambda: torch.addmm(x, x @ narrow_v, narrow_z.mT, alpha=-1),
            },
        ),
    ]
    if blocks is not None:
        result += [
            Product(
                f"x diag(q), blocks of {BLOCK}",
                size(x, x, blocks),
                2.0 * m * k * BLOCK,
                {"ours": lambda: block_rotation.rotate(x, blocks), ATEN: lambda: block_rotate(x, blocks)},
            ),
            Product(
                "dq of the blocks",
                size(x, x, blocks),
                2.0 * m * k * BLOCK,
                {
                    "ours": lambda: block_rotation.weight_gradient(x, dx, blocks),
                    ATEN: lambda: torch.bmm(
                        x.unflatten(-1, blocks.shape[:2]).permute(1, 2, 0),
                        dx.unflatten(-1, blocks.shape[:2]).transpose(0, 1),
                    ),
                },
            ),
            Product(
                "x diag(q) and its p",
                size(x, x, blocks, down, p),
                2.0 * m * k * BLOCK + thin_x,
                {
                    "ours": lambda: block_rotation.rotate_project(x, blocks, down),
                    ATEN: lambda: (rotated := block_rotate(x, blocks), rotated @ down.mT),
                },
            ),
        ]
    return result


def measured(product: Product, copy_rate: float, rounds: int, device: torch.device) -> dict[str, Any]:
    steps: dict[str, Step] = {}
    table: dict[str, dict[str, Any]] = {}
    for name, step in product.sides.items():
        try:
            timing.warm_up(step, device)
            steps[name] = step
        except Exception as error:  # one may fail in any way; the others are measured all the same
            table[name] = timing.failure(error)
    flush = timing.cache_flush(device)

    def summaries(steps: dict[str, Step]) -> dict[str, dict[str, Any]]:
        times, failures = timing.interleaved(steps, rounds, device, 1.0, flush)
        return {**failures, **{name: timing.summary(times, name, (ATEN,)) for name in times}}

    for name, row in summaries(steps).items():
        table[name] = row if "failed" in row else {"eager": row}
    best = {name: row["eager"]["median_seconds"] for name, row in table.items() if "eager" in row}
    if device.type == "cuda":
        replays, not_captured = timing.captured({name: (lambda step=steps[name]: step) for name in best})
        for name, row in {**not_captured, **(summaries(replays) if ATEN in replays else {})}.items():
            table[name]["graph"] = row
            best[name] = row.get("median_seconds", best[name])
    for name, seconds in best.items():
        rate = product.least_bytes / seconds
        table[name] |= {
            "ratio_to_aten": seconds / best[ATEN] if ATEN in best else None,
            "gb_per_second": rate / 1e9,
            "share_of_copy": rate / copy_rate,
            "tflops": product.flops / seconds / 1e12,
        }
    return {"product": product.name, "least_bytes": product.least_bytes, "sides": table}


def show(entry: dict[str, Any]) -> None:
    for name, row in entry["sides"].items():
        line = f"  {entry['product']:28}{name:16}"
        if "failed" in row:
            print(f"{line}  not measured: {row['failed']}")
            continue
        graph = row.get("graph", {})
        mark = "" if "median_seconds" in graph else "  (eager)"
        timed = graph if "median_seconds" in graph else row["eager"]
        ratio = row["ratio_to_aten"] if row["ratio_to_aten"] is not None else math.nan
        line += f"{timed['median_seconds'] * 1e6:11.1f} µs{ratio:9.2f}{row['gb_per_second']:9.0f}"
        print(f"{line}{row['share_of_copy']:9.0%}{row['tflops']:9.1f}{mark}")


def write(result: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        write_file(path, json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shapes", default="8192x4096x4096", help="MxKxN[,…]")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--limit", type=float, default=math.inf, help="begin no product after so many seconds"
    )
    parser.add_argument("--output", type=Path, help="write the result as JSON, anew after each shape")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    begin = time.monotonic()
    try:
        shapes = [(shape["m"], shape["k"], shape["n"]) for shape in shapes_of(options.shapes)]
    except (ValueError, KeyError):
        sys.exit(f"--shapes is {options.shapes!r}; it must be MxKxN[,MxKxN…] of whole numbers from 1")
    missing = triton_ops.unavailable()
    if missing is not None:
        sys.exit(f"these are the products of the Triton kernels, and none can run here: {missing}")

    copy_rate = roofline.rates(device, dtype).copy_rate
    result: dict[str, Any] = {
        "benchmark": "products",
        "commit": machine.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "machine": machine.machine(device),
        "versions": machine.versions(),
        "device": str(device),
        "dtype": options.dtype,
        "rounds": options.rounds,
        "copy_gb_per_second": copy_rate / 1e9,
        "shapes": [],
    }
    print(f"single products, {options.dtype} on {device}; a copy moves {copy_rate / 1e9:.0f} GB/s")
    for m, k, n in shapes:
        entries: list[dict[str, Any]] = []
        result["shapes"].append({"m": m, "k": k, "n": n, "products": entries})
        print(f"\nM = {m}, K = {k}, N = {n}")
        print(f"  {'':44}{'time':>14}{'× ATen':>9}{'GB/s':>9}{'of copy':>9}{'TFLOP/s':>9}")
        for product in products(m, k, n, device, dtype):
            if time.monotonic() - begin > options.limit:
                result.setdefault("not_begun", []).append(f"{m}x{k}x{n} {product.name}")
                continue
            entries.append(measured(product, copy_rate, options.rounds, device))
            show(entries[-1])
            write(result, options.output)
        timing.free(device)
    for name in result.get("not_begun", []):
        print(f"not begun, {options.limit:.0f} s have passed: {name}")
    write(result, options.output)


if __name__ == "__main__":
    main()
