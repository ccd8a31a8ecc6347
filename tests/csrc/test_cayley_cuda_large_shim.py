"""The CUDA kernels for what large blocks need besides matrix products (csrc/cayley_cuda_large.cu), run on the host."""

import math

import pytest
import torch
from torch import Tensor

from tests.csrc.cayley_support import (
    DTYPES,
    definition,
    exact,
    orthogonality_defect,
    random_like,
    random_packed,
    unpack,
)
from tests.csrc.cuda_shim import ORDERS, CudaError, CudaShim, cuda_shim, why_no_shim
from tests.support import assert_close_by_scale

pytestmark = pytest.mark.skipif(why_no_shim() is not None, reason=str(why_no_shim()))

SIZES = [1, 2, 3, 4, 7, 16, 31, 32, 33, 64, 65, 127, 128]
SEEDS = [1, 2]  # of random orders, besides the two others


def in_every_order(shim: CudaShim) -> list[CudaShim]:
    return [shim.having(order=order) for order in ORDERS] + [
        shim.having(order="random", seed=seed) for seed in SEEDS
    ]


def upper(x: Tensor) -> Tensor:
    row, column = torch.triu_indices(x.shape[-1], x.shape[-1], 1)
    return x[..., row, column]


def limit(b: int) -> float:
    return 2.0 if b < 8 else 4.0


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", SIZES)
def test_expand(b: int, dtype: torch.dtype, batch: int) -> None:
    packed = random_packed((batch,), b, dtype)
    x = torch.randn(batch, b, b, dtype=dtype, generator=torch.Generator().manual_seed(b))
    for shim in in_every_order(cuda_shim()):
        a, beyond = shim.expand(packed, True, b)
        assert torch.equal(a, unpack(packed, b)) and not beyond.any()
        assert shim.launches == min(batch, 1)
        assert torch.equal(shim.expand(x, False, b)[0], (x - x.mH) / 2)


