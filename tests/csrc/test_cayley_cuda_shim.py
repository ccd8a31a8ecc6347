"""The CUDA kernels of the Cayley transform in a warp and in a block of threads, run on the host (see cuda_shim)."""

import pytest
import torch
from torch import Tensor

from tests.csrc.cayley_support import (
    DTYPES,
    definition,
    exact,
    exact_shifted_inverse,
    orthogonality_defect,
    random_like,
    random_packed,
    unpack,
)
from tests.csrc.cuda_shim import ORDERS, CudaError, CudaShim, cuda_shim, why_no_shim
from tests.support import assert_close_by_scale

pytestmark = pytest.mark.skipif(why_no_shim() is not None, reason=str(why_no_shim()))

SIZES = [1, 2, 3, 4, 7, 8, 16, 17, 31, 32, 33, 64, 65, 127, 128]
LARGEST = {torch.float32: 128, torch.float64: 128, torch.complex64: 128, torch.complex128: 64}
CASES = [(dtype, b) for dtype in DTYPES for b in SIZES if b <= LARGEST[dtype]]
SOME_CASES = [(dtype, b) for dtype, b in CASES if b in (2, 4, 7, 16, 32, 33, 64, 65)]


@pytest.fixture(scope="module")
def shim() -> CudaShim:
    return cuda_shim()


def mixed(b: int, dtype: torch.dtype, count: int = 6) -> Tensor:
    """Matrices some of which are eliminated with row pivoting."""
    a = unpack(random_packed((count,), b, dtype), b)
    a[1::3] *= 1e4
    return a


