"""The fast functions against the float64 reference, forward and every gradient, by the scale-free rule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

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


@pytest.mark.parametrize("dtype", REAL)
def test_low_rank_linear_every_gradient_and_stride(dtype) -> None:
    def draw() -> list[Tensor]:
        x = make(6, 10, dtype=dtype).t()[:, :6]  # transposed: columns are not contiguous
        weight = make(8, 12, dtype=dtype)[:, ::2]  # strided rows
        return [x, weight, make(8, dtype=dtype), make(6, 3, dtype=dtype).t(), make(3, 8, dtype=dtype).t()]

    compare(F.low_rank_linear, R.low_rank_linear, draw)

    def draw_add() -> list[Tensor]:
        x, _, _, down, up = draw()
        return [make(10, 8, dtype=dtype), x, down, up]

    compare(F.low_rank_add, R.low_rank_add, draw_add)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *product(("auto", "eager"), (torch.float32, torch.bfloat16, torch.float64)),
        *product(("triton",), (torch.float32, torch.bfloat16)),
    ],
)
@pytest.mark.parametrize("dropped", [3, 5])
def test_dropout_is_the_same_on_every_backend(dropped, backend, dtype) -> None:
    dropout = 0.4, dropped, torch.tensor(99, device=DEVICE)
    with use_backend(backend):
        compare(
            lambda *tensors: F.low_rank_linear(*tensors, *dropout),
            lambda *tensors: R.low_rank_linear(*tensors, *dropout),
            lambda: [make(*shape, dtype=dtype) for shape in ((2, 7, 33), (20, 33), (20,), (5, 33), (20, 5))],
        )
        compare(
            lambda *tensors: F.low_rank_add(*tensors, *dropout),
            lambda *tensors: R.low_rank_add(*tensors, *dropout),
            lambda: [make(*shape, dtype=dtype) for shape in ((14, 20), (14, 33), (5, 33), (20, 5))],
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_of_the_low_rank_branch_alone(dtype) -> None:
    seed = torch.tensor(5, device=DEVICE)

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, a, b, u: function(x, w, None, a, b, u, 0.4, 0.5, 0.5, seed)

    shapes = (6, 24), (17, 24), (3, 24), (17, 3), (24, 4)
    compare(of(F.hybrid_linear), of(R.hybrid_linear), lambda: [make(*shape, dtype=dtype) for shape in shapes])


@pytest.mark.parametrize("backend", ["auto", "eager", "reference", "triton"])
def test_dropout_of_no_rows_and_of_nearly_everything(backend) -> None:
    a, b, seed = make(2, 6), make(5, 2), torch.tensor(3, device=DEVICE)
    with use_backend(backend):
        assert F.low_rank_linear(make(0, 6), make(5, 6), None, a, b, 0.5, 2, seed).shape == (0, 5)
        y = F.low_rank_linear(make(4, 6), make(5, 6), None, a, b, 0.9999999, 2, seed)
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
def test_backward_inside_autocast_is_the_backward_outside(backend) -> None:
    x, w, u = make(4, 16), make(12, 16), make(16, 4)
    a, b = make(3, 16), make(12, 3)

    def gradients(inside: bool) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, a, b, u)]
        with use_backend(backend):
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                y = F.hybrid_linear(leaves[0], w, None, *leaves[1:], 0.4, 0.5) + F.householder_rotate(
                    leaves[0], leaves[3]
                ).sum(-1, keepdim=True)
                if inside:
                    return list(torch.autograd.grad(y.float().sum(), leaves))
            return list(torch.autograd.grad(y.float().sum(), leaves))

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_seeds_follow_the_generator() -> None:
    torch.manual_seed(3)
    first, second = F.dropout_seed(DEVICE), F.dropout_seed(DEVICE)
    torch.manual_seed(3)
    assert F.dropout_seed(DEVICE) == first != second


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_wider_factors_come_in_their_own_dtype(dtype) -> None:
    x, w = make(6, 16, dtype=dtype), make(8, 16, dtype=dtype)
    a, b = make(3, 16).requires_grad_(), make(8, 3).requires_grad_()
    for function, arguments in (F.low_rank_linear, (x, w, None)), (F.low_rank_add, (x @ w.mT, x)):
        y = function(*arguments, a, b)
        assert y.dtype == dtype
        assert [g.dtype for g in torch.autograd.grad(y.sum(), (a, b))] == [torch.float32] * 2


def test_stride_zero_gradient() -> None:
    x, w, a, b = make(4, 6), make(5, 6), make(2, 6).requires_grad_(), make(5, 2)
    (gradient,) = torch.autograd.grad(
        F.low_rank_linear(x, w, None, a, b).sum(), a
    )  # dy is an expanded scalar
    (truth,) = torch.autograd.grad(R.low_rank_linear(x, w, None, a, b).sum(), a)
    torch.testing.assert_close(gradient, truth)


def test_zero_rows() -> None:
    x = make(0, 6).requires_grad_()
    a, u = make(2, 6).requires_grad_(), make(6, 2).requires_grad_()
    y = F.hybrid_linear(x, make(5, 6), make(5), a, make(5, 2), u, 0.5, 1.0)
    assert y.shape == (0, 5)
    gradients = torch.autograd.grad(y.sum(), (x, a, u))
    assert [tuple(g.shape) for g in gradients] == [(0, 6), (2, 6), (6, 2)]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_rotated_low_rank_linear(with_bias, dtype, backend) -> None:
    bias = make(20, dtype=dtype) if with_bias else None

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, q, w, a, b: function(x, q, w, None if bias is None else bias.to(x.dtype), a, b)

    shapes = (3, 7, 30), (5, 6, 6), (20, 30), (4, 30), (20, 4)
    with use_backend(backend):
        compare(
            of(F.rotated_low_rank_linear),
            of(R.rotated_low_rank_linear),
            lambda: [make(*shape, dtype=dtype) for shape in shapes],
        )


def test_one_pass_is_of_few_ranks_and_of_unrotated_layers() -> None:
    """Where it cannot be, the forward says so; a rotated layer, which has no such variant, runs whole."""
    x, q, w, a, b = (make(*shape) for shape in ((3, 70), (7, 10, 10), (9, 70), (66, 70), (9, 66)))
    with use_backend("triton", variant="one_pass"):
        with pytest.raises(RuntimeError, match="rank = 66, variant 'one_pass' takes 1 to 64"):
            F.low_rank_linear(x, w, None, a, b)
        compare(
            lambda x, a: F.rotated_low_rank_linear(x, q.to(x.dtype), w.to(x.dtype), None, a, b.to(x.dtype)),
            lambda x, a: R.rotated_low_rank_linear(x, q.to(x.dtype), w.to(x.dtype), None, a, b.to(x.dtype)),
            lambda: [make(3, 70), make(66, 70)],
        )


def test_autocast_computes_in_its_dtype_and_factorises_in_float32() -> None:
    x, w, u = make(8, 16), make(12, 16), make(16, 4)
    a, b = make(3, 16), make(12, 3)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        y = F.hybrid_linear(x, w, None, a, b, u, 0.5, 1.0)
        v, t = F.householder_factors(u)
        q = F.cayley(make(2, 4, 4))
    assert y.dtype == torch.bfloat16
    assert v.dtype == t.dtype == q.dtype == torch.float32
    v64, t64 = R.householder_factors(u.double())
    v32, t32 = R.householder_factors(u)
    assert_close_by_scale(v @ t, v64 @ t64, v32 @ t32, 2)
    half = [tensor.bfloat16() for tensor in (x, w, a, b, u)]
    truth = R.hybrid_linear(*(t.double() for t in (x, w)), None, *(t.double() for t in (a, b, u)), 0.5, 1.0)
    assert_close_by_scale(y, truth, R.hybrid_linear(*half[:2], None, *half[2:], 0.5, 1.0), 2)


def test_wider_factors_than_activations() -> None:
    """PEFT's usual state: base layer and activations in bfloat16, adapters in float32."""
    x, w = make(6, 16, dtype=torch.bfloat16), make(8, 16, dtype=torch.bfloat16)
    a, b, u = make(2, 16), make(8, 2), make(16, 4)
    y = F.hybrid_linear(x, w, None, a, b, u, 0.3, 1.0)
    truth = R.hybrid_linear(x.double(), w.double(), None, a.double(), b.double(), u.double(), 0.3, 1.0)
    plain = R.hybrid_linear(x, w, None, a.bfloat16(), b.bfloat16(), u.bfloat16(), 0.3, 1.0)
    assert_close_by_scale(y, truth, plain, 2)
