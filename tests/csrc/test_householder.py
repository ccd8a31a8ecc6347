"""The compiled Householder factors and their gradient against the sequential definition in float64."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_kernels import _extension, ops, reference, use_backend
from hybrid_kernels.ops import householder
from tests.support import assert_close_by_scale

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=str(_extension.load()))

OPERATORS = torch.ops.hybrid_kernels_cpp
FEATURES = [1, 2, 7, 16, 33, 64, 300, 768]
REFLECTIONS = [1, 2, 3, 4, 8, 15, 16, 17, 32, 33, 64]
SIZES = [(k, n) for k in FEATURES for n in REFLECTIONS if n <= k]
DTYPES = [torch.float32, torch.float64]


def draws(features: int, reflections: int, dtype: torch.dtype, count: int | None = None) -> list[Tensor]:
    """Several matrices of columns: on a handful of numbers plain PyTorch is exact by luck."""
    generator = torch.Generator().manual_seed(features * 100 + reflections)
    count = count or max(3, min(32, 1024 // (features * reflections)))
    shape = (count, features, reflections)
    return list(torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype))


def random_like(x: Tensor, seed: int = 99) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))


def factors_and_gradient(
    function: Any, u: Tensor, parts: tuple[bool, bool] = (True, True)
) -> tuple[Tensor, Tensor, Tensor]:
    """(v, t, du) by autograd, the upstream gradient of v, t or both being random."""
    u = u.detach().requires_grad_()
    v, t = function(u)
    # Drawn in float32, so that every dtype is given the same numbers.
    upstream = [random_like(x.detach().float(), seed).to(x.dtype) for x, seed in ((v, 1), (t, 2))]
    # To autograd, t of a single reflection is a constant.
    chosen = [i for i in (0, 1) if parts[i] and (v, t)[i].requires_grad]
    if not chosen:
        return v.detach(), t.detach(), torch.zeros_like(u).detach()
    (du,) = torch.autograd.grad([(v, t)[i] for i in chosen], u, [upstream[i] for i in chosen])
    return v.detach(), t.detach(), du


def compiled(u: Tensor) -> tuple[Tensor, Tensor]:
    with use_backend("cpp"):
        return ops.householder_factors(u)


def eager(u: Tensor) -> tuple[Tensor, Tensor]:
    with use_backend("eager"):
        return ops.householder_factors(u)


class Compiled(torch.autograd.Function):
    """The two compiled operators and nothing else."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        v, t = OPERATORS.householder_forward(u)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(u, v, t)
        return v, t

    @staticmethod
    def backward(ctx: Any, dv: Tensor | None, dt: Tensor | None) -> Tensor:
        return OPERATORS.householder_backward(*ctx.saved_tensors, dv, dt)


def plain(u: Tensor) -> tuple[Tensor, Tensor]:
    """The formula of the factors in plain PyTorch, differentiated by autograd."""
    v = u / torch.linalg.vector_norm(u, dim=0)
    s = torch.triu(v.mT @ v, 1) + 0.5 * torch.eye(u.shape[1], dtype=u.dtype)
    return v, torch.linalg.inv(s)


def check(us: list[Tensor], parts: tuple[bool, bool] = (True, True), plain_factors: Any = plain) -> None:
    results = []
    for function, dtype in (
        (Compiled.apply, us[0].dtype),
        (reference.householder_factors, torch.float64),
        (plain_factors, us[0].dtype),
    ):
        each = [factors_and_gradient(function, u.to(dtype), parts) for u in us]
        results.append([torch.stack(x) for x in zip(*each, strict=True)])
    for factor, mine, exact, same_dtype in zip((2, 2, 3), *results, strict=True):
        assert_close_by_scale(mine, exact, same_dtype, factor)


@pytest.mark.parametrize(("features", "reflections"), SIZES)
def test_factors_and_gradient(features: int, reflections: int) -> None:
    check(draws(features, reflections, torch.float32))


@pytest.mark.parametrize(("features", "reflections"), [(4096, 5), (1000, 100), (130, 130)])
def test_large(features: int, reflections: int) -> None:
    """More reflections than the work space on the stack is made for, and features in no whole chunk."""
    check(draws(features, reflections, torch.float32, count=1))


@pytest.mark.parametrize(("features", "reflections"), SIZES)
def test_double(features: int, reflections: int) -> None:
    """To some roundings: here the reference is no more exact than the operator."""
    for u in draws(features, reflections, torch.float64, count=3):
        mine = factors_and_gradient(Compiled.apply, u)
        exact = factors_and_gradient(reference.householder_factors, u)
        largest = 1 / torch.linalg.vector_norm(u, dim=0).min()  # of the terms that may cancel in the gradient
        for x, y in zip(mine, exact, strict=True):
            tolerance = 1e-13 * reflections * torch.maximum(y.abs().max(), largest).item()
            torch.testing.assert_close(x, y, rtol=0, atol=tolerance)
        assert torch.equal(mine[1], mine[1].triu())