@pytest.mark.parametrize("norm", [1e-3, 1.0, 5.0])
@pytest.mark.parametrize(("dtype", "b"), CASES)
def test_exact(shim: CudaShim, b: int, dtype: torch.dtype, norm: float) -> None:
    packed = random_packed((max(1, 192 // b),), b, dtype, norm).requires_grad_()
    a = unpack(packed, b)
    plain = definition(a)
    grad_q = random_like(plain)
    exact_q, exact_grad = exact(a.detach(), grad_q)

    q = shim.forward(a.detach(), False, b)
    assert_close_by_scale(q, exact_q, plain.detach(), 2)
    assert torch.equal(shim.forward(packed.detach(), True, b), q)

    (plain_grad,) = torch.autograd.grad(plain, a, grad_q)
    plain_grad = ((plain_grad - plain_grad.mH) / 2).resolve_conj()
    grad = shim.backward(grad_q, q, False)
    assert_close_by_scale(grad, exact_grad, plain_grad, 3)
    row, column = torch.triu_indices(b, b, 1)
    assert torch.equal(shim.backward(grad_q, q, True), 2 * grad[:, row, column])


@pytest.mark.parametrize(("dtype", "b"), [(dtype, b) for dtype in DTYPES for b in (3, 16, 20, 40)])
def test_only_the_skew_part_counts(shim: CudaShim, b: int, dtype: torch.dtype) -> None:
    """The diagonal of a complex matrix included."""
    x = torch.randn(3, b, b, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain = definition((x - x.mH) / 2)
    q = shim.forward(x.detach(), False, b)
    torch.testing.assert_close(q, plain.detach())
    grad_q = random_like(q)
    (grad,) = torch.autograd.grad(plain, x, grad_q)
    torch.testing.assert_close(shim.backward(grad_q, q, False), grad.resolve_conj(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [0.0, 1e-4, 1.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize(
    ("dtype", "b"), [(dtype, b) for dtype in DTYPES for b in (2, 3, 8, 15, 16, 32, 33, 64)]
)
def test_large_angles(shim: CudaShim, b: int, dtype: torch.dtype, norm: float) -> None:
    """As exact and as orthogonal as torch.linalg.solve, which pivots."""
    a = unpack(random_packed((64 if b < 16 else 8 if b < 33 else 2,), b, dtype, norm), b)
    q, plain = shim.forward(a, False, b), definition(a)
    assert_close_by_scale(q, exact(a, q)[0], plain, 2)
    allowed = max(2 * orthogonality_defect(plain), b**0.5 * torch.finfo(dtype).eps)
    assert orthogonality_defect(q) <= allowed


@pytest.mark.parametrize("b", [2, 8, 16, 32, 33, 64, 128])
def test_digits_of_small_matrices(shim: CudaShim, b: int) -> None:
    """Q − I is −2 A to first order, whose digits the identity must not have cost before the end."""
    a = unpack(random_packed((2,), b, torch.float32, 1e-6), b)
    off_diagonal = ~torch.eye(b, dtype=torch.bool)
    q = shim.forward(a, False, b)
    torch.testing.assert_close(
        q[:, off_diagonal], definition(a.double()).float()[:, off_diagonal], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("dtype", "b"), SOME_CASES)
def test_a_matrix_depends_on_itself_alone(shim: CudaShim, b: int, dtype: torch.dtype) -> None:
    """Not on those with a large entry or NaN beside it; the last warp and the last block have room for more."""
    count = 70 if b < 8 else 11 if b < 33 else 5
    a = unpack(random_packed((count,), b, dtype), b)
    expected = shim.forward(a, False, b)
    disturbed = a.clone()
    disturbed[::3] *= 1e4
    disturbed[1, 0, 1] = float("nan")
    disturbed[2::9, 1, 0] = float("inf")
    q = shim.forward(disturbed, False, b)
    others = [i for i in range(count) if torch.equal(disturbed[i], a[i])]
    assert others and torch.equal(q[others], expected[others])
    assert q[1].isnan().any()
    grad_q = random_like(q)
    grad = shim.backward(grad_q, q, False)
    for i in {0, count // 2, count - 1, *others[:3]}:
        alone = shim.forward(disturbed[i : i + 1], False, b)
        assert torch.equal(alone[0].nan_to_num(), q[i].nan_to_num())
        alone = shim.backward(grad_q[i : i + 1], q[i : i + 1], False)
        assert torch.equal(alone[0].nan_to_num(), grad[i].nan_to_num())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dtype", "b"), CASES)
def test_any_order_of_the_threads(shim: CudaShim, b: int, dtype: torch.dtype, order: str) -> None:
    a = mixed(b, dtype, 6 if b < 33 else 2)
    gentle = a[:1]
    q = shim.forward(a, False, b)
    grad_q = random_like(q)
    other = shim.having(order=order, seed=b)
    assert torch.equal(other.forward(a, False, b), q)
    assert torch.equal(other.forward(gentle, False, b), q[:1])
    assert torch.equal(other.backward(grad_q, q, False), shim.backward(grad_q, q, False))
    assert torch.equal(other.shifted_inverse(gentle), shim.shifted_inverse(gentle))


@pytest.mark.parametrize("b", [1, 4, 32, 64])
def test_empty_batch(shim: CudaShim, b: int) -> None:
    none = torch.zeros(0, b, b)
    assert shim.forward(none, False, b).shape == shim.backward(none, none, False).shape == (0, b, b)
    assert shim.launches == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_pivots_that_are_needed(shim: CudaShim, dtype: torch.dtype) -> None:
    """Leading blocks of I + A are nearly singular compared with its entries, so that others must be pivots first."""
    for b in (3, 8, 24, 48):
        a = torch.zeros(1, b, b, dtype=dtype)
        a[:, range(b - 1), range(1, b)] = 1e6
        a[:, 0, b - 1] = 3e5
        a = a - a.mH
        assert_close_by_scale(shim.forward(a, False, b), exact(a, a)[0], definition(a), 2)


@pytest.mark.parametrize("norm", [1e-4, 1.0, 30.0])
@pytest.mark.parametrize(("dtype", "n"), CASES)
def test_shifted_inverse(shim: CudaShim, n: int, dtype: torch.dtype, norm: float) -> None:
    """Of any matrix with Hermitian part at least I, not of skew ones alone; rows and matrices apart from each other."""
    generator = torch.Generator().manual_seed(n)
    batch = 24 if n < 64 else 3  # of few small matrices plain PyTorch can be exact by luck
    half = torch.randn(batch, n, n, dtype=dtype, generator=generator) * (norm / n**0.5)
    skew = unpack(random_packed((batch,), n, dtype, norm), n)
    storage = torch.zeros(batch, n + 1, n + 3, dtype=dtype)
    c = storage[:, :n, 2 : 2 + n].copy_((half @ half.mH + skew).resolve_conj())
    plain = torch.linalg.inv(torch.eye(n, dtype=dtype) + c)
    assert_close_by_scale(shim.shifted_inverse(c), exact_shifted_inverse(c), plain, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_blocks(shim: CudaShim, dtype: torch.dtype) -> None:
    largest = LARGEST[dtype]
    assert shim.forward_max_block(dtype) == largest
    # What A100 and H100, what other GPUs of their time, and what older ones grant.
    on_devices = [shim.having(shared_bytes=1024 * k).backward_max_block(dtype) for k in (227, 163, 99, 48)]
    of_the_small = (
        [128, 64] if dtype == torch.float32 else [64, 64] if dtype != torch.complex128 else [64, 32]
    )
    assert on_devices == [largest, largest, *of_the_small]
    assert shim.having(device_error=100).backward_max_block(dtype) < 0

    a = torch.zeros(1, largest + 1, largest + 1, dtype=dtype)
    for call in (
        lambda: shim.forward(a, False, largest + 1),
        lambda: shim.backward(a, a, False),
        lambda: shim.shifted_inverse(a),
    ):
        with pytest.raises(CudaError, match=r"CUDA error 1$"):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [4, 8, 16, 32, 33, 64, 65, 128])
def test_where_little_shared_memory_is_granted(shim: CudaShim, b: int, dtype: torch.dtype) -> None:
    small = shim.having(shared_bytes=48 * 1024)
    a = torch.zeros(1, b, b, dtype=dtype)
    if b <= small.forward_max_block(dtype):
        small.forward(a, False, b)
        small.shifted_inverse(a)
    if b <= small.backward_max_block(dtype):
        small.backward(a, a, False)


@pytest.mark.parametrize("b", [8, 48])
def test_errors_of_launches_are_returned(shim: CudaShim, b: int) -> None:
    a = torch.zeros(1, b, b)
    failing = shim.having(failing_launch=0)
    for call in (
        lambda: failing.forward(a, False, b),
        lambda: failing.backward(a, a, False),
        lambda: failing.shifted_inverse(a),
    ):
        with pytest.raises(CudaError, match="CUDA error 701"):
            call()
