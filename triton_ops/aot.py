"""Compile every shipped kernel configuration ahead of time, without a GPU.

    python -m triton_ops.aot [--target sm_90 ...] [--json]

The launchers themselves run, on meta tensors, and each launch is turned into a compilation for the target:
what is compiled is what would run. A kernel passes if it spills no register and fits the target's shared
memory; the command exits with 1 if any does not.
"""

import argparse
import functools
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_ops import (
    Dropout,
    block_rotation,
    common,
    feature_scaling,
    householder,
    householder_many,
    householder_rotation,
    hybrid,
    low_rank,
    skinny,
)
from triton_ops.dropout import dropout as seeded_dropout


@dataclass(frozen=True)
class Target:
    """Triton's target, the row of the tile tables it takes, and its shared memory per block in KiB."""

    gpu: GPUTarget
    family: str
    shared_kib: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), "sm80", 163),
    # Every unlisted GPU takes the default tiles; this is the NVIDIA generation with the least shared memory.
    "sm_86": Target(GPUTarget("cuda", 86, 32), "default", 99),
    "sm_90": Target(GPUTarget("cuda", 90, 32), "sm90", 227),
    "sm_100": Target(GPUTarget("cuda", 100, 32), "sm100", 227),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), "gfx942", 64),
}
# float16 is left out: it takes the tiles of bfloat16 and instructions of the same shapes.
KINDS = (("half", torch.bfloat16, "ieee"), ("tf32", torch.float32, "tf32"), ("ieee", torch.float32, "ieee"))
#: Name, precision of float32 products, launchers to run.
Case = tuple[str, str, Callable[[], object]]
ELEMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64"}


@dataclass(frozen=True)
class Record:
    """What one compiled kernel uses: registers a thread, bytes of shared memory a block, and spills (bytes of
    stack on NVIDIA, registers on AMD)."""

    target: str
    case: str
    kernel: str
    blocks: dict[str, int]
    num_warps: int
    registers: int
    spills: int
    shared: int
    shared_limit: int

    @property
    def passes(self) -> bool:
        return self.spills == 0 and self.shared <= self.shared_limit


