"""The compiled operators ``torch.ops.hybrid_kernels_cpp.*`` against the definition of the Cayley transform."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_kernels import _extension
from tests.csrc.cayley_support import (
    DTYPES,
    definition,
    exact,
    orthogonality_defect,
    random_like,
    random_packed,
    unpack,
)
from tests.support import assert_close_by_scale

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=str(_extension.load()))

SIZES = [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 128]
OPERATORS = torch.ops.hybrid_kernels_cpp


class Cayley(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed_block_size: int | None) -> Tensor:
        packed = packed_block_size is not None
        q = OPERATORS.cayley_packed_forward(x, packed_block_size) if packed else OPERATORS.cayley_forward(x)
        ctx.save_for_backward(q)
        ctx.packed = packed
        return q

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor) -> tuple[Tensor, None]:
        (q,) = ctx.saved_tensors
        backward = OPERATORS.cayley_packed_backward if ctx.packed else OPERATORS.cayley_backward
        return backward(grad_q, q), None


@pytest.mark.parametrize("norm", [1e-3, 1.0, 5.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", SIZES)
def test_exact(b: int, dtype: torch.dtype, norm: float) -> None:
    packed = random_packed((max(3, 256 // b),), b, dtype, norm).requires_grad_()
    a = unpack(packed, b)
    plain = definition(a)
    grad_q = random_like(plain)
    exact_q, exact_grad = exact(a.detach(), grad_q)

    q = OPERATORS.cayley_forward(a.detach())
    assert_close_by_scale(q, exact_q, plain.detach(), 2)
    assert_close_by_scale(OPERATORS.cayley_packed_forward(packed.detach(), b), exact_q, plain.detach(), 2)

    plain_grad, plain_grad_packed = torch.autograd.grad(plain, (a, packed), grad_q)
    plain_grad = (plain_grad - plain_grad.mH) / 2
    row, column = torch.triu_indices(b, b, 1)
    assert_close_by_scale(OPERATORS.cayley_backward(grad_q, q), exact_grad, plain_grad.resolve_conj(), 3)
    grad_packed = OPERATORS.cayley_packed_backward(grad_q, q)
    assert_close_by_scale(grad_packed, 2 * exact_grad[..., row, column], plain_grad_packed, 3)


def test_long_sums_are_split() -> None:
    """256 products a sum, twice: added one after the other they miss the bound."""
    results = []
    for dtype in (torch.complex64, torch.complex128):
        a = unpack(random_packed((1,), 256, torch.complex64, 1e-3), 256).to(dtype).requires_grad_()
        grad_q = random_like(a.detach().to(torch.complex64)).to(dtype)
        (grad,) = torch.autograd.grad(definition(a), a, grad_q)
        results.append(((grad - grad.mH) / 2).resolve_conj())
    q = OPERATORS.cayley_forward(a.detach().to(torch.complex64))
    grad = OPERATORS.cayley_backward(grad_q.to(torch.complex64), q)
    assert_close_by_scale(grad, results[1], results[0], 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("b", [1, 2, 3, 5, 8, 17, 18])
def test_gradcheck(b: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, b, b, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(Cayley.apply, (x, None), fast_mode=b > 8)
    packed = random_packed((2,), b, dtype).requires_grad_()
    assert torch.autograd.gradcheck(Cayley.apply, (packed, b), fast_mode=b > 8)


def test_packing_is_row_by_row() -> None:
    values = torch.tensor([0.1 + 1j, 0.2, 0.3, 0.4, 0.5, 0.6 - 2j], dtype=torch.complex128)
    a, b, c, d, e, f = values.tolist()
    rows = [[0, a, b, c], [-a.conjugate(), 0, d, e], [-b, -d, 0, f], [-c, -e, -f.conjugate(), 0]]
    expected = definition(torch.tensor(rows, dtype=torch.complex128))
    torch.testing.assert_close(OPERATORS.cayley_packed_forward(values, 4), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [3, 16, 20])
def test_only_the_skew_part_counts(b: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, b, b, dtype=dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(OPERATORS.cayley_forward(x), definition((x - x.mH) / 2))


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 5), (0,), (4, 1), (2, 0, 3)])
@pytest.mark.parametrize("b", [1, 3, 8, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_shapes(dtype: torch.dtype, b: int, batch: tuple[int, ...]) -> None:
    packed = random_packed(batch, b, dtype)
    q = OPERATORS.cayley_packed_forward(packed, b)
    grad_q = random_like(q)
    grad_packed = OPERATORS.cayley_packed_backward(grad_q, q)
    assert q.shape == (*batch, b, b) and grad_packed.shape == packed.shape
    a = unpack(packed, b)
    assert torch.equal(OPERATORS.cayley_forward(a), q)
    grad = OPERATORS.cayley_backward(grad_q, q)
    assert grad.shape == a.shape
    # One matrix at a time gives the same bits.
    singles = zip(q.view(-1, b, b), a.view(-1, b, b), grad_q.view(-1, b, b), grad.view(-1, b, b), strict=True)
    for one_q, one_a, one_grad_q, one_grad in singles:
        assert torch.equal(OPERATORS.cayley_forward(one_a), one_q)
        assert torch.equal(OPERATORS.cayley_backward(one_grad_q, one_q), one_grad)


@pytest.mark.parametrize("b", [4, 17])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_lazy_conjugates(dtype: torch.dtype, b: int) -> None:
    a = unpack(random_packed((6,), b, dtype), b)
    strided = torch.zeros(b, 12, 2 * b, dtype=dtype)[:, ::2, ::2].permute(1, 2, 0).copy_(a)
    assert not strided.is_contiguous()
    q = OPERATORS.cayley_forward(a)
    assert torch.equal(OPERATORS.cayley_forward(strided), q)
    assert torch.equal(OPERATORS.cayley_forward(a.conj()), OPERATORS.cayley_forward(a.conj().resolve_conj()))
    packed = random_packed((6,), b, dtype)
    column_major = packed.T.contiguous().T
    expected = OPERATORS.cayley_packed_forward(packed, b)
    assert torch.equal(OPERATORS.cayley_packed_forward(column_major, b), expected)
    for grad_q in (torch.ones((), dtype=dtype).expand(q.shape), random_like(q).mH):
        expected = OPERATORS.cayley_backward(grad_q.resolve_conj().contiguous(), q)
        assert torch.equal(OPERATORS.cayley_backward(grad_q, q), expected)
        assert torch.equal(OPERATORS.cayley_backward(grad_q, q.mT.contiguous().mT), expected)


@pytest.mark.parametrize("norm", [0.0, 1e-4, 1.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [2, 3, 8, 15, 16, 33, 64])
def test_large_angles(b: int, dtype: torch.dtype, norm: float) -> None:
    """As exact and as orthogonal as torch.linalg.solve, which pivots."""
    a = unpack(random_packed((16,), b, dtype, norm), b)
    q, plain = OPERATORS.cayley_forward(a), definition(a)
    assert_close_by_scale(q, exact(a, q)[0], plain, 2)

    allowed = max(2 * orthogonality_defect(plain), b**0.5 * torch.finfo(dtype).eps)
    assert orthogonality_defect(q) <= allowed


@pytest.mark.parametrize("b", [3, 8, 16, 17])
def test_neighbours_do_not_touch_each_other(b: int) -> None:
    """Matrices that share registers: a large one is computed another way, one with NaN stays NaN, alone."""
    a = unpack(random_packed((16,), b, torch.float32), b)
    expected = OPERATORS.cayley_forward(a)
    mixed = a.clone()
    mixed[3] *= 1e4
    mixed[7, 0, 1] = float("nan")
    q = OPERATORS.cayley_forward(mixed)
    others = [i for i in range(16) if i not in (3, 7)]
    assert torch.equal(q[others], expected[others])
    assert q[7].isnan().any()
    torch.testing.assert_close(q[3], definition(mixed[3]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("b", [1, 4, 16, 17, 40])
def test_same_bits_with_two_threads(b: int) -> None:
    a = unpack(random_packed((2500 if b < 17 else 301,), b, torch.float32), b)
    grad_q = random_like(a)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        q = OPERATORS.cayley_forward(a)
        results.append((q, OPERATORS.cayley_backward(grad_q, q), OPERATORS.cayley_packed_backward(grad_q, q)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set on this architecture"
)
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str) -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    command += ["-k", "test_neighbours or (test_exact and not (64 or 65 or 128))"]
    root = Path(__file__).parents[2]
    child = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stdout + child.stderr


ANY = torch.zeros(2, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: OPERATORS.cayley_forward(torch.zeros(3)),
            ValueError,
            r"skew must have shape \(\.\.\., block_size",
        ),
        (lambda: OPERATORS.cayley_forward(torch.zeros(2, 3, 4)), ValueError, r"skew must .*got \[2, 3, 4\]"),
        (lambda: OPERATORS.cayley_forward(torch.zeros(2, 0, 0)), ValueError, r"skew must .*block_size >= 1"),
        (lambda: OPERATORS.cayley_forward(ANY.half()), TypeError, r"skew must be float32, .* got Half"),
        (lambda: OPERATORS.cayley_forward(ANY.int()), TypeError, r"skew must be float32, .* got Int"),
        (lambda: OPERATORS.cayley_packed_forward(ANY.bfloat16(), 3), TypeError, r"packed must be float32"),
        (
            lambda: OPERATORS.cayley_packed_forward(ANY, 4),
            ValueError,
            r"packed must .*\(\.\.\., 6\) .*got \[2, 3, 3\]",
        ),
        (lambda: OPERATORS.cayley_packed_forward(torch.zeros(()), 1), ValueError, r"packed must have shape"),
        (
            lambda: OPERATORS.cayley_packed_forward(ANY, 0),
            ValueError,
            r"block_size must be at least 1, got 0",
        ),
        (lambda: OPERATORS.cayley_backward(ANY, ANY[:1]), ValueError, r"grad_q must have the shape of q"),
        (lambda: OPERATORS.cayley_backward(ANY.double(), ANY), TypeError, r"grad_q must have the dtype of q"),
        (lambda: OPERATORS.cayley_backward(ANY[..., 0], ANY[..., 0]), ValueError, r"q must have shape"),
        (lambda: OPERATORS.cayley_packed_backward(ANY.half(), ANY.half()), TypeError, r"q must be float32"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_another_device() -> None:
    """Whose memory the kernels cannot read; torch takes the kernels of either device."""
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with pytest.raises(TypeError, match=r"grad_q must be on the device of q, cpu, got meta"):
        OPERATORS.cayley_backward.default.redispatch(cpu, ANY.to("meta"), ANY)
