"""The batched Cayley transform, from the packed parameter to its gradient, against its peers; and how exact each is.

    python benchmarks/cayley.py [--device cpu] [--dtype float32] [--shapes 4096x8,…] [--output FILE]
    python benchmarks/cayley.py --accuracy [--dtype float32] [--output FILE]

Shapes are BLOCKS x SIZE. Sides, all of the same skew matrices and for the same gradient of Q: ours as the package
chooses, on each backend by name and with one step of refinement; PEFT's OFT, both ways it has, called in the installed
PEFT: index assignment and torch.linalg.solve under autograd, and its default, a truncated series, which is not
orthogonal; torch.nn.utils.parametrizations.orthogonal with its Cayley map, whose parameter is the full matrix; our
algebra as one would write it in plain PyTorch, and with --compile that under torch.compile.

Sides run in turn within each round, as in linear_layer.py: forward with backward, then the forward alone, then the
backward alone. Reported are medians over rounds, ratios to ours, and the quartiles of the ratio within a round. On a
GPU what can be captured in a CUDA graph is also timed from a cold cache ("graph"), and the forward stands beside the
memory's time: the packed matrices read and Q written once, at the rate of a copy of 1 GiB, and a copy of just as many
bytes.

With --accuracy: the relative error of Q, and ‖QᴴQ − I‖_F / √b, of random skew matrices of each size and spectral norm,
against the inverse refined in extended precision where the machine has it (numpy's longdouble).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import measuring
import numpy as np
import torch
from measuring import Step
from torch import Tensor, nn

import hybrid_kernels as hk
from hybrid_kernels.ops.cayley_transform import unpack

SHAPES = {
    "cpu": "4096x8,2048x16,1024x32,512x64,128x128,32x256,8x512,2x1024",
    "cuda": "8192x32,2048x64,1024x128,4096x8,2048x16,128x256,16x512",
}
OURS, REFINED = "ours", "ours, refined"
PEFT_SOLVE, PEFT_SERIES = "PEFT OFT, solve", "PEFT OFT, series (approximate)"
ORTHOGONAL, PLAIN, COMPILED = "torch orthogonal, Cayley", "plain PyTorch", "torch.compile"
MEMORY, COPY = "memory, once", "copy of as many bytes"
#: Of a shape's entry in the result file; "sides" is forward with backward, as in the other benchmarks' files.
PARTS = ("sides", "forward", "backward")
# A capture that fails half-way may leave memory behind, so what is known to wait for the device is not tried.
NOT_CAPTURED = (PEFT_SOLVE, ORTHOGONAL, PLAIN, COMPILED, "ours, eager")
WAITS = "torch.linalg waits for the device to report errors"

SIZES = (2, 8, 32, 64, 128, 256)
NORMS = (0.0, 1e-4, 1e-2, 1.0, 10.0, 100.0, 1e3, 1e4)
MATRICES = 8


def skew_matrices(count: int, size: int, norm: float, dtype: torch.dtype) -> Tensor:
    """Packed (count, b(b−1)/2): random skew-Hermitian matrices with zero diagonal, scaled to a spectral norm."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    packed = torch.randn(count, size * (size - 1) // 2, dtype=wide)
    largest = torch.linalg.matrix_norm(unpack(packed, size), ord=2)
    return (packed * (norm / largest[:, None])).to(dtype)


def plain_cayley(packed: Tensor, size: int) -> Tensor:
    """2 (I + A)⁻¹ − I as one would write it in plain PyTorch, left to autograd."""
    row, column = torch.triu_indices(size, size, offset=1, device=packed.device)
    a = packed.new_zeros(*packed.shape[:-1], size, size)
    a[..., row, column] = packed
    identity = torch.eye(size, dtype=packed.dtype, device=packed.device)
    return 2.0 * torch.linalg.inv(identity + (a - a.mH)) - identity