@pytest.mark.parametrize("b", [1, 4, 7, 8, 32, 33, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_which_matrices_are_beyond_the_limit(dtype: torch.dtype, b: int) -> None:
    """One large entry each, in the corners, at the edges of tiles and in between."""
    over = math.nextafter(limit(b), math.inf)
    if dtype in (torch.float32, torch.complex64):
        over = torch.nextafter(torch.tensor(limit(b)), torch.tensor(math.inf)).item()
    positions = sorted(
        {(i, j) for i in (0, 31, 32, b - 1) for j in (0, 1, 31, 32, b // 2, b - 1) if i < j < b}
    )
    values = [limit(b), -limit(b), over, -over, math.nan, math.inf]
    values += [complex(0, value) for value in values] if dtype.is_complex else []
    cases = [(position, value) for position in positions for value in values]
    a = torch.zeros(2 * len(cases) + 1, b, b, dtype=dtype)  # the even ones are left as they are
    for index, ((i, j), value) in enumerate(cases):
        a[2 * index + 1, i, j] = torch.tensor(value, dtype=dtype)
        a[2 * index + 1, j, i] = -torch.tensor(value, dtype=dtype).conj()
    expected = torch.zeros(len(a), dtype=torch.uint8)
    for index, (_, value) in enumerate(cases):
        largest = max(abs(complex(value).real), abs(complex(value).imag), key=lambda x: (math.isnan(x), x))
        expected[2 * index + 1] = not largest <= limit(b)
    assert torch.equal(cuda_shim().expand(a, False, b)[1], expected)
    assert torch.equal(cuda_shim().expand(upper(a), True, b)[1], expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_large_entry_on_the_diagonal(dtype: torch.dtype) -> None:
    a = torch.zeros(3, 40, 40, dtype=dtype)
    a[1, 37, 37] = 5j
    a[2, 3, 3] = 100  # no part of A
    assert cuda_shim().expand(a, False, 40)[1].tolist() == [0, 1, 0]


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", SIZES)
def test_project(b: int, dtype: torch.dtype, batch: int) -> None:
    d = torch.randn(batch, b, b, dtype=dtype, generator=torch.Generator().manual_seed(b))
    full = -0.25 * (d - d.mH)
    for shim in in_every_order(cuda_shim()):
        assert torch.equal(shim.project(d, False), full.resolve_conj())
        assert torch.equal(shim.project(d, True), 2 * upper(full))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [2, 33, 128])
def test_transform_and_gradient(b: int, dtype: torch.dtype) -> None:
    """The pieces in their places, the products and the inverse by torch."""
    packed = random_packed((2,), b, dtype).requires_grad_()
    plain = definition(unpack(packed, b))
    grad_q = random_like(plain)
    exact_q, exact_grad = exact(unpack(packed, b).detach(), grad_q)
    (plain_grad,) = torch.autograd.grad(plain, packed, grad_q)

    identity = torch.eye(b, dtype=dtype)
    a, _ = cuda_shim().expand(packed.detach(), True, b)
    q = 2 * torch.linalg.inv(identity + a) - identity
    h = identity + q.mH.resolve_conj()
    d = h @ grad_q @ h
    assert_close_by_scale(q, exact_q, plain.detach(), 2)
    assert_close_by_scale(cuda_shim().project(d, True), 2 * upper(exact_grad), plain_grad, 3)
    plain_full = plain_grad / 2
    assert_close_by_scale(upper(cuda_shim().project(d, False)), upper(exact_grad), plain_full, 3)


@pytest.mark.parametrize("norm", [5.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [1, 2, 3, 7, 16, 33, 65])
def test_pivoted(b: int, dtype: torch.dtype, norm: float) -> None:
    packed = random_packed((4,), b, dtype, norm)
    a = unpack(packed, b)
    start = random_like(a)
    marked = torch.tensor([True, True, False, True])
    q = cuda_shim().pivoted(packed, True, marked, start)
    assert torch.equal(q[~marked], start[~marked])
    plain, (reference, _) = definition(a[marked]), exact(a[marked], a[marked])
    assert_close_by_scale(q[marked], reference, plain, 2)
    allowed = max(2 * orthogonality_defect(plain), b**0.5 * torch.finfo(dtype).eps)
    assert orthogonality_defect(q[marked]) <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [1, 3, 40])
def test_pivoted_takes_the_skew_part(b: int, dtype: torch.dtype) -> None:
    x = 30 * torch.randn(2, b, b, dtype=dtype, generator=torch.Generator().manual_seed(b))
    marked = torch.ones(2, dtype=torch.bool)
    q = cuda_shim().pivoted(x, False, marked, torch.zeros_like(x))
    a = ((x - x.mH) / 2).resolve_conj()
    assert_close_by_scale(q, exact(a, a)[0], definition(a), 2)
    packed = upper(a)
    expected = cuda_shim().pivoted(packed, True, marked, torch.zeros_like(x))
    assert torch.equal(cuda_shim().pivoted(unpack(packed, b), False, marked, torch.zeros_like(x)), expected)


@pytest.mark.parametrize(
    ("b", "dtype"), [(127, torch.float64), (128, torch.complex128), (200, torch.float32)]
)
def test_pivoted_large_block(b: int, dtype: torch.dtype) -> None:
    a = unpack(random_packed((1,), b, dtype, 100.0), b)
    q = cuda_shim().pivoted(a, False, torch.tensor([True]), torch.zeros_like(a))
    assert_close_by_scale(q, exact(a, a)[0], definition(a), 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [3, 40])
def test_pivoted_in_every_order(b: int, dtype: torch.dtype) -> None:
    packed = random_packed((2,), b, dtype, 30.0)
    marked = torch.ones(2, dtype=torch.bool)
    bits = [
        shim.pivoted(packed, True, marked, unpack(packed, b)).view(torch.uint8)
        for shim in in_every_order(cuda_shim())
    ]
    assert all(torch.equal(other, bits[0]) for other in bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [20, 40])
def test_pivoted_among_equal_rows(b: int, dtype: torch.dtype) -> None:
    """The threads agree on one of many rows that would do."""
    packed = torch.full((1, b * (b - 1) // 2), 8.0, dtype=dtype)
    a, marked = unpack(packed, b), torch.tensor([True])
    found = [shim.pivoted(packed, True, marked, a) for shim in in_every_order(cuda_shim())]
    assert_close_by_scale(found[0], exact(a, a)[0], definition(a), 2)
    assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pivoted_not_finite(value: float) -> None:
    """Shows in its own matrix and nowhere else."""
    packed = random_packed((3,), 20, torch.float32, 30.0)
    start = torch.zeros(3, 20, 20)
    expected = cuda_shim().pivoted(packed, True, torch.ones(3, dtype=torch.bool), start)
    packed[1, 50] = value
    q = cuda_shim().pivoted(packed, True, torch.ones(3, dtype=torch.bool), start)
    assert torch.equal(q[[0, 2]], expected[[0, 2]]) and q[1].isnan().any()


def test_errors_of_launches_are_returned() -> None:
    packed, full = torch.ones(2, 3), torch.ones(2, 3, 3)
    marked = torch.ones(2, dtype=torch.bool)
    failing = cuda_shim().having(failing_launch=0)
    for call in (
        lambda: failing.expand(packed, True, 3),
        lambda: failing.project(full, True),
        lambda: failing.pivoted(packed, True, marked, full),
    ):
        with pytest.raises(CudaError) as raised:
            call()
        assert raised.value.code == failing.launch_error


@pytest.mark.parametrize("packed", [True, False])
def test_empty_batches_launch_nothing(packed: bool) -> None:
    shim = cuda_shim()
    full = torch.zeros(0, 5, 5)
    skew = torch.zeros(0, 10) if packed else full
    assert shim.expand(skew, packed, 5)[0].shape == full.shape and shim.launches == 0
    assert shim.project(full, packed).shape == skew.shape and shim.launches == 0
    assert shim.pivoted(skew, packed, torch.zeros(0, dtype=torch.bool), full).shape == full.shape
    assert shim.launches == 0
