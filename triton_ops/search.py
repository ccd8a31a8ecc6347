"""Measures variants and tiles of the apply stage on this machine and writes the rows that triton_ops.selection reads.

For each shape, in turn: the product with few columns, y, (q, d_up), dx and d_down, each by every variant and candidate
tile; then the whole operators, as chosen, against the same algebra in plain PyTorch. Contenders take turns within a
round, in an order drawn anew each round, and medians decide. A candidate must first compile and agree with float64 by
the scale-free rule; one that does not is left out, and the log says why at INFO level.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from triton_ops import (
    block_rotation,
    common,
    householder,
    householder_rotation,
    hybrid,
    low_rank,
    selection,
    skinny,
)
from triton_ops.selection import Tiles

logger = logging.getLogger("hybrid_kernels")

SHAPES = (
    (8192, 4096, 4096),
    (2048, 4096, 4096),
    (512, 4096, 4096),
    (8192, 4096, 14336),
    (8192, 14336, 4096),
    (16, 4096, 4096),
)
#: What each contender is timed for at least, in rounds.
ROUNDS = 15
ONE_PASS_MAX_ROWS = 512
#: Of the rotations that are timed; the rows serve blocks of half and of twice the size.
BLOCK_SIZE = 32
Outcome = tuple[Tensor, ...]


class Contender(NamedTuple):
    """One way to run an operation: the choice to force, and what then runs it."""

    variant: str
    tiles: Tiles | None
    run: Callable[[], Outcome]


# Candidates beside the kernels' own tables: rows, columns, summed elements, warps. Products with few columns take their
# columns from the rank, those of the output gradient sum nothing.
_SIZES: dict[str, dict[str, Sequence[tuple[int, int, int, int]]]] = {
    "skinny": {
        "half": [(m, 0, k, w) for m in (32, 64, 128) for k in (64, 128) for w in (4, 8)],
        "tf32": [(m, 0, k, w) for m in (32, 64, 128) for k in (32, 64) for w in (4, 8)],
        "ieee": [(m, 0, 16, 8) for m in (32, 64, 128)],
    },
    "output_gradient": {
        "half": [(64, 128, 0, 4), (64, 256, 0, 8), (128, 128, 0, 8), (32, 256, 0, 8), (128, 256, 0, 8)],
        "tf32": [(32, 64, 0, 4), (32, 128, 0, 4), (64, 128, 0, 8)],
        "ieee": [(16, 64, 0, 8), (32, 64, 0, 8)],
    },
    "one_pass": {
        "half": [(16, 32, 128, 4), (16, 64, 128, 4), (16, 32, 256, 4), (32, 64, 128, 4), (64, 64, 64, 4)],
        "tf32": [(16, 32, 64, 4), (16, 64, 64, 4), (32, 64, 32, 4)],
        "ieee": [(16, 32, 16, 4)],
    },
    "epilogue": {
        "half": [
            (128, 256, 64, 8),
            (256, 128, 64, 8),
            (128, 128, 64, 8),
            (128, 128, 64, 4),
            (64, 128, 64, 4),
        ],
        "tf32": [(128, 128, 32, 8), (128, 64, 32, 4)],
        "ieee": [(128, 64, 16, 8)],
    },
}
_STAGES = {"skinny": (3, 4), "output_gradient": (2, 3), "one_pass": (3, 4), "epilogue": (3, 4)}


def _tiles(kind: str, kernel: str) -> list[Tiles]:
    if common.INTERPRETED.value:
        return [Tiles(16, 16, 16, 1, 1)]
    fetches = (True, False) if kernel == "epilogue" else (False,)
    combined = itertools.product(_SIZES[kernel][kind], _STAGES[kernel], fetches)
    return [Tiles(*size, stages, descriptors) for size, stages, descriptors in combined]


class Problem:
    """The tensors of one shape, and each operation on them in plain PyTorch and in float64."""

    def __init__(self, m: int, k: int, n: int, r: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        self.shape = m, k, n, r
        self.x, self.weight, self.bias, self.dy = draw(m, k), draw(n, k), draw(n), draw(m, n)
        # As adapters keep them: float32 beside activations of any dtype.
        self.down, self.up = draw(r, k, dtype=torch.float32), draw(n, r, dtype=torch.float32)
        self.narrow_down, self.narrow_up = self.down.to(dtype), self.up.to(dtype)
        self.p, self.q = self.x @ self.narrow_down.mT, self.dy @ self.narrow_up

    def forward(self) -> Outcome:
        return low_rank.forward(self.x, self.weight, self.bias, self.down, self.up)

    def backward(self, dx: bool = True, down: bool = True, up: bool = True) -> Outcome:
        gradients = low_rank.backward(self.dy, self.x, self.weight, self.down, self.up, self.p, dx, down, up)
        return tuple(gradient for gradient in gradients if gradient is not None)

    def output_gradient(self) -> Outcome:
        return low_rank.output_gradient(self.dy, self.up, self.p, self.shape[1], None)

    def input_gradient(self) -> Outcome:
        return (low_rank.input_gradient(self.dy, self.weight, self.q, self.down, None, self.shape, None),)

    def down_gradient(self) -> Outcome:
        return (low_rank.down_gradient(self.x, self.q, self.down.dtype, None, self.shape, None),)

    def projection(self) -> Outcome:
        return (low_rank.project(self.x, self.down, self.shape[2]),)

    def plain(self, operation: str) -> Outcome:
        """The operation in ATen calls, as backend "eager" has it."""
        dtype = self.x.dtype
        if operation == "projection":
            return (self.x @ self.down.mT.to(dtype),)
        if operation == "output_gradient":
            return self.dy @ self.up.to(dtype), (self.p.mT @ self.dy).mT.float()
        if operation == "input_gradient":
            return ((self.dy @ self.weight).addmm_(self.q, self.down.to(dtype)),)
        if operation == "down_gradient":
            return ((self.q.mT @ self.x).float(),)
        if operation in ("forward", "low_rank_linear"):
            p = self.x @ self.down.mT.to(dtype)
            return torch.addmm(self.bias, self.x, self.weight.mT).addmm_(p, self.up.mT.to(dtype)), p
        q = self.dy @ self.up.to(dtype)
        dx = (self.dy @ self.weight).addmm_(q, self.down.to(dtype))
        return dx, (q.mT @ self.x).float(), (self.p.mT @ self.dy).mT.float()

    def exact(self, operation: str) -> Outcome:
        x, weight, bias, dy, p, q = (
            tensor.double() for tensor in (self.x, self.weight, self.bias, self.dy, self.p, self.q)
        )
        down, up = self.narrow_down.double(), self.narrow_up.double()
        if operation == "projection":
            return (x @ down.mT,)
        if operation == "output_gradient":
            return dy @ up, dy.mT @ p
        if operation == "input_gradient":
            return (dy @ weight + q @ down,)
        if operation == "down_gradient":
            return (q.mT @ x,)
        if operation in ("forward", "low_rank_linear"):
            return x @ weight.mT + bias + (x @ down.mT) @ up.mT, x @ down.mT
        return dy @ weight + (dy @ up) @ down, (dy @ up).mT @ x, dy.mT @ p


def _contenders(operation: str, problem: Problem) -> Iterator[Contender]:
    run = getattr(problem, operation)
    for variant in selection.VARIANTS[operation]:
        if variant == "one_pass" and problem.shape[0] > ONE_PASS_MAX_ROWS:
            continue
        yield Contender(variant, None, run)
        kernel = {"kernel": "skinny", "fused": "output_gradient"}.get(variant, variant)
        if kernel in _SIZES:
            for tiles in _tiles(selection.kind(problem.x.dtype), kernel):
                yield Contender(variant, tiles, run)


def why_not(outcome: Outcome, exact: Outcome, plain: Outcome) -> str | None:
    """None, or by how much an outcome breaks the scale-free rule."""
    for index, (mine, true, simple) in enumerate(zip(outcome, exact, plain, strict=True)):
        error, allowed = (
            torch.linalg.vector_norm(each.to(true.dtype) - true).item() for each in (mine, simple)
        )
        rounding = torch.finfo(mine.dtype).eps / 2 * torch.linalg.vector_norm(true).item()
        if not error <= max(3 * allowed, rounding):
            return f"result {index} has error {error:.3g}, plain PyTorch {allowed:.3g}"
    return None


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def medians(runs: Sequence[Callable[[], Any]], device: torch.device, rounds: int) -> list[float]:
    times: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    shuffle = random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for index in order:
            times[index].append(_seconds(runs[index], device))
    return [statistics.median(each) for each in times]


def _forced(operation: str, contender: Contender) -> Callable[[], Outcome]:
    choice = contender.variant, contender.tiles

    def run() -> Outcome:
        with selection.forced(operation, choice):
            return contender.run()

    return run


def _search_operation(
    operation: str, problem: Problem, rounds: int, out_of_time: Callable[[], bool]
) -> dict[str, Any]:
    """The row of the fastest contender."""
    device = problem.x.device
    exact, plain = problem.exact(operation), problem.plain(operation)
    kept: list[tuple[Contender, Callable[[], Outcome]]] = []
    for contender in _contenders(operation, problem):
        if kept and out_of_time():
            break
        run = _forced(operation, contender)
        try:
            reason = why_not(run(), exact, plain)
        except (RuntimeError, TritonError) as error:  # it does not compile, or needs more than there is
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if reason is None:
            kept.append((contender, run))
        else:
            logger.info("%s: %s %s left out: %s", operation, contender.variant, contender.tiles, reason)
    del exact
    runs = [run for _, run in kept] + [lambda: problem.plain(operation)]
    *mine, simple = medians(runs, device, rounds)
    best = min(range(len(kept)), key=mine.__getitem__)
    contender = kept[best][0]
    return row_of(
        operation, problem.shape, problem.x.dtype, contender.variant, contender.tiles, mine[best] / simple
    )


def row_of(
    operation: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    variant: str,
    tiles: Tiles | None,
    ratio: float,
    exact: bool = False,
) -> dict[str, Any]:
    return {
        "operation": operation,
        "kind": selection.kind(dtype, exact),
        **dict(zip("mknr", shape, strict=True)),
        "variant": variant,
        "tiles": None if tiles is None else list(tiles),
        "ratio": round(ratio, 4),
    }


def _operator_rows(problem: Problem, rounds: int) -> Iterator[dict[str, Any]]:
    """Whole operators with the choices made so far, against plain PyTorch."""
    for operator, run in ("low_rank_linear", problem.forward), ("low_rank_backward", problem.backward):
        runs = (run, lambda operator=operator: problem.plain(operator))
        mine, simple = medians(runs, problem.x.device, rounds)
        yield row_of(operator, problem.shape, problem.x.dtype, "triton", None, mine / simple)
    _, k, n, r = problem.shape
    base, x, down, up = problem.dy, problem.x, problem.down, problem.up

    def plain_add() -> Tensor:
        return torch.addmm(base, x @ down.mT.to(x.dtype), up.mT.to(x.dtype))

    mine, simple = medians((lambda: low_rank.add_forward(base, x, down, up), plain_add), x.device, rounds)
    yield row_of("low_rank_add", problem.shape, x.dtype, "triton", None, mine / simple)
    reflections = max(r // 2, 2)
    u = problem.down[:reflections].mT.contiguous()

    def plain_factors() -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(u, dim=0)
        v = u * torch.where(norm > 0, 1.0 / norm, 0.0)
        identity = torch.eye(reflections, device=u.device)
        s = torch.triu(v.mT @ v, diagonal=1) + 0.5 * identity
        return v, torch.linalg.solve_triangular(s, identity, upper=True)

    mine, simple = medians((lambda: householder.factors(u), plain_factors), u.device, rounds)
    yield row_of(
        "householder_factors", (1, k, 1, reflections), u.dtype, "triton", None, mine / simple, exact=True
    )
    z = problem.narrow_down[:reflections].mT
    yield from _rotation_rows(problem, rounds)

    def project() -> Tensor:
        return skinny.matmul(problem.weight, z, exact=True)

    mine, simple = medians((project, lambda: (z.mT @ problem.weight.mT).mT.contiguous()), x.device, rounds)
    yield row_of("project", (1, k, n, reflections), x.dtype, "triton", None, mine / simple, exact=True)
    mixing = torch.full((), 0.5, device=u.device)

    def factors() -> Any:
        v, _, z = householder.factors_with_product(u)
        return hybrid.factors(problem.weight, down, up, mixing, 1.0, v, z)

    def plain_hybrid() -> Any:
        v, t = plain_factors()
        c = (problem.weight @ (v @ t).to(x.dtype)).float()
        return torch.cat([down, v.mT]), torch.cat([up * mixing, c * (mixing - 1.0)], dim=1)

    mine, simple = medians((factors, plain_hybrid), u.device, rounds)
    yield row_of("hybrid_factors", (1, k, n, reflections), x.dtype, "triton", None, mine / simple, exact=True)


def _rotation_rows(problem: Problem, rounds: int) -> Iterator[dict[str, Any]]:
    """Rotations of x: a chain of reflections, blocks of 32, and these before the layer."""
    m, k, n, r = problem.shape
    x, weight, bias, down, up = problem.x, problem.weight, problem.bias, problem.down, problem.up
    v, device = problem.narrow_down[: max(r // 2, 2)].mT, x.device

    def plain_reflections() -> Tensor:
        return torch.addmm(x, x @ v, v.mT, alpha=-1)

    mine, simple = medians((lambda: householder_rotation.forward(x, v, v), plain_reflections), device, rounds)
    yield row_of("householder_rotate", (m, k, 1, v.shape[1]), x.dtype, "triton", None, mine / simple)
    if k % BLOCK_SIZE:
        return
    q = torch.randn(k // BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE, device=device)

    def plain_blocks() -> Tensor:
        blocks = x.reshape(m, -1, BLOCK_SIZE).transpose(0, 1)
        return torch.bmm(blocks, q.to(x.dtype)).transpose(0, 1).reshape(m, k)

    mine, simple = medians((lambda: block_rotation.rotate(x, q), plain_blocks), device, rounds)
    yield row_of("block_rotate", (m, k, 1, BLOCK_SIZE), x.dtype, "triton", None, mine / simple)

    def rotated() -> Any:
        xr, p = block_rotation.rotate_project(x, q, down)
        return low_rank.forward(xr, weight, bias, down, up, p=p)

    def plain_rotated() -> Tensor:
        xr = plain_blocks()
        return torch.addmm(bias, xr, weight.mT).addmm_(xr @ down.mT.to(x.dtype), up.mT.to(x.dtype))

    mine, simple = medians((rotated, plain_rotated), device, rounds)
    yield row_of("rotated_low_rank_linear", (m, k, n, r), x.dtype, "triton", None, mine / simple)


def search(
    shapes: Sequence[tuple[int, int, int]],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
    limit: float,
    path: Path,
    progress: Callable[[str], None] = lambda line: None,
    rounds: int = ROUNDS,
) -> list[dict[str, Any]]:
    """The rows of each shape (M, K, N), written to ``path`` after each; no new one is begun after ``limit`` seconds.

    An interruption loses the shape under way and nothing else.
    """
    write(path, device, ())  # a folder that cannot be written to is found out before the work, not after
    end = time.monotonic() + limit

    def out_of_time() -> bool:
        return time.monotonic() > end

    rows: list[dict[str, Any]] = []
    try:
        for m, k, n in shapes:
            if rows and out_of_time():
                progress(f"out of time after {limit:g} s: {m}x{k}x{n} and what follows are left out")
                break
            problem = Problem(m, k, n, rank, dtype, device)
            found: list[dict[str, Any]] = []
            for operation in ("projection", "forward", "output_gradient", "input_gradient", "down_gradient"):
                row = _search_operation(operation, problem, rounds, out_of_time)
                found.append(row)
                progress(line_of(row))
                selection.prefer(selection.device_name(device), found)
            for row in _operator_rows(problem, rounds):
                found.append(row)
                progress(line_of(row))
            rows += found
            write(path, device, rows)
    finally:
        selection.forget()
    return rows


def line_of(row: dict[str, Any]) -> str:
    tiles = "" if row["tiles"] is None else f" {'x'.join(map(str, row['tiles'][:3]))}"
    shape = f"{row['m']}x{row['k']}x{row['n']} R={row['r']}"
    return f"{shape}  {row['operation']}: {row['variant']}{tiles}, {row['ratio']:.2f} x plain PyTorch's time"


def write(path: Path, device: torch.device, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows into a selection file, in place of those of the same operation, kind and shape, all or nothing."""
    content = selection.read(path)
    name = selection.device_name(device)

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[field] for field in ("operation", "kind", "m", "k", "n", "r"))

    replaced = {key(row) for row in rows}
    older = [row for row in content.get(name, {}).get("rows", ()) if key(row) not in replaced]
    content[name] = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "rows": [*older, *rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