def peft_cayley(packed: Tensor, size: int, series: bool) -> Callable[[Tensor], Tensor]:
    """PEFT's own function of tensors like ``packed``: Q by torch.linalg.solve, or a truncated series for Qᵀ."""
    from peft.tuners.oft.layer import OFTRotationModule

    if packed.is_complex():
        raise TypeError(f"PEFT's matrices are A − Aᵀ, not skew-Hermitian for {packed.dtype}")
    blocks, elements = packed.shape
    module = OFTRotationModule(blocks, elements, size, blocks * size, use_cayley_neumann=series)
    module.to(packed.device)
    return lambda packed: module._cayley_batch(packed, size, series, module.num_cayley_neumann_terms)


def orthogonal_module(packed: Tensor, size: int) -> nn.Module:
    """A module whose ``weight`` is Q. torch's map is (I − X/2)⁻¹(I + X/2) for X of the parameter's lower triangle."""
    a = unpack(packed, size)
    module = nn.Module()
    module.weight = nn.Parameter(torch.eye(size, dtype=a.dtype, device=a.device).expand_as(a).contiguous())
    nn.utils.parametrizations.orthogonal(module, orthogonal_map="cayley")
    with torch.no_grad():
        module.parametrizations.weight.original.copy_(-2.0 * a)
    return module


class Side(NamedTuple):
    """Q of the parameter ``leaf``, computed anew at each call, on a backend of ours."""

    forward: Callable[[], Tensor]
    leaf: Tensor
    backend: str = "auto"

    def step(self, part: str, grad_q: Tensor) -> Step:
        """One of `PARTS`; a backend asked for by name that cannot run raises."""

        def forward() -> Tensor:
            with hk.use_backend(self.backend):
                return self.forward()

        def backward(q: Tensor, keep: bool = False) -> None:
            with hk.use_backend(self.backend):
                torch.autograd.grad(q, self.leaf, grad_q, retain_graph=keep)

        if part == "forward":
            return forward
        if part == "sides":
            return lambda: backward(forward())
        q = forward()
        return lambda: backward(q, keep=True)


def sides(packed: Tensor, size: int, compiled: bool) -> dict[str, Callable[[], Side]]:
    """{name: what makes the side} for the skew matrices ``packed`` (blocks, b(b−1)/2)."""
    leaf = packed.clone().requires_grad_()

    def ours(backend: str = "auto", **options: Any) -> Callable[[], Side]:
        return lambda: Side(lambda: hk.functional.cayley_packed(leaf, size, **options), leaf, backend)

    def peft(series: bool) -> Side:
        function = peft_cayley(leaf, size, series)
        return Side(lambda: function(leaf), leaf)

    def orthogonal() -> Side:
        module = orthogonal_module(packed, size)
        return Side(lambda: module.weight, module.parametrizations.weight.original)

    compiled_backend = "cuda" if packed.device.type == "cuda" else "cpp"
    result = {
        OURS: ours(),
        **{f"ours, {backend}": ours(backend) for backend in (compiled_backend, "eager")},
        REFINED: ours(refine=True),
        PEFT_SOLVE: lambda: peft(False),
        PEFT_SERIES: lambda: peft(True),
        ORTHOGONAL: orthogonal,
        PLAIN: lambda: Side(lambda: plain_cayley(leaf, size), leaf),
    }
    if compiled:
        torch.compiler.reset()  # a compiled function counts its shapes, and gives up after a few
        torch._functorch.config.donated_buffer = False  # or the backward alone runs but once
        function = torch.compile(plain_cayley, dynamic=False)
        result[COMPILED] = lambda: Side(lambda: function(leaf, size), leaf)
    return result