@pytest.mark.parametrize("parts", [(True, False), (False, True)])
@pytest.mark.parametrize(("features", "reflections"), [(1, 1), (33, 3), (300, 16), (64, 33)])
def test_gradient_of_one_factor(features: int, reflections: int, parts: tuple[bool, bool]) -> None:
    """A missing upstream gradient is zero, and does not cost a tensor of zeros."""
    us = draws(features, reflections, torch.float32)
    check(us, parts)
    v, t = OPERATORS.householder_forward(us[0])
    assert torch.equal(
        OPERATORS.householder_backward(us[0], v, t, None, None), torch.zeros(features, reflections)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("features", "reflections"), [(2, 1), (7, 3), (33, 16), (300, 33)])
def test_zero_columns(features: int, reflections: int, dtype: torch.dtype) -> None:
    """A zero column is no reflection: v and gradient are zero, its row and column of t are those of 2 I."""
    (u,) = draws(features, reflections, dtype, count=1)
    zero = list(range(0, reflections, 2))
    u[:, zero] = 0
    v, t, du = factors_and_gradient(Compiled.apply, u)
    assert torch.equal(v[:, zero], torch.zeros_like(v[:, zero]))
    assert torch.equal(du[:, zero], torch.zeros_like(v[:, zero]))
    assert torch.equal(t[zero], 2 * torch.eye(reflections, dtype=dtype)[zero])
    others = [i for i in range(reflections) if i not in zero]
    if others:
        _, t_others = OPERATORS.householder_forward(u[:, others].contiguous())
        torch.testing.assert_close(t[others][:, others], t_others)
    assert du.isfinite().all()
    if dtype == torch.float32:
        check([u], plain_factors=eager)  # autograd makes NaN of a zero norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("features", "reflections"), [(1, 2), (7, 2), (64, 8), (300, 16), (768, 32)])
def test_paired_columns_are_the_identity(features: int, reflections: int, dtype: torch.dtype) -> None:
    (half,) = draws(features, reflections // 2, dtype, count=1)
    v, t = OPERATORS.householder_forward(half.repeat_interleave(2, dim=1))
    defect = (v.double() @ t.double() @ v.double().mT).norm()
    assert defect <= 2 * reflections * torch.finfo(dtype).eps
    wrong = t.double() * (1 - 1e-3 * torch.ones_like(t).triu(1))  # the bound can tell
    assert (v.double() @ wrong @ v.double().mT).norm() > 100 * defect


@pytest.mark.parametrize("reflections", [1, 3, 8, 17])
def test_orthogonal(reflections: int) -> None:
    """H = I − v t vᵀ is orthogonal as nearly as that of plain PyTorch."""

    def defect(v: Tensor, t: Tensor) -> float:
        h = torch.eye(100).double() - v.double() @ t.double() @ v.double().mT
        return (h @ h.mT - torch.eye(100)).norm().item()

    us = draws(100, reflections, torch.float32, count=8)
    mine = sum(defect(*OPERATORS.householder_forward(u)) for u in us)
    assert mine <= 2 * sum(defect(*plain(u)) for u in us)


@pytest.mark.parametrize("scale", [1e-15, 1e15, 1e-25, 1e25])
def test_tiny_and_huge_columns(scale: float) -> None:
    """Beside columns of ordinary size; at 1e±25 the square of a norm does not fit into float32."""
    us = draws(100, 16, torch.float32, count=4)
    for u in us:
        u[:, 1::3] *= scale
    v, t, du = (
        torch.stack(x) for x in zip(*(factors_and_gradient(Compiled.apply, u) for u in us), strict=True)
    )
    exact = [factors_and_gradient(reference.householder_factors, u.double()) for u in us]
    v64, t64, du64 = (torch.stack(x) for x in zip(*exact, strict=True))
    assert (v - v64).abs().max() <= torch.finfo(torch.float32).eps
    assert (t - t64).norm() <= 1e-6 * t64.norm()
    # Column by column, for the gradients' sizes are as far apart as the columns'.
    error, size = (du - du64).norm(dim=1), du64.norm(dim=1)
    assert (error <= 1e-5 * size).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reflections", [1, 3, 16])
def test_strided_input(reflections: int, dtype: torch.dtype) -> None:
    (u,) = draws(50, reflections, dtype, count=1)
    v, t = OPERATORS.householder_forward(u)
    dv, dt = random_like(v), random_like(t)
    du = OPERATORS.householder_backward(u, v, t, dv, dt)

    def strided(x: Tensor) -> Tensor:
        wide = torch.full((x.shape[1], 2 * x.shape[0]), float("nan"), dtype=dtype)
        view = wide[:, ::2].mT
        return view.copy_(x)

    for x, y in zip(OPERATORS.householder_forward(strided(u)), (v, t), strict=True):
        assert x.is_contiguous() and torch.equal(x, y)
    arguments = [strided(x) for x in (u, v, t, dv, dt)]
    assert torch.equal(OPERATORS.householder_backward(*arguments), du)
    constant = torch.ones((), dtype=dtype)
    expected = OPERATORS.householder_backward(
        u, v, t, constant.expand(v.shape).contiguous(), constant.expand(t.shape).contiguous()
    )
    actual = OPERATORS.householder_backward(u, v, t, constant.expand(v.shape), constant.expand(t.shape))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("features", [0, 3])
def test_empty_and_wide(features: int, n: int) -> None:
    """No features, no reflections, more reflections than features: the formulas hold."""
    u = torch.randn(features, n)
    v, t = OPERATORS.householder_forward(u)
    expected_v, expected_t = householder._eager(u)
    torch.testing.assert_close(v, expected_v)
    torch.testing.assert_close(t, expected_t, rtol=1e-4, atol=1e-4)
    assert OPERATORS.householder_backward(u, v, t, v, t).shape == u.shape


@pytest.mark.parametrize("n", [3, 16])
def test_nan_is_not_hidden(n: int) -> None:
    (u,) = draws(40, n, torch.float32, count=1)
    u[5, 1] = float("nan")
    v, t = OPERATORS.householder_forward(u)
    assert v[:, 1].isnan().any() and t.isnan().any()
    assert v[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize(("features", "reflections"), [(5, 1), (7, 3), (40, 9)])
def test_gradcheck(features: int, reflections: int) -> None:
    (u,) = draws(features, reflections, torch.float64, count=1)
    assert torch.autograd.gradcheck(compiled, u.requires_grad_())


@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True)])
def test_operator_of_the_gradient(parts: tuple[bool, bool]) -> None:
    (u,) = draws(7, 3, torch.float64, count=1)
    v, t = OPERATORS.householder_forward(u)
    dv, dt = (x if part else None for x, part in zip((v.mT.contiguous().mT, t), parts, strict=True))
    torch.library.opcheck(torch.ops.hybrid_kernels.householder_backward.default, (u, v, t, dv, dt))