def _low_rank(m: int, k: int, n: int, rank: int, dtype: torch.dtype, dropout: bool, variant: str) -> None:
    empty = functools.partial(torch.empty, dtype=dtype, device="meta")
    x, weight, bias = empty(m, k), empty(n, k), empty(n)
    down, up = (
        torch.empty(shape, device="meta") for shape in ((rank, k), (n, rank))
    )  # as PEFT keeps them: float32
    mask = Dropout(rank // 2, 6554, torch.empty((), dtype=torch.int64, device="meta")) if dropout else None
    y, p = low_rank.forward(x, weight, bias, down, up, mask, variant)
    low_rank.backward(y, x, weight, down, up, p, True, True, True, mask, variant)
    if variant == "epilogue":  # the others add what this one does not reach
        low_rank.add_forward(y, x, down, up, mask)
        low_rank.backward(y, x, None, down, up, p, True, True, True, mask)
        skinny.matmul(y.mT, p, dtype=up.dtype)  # d_up alone
    seeded_dropout(x, 6554, torch.empty((), dtype=torch.int64, device="meta"))


def _block_rotation(m: int, k: int, b: int, dtype: torch.dtype) -> None:
    x = torch.empty(m, k, dtype=dtype, device="meta")
    q = torch.empty(k // b, b, b, device="meta")
    y = block_rotation.rotate(x, q)
    block_rotation.rotate(y, q.mT)
    block_rotation.weight_gradient(x, y, q)
    block_rotation.weight_gradient(x, block_rotation.rotate(x, q, 1), q, 1)  # a level of a butterfly
    for rank in 16, 32, block_rotation.MAX_FUSED_RANK:
        block_rotation.rotate_project(x, q, torch.empty(rank, k, device="meta"))


def _block_rotation_cases() -> Iterator[Case]:
    """Blocks that a tile packs and blocks that it cuts; the factors are float32 beside every dtype of x."""
    for b in 4, 16, 32, 64, 128, 256:
        for kind, dtype, precision in KINDS:
            yield f"b={b} {kind}", precision, functools.partial(_block_rotation, 8192, 4096, b, dtype)


def _low_rank_cases() -> Iterator[Case]:
    large, small, few = (8192, 4096, 4096), (256, 1024, 1024), (16, 4096, 4096)
    cases = [
        (large, 32, "epilogue"),
        (large, low_rank.MAX_RANK, "epilogue"),
        (small, 32, "epilogue"),
        (few, 32, "one_pass"),
        (few, low_rank.ONE_PASS_MAX_RANK, "one_pass"),
        ((8191, 4095, 4097), 24, "epilogue"),  # masks everywhere
    ]
    for (shape, rank, variant), (kind, dtype, precision), dropout in itertools.product(
        cases, KINDS, (False, True)
    ):
        name = f"{'x'.join(map(str, shape))} R={rank} {kind}{' dropout' if dropout else ''}"
        yield name, precision, functools.partial(_low_rank, *shape, rank, dtype, dropout, variant)


def _householder(k: int, reflections: int) -> None:
    u = torch.empty(k, reflections, device="meta")
    v, t = householder.factors(u)
    z = householder.factors_with_product(u)[2]
    householder.backward(u, v, t, z, t)


def _householder_many(k: int, reflections: int) -> None:
    u = torch.empty(k, reflections, device="meta")
    householder_many.factors_many([u, u], product=False)
    ((v, t, z),) = householder_many.factors_many([u])
    householder_many.backward_many([u], [v], [t], [z], [t])


def _householder_cases() -> Iterator[Case]:
    for reflections in (16, 32, 64, householder.MAX_REFLECTIONS):
        yield f"n={reflections}", "ieee", functools.partial(_householder, 4096, reflections)
        # One column less: nothing that the kernels read from a table is known to be a multiple of 16.
        yield f"many, n={reflections}", "ieee", functools.partial(_householder_many, 4096, reflections - 1)


def _hybrid(k: int, n: int, rank: int, reflections: int, dtype: torch.dtype) -> None:
    empty = functools.partial(torch.empty, device="meta")
    weight, a, b, u = empty(n, k, dtype=dtype), empty(rank, k), empty(n, rank), empty(k, reflections)
    mixing, t = empty(()), empty(reflections, reflections)
    down, up, c = hybrid.factors(weight, a, b, mixing, 0.5, u, u)
    hybrid.backward(down, up, weight, b, u, u, t, c, mixing, 0.5, True, True, True)
    hybrid.backward(down, up, weight, b, u, u, t, c, mixing, 0.5, True, True, False)


def _hybrid_cases() -> Iterator[Case]:
    for reflections in (16, 32, 64, householder.MAX_REFLECTIONS):
        for kind, dtype, precision in KINDS:
            run = functools.partial(_hybrid, 4096, 4096, 16, reflections, dtype)
            yield f"r=16 n={reflections} {kind}", precision, run


def _rotation(m: int, k: int, reflections: int, dtype: torch.dtype, factor_dtype: torch.dtype) -> None:
    x = torch.empty(m, k, dtype=dtype, device="meta")
    v = torch.empty(k, reflections, dtype=factor_dtype, device="meta")
    y, p = householder_rotation.forward(x, v, v)
    householder_rotation.backward(y, x, v, v, p, True, True, True)


def _rotation_cases() -> Iterator[Case]:
    """Each rank has tiles of its own, each dtype of the factors a load of its own."""
    for reflections in (16, 32, 64, 128, householder_rotation.MAX_REFLECTIONS):
        for size, m in ("large", 16384), ("small", 256):
            for kind, dtype, factor_dtype, precision in (
                ("half", torch.bfloat16, torch.bfloat16, "ieee"),
                ("mixed", torch.bfloat16, torch.float32, "ieee"),
                ("tf32", torch.float32, torch.float32, "tf32"),
                ("ieee", torch.float32, torch.float32, "ieee"),
            ):
                run = functools.partial(_rotation, m, 4096, reflections, dtype, factor_dtype)
                yield f"{size} n={reflections} {kind}", precision, run


def _scaling(m: int, n: int, dtype: torch.dtype) -> None:
    y, scale = torch.empty(m, n, dtype=dtype, device="meta"), torch.empty(n, device="meta")
    feature_scaling.gradients(y, y, scale, True)
    feature_scaling.gradients(y, y, scale, False)


def _scaling_cases() -> Iterator[Case]:
    for kind, dtype, precision in KINDS:
        yield f"scale {kind}", precision, functools.partial(_scaling, 8192, 4096, dtype)


def _cases() -> Iterator[Case]:
    """All launchers, on shapes that together use every tile of every table."""
    yield from _low_rank_cases()
    yield from _householder_cases()
    yield from _rotation_cases()
    yield from _hybrid_cases()
    yield from _block_rotation_cases()
    yield from _scaling_cases()


def _launches(target: Target, run: Callable[[], object], precision: str) -> list[Any]:
    """The calls of `common.launch` that `run` makes on the target."""
    launch = mock.Mock()
    with mock.patch.multiple(
        common,
        launch=launch,
        family=lambda device: target.family,
        processors=lambda device: 132,
        dot_precision=lambda dtype: precision if dtype == torch.float32 else "ieee",
    ):
        run()
    return launch.call_args_list


def _source(kernel: Any, args: tuple[Any, ...], meta: dict[str, Any]) -> ASTSource:
    """What a launch compiles: None and 1 become constants, and multiples of 16 are known to be such."""
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = meta[name] if name in meta else args[index]
        if isinstance(value, TensorDescriptor):
            shape = ",".join(map(str, value.block_shape))
            signature[name] = f"tensordesc<{ELEMENTS[value.base.dtype]}[{shape}]>"
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + ELEMENTS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif name in meta or value is None or value == 1:
            signature[name] = "constexpr"
            constants[name] = value
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def _registers_and_spills(compiled: Any) -> tuple[int, int]:
    """Read from the binary; Triton itself knows them only after loading it on the device."""
    if "amdgcn" in compiled.asm:
        count = dict(re.findall(r"\.(\w+_count):\s+(\d+)", compiled.asm["amdgcn"]))
        return int(count["vgpr_count"]), int(count["vgpr_spill_count"]) + int(count["sgpr_spill_count"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return int(count["REG"]), int(count["STACK"]) + int(count["LOCAL"])


def compile_all(targets: Iterable[str] = tuple(TARGETS)) -> Iterator[Record]:
    """Compile each distinct kernel once for each target named, yielding what it uses as soon as it is known.

    Raises RuntimeError under TRITON_INTERPRET, which leaves nothing to compile.
    """
    if common.INTERPRETED.value:
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it")
    for name in targets:
        target = TARGETS[name]
        seen = set()
        for case, precision, run in _cases():
            for call in _launches(target, run, precision):
                kernel, _, *args = call.args
                options = {key: call.kwargs[key] for key in ("num_warps", "num_stages")}
                meta = {key: value for key, value in call.kwargs.items() if key not in options}
                source = _source(kernel, tuple(args), meta)
                key = (source.hash(), *options.values())
                if key in seen:
                    continue
                seen.add(key)
                compiled = triton.compile(source, target=target.gpu, options=options)
                registers, spills = _registers_and_spills(compiled)
                yield Record(
                    target=name,
                    case=case,
                    kernel=kernel.__name__,
                    blocks={key: value for key, value in meta.items() if key.startswith("BLOCK")},
                    num_warps=options["num_warps"],
                    registers=registers,
                    spills=spills,
                    shared=compiled.metadata.shared,
                    shared_limit=target.shared_kib * 1024,
                )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m triton_ops.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args()
    line = "{:8} {:17} {:32} {:>14} {:>5} {:>9} {:>6} {:>16}".format
    if not options.json:
        print(line("target", "case", "kernel", "blocks", "warps", "registers", "spills", "shared/limit KiB"))
    passed = True
    for record in compile_all(options.target):
        passed &= record.passes
        if options.json:
            print(json.dumps(asdict(record)), flush=True)
        else:
            blocks = "x".join(map(str, record.blocks.values()))
            shared = f"{record.shared / 1024:.0f}/{record.shared_limit // 1024}"
            used = record.num_warps, record.registers, record.spills, shared
            row = line(record.target, record.case, record.kernel, blocks, *used)
            print(row if record.passes else f"{row}  FAILS", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
