from unittest import mock

import pytest
import torch

from hybrid_kernels import reference
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import common, householder_rotation

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Under the interpreter tiles are 16 rows by 16 columns, so these have partial tiles on every side.
SHAPES = {  # M, K, n
    "odd": (37, 45, 5),
    "one row": (1, 61, 17),
    "one reflection": (35, 33, 1),
    "whole tiles": (32, 48, 16),
    "more reflections than a tile": (19, 150, 50),
    "as many as allowed": (20, 270, 256),
}


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def random_tensors(m, k, n, dtype, factor_dtype=None):
    """x, v, z, dy; v and z of the size that the factors of a chain have."""
    generator = torch.Generator().manual_seed(m + k + n)
    scales = 1, k**-0.5, 2 * k**-0.5, 1
    shapes = (m, k), (k, n), (k, n), (m, k)
    dtypes = dtype, factor_dtype or dtype, factor_dtype or dtype, dtype
    return [
        (torch.randn(shape, generator=generator) * scale).to(DEVICE, kind)
        for shape, scale, kind in zip(shapes, scales, dtypes, strict=True)
    ]


def dense(x, v, z):
    """x (I − v zᵀ), the matrix formed: shares no step with the kernel."""
    return x @ (torch.eye(len(v), dtype=x.dtype, device=x.device) - v @ z.mT)


def plain(x, v, z):
    return x - (x @ v.to(x.dtype)) @ z.to(x.dtype).mT


def with_gradients(function, dy, *inputs):
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def check(x, v, z, dy):
    y, p = householder_rotation.forward(x, v, z)
    gradients = householder_rotation.backward(dy, x, v, z, p, True, True, True)
    expected = with_gradients(dense, dy.double(), x.double(), v.double(), z.double())
    same_dtype = with_gradients(plain, dy, x, v, z)
    assert_close_by_scale(y, expected[0], same_dtype[0], 2)
    assert_close_by_scale(p, x.double() @ v.double(), x @ v.to(x.dtype), 2)
    for actual, true, simple in zip(gradients, expected[1:], same_dtype[1:], strict=True):
        assert_close_by_scale(actual, true, simple, 3)
        assert actual.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rotation_and_its_gradients(shape, dtype):
    check(*random_tensors(*shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["more reflections than a tile"]], ids=str)
def test_factors_wider_than_the_activations(shape, dtype):
    x, v, z, dy = random_tensors(*shape, dtype, torch.float32)
    check(x, v, z, dy)
    # The factors are rounded to nearest on the way in: the same bits as with rounded factors.
    for mine, rounded in zip(
        householder_rotation.forward(x, v, z),
        householder_rotation.forward(x, v.to(dtype), z.to(dtype)),
        strict=True,
    ):
        assert torch.equal(mine, rounded)


@pytest.mark.parametrize("transpose", [False, True])
def test_it_applies_a_chain_of_reflections(transpose):
    x, u, _, _ = random_tensors(21, 40, 6, torch.float32)
    v, t = reference.householder_factors(u)
    y, _ = householder_rotation.forward(x, v, v @ (t.mT if transpose else t))
    expected = reference.householder_rotate(x.double(), u.double(), transpose)
    assert_close_by_scale(y, expected, reference.householder_rotate(x, u, transpose), 2)


def transposed(tensor):
    return tensor.mT.contiguous().mT


def spaced(tensor):
    larger = tensor.new_full([3 * size + 2 for size in tensor.shape], torch.nan)
    return larger[tuple(slice(2, None, 3) for _ in tensor.shape)].copy_(tensor)


def repeated_rows(tensor):
    return tensor[:1].expand_as(tensor)


def one_value(tensor):
    return tensor.flatten()[:1].reshape(1, 1).expand_as(tensor)


@pytest.mark.parametrize("layout", [transposed, spaced, repeated_rows, one_value])
def test_any_strides(layout):
    x, v, z, dy = random_tensors(37, 21, 5, torch.float32)
    check(layout(x), layout(v), layout(z), layout(dy))
    check(x, v, z, layout(dy))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows(dtype):
    x, v, z, dy = random_tensors(0, 20, 3, dtype)
    y, p = householder_rotation.forward(x, v, z)
    dx, dv, dz = householder_rotation.backward(dy, x, v, z, p, True, True, True)
    assert (y.shape, p.shape, dx.shape) == ((0, 20), (0, 3), (0, 20))
    assert y.dtype == p.dtype == dx.dtype == dtype
    assert torch.equal(dv, torch.zeros_like(v))
    assert torch.equal(dz, torch.zeros_like(z))


def test_only_the_needed_gradients():
    x, v, z, dy = random_tensors(37, 20, 3, torch.bfloat16, torch.float32)
    _, p = householder_rotation.forward(x, v, z)
    every = householder_rotation.backward(dy, x, v, z, p, True, True, True)
    for index, launches in enumerate((1, 2, 1)):
        needs = [position == index for position in range(3)]
        with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
            some = householder_rotation.backward(dy, x, v, z, p, *needs)
        assert len(launch.call_args_list) == launches
        assert [gradient is not None for gradient in some] == needs
        assert torch.equal(some[index], every[index])


def test_forward_is_one_launch_and_repeats_bit_for_bit():
    x, v, z, _ = random_tensors(37, 45, 5, torch.float32)
    with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        first = householder_rotation.forward(x, v, z)
    assert len(launch.call_args_list) == 1
    for mine, again in zip(first, householder_rotation.forward(x, v, z), strict=True):
        assert torch.equal(mine, again)


def test_unsupported_says_why():
    x, v, z, _ = random_tensors(2, 5, 3, torch.float32)
    assert householder_rotation.unsupported(x, v, z) is None
    assert householder_rotation.unsupported(x.half(), v, z) is None
    assert householder_rotation.unsupported(x.half(), v.half(), z.half()) is None
    why = householder_rotation.unsupported(x.double(), v.double(), z.double())
    assert why == "x is torch.float64, the kernel takes float32, float16, bfloat16"
    why = householder_rotation.unsupported(x, v.half(), z.half())
    assert why == "v is torch.float16 while x is torch.float32; it may be that or float32"
    why = householder_rotation.unsupported(x, v, z.half())
    assert why == "z is torch.float16 while x is torch.float32; it may be that or float32"
    assert householder_rotation.unsupported(x, v.to("meta"), z) == f"v is on meta while x is on {x.device}"
    wide = x.new_zeros(300, 257)
    why = householder_rotation.unsupported(x.new_zeros(2, 300), wide, wide)
    assert why == "n = 257 reflections, the kernel takes 1 to 256"