def test_the_choice_of_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled up to the measured size, on the CPU and in a dtype that it takes."""

    def chosen(u: Tensor) -> list[str]:
        v, t = householder._eager(u.float())
        arguments = (u, v, t, v, t)
        return [
            householder._factors.select(u).backend,
            householder._factors_backward.select(*arguments).backend,
        ]

    u = torch.randn(20, 3)
    assert chosen(u) == chosen(u.double()) == ["cpp", "cpp"]
    assert chosen(u.half()) == ["eager", "eager"]
    monkeypatch.setattr(_extension, "HOUSEHOLDER_CPU_MAX_WORK", 20 * 3 * 3)
    assert chosen(u) == ["cpp", "cpp"]
    monkeypatch.setattr(_extension, "HOUSEHOLDER_CPU_MAX_WORK", 20 * 3 * 3 - 1)
    assert chosen(u) == ["eager", "eager"]
    with use_backend("cpp"):
        assert chosen(u) == ["cpp", "cpp"]
        with pytest.raises(RuntimeError, match=r"'cpp'.*householder_factors.*float16"):
            householder._factors.select(u.half())


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set on this architecture"
)
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str) -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    command += ["-k", "not other_instruction_sets and not choice"]
    root = Path(__file__).parents[2]
    child = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stdout + child.stderr


U, T = torch.ones(4, 2), torch.ones(2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: OPERATORS.householder_forward(torch.ones(3)),
            ValueError,
            r"u must have shape \(in_features, reflections\), got \[3\]",
        ),
        (
            lambda: OPERATORS.householder_forward(U.half()),
            TypeError,
            r"u must be float32 or float64, got Half",
        ),
        (lambda: OPERATORS.householder_forward(U.cfloat()), TypeError, r"u must be .*got ComplexFloat"),
        (
            lambda: OPERATORS.householder_backward(U, U[:2], T, U, T),
            ValueError,
            r"v must have shape \[4, 2\], got \[2, 2\]",
        ),
        (lambda: OPERATORS.householder_backward(U, U, U, U, T), ValueError, r"t must have shape \[2, 2\]"),
        (lambda: OPERATORS.householder_backward(U, U, T, T, T), ValueError, r"grad_v must have shape"),
        (lambda: OPERATORS.householder_backward(U, U, T, None, U), ValueError, r"grad_t must have shape"),
        (lambda: OPERATORS.householder_backward(U, U.double(), T, U, T), TypeError, r"v must have the dtype"),
        (
            lambda: OPERATORS.householder_backward(U, U, T, U, T.double()),
            TypeError,
            r"grad_t must have the dtype of u, Float, got Double",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
