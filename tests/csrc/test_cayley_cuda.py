"""The CUDA kernels of the Cayley transform on a GPU, against the definition. Elsewhere the same sources run on the
host: test_cayley_cuda_shim.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hybrid_kernels as hk
from hybrid_kernels import _extension, ops
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

reason = _extension.cuda_unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=f"needs a GPU and the CUDA kernels: {reason}")

OPERATORS = torch.ops.hybrid_kernels_cpp
SIZES = [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 127, 128, 129, 200, 256, 300]


@pytest.fixture(autouse=True)
def backend() -> Any:
    with hk.use_backend("cuda"):
        yield


@pytest.mark.parametrize("norm", [1e-3, 1.0, 5.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", SIZES)
def test_exact(b: int, dtype: torch.dtype, norm: float) -> None:
    packed = random_packed((max(3, 256 // b) if b <= 128 else 1,), b, dtype, norm)
    a = unpack(packed, b).requires_grad_()
    plain = definition(a)
    grad_q = random_like(plain)
    (plain_grad,) = torch.autograd.grad(plain, a, grad_q)
    plain_grad = ((plain_grad - plain_grad.mH) / 2).resolve_conj()
    exact_q, exact_grad = exact(a.detach(), grad_q)
    row, column = torch.triu_indices(b, b, 1)

    q = OPERATORS.cayley_forward(a.detach().cuda())
    assert_close_by_scale(q.cpu(), exact_q, plain.detach(), 2)
    packed_q = OPERATORS.cayley_packed_forward(packed.cuda(), b)
    assert_close_by_scale(packed_q.cpu(), exact_q, plain.detach(), 2)
    grad = OPERATORS.cayley_backward(grad_q.cuda(), q).cpu()
    assert_close_by_scale(grad, exact_grad, plain_grad, 3)
    grad_packed = OPERATORS.cayley_packed_backward(grad_q.cuda(), q).cpu()
    assert_close_by_scale(grad_packed, 2 * exact_grad[..., row, column], 2 * plain_grad[..., row, column], 3)


@pytest.mark.parametrize("norm", [0.0, 1e-4, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [2, 8, 16, 32, 64, 128, 200])
def test_large_angles(b: int, dtype: torch.dtype, norm: float) -> None:
    a = unpack(random_packed((5,), b, dtype, norm), b)
    q, plain = OPERATORS.cayley_forward(a.cuda()).cpu(), definition(a)
    assert_close_by_scale(q, exact(a, q)[0], plain, 2)
    assert orthogonality_defect(q) <= max(2 * orthogonality_defect(plain), b**0.5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("b", [3, 16, 32, 65, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_depends_on_its_own_matrix(dtype: torch.dtype, b: int) -> None:
    a = unpack(random_packed((70,), b, dtype), b).cuda()
    expected = OPERATORS.cayley_forward(a)
    mixed = a.clone()
    mixed[3] *= 1e4
    mixed[7, 0, 1] = float("nan")
    q = OPERATORS.cayley_forward(mixed)
    others = [i for i in range(70) if i not in (3, 7)]
    assert torch.equal(q[others], expected[others]) and q[7].isnan().any()
    grad_q = torch.randn_like(q[others])
    grad = OPERATORS.cayley_backward(grad_q, q[others])
    one = OPERATORS.cayley_backward(grad_q[5:6], q[others][5:6])
    assert torch.equal(grad[5:6], one) or b > 128  # there the products are torch's


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [4, 33, 150])
def test_batch_shapes_strides_and_lazy_conjugates(b: int, dtype: torch.dtype) -> None:
    for batch in [(), (1,), (2, 3), (0,), (2, 0, 3)]:
        packed = random_packed(batch, b, dtype).cuda()
        q = OPERATORS.cayley_packed_forward(packed, b)
        assert q.shape == (*batch, b, b)
        assert OPERATORS.cayley_packed_backward(q, q).shape == packed.shape
    a = unpack(random_packed((6,), b, dtype), b).cuda()
    q = OPERATORS.cayley_forward(a)
    assert torch.equal(OPERATORS.cayley_forward(a.mT.contiguous().mT), q)
    assert torch.equal(OPERATORS.cayley_forward(a.conj()), OPERATORS.cayley_forward(a.conj().resolve_conj()))
    for grad_q in (torch.ones((), dtype=dtype, device="cuda").expand(q.shape), torch.randn_like(q).mH):
        expected = OPERATORS.cayley_backward(grad_q.resolve_conj().contiguous(), q)
        assert torch.equal(OPERATORS.cayley_backward(grad_q, q.mT.contiguous().mT), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("b", [3, 17, 40, 140])
def test_gradcheck_and_opcheck(b: int, dtype: torch.dtype) -> None:
    packed = random_packed((2,), b, dtype).cuda().requires_grad_()
    full = unpack(random_packed((2,), b, dtype), b).cuda().requires_grad_()
    assert torch.autograd.gradcheck(ops.cayley_packed, (packed, b), fast_mode=True)
    assert torch.autograd.gradcheck(ops.cayley, (full,), fast_mode=True)
    if b < 20:
        torch.library.opcheck(torch.ops.hybrid_kernels.cayley_packed.default, (packed, b))
        torch.library.opcheck(torch.ops.hybrid_kernels.cayley.default, (full,))


def _forward_backward(packed: Tensor, b: int) -> tuple[Tensor, Tensor]:
    q = OPERATORS.cayley_packed_forward(packed, b)
    return q, OPERATORS.cayley_packed_backward(q + 1, q)


@pytest.mark.parametrize("b", [16, 64, 200])
def test_another_stream_and_a_captured_graph(b: int) -> None:
    packed = random_packed((40,), b, torch.float32).cuda()
    expected = _forward_backward(packed, b)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        twice = torch.mm(torch.ones(4096, 4096, device="cuda"), torch.ones(4096, 4096, device="cuda"))
        late = packed * (twice[0, 0] / 4096)  # ready only once the product before it is
        result = _forward_backward(late, b)
    stream.synchronize()
    for mine, true in zip(result, expected, strict=True):
        assert torch.equal(mine, true)
    graph, static = torch.cuda.CUDAGraph(), torch.zeros_like(packed)
    with torch.cuda.graph(graph):
        captured = _forward_backward(static, b)
    static.copy_(packed)
    graph.replay()
    for mine, true in zip(captured, expected, strict=True):
        assert torch.equal(mine, true)


def test_more_matrices_than_32_bits_count() -> None:
    b, batch = 32, 2**21 + 5  # 2³¹ elements of Q and more
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    packed = torch.zeros(batch, b * (b - 1) // 2, device="cuda")
    packed[-3:] = random_packed((3,), b, torch.float32).cuda()
    q = OPERATORS.cayley_packed_forward(packed, b)
    assert torch.equal(q[-3:], OPERATORS.cayley_packed_forward(packed[-3:], b))
    assert torch.equal(q[0], torch.eye(b, device="cuda"))
    grad = OPERATORS.cayley_packed_backward(q, q)
    assert torch.equal(grad[-3:], OPERATORS.cayley_packed_backward(q[-3:], q[-3:]))
