"""The compiled low-rank operators ``torch.ops.hybrid_kernels_cpp.{project, low_rank_*}`` against their formulas."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid_kernels import _extension, use_backend
from hybrid_kernels.ops import low_rank
from tests.support import assert_close_by_scale

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=str(_extension.load()))

# Around the registers, the panels of 32 columns, the blocks of 32 along the sum and the tiles of up to 12 rows.
RANKS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 70]
SIZES = [
    (1, 5, 3),
    (2, 1, 1),
    (3, 33, 31),
    (7, 16, 47),
    (13, 128, 65),
    (47, 129, 24),
    (200, 70, 33),
    (129, 300, 205),
]
DTYPES = [torch.float32, torch.float64]
OPERATORS = torch.ops.hybrid_kernels_cpp


def poison_memory() -> None:
    """Leaves freed blocks full of NaN for the allocator to hand out again."""
    blocks = [torch.full((4**power,), torch.nan) for power in range(8) for _ in range(2)]
    del blocks


def everything(linear: Callable, add: Callable, backward: Callable, product: Callable) -> Callable:
    """All results on (x, weight, bias, base, down, up, dy, z), in a list."""

    def compute(x, weight, bias, base, down, up, dy, z) -> list[Tensor]:
        y, p = linear(x, weight, bias, down, up)
        results = [y, p, linear(x, weight, None, down, up)[0], *add(base, x, down, up)]
        results += [*backward(dy, x, weight, down, up, p, True, True, True)]
        results += [backward(dy, x, None, down, up, p, True, False, False)[0]]
        return [*results, product(weight, z), product(weight.T, dy[:1].T)]

    return compute


compiled = everything(
    OPERATORS.low_rank_linear, OPERATORS.low_rank_add, OPERATORS.low_rank_backward, OPERATORS.project
)
plain = everything(
    lambda x, weight, bias, down, up: (
        (x @ weight.T if bias is None else bias + x @ weight.T) + (x @ down.T) @ up.T,
        x @ down.T,
    ),
    lambda base, x, down, up: (base + (x @ down.T) @ up.T, x @ down.T),
    lambda dy, x, weight, down, up, p, *_: (
        (dy @ up) @ down if weight is None else dy @ weight + (dy @ up) @ down,
        (dy @ up).T @ x,
        dy.T @ p,
    ),
    lambda weight, z: weight @ z,
)


def arguments(m: int, k: int, n: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes = ((m, k), (n, k), (n,), (m, n), (rank, k), (n, rank), (m, n), (k, rank))
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def exactly(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The results in float64 or, of float64 input, in extended precision."""
    if inputs[0].dtype != torch.float64:
        return plain(*(t.double() for t in inputs))
    wide = plain(*(t.resolve_neg().numpy().astype(np.longdouble) for t in inputs))
    return [torch.from_numpy(result.astype(np.float64)) for result in wide]


