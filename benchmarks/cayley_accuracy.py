"""How exact the batched Cayley transform is, by block size and norm, and its peers.

    python benchmarks/cayley_accuracy.py [--device cpu] [--dtype float32] [--output FILE]

The relative error of Q, and ‖QᴴQ − I‖_F / √b, of random skew matrices of each size and spectral norm, against the
inverse refined in extended precision where the machine has it (numpy's longdouble): ours, ours with one step of
refinement, torch.linalg.solve, and PEFT's default, a truncated series, which is not orthogonal. How fast they are:
`hybrid-kernels bench --op cayley_packed`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hybrid_kernels as hk
from hybrid_kernels._files import write_file
from hybrid_kernels.benchmarking import machine, timing
from hybrid_kernels.cases.operator_peers import peft_cayley
from hybrid_kernels.ops.cayley_transform import unpack

OURS, REFINED = "ours", "ours, refined"
PEFT_SERIES = "PEFT OFT, series (approximate)"
SIZES = (2, 8, 32, 64, 128, 256)
NORMS = (0.0, 1e-4, 1e-2, 1.0, 10.0, 100.0, 1e3, 1e4)
MATRICES = 8


def skew_matrices(count: int, size: int, norm: float, dtype: torch.dtype) -> Tensor:
    """Packed (count, b(b−1)/2): random skew-Hermitian matrices with zero diagonal, scaled to a spectral norm."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    packed = torch.randn(count, size * (size - 1) // 2, dtype=wide)
    largest = torch.linalg.matrix_norm(unpack(packed, size), ord=2)
    return (packed * (norm / largest[:, None])).to(dtype)


def exact(packed: Tensor, size: int) -> np.ndarray:
    """Q to about ‖A‖ ε of numpy's longdouble: the float64 inverse M of I + A and one step M + M (I − (I + A) M)."""
    wide = unpack(packed.cpu().to(torch.complex128 if packed.is_complex() else torch.float64), size).numpy()
    identity = np.eye(size)
    extended = (identity + wide).astype(np.result_type(wide.dtype, np.longdouble))
    m = np.linalg.inv(identity + wide)
    residual = (identity - extended @ m).astype(wide.dtype)
    return 2 * (m + (m @ residual).astype(extended.dtype)) - identity


def transforms(size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """{side: Q of packed matrices}."""

    def solve(packed: Tensor) -> Tensor:
        a = unpack(packed, size)
        identity = torch.eye(size, dtype=a.dtype, device=a.device)
        return torch.linalg.solve(identity + a, identity - a, left=False)

    def series(packed: Tensor) -> Tensor:
        return peft_cayley(series=True)({"packed": packed, "block_size": size}).forward().detach().mT

    return {
        OURS: lambda packed: hk.functional.cayley_packed(packed, size),
        REFINED: lambda packed: hk.functional.cayley_packed(packed, size, refine=True),
        "torch.linalg.solve": solve,
        PEFT_SERIES: series,
    }


def accuracy(size: int, norm: float, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Error and orthogonality defect of each side, median and worst of `MATRICES` of one size and spectral norm."""
    torch.manual_seed(0)
    packed = skew_matrices(MATRICES, size, norm, dtype)
    truth = exact(packed, size)
    rows: dict[str, Any] = {}

    def size_of(difference: np.ndarray) -> dict[str, float]:
        # ‖Q‖_F = ‖I‖_F = √b
        each = [float(np.sqrt((np.abs(matrix) ** 2).sum() / size)) for matrix in difference]
        return {"median": statistics.median(each), "worst": max(each)}

    for name, transform in transforms(size).items():
        try:
            q = transform(packed.to(device)).cpu().numpy().astype(truth.dtype)
        except Exception as error:
            rows[name] = {"failed": timing.reason(error)}
            continue
        defect = q.conj().swapaxes(-1, -2) @ q - np.eye(size)
        rows[name] = {"error": size_of(q - truth), "defect": size_of(defect)}
    return {"block_size": size, "norm": norm, "sides": rows}


def show(entry: dict[str, Any]) -> None:
    cells = "".join(
        f"{row['error']['worst']:17.1e}{row['defect']['worst']:10.1e}"
        if "error" in row
        else f"{'–':>17}{'–':>10}"
        for row in entry["sides"].values()
    )
    print(f"{entry['block_size']:6}{entry['norm']:9g}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "float64", "complex64", "complex128"]
    )
    parser.add_argument("--output", type=Path, help="write the result as JSON, anew after each size")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    sizes: list[dict[str, Any]] = []
    result = {
        "benchmark": "cayley_accuracy",
        "commit": machine.commit(),
        "date": datetime.date.today().isoformat(),
        "device": str(device),
        "machine": machine.machine(device),
        "versions": machine.versions(),
        "dtype": options.dtype,
        "matrices": MATRICES,
        "reference_eps": float(np.finfo(np.longdouble).eps),
        "sizes": sizes,
    }
    print(f"worst of {MATRICES} matrices, {options.dtype} on {device}: relative error, ‖QᴴQ − I‖_F / √b")
    print(f"{'b':>6}{'‖A‖':>9}" + "".join(f"{name.split(' (')[0]:>27}" for name in transforms(1)))
    for size in SIZES:
        for norm in NORMS:
            sizes.append(accuracy(size, norm, device, dtype))
            show(sizes[-1])
        if options.output is not None:
            write_file(options.output, json.dumps(result, indent=1) + "\n")
    failed = {
        (name, row["failed"]) for entry in sizes for name, row in entry["sides"].items() if "failed" in row
    }
    for name, why in sorted(failed):
        print(f"not measured: {name}: {why}")


if __name__ == "__main__":
    main()