def copy_step(total_bytes: int, device: torch.device) -> Step:
    """A copy that reads and writes so many bytes together."""
    source = torch.zeros(total_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def timed(
    builders: dict[str, Callable[[], Step]], capture: bool, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """{side: its medians and ratios to ours, or why it could not be measured}."""
    device = torch.device(options.device)

    def summarised(steps: dict[str, Step], before: Step | None = None) -> dict[str, dict[str, Any]]:
        times = measuring.interleaved(steps, options.rounds, device, options.seconds_each, before)
        return measuring.summarised(times, OURS, "ratio_to_ours")

    steps, failures = measuring.working(builders, device)
    if OURS not in steps:
        raise RuntimeError(f"our own transform cannot be measured: {failures[OURS]}")
    table = summarised(steps)
    if capture:
        replays, not_captured = measuring.captured(
            {name: step for name, step in steps.items() if name not in NOT_CAPTURED}
        )
        not_captured |= {name: WAITS for name in NOT_CAPTURED if name in steps}
        if OURS in replays:
            for name, row in summarised(replays, measuring.cache_flush(device)).items():
                table[name]["graph"] = row
        for name, why in not_captured.items():
            table[name]["graph"] = {"failed": why}
    return table | {name: {"failed": why} for name, why in failures.items()}


def measured(blocks: int, size: int, copy_rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """The entry of one shape in the result file."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    packed = (torch.randn(blocks, size * (size - 1) // 2, dtype=dtype) / size**0.5).to(device)
    grad_q = torch.randn(blocks, size, size, dtype=dtype, device=device)
    forward_bytes = (packed.numel() + grad_q.numel()) * grad_q.element_size()
    entry: dict[str, Any] = {"blocks": blocks, "block_size": size, "forward_bytes": forward_bytes}
    makers = sides(packed, size, options.compile)
    for part in PARTS:
        builders: dict[str, Callable[[], Step]] = {
            name: (lambda make=make, part=part: make().step(part, grad_q))  # type: ignore[misc]
            for name, make in makers.items()
        }
        if on_gpu and part == "forward":
            builders[COPY] = lambda: copy_step(forward_bytes, device)
        # The backward alone runs on the stream of its forward, outside of any capture.
        entry[part] = timed(builders, on_gpu and part != "backward", options)
    if on_gpu:
        memory = {"median_seconds": forward_bytes / copy_rate}
        entry["forward"][MEMORY] = memory | {"graph": memory}
    return entry


def show(entry: dict[str, Any], on_gpu: bool) -> None:
    print(f"\n{entry['blocks']} blocks of {entry['block_size']}")
    columns = f"  {'':32}{'× ours':>10}{'quartiles':>18}{'forward':>10}{'backward':>10}"
    print(columns + (f"{'eager':>13}{'graph':>13}{'forward':>13}{'× memory':>10}" if on_gpu else ""))

    def cell(row: dict[str, Any], key: str, scale: float, form: str) -> str:
        return format(row[key] * scale, form) if key in row else "–"

    memory = entry["forward"].get(MEMORY, {}).get("median_seconds", math.nan)
    for name in dict.fromkeys([*entry["sides"], *entry["forward"]]):
        both, forward, backward = (entry[part].get(name, {}) for part in ("sides", "forward", "backward"))
        if "failed" in both:
            print(f"  {name:32}  not measured: {both['failed']}")
            continue
        spread = "–".join(f"{value:.2f}" for value in both.get("ratio_quartiles", ()))
        line = f"  {name:32}{cell(both, 'ratio_to_ours', 1, '.2f'):>10}{spread:>18}"
        line += "".join(f"{cell(row, 'ratio_to_ours', 1, '.2f'):>10}" for row in (forward, backward))
        if on_gpu:
            timings = (both, both.get("graph", {}), forward.get("graph", {}))
            line += "".join(f"{cell(row, 'median_seconds', 1e6, '.1f'):>10} µs" for row in timings)
            line += f"{cell(timings[2], 'median_seconds', 1 / memory, '.2f'):>10}"
        print(line)
        for part, row in (("forward", forward), ("backward", backward)):
            if "failed" in row:
                print(f"  {'':32}  {part} not measured: {row['failed']}")


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

    return {
        OURS: lambda packed: hk.functional.cayley_packed(packed, size),
        REFINED: lambda packed: hk.functional.cayley_packed(packed, size, refine=True),
        "torch.linalg.solve": solve,
        PEFT_SERIES: lambda packed: peft_cayley(packed, size, True)(packed).mT,
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
            rows[name] = {"failed": measuring.reason(error)}
            continue
        defect = q.conj().swapaxes(-1, -2) @ q - np.eye(size)
        rows[name] = {"error": size_of(q - truth), "defect": size_of(defect)}
    return {"block_size": size, "norm": norm, "sides": rows}


def show_accuracy(entry: dict[str, Any]) -> None:
    cells = "".join(
        f"{row['error']['worst']:17.1e}{row['defect']['worst']:10.1e}"
        if "error" in row
        else f"{'–':>17}{'–':>10}"
        for row in entry["sides"].values()
    )
    print(f"{entry['block_size']:6}{entry['norm']:9g}{cells}")


def run_accuracy(options: argparse.Namespace) -> None:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    result = measuring.head("cayley_accuracy", device, dtype=options.dtype, matrices=MATRICES)
    result["reference_eps"] = float(np.finfo(np.longdouble).eps)
    result["sizes"] = []
    print(f"worst of {MATRICES} matrices, {options.dtype} on {device}: relative error, ‖QᴴQ − I‖_F / √b")
    print(f"{'b':>6}{'‖A‖':>9}" + "".join(f"{name.split(' (')[0]:>27}" for name in transforms(1)))
    for size in SIZES:
        for norm in NORMS:
            result["sizes"].append(accuracy(size, norm, device, dtype))
            show_accuracy(result["sizes"][-1])
        measuring.write(result, options.output)
    failed = {
        (name, row["failed"])
        for entry in result["sizes"]
        for name, row in entry["sides"].items()
        if "failed" in row
    }
    for name, why in sorted(failed):
        print(f"not measured: {name}: {why}")


def run_speed(options: argparse.Namespace, shapes: list[tuple[int, ...]]) -> None:
    begin = time.monotonic()
    device = torch.device(options.device)
    result = measuring.head("cayley", device, dtype=options.dtype, rounds=options.rounds)
    copy_rate = measuring.copy_bandwidth(device)
    result["copy_gb_per_second"] = copy_rate / 1e9
    result["shapes"] = []
    peft = result["info"]["packages"].get("peft")
    print(
        f"packed parameter to its gradient, {options.dtype} on {device}, medians of {options.rounds} interleaved "
        f"rounds; torch {torch.__version__}, PEFT {peft}"
    )
    for blocks, size in shapes:
        if time.monotonic() - begin > options.limit:
            result.setdefault("not_begun", []).append(f"{blocks}x{size}")
            print(f"\n{blocks} blocks of {size}: not begun, {options.limit:.0f} s have passed")
            continue
        result["shapes"].append(measured(blocks, size, copy_rate, options))
        show(result["shapes"][-1], device.type == "cuda")
        measuring.write(result, options.output)
        measuring.free(device)
    measuring.write(result, options.output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "float64", "complex64", "complex128"]
    )
    parser.add_argument("--accuracy", action="store_true", help="the accuracy instead of the speed")
    parser.add_argument("--shapes", help="BLOCKSxSIZE[,…]")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument(
        "--seconds-each", type=float, default=5.0, help="a side that takes longer sits out some rounds"
    )
    parser.add_argument("--limit", type=float, default=math.inf, help="begin no shape after so many seconds")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which compiles each shape")
    parser.add_argument("--output", type=Path, help="write the result as JSON, anew after each shape")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device is 'cuda', and no GPU is visible to torch; it may be 'cpu' here")
    if options.rounds < 1:
        sys.exit(f"--rounds is {options.rounds}; it must be at least 1")
    if options.output is not None and options.output.is_dir():
        sys.exit(f"--output is '{options.output}', which is a folder; it must be a file")
    if options.accuracy and options.shapes:
        sys.exit("--accuracy measures sizes of its own: leave out --shapes")
    if options.accuracy:
        run_accuracy(options)
        return
    try:
        shapes = measuring.shapes_of(options.shapes or SHAPES[options.device], "BLOCKSxSIZE")
    except ValueError as error:
        sys.exit(str(error))
    run_speed(options, shapes)


if __name__ == "__main__":
    main()