def check(draw: Callable[[], tuple[Tensor, ...]]) -> None:
    """Errors are taken together over draws, the more the fewer numbers there are: few can be exact by luck."""
    outcomes: list[tuple[list[Tensor], ...]] = []
    smallest = 0
    while len(outcomes) < 3 or len(outcomes) * smallest < 300:
        inputs = draw()
        poison_memory()
        outcomes.append((compiled(*inputs), exactly(inputs), plain(*inputs)))
        smallest = min(result.numel() for result in outcomes[0][0])
    for result in range(len(outcomes[0][0])):
        mine, exact, same = (
            torch.stack([outcome[side][result] for outcome in outcomes]) for side in range(3)
        )
        assert_close_by_scale(mine, exact, same, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", RANKS)
def test_accuracy(rank, dtype) -> None:
    torch.manual_seed(rank)
    for size in SIZES:
        check(lambda size=size: arguments(*size, rank, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sums(dtype) -> None:
    torch.manual_seed(0)
    check(lambda: arguments(5, 2000, 40, 20, dtype))
    check(lambda: arguments(2000, 40, 30, 20, dtype))


def strided(t: Tensor) -> Tensor:
    """The same numbers with unit inner stride and rows apart."""
    return torch.cat([t, torch.full_like(t, torch.nan)], dim=-1)[..., : t.shape[-1]]


LAYOUTS = {
    "rows apart": strided,
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim == 2 else t,
    "every other": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0],
    "one row": lambda t: t[:1].expand(t.shape) if t.ndim == 2 else t,
    "one number": lambda t: t.reshape(-1)[:1].expand(t.shape),
    "negated view": lambda t: torch._neg_view(t),
}


def skinny(x, weight, bias, base, down, up, dy, z) -> list[Tensor]:
    """The results that no product of BLAS enters."""
    y, p = OPERATORS.low_rank_add(base, x, down, up)
    gradients = OPERATORS.low_rank_backward(dy, x, None, down, up, p, True, True, True)
    return [y, p, *gradients, OPERATORS.project(weight, z), OPERATORS.project(weight.T, dy[:1].T)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout) -> None:
    torch.manual_seed(1)
    inputs = tuple(LAYOUTS[layout](t) for t in arguments(29, 67, 45, 19, torch.float64))
    for mine, same in zip(skinny(*inputs), skinny(*(t.contiguous() for t in inputs)), strict=True):
        assert torch.equal(mine, same)
    for mine, same in zip(compiled(*inputs), plain(*inputs), strict=True):
        torch.testing.assert_close(mine, same)


@pytest.mark.parametrize("m, k, n, rank", [(0, 5, 3, 2), (4, 0, 3, 2), (4, 5, 3, 0)])
def test_empty(m, k, n, rank) -> None:
    inputs = arguments(m, k, n, rank, torch.float32)
    poison_memory()
    if m == 0:
        y, p = OPERATORS.low_rank_linear(*inputs[:3], *inputs[4:6])
        assert y.shape == (0, n) and p.shape == (0, rank)
        dx, d_down, d_up = OPERATORS.low_rank_backward(
            inputs[6], inputs[0], inputs[1], *inputs[4:6], p, True, True, True
        )
        assert dx.shape == (0, k) and not d_down.any() and not d_up.any()
        return
    for mine, same in zip(compiled(*inputs), plain(*inputs), strict=True):
        torch.testing.assert_close(mine, same)


@pytest.mark.parametrize("size", [(331, 517, 403, 32), (1000, 999, 3, 7), (37, 1000, 1001, 70)])
def test_bitwise_independent_of_threads(size) -> None:
    torch.manual_seed(2)
    inputs = arguments(*size, torch.float32)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(skinny(*inputs))
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_inputs_are_left_alone() -> None:
    inputs = arguments(20, 30, 40, 5, torch.float32)
    copies = [t.clone() for t in inputs]
    compiled(*inputs)
    assert all(torch.equal(t, copy) for t, copy in zip(inputs, copies, strict=True))


def test_only_what_is_needed_is_returned() -> None:
    x, weight, _, _, down, up, dy, _ = arguments(4, 5, 6, 2, torch.float32)
    p = x @ down.T
    for needs in ([True, False, False], [False, True, False], [False, False, True]):
        results = OPERATORS.low_rank_backward(dy, x, weight, down, up, p, *needs)
        assert [result is not None for result in results] == needs


def test_bad_input() -> None:
    x, weight, bias, base, down, up, _, z = arguments(4, 5, 6, 2, torch.float32)
    with pytest.raises(ValueError, match=r"down must have shape \[2, 5\], got \[2, 4\]"):
        OPERATORS.low_rank_linear(x, weight, bias, down[:, 1:], up)
    with pytest.raises(ValueError, match="base must have shape"):
        OPERATORS.low_rank_add(base[1:], x, down, up)
    with pytest.raises(TypeError, match="up must have dtype Float, got Double"):
        OPERATORS.low_rank_add(base, x, down, up.double())
    with pytest.raises(ValueError, match=r"must be as many, and at least one; got 2, 1 and 2"):
        OPERATORS.low_rank_linear_many(x, [weight] * 2, [], [down], [up] * 2)
    with pytest.raises(ValueError, match=r"biases must be of all layers or of none, got 1 of 2"):
        OPERATORS.low_rank_linear_many(x, [weight] * 2, [bias], [down] * 2, [up] * 2)
    with pytest.raises(ValueError, match=r"weight must have shape \[6, 5\], got \[5, 5\]"):
        OPERATORS.low_rank_linear_many(x, [weight, weight[1:]], [], [down] * 2, [up] * 2)
    for dys, p, message in (
        ([base], x[:, :4], "dys must be as many as weights, 2, got 1"),
        ([base, base[1:]], x[:, :4], "dy must have shape"),
        ([base] * 2, x[:, :3], "p must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            OPERATORS.low_rank_linear_many_backward(
                dys, x, [weight] * 2, [down] * 2, [up] * 2, p, True, True, True
            )
    with pytest.raises(ValueError, match="z must have shape"):
        OPERATORS.project(weight, z[1:])
    with pytest.raises(TypeError, match="weight must be float32 or float64"):
        OPERATORS.project(weight.bfloat16(), z.bfloat16())


@pytest.mark.parametrize(
    "rows, rank, dtype, backend",
    [
        (512, 32, torch.float32, "cpp"),
        (512, 32, torch.float64, "cpp"),
        (512, 32, torch.bfloat16, "eager"),
        (512, _extension.SKINNY_CPU_RANKS.stop, torch.float32, "eager"),
        (512, 1, torch.float32, "eager"),
        (1, 32, torch.float32, "eager"),
    ],
)
def test_what_runs_by_itself(monkeypatch, rows, rank, dtype, backend) -> None:
    monkeypatch.setattr(_extension, "_cpu_capability", lambda: "AVX2")
    x, weight, bias, _, down, up, _, _ = arguments(rows, 64, 48, rank, dtype)
    with use_backend("auto"):
        assert low_rank._linear.select(x, weight, bias, down, up, None).backend == backend


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only, off x86-64")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability) -> None:
    """The accuracy tests again with fewer instructions: ATen chooses once per process."""
    if os.environ.get("ATEN_CPU_CAPABILITY") is not None:
        pytest.skip("ATEN_CPU_CAPABILITY is set already")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        __file__,
        "-k",
        "strides or empty or threads or (accuracy and (17 or 33))",
    ]
    run = subprocess.run(
        command,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
