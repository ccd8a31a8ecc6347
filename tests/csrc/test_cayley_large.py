"""Large blocks on the CPU: whole by one thread each, or one matrix by all threads in the recursion over 2×2 blocks."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_kernels import _extension
from tests.csrc.cayley_support import definition as of_batch
from tests.csrc.cayley_support import exact, orthogonality_defect, random_like, random_packed, unpack
from tests.support import assert_close_by_scale

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=str(_extension.load()))

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def definition(a: Tensor) -> Tensor:
    """One matrix after the other: MKL's batched factorisation fails here once the number of threads has changed."""
    return torch.stack([of_batch(matrix) for matrix in a])


class Operators:
    """The operators with a number of threads; eight share two matrices."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                return getattr(torch.ops.hybrid_kernels_cpp, name)(*args)
            finally:
                torch.set_num_threads(before)

        return call


@pytest.fixture(params=[1, 8], ids=["whole", "recursion"])
def operators(request: pytest.FixtureRequest) -> Operators:
    return Operators(request.param)


@functools.cache
def case(b: int, dtype: torch.dtype, norm: float) -> tuple[Tensor, ...]:
    """Packed values, A, an upstream gradient, and Q and the full gradient: plain, and exact to twice the digits."""
    double = dtype in (torch.float64, torch.complex128)
    packed = random_packed((1 if double else 2,), b, dtype, norm)
    a = unpack(packed, b).requires_grad_()
    plain = definition(a)
    grad_q = random_like(plain)
    (plain_grad,) = torch.autograd.grad(plain, a, grad_q)
    plain_grad = ((plain_grad - plain_grad.mH) / 2).resolve_conj()
    exact_q, exact_grad = exact(a.detach(), grad_q)
    return packed, a.detach(), grad_q, plain.detach(), plain_grad, exact_q, exact_grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "norm"), [(256, 5.0), (300, 1e-3), (300, 1.0)])
def test_exact(operators: Operators, b: int, norm: float, dtype: torch.dtype) -> None:
    packed, a, grad_q, plain, plain_grad, exact_q, exact_grad = case(b, dtype, norm)
    q = operators.cayley_forward(a)
    assert_close_by_scale(q, exact_q, plain, 2)
    assert_close_by_scale(operators.cayley_packed_forward(packed, b), exact_q, plain, 2)
    assert_close_by_scale(operators.cayley_backward(grad_q, q), exact_grad, plain_grad, 3)
    row, column = torch.triu_indices(b, b, 1)
    grad_packed = operators.cayley_packed_backward(grad_q, q)
    assert_close_by_scale(grad_packed, 2 * exact_grad[..., row, column], 2 * plain_grad[..., row, column], 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_angles_cost_no_digits(operators: Operators, dtype: torch.dtype) -> None:
    """Within one rounding of Q, although A is added to the identity on the way."""
    _, a, _, _, _, exact_q, _ = case(300, dtype, 1e-3)
    rounding = torch.finfo(dtype).eps / 2 * torch.linalg.vector_norm(exact_q)
    q = operators.cayley_forward(a)
    assert torch.linalg.vector_norm(q.to(exact_q) - exact_q) < rounding


@pytest.mark.parametrize("norm", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_angles(operators: Operators, dtype: torch.dtype, norm: float) -> None:
    _, a, _, plain, _, exact_q, _ = case(256, dtype, norm)
    q = operators.cayley_forward(a)
    assert_close_by_scale(q, exact_q, plain, 2)
    assert orthogonality_defect(q) <= max(2 * orthogonality_defect(plain), 16 * torch.finfo(dtype).eps)


def test_a_matrix_with_large_entries_or_nan_leaves_its_neighbour_alone(operators: Operators) -> None:
    packed = random_packed((2,), 256, torch.float32)
    expected = operators.cayley_packed_forward(packed, 256)
    large = packed.clone()
    large[1] *= 1e4
    q = operators.cayley_packed_forward(large, 256)
    assert torch.equal(q[0], expected[0])
    torch.testing.assert_close(q[1] @ q[1].mT, torch.eye(256), atol=1e-3, rtol=0)
    large[1, 7] = float("nan")
    q = operators.cayley_packed_forward(large, 256)
    assert torch.equal(q[0], expected[0]) and q[1].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_skew_part_counts_and_strides_do_not(operators: Operators, dtype: torch.dtype) -> None:
    x = torch.randn(2, 260, 260, dtype=dtype, generator=torch.Generator().manual_seed(1)) / 16
    expected = operators.cayley_forward((x - x.mH) / 2)
    torch.testing.assert_close(operators.cayley_forward(x), expected)
    torch.testing.assert_close(operators.cayley_forward(x.mH.resolve_conj()), expected.mH.resolve_conj())
    assert torch.equal(operators.cayley_forward(x.mT.contiguous().mT), operators.cayley_forward(x))
    g = random_like(x)
    grad = operators.cayley_backward(g, expected)
    assert torch.equal(operators.cayley_backward(g.mT.contiguous().mT, expected.mT.contiguous().mT), grad)
    assert torch.equal(grad, -grad.mH.resolve_conj())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradient_by_a_difference(operators: Operators, dtype: torch.dtype) -> None:
    a, direction = (unpack(random_packed((1,), 256, dtype, norm), 256) for norm in (1.0, 1e-4))
    direction = direction.roll((1, 1), dims=(-1, -2))
    grad_q = random_like(a)
    grad = operators.cayley_backward(grad_q, operators.cayley_forward(a))
    change = operators.cayley_forward(a + direction) - operators.cayley_forward(a - direction)
    torch.testing.assert_close((grad.conj() * 2 * direction).sum().real, (grad_q.conj() * change).sum().real)
