"""The fast functions against the float64 reference, forward and every gradient, by the scale-free rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hybrid_kernels import functional as F
from hybrid_kernels import reference as R
from hybrid_kernels import use_backend
from tests.support import DEVICE, assert_close_by_scale, compare, make

REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


LINEAR_SHAPES = [  # leading dimensions of x, K, N, r, n
    ((5,), 12, 9, 3, 4),
    ((2, 3), 33, 17, 1, 2),
    ((1,), 7, 1, 1, 2),
    ((4, 1, 2), 64, 65, 16, 16),
    ((), 8, 6, 2, 2),
    ((130,), 31, 40, 5, 31 - 1),
]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("lead", "k", "n", "r", "h"), LINEAR_SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_hybrid_linear(lead, k, n, r, h, with_bias, dtype) -> None:
    def draw() -> list[Tensor]:
        return [
            make(*lead, k, dtype=dtype),
            make(n, k, dtype=dtype, scale=k**-0.5),
            make(r, k, dtype=dtype, scale=k**-0.5),
            make(n, r, dtype=dtype),
            make(k, h, dtype=dtype),
            make(1, dtype=dtype).sigmoid()[0],
        ]

    bias = make(n, dtype=dtype) if with_bias else None

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x, w, a, b, u, mixing):
            return function(x, w, None if bias is None else bias.to(x.dtype), a, b, u, mixing, 0.5)

        return call

    compare(of(F.hybrid_linear), of(R.hybrid_linear), draw)


def test_mixing_of_one_element() -> None:
    mixing = torch.full((1,), 0.3, device=DEVICE, requires_grad=True)
    y = F.hybrid_linear(make(4, 6), make(5, 6), None, make(2, 6), make(5, 2), make(6, 2), mixing, 1.0)
    (gradient,) = torch.autograd.grad(y.sum(), mixing)
    assert gradient.shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("features", "reflections"), [(6, 2), (33, 7), (16, 16), (40, 1)])
def test_householder_rotate(features, reflections, transpose, dtype) -> None:
    compare(
        lambda x, u: F.householder_rotate(x, u, transpose),
        lambda x, u: R.householder_rotate(x, u, transpose),
        lambda: [make(3, 5, features, dtype=dtype), make(features, reflections, dtype=dtype)],
    )


@pytest.mark.parametrize("u_dtype", ["as x", torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_householder_rotate_of_half_types(dtype, u_dtype) -> None:
    """The plain side rounds the float32 factors to x's dtype: the factor form, by autograd."""
    u_dtype = dtype if u_dtype == "as x" else u_dtype
    x, u, dy = make(3, 5, 33, dtype=dtype), make(33, 7, dtype=u_dtype), make(3, 5, 33, dtype=dtype)

    def plain(x: Tensor, u: Tensor) -> Tensor:
        v, t = R.householder_factors(u.float())
        return x - (x @ v.to(x.dtype)) @ (v @ t).to(x.dtype).mT

    results = []
    for function, kind in (
        (F.householder_rotate, None),
        (R.householder_rotate, torch.float64),
        (plain, None),
    ):
        leaves = [tensor.detach().to(kind or tensor.dtype).requires_grad_() for tensor in (x, u)]
        y = function(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    assert [result.dtype for result in results[0]] == [dtype, dtype, u_dtype]
    for index, (mine, true, simple) in enumerate(zip(*results, strict=True)):
        assert_close_by_scale(mine, true, simple, 2 if index == 0 else 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_householder_factors(dtype) -> None:
    for index in (0, 1):
        compare(
            lambda u, i=index: F.householder_factors(u)[i],
            lambda u, i=index: R.householder_factors(u)[i],
            lambda: [make(20, 9, dtype=dtype)],
        )
        compare(
            lambda u, i=index: torch.cat([factors[i] for factors in F.householder_factors_many([u, u])]),
            lambda u, i=index: torch.cat([R.householder_factors(u)[i]] * 2),
            lambda: [make(20, 9, dtype=dtype)],
        )


def test_zero_and_paired_columns() -> None:
    u = make(12, 4, dtype=torch.float64)
    u[:, 2] = 0
    u.requires_grad_()
    x = make(3, 12, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(F.householder_rotate(x, u).sin().sum(), u)
    (truth,) = torch.autograd.grad(R.householder_rotate(x, u).sin().sum(), u)
    torch.testing.assert_close(gradient, truth)
    assert not gradient[:, 2].any()
    paired = make(64, 4).repeat_interleave(2, dim=1)
    x = make(5, 64)
    assert (F.householder_rotate(x, paired) - x).norm() <= 1e-6 * x.norm()


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("rounded", [torch.float32, torch.bfloat16])
def test_householder_factors_of_many_features_lose_no_digits(rounded, backend) -> None:
    """A norm summed one feature after another did, on the eager backend, up to twelve times plain PyTorch's error."""
    with use_backend(backend):
        compare(
            lambda u: F.householder_factors(u)[0],
            lambda u: R.householder_factors(u)[0],
            lambda: [make(512, 24, dtype=rounded).float()],
        )
