"""The operators, and their benchmark cases: as the package chooses, on each backend, the floor, and the peers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch

import hybrid_kernels as hk

from .base import BenchmarkCase, Inputs, OperatorCase, Shape, Side, dtype_name, generator, shape_name
from .operator_cases import OPERATORS
from .operator_peers import COMPILED, of, side, trained
from .operator_shapes import SWEEPS, shapes_of, swept

__all__ = ["OPERATORS", "SWEEPS", "backends_of", "benchmark_cases", "operators_of"]

OURS = "ours"
_BACKENDS = {"cpu": ("eager", "cpp"), "cuda": ("eager", "cuda", "triton")}
# The forward kernel that repeats the projection in every tile of columns is meant for few rows, and takes few ranks.
_ONE_PASS_ROWS, _ONE_PASS_RANKS = 256, 64
_WITH_VARIANTS = ("low_rank_linear", "low_rank_linear_many", "rotated_low_rank_linear", "hybrid_linear")


@functools.cache
def operators_of(name: str) -> frozenset[str]:
    """The operators of `hybrid_kernels.ops.backend` that the forward and the backward of a function go through."""
    from hybrid_kernels.ops.backend import Choices

    case = OPERATORS[name]
    drawn = case.draw(case.shapes[0], torch.float32, torch.device("cpu"), generator(0, name))
    with hk.use_backend("auto"), Choices() as choices:
        of(case.fast)(drawn).step("both")()
    return frozenset(operator for operator, _ in choices.made)


def backends_of(name: str, device: torch.device) -> list[str]:
    """The backends that a function can be asked for by name on that device of this machine."""
    from hybrid_kernels.ops import backend as choice

    here = [each for each in _BACKENDS.get(device.type, ()) if choice.unavailable(each) is None]
    try:
        operators = [choice.OPERATORS[operator] for operator in operators_of(name)]
    except ImportError:  # a package of another commit may not record its choices
        return here
    theirs = {implementation.backend for operator in operators for implementation in operator.implementations}
    return [backend for backend in here if backend in theirs]


def _variants(name: str, shape: Shape) -> list[str]:
    """Of the forward on Triton, which the other products follow where they have one of that name."""
    from triton_ops.selection import VARIANTS

    rank = shape.get("r", 0) + shape.get("reflections", 0)
    one_pass = shape["m"] <= _ONE_PASS_ROWS and rank <= _ONE_PASS_RANKS and name != "rotated_low_rank_linear"
    return [variant for variant in VARIANTS["forward"] if variant != "one_pass" or one_pass]


def _builders(
    case: OperatorCase, shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool
) -> Mapping[str, Callable[[], Side]]:
    @functools.cache
    def drawn() -> Inputs:
        return case.draw(shape, dtype, device, generator(0, case.name, shape_name(shape)))

    def ours(backend: str = "auto", variant: str | None = None) -> Callable[[], Side]:
        return lambda: side(case.fast, *trained(drawn()), backend=backend, variant=variant)

    def other(build: Callable[[Inputs], Side]) -> Callable[[], Side]:
        return lambda: build(drawn())

    result: dict[str, Callable[[], Side]] = {}
    if case.floor is not None:
        name, floor = case.floor
        result[name] = other(floor)
    result[OURS] = ours()
    for backend in backends_of(case.name, device):
        if backend == "triton" and case.name in _WITH_VARIANTS:
            for variant in _variants(case.name, shape):
                result[f"{OURS}, triton {variant}"] = ours(backend, variant)
        else:
            result[f"{OURS}, {backend}"] = ours(backend)
    for name, peer in case.peers.items():
        if compiled or name != COMPILED:
            result[name] = other(peer)
    return result


def _named(names: Sequence[str] | None, dtype: torch.dtype) -> list[OperatorCase]:
    unknown = [name for name in names or () if name not in OPERATORS]
    if unknown:
        raise ValueError(f"operator is {unknown[0]!r}; it may be one of {', '.join(map(repr, OPERATORS))}")
    found = [OPERATORS[name] for name in dict.fromkeys(OPERATORS if names is None else names)]
    for case in found if names is not None else ():
        if dtype not in case.dtypes:
            raise ValueError(
                f"dtype is {dtype_name(dtype)}; {case.name} may be measured in "
                f"{', '.join(map(dtype_name, case.dtypes))}"
            )
    return [case for case in found if dtype in case.dtypes]


def _sizes_of(case: OperatorCase) -> set[str]:
    return {size for shape in (*case.shapes, *case.measured["cpu"]) for size in shape}


def _shapes(
    case: OperatorCase, device: torch.device, shapes: Sequence[Shape] | None, sweep: str | None
) -> list[Shape]:
    measured = case.measured[device.type]
    chosen = measured if shapes is None else [{**measured[0], **shape} for shape in shapes]
    if sweep is None:
        return list(chosen)
    return list(swept(chosen[0], sweep)) if chosen else []


def benchmark_cases(
    device: torch.device,
    dtype: torch.dtype,
    names: Sequence[str] | None = None,
    shapes: str | Sequence[Shape] | None = None,
    compiled: bool = True,
    sweep: str | None = None,
) -> list[BenchmarkCase]:
    """The operators called ``names`` (all by default) on a CPU or CUDA device, at the shapes they are measured at.

    ``shapes`` replaces these: sizes by name, each of which an operator must have, or a text that `shapes_of` reads;
    what is not given is that of its first measured shape. Without ``names`` it goes to the operators that have all of
    those sizes. ``compiled`` adds torch.compile. ``sweep``, one of `SWEEPS`, replaces the shapes by the family around
    the first one in which one size varies, for the operators that have such a size.

    Raises ValueError for what no operator has.
    """
    if device.type not in _BACKENDS:
        raise ValueError(f"device is {str(device)!r}; it may be 'cpu' or 'cuda'")
    if sweep is not None and sweep not in SWEEPS:
        raise ValueError(f"sweep is {sweep!r}; it may be one of {', '.join(map(repr, SWEEPS))}")
    shapes = shapes_of(shapes) if isinstance(shapes, str) else shapes
    cases = []
    for case in _named(names, dtype):
        own = _sizes_of(case)
        for shape in shapes or ():
            zero = [name for name in case.measured["cpu"][0] if shape.get(name) == 0]
            if zero:
                raise ValueError(f"shape {shape_name(shape)} has {zero[0]} = 0; it must be at least 1")
        fitting = [shape for shape in shapes or () if own >= set(shape)]
        unfit = [shape for shape in shapes or () if not own >= set(shape)]
        if names is not None and unfit:
            raise ValueError(
                f"shape {shape_name(unfit[0])} has sizes that {case.name} lacks; it may have {', '.join(sorted(own))}"
            )
        for shape in _shapes(case, device, None if shapes is None else fitting, sweep):
            cases.append(_benchmark(case, shape, dtype, device, compiled, sweep))
    if not cases:
        asked = [
            *(f"shape {shape_name(shape)}" for shape in shapes or ()),
            *([] if sweep is None else [f"sweep {sweep!r}"]),
        ]
        raise ValueError(f"no operator asked for has {' and '.join(asked) or f'dtype {dtype_name(dtype)}'}")
    return cases


def _benchmark(
    case: OperatorCase,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool,
    sweep: str | None,
) -> BenchmarkCase:
    work = case.work
    return BenchmarkCase(
        kind="operator",
        name=case.name,
        shape=shape,
        dtype=dtype,
        device=device,
        builders=lambda: _builders(case, shape, dtype, device, compiled),
        ours=OURS,
        floor=None if case.floor is None else case.floor[0],
        work=None if work is None else lambda part: work(shape, dtype, part),
        sweep=sweep,
    )
