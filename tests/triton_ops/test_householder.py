import pytest
import torch

from hybrid_kernels import reference
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import householder

SHAPES = [(45, 1), (45, 5), (33, 16), (64, 17), (70, 50), (140, 128), (20, 33)]


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def random_reflections(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def plain_factors(u):
    norm = torch.linalg.vector_norm(u, dim=0)
    v = u / torch.where(norm > 0, norm, 1.0)
    identity = torch.eye(u.shape[1], device=u.device, dtype=u.dtype)
    return v, torch.linalg.solve_triangular(identity / 2 + (v.mT @ v).triu(1), identity, upper=True)


def product(v, t):
    return torch.eye(len(v), device=v.device, dtype=v.dtype) - v @ t @ v.mT


def check(u):
    v, t = householder.factors(u)
    expected_v, expected_t = reference.householder_factors(u.double())
    plain_v, plain_t = plain_factors(u.float())
    assert_close_by_scale(v, expected_v, plain_v, 2)
    assert_close_by_scale(t, expected_t, plain_t, 2)
    assert torch.equal(t, t.triu())
    dense = reference.householder_rotate(
        torch.eye(len(u), device=DEVICE).double(), u.double(), transpose=True
    )
    assert_close_by_scale(product(v, t), dense, product(plain_v, plain_t), 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factors(shape):
    check(random_reflections(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_factors_of_half_types(dtype):
    check(random_reflections(45, 17, dtype=dtype))


def test_any_strides():
    u = random_reflections(45, 17)
    larger = u.new_full((92, 52), torch.nan)
    for strided in u.mT.contiguous().mT, larger[1:91:2, ::3][:, :17].copy_(u), u[:, :1].expand(45, 17):
        check(strided)


def test_zero_columns_are_no_reflection():
    u = random_reflections(40, 6)
    u[:, [0, 3, 5]] = 0
    check(u)
    v, t = householder.factors(u)
    assert torch.count_nonzero(v[:, [0, 3, 5]]) == 0
    assert torch.isfinite(t).all()
    v, t = householder.factors(torch.zeros_like(u))
    assert torch.equal(product(v, t), torch.eye(40, device=DEVICE))


def test_equal_pairs_are_the_identity():
    u = random_reflections(64, 4).repeat_interleave(2, dim=1)
    v, t = householder.factors(u)
    error = torch.linalg.vector_norm(product(v, t) - torch.eye(64, device=DEVICE))
    assert error < 64 * torch.finfo(torch.float32).eps


def test_columns_of_any_scale():
    check(random_reflections(64, 20) * torch.logspace(-15, 15, 20, device=DEVICE))


def test_layers_in_one_launch():
    u = random_reflections(2, 3, 45, 5)
    v, t = householder.factors(u)
    assert (v.shape, t.shape) == ((2, 3, 45, 5), (2, 3, 5, 5))
    for layer in [(0, 0), (0, 2), (1, 1)]:
        alone_v, alone_t = householder.factors(u[layer])
        assert torch.equal(v[layer], alone_v)
        assert torch.equal(t[layer], alone_t)
    v, t = householder.factors(u[:0])
    assert (v.shape, t.shape) == ((0, 3, 45, 5), (0, 3, 5, 5))


def test_unsupported_says_why():
    assert householder.unsupported(random_reflections(10, 4)) is None
    why = householder.unsupported(random_reflections(300, 200))
    assert why == "n = 200 reflections, the kernel takes 1 to 128"
    why = householder.unsupported(random_reflections(10, 4).double())
    assert why == "u is torch.float64, the kernel takes float32, float16, bfloat16"
