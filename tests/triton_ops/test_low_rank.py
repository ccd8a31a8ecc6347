from unittest import mock

import pytest
import torch

from hybrid_kernels import reference
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import common, low_rank

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Under the interpreter tiles are 16 x 16 x 16, so these have partial tiles on every side.
SHAPES = {  # M, K, N, R
    "odd": (37, 45, 29, 5),
    "tile rows in two groups": (150, 20, 40, 3),
    "one row, split sum": (1, 330, 61, 17),
    "rank in two tiles": (19, 33, 50, 150),
    "rank 256": (20, 18, 35, 256),
    "rank 1": (35, 17, 33, 1),
}


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    """Memory that a launcher allocates and a kernel does not write shows as NaN in what it returns."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def random_tensors(m, k, n, r, dtype):
    """x, weight, bias, down, up, dy"""
    generator = torch.Generator().manual_seed(m + k + n + r)
    shapes = (m, k), (n, k), (n,), (r, k), (n, r), (m, n)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def plain_low_rank_linear(x, weight, bias, down, up):
    return torch.nn.functional.linear(x, weight, bias) + x @ down.mT @ up.mT


def plain_low_rank_add(base, x, down, up):
    return base + x @ down.mT @ up.mT


def with_gradients(function, dy, *inputs):
    """The result and the gradients with respect to the inputs, by autograd."""
    leaves = [leaf if leaf is None else leaf.detach().requires_grad_() for leaf in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)]


def in_float64(function, dy, *inputs):
    return with_gradients(function, dy.double(), *(i if i is None else i.double() for i in inputs))


def check_linear(x, weight, bias, down, up, dy):
    y, p = low_rank.forward(x, weight, bias, down, up)
    dx, d_down, d_up = low_rank.backward(dy, x, weight, down, up, p, True, True, True)
    inputs = x, weight, bias, down, up
    expected = in_float64(reference.low_rank_linear, dy, *inputs)
    plain = with_gradients(plain_low_rank_linear, dy, *inputs)
    assert_close_by_scale(y, expected[0], plain[0], 2)
    assert_close_by_scale(p, x.double() @ down.double().mT, x @ down.mT, 2)
    for actual, index in (dx, 1), (d_down, -2), (d_up, -1):
        assert_close_by_scale(actual, expected[index], plain[index], 3)
        assert actual.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_linear_and_its_gradients(shape, dtype):
    check_linear(*random_tensors(*shape, dtype))


def test_linear_without_bias():
    x, weight, _, down, up, dy = random_tensors(21, 19, 18, 4, torch.float32)
    check_linear(x, weight, None, down, up, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["rank in two tiles"]], ids=str)
def test_add_and_its_gradients(shape, dtype):
    x, _, _, down, up, dy = random_tensors(*shape, dtype)
    base = torch.randn_like(dy)
    y, p = low_rank.add_forward(base, x, down, up)
    gradients = low_rank.backward(dy, x, None, down, up, p, True, True, True)
    expected = in_float64(reference.low_rank_add, dy, base, x, down, up)
    plain = with_gradients(plain_low_rank_add, dy, base, x, down, up)
    assert_close_by_scale(y, expected[0], plain[0], 2)
    for actual, gradient, plain_gradient in zip(gradients, expected[2:], plain[2:], strict=True):
        assert_close_by_scale(actual, gradient, plain_gradient, 3)


def transposed(tensor):
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


def spaced(tensor):
    """The same values, every dimension strided and offset in a larger tensor of NaN."""
    larger = tensor.new_full([3 * size + 2 for size in tensor.shape], torch.nan)
    view = larger[tuple(slice(2, None, 3) for _ in tensor.shape)]
    return view.copy_(tensor)


def repeated_rows(tensor):
    return tensor[:1].expand_as(tensor)


def one_value(tensor):
    """What the gradient of a sum or of a mean is: every stride 0."""
    return tensor.flatten()[:1].reshape([1] * tensor.ndim).expand_as(tensor)


@pytest.mark.parametrize("layout", [transposed, spaced, repeated_rows, one_value])
def test_any_strides(layout):
    x, weight, bias, down, up, dy = random_tensors(37, 21, 35, 5, torch.float32)
    check_linear(layout(x), layout(weight), layout(bias), layout(down), layout(up), layout(dy))
    base = layout(torch.randn_like(dy))
    y, _ = low_rank.add_forward(base, layout(x), layout(down), layout(up))
    inputs = base, layout(x), layout(down), layout(up)
    expected = reference.low_rank_add(*(i.double() for i in inputs))
    assert_close_by_scale(y, expected, plain_low_rank_add(*inputs), 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows(dtype):
    x, weight, bias, down, up, dy = random_tensors(0, 20, 18, 3, dtype)
    y, p = low_rank.forward(x, weight, bias, down, up)
    dx, d_down, d_up = low_rank.backward(dy, x, weight, down, up, p, True, True, True)
    assert (y.shape, p.shape, dx.shape) == ((0, 18), (0, 3), (0, 20))
    assert y.dtype == p.dtype == dx.dtype == dtype
    assert torch.equal(d_down, torch.zeros_like(down))
    assert torch.equal(d_up, torch.zeros_like(up))
    assert low_rank.add_forward(y, x, down, up)[0].shape == (0, 18)


def test_only_the_needed_gradients():
    x, weight, bias, down, up, dy = random_tensors(5, 20, 18, 3, torch.float32)
    _, p = low_rank.forward(x, weight, bias, down, up)
    every = low_rank.backward(dy, x, weight, down, up, p, True, True, True)
    for index in range(3):
        needs = [position == index for position in range(3)]
        some = low_rank.backward(dy, x, weight, down, up, p, *needs)
        assert [gradient is not None for gradient in some] == needs
        assert torch.equal(some[index], every[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_sums_are_split_and_repeat_bit_for_bit(dtype):
    x, weight, bias, down, up, dy = random_tensors(150, 9, 7, 3, dtype)
    with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        _, p = low_rank.forward(x, weight, bias, down, up)
        first = low_rank.backward(dy, x, weight, down, up, p, False, True, True)
    splits = [call.args[1][1] for call in launch.call_args_list if len(call.args[1]) == 2]
    assert max(splits) > 1, "no sum was split: the shape of this test no longer reaches the partial sums"
    second = low_rank.backward(dy, x, weight, down, up, p, False, True, True)
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])
    check_linear(x, weight, bias, down, up, dy)


def test_unsupported_says_why():
    x, weight, _, down, up, _ = random_tensors(2, 5, 7, 3, torch.float32)
    assert low_rank.unsupported(x, weight, down, up) is None
    assert low_rank.unsupported(x, None, down, up) is None
    why = low_rank.unsupported(x.double(), weight.double(), down.double(), up.double())
    assert why == "x is torch.float64, the kernel takes float32, float16, bfloat16"
    assert low_rank.unsupported(x, weight, down, up.half()) == "up is torch.float16 while x is torch.float32"
    assert low_rank.unsupported(x, weight, down, up.to("meta")) == f"up is on meta while x is on {x.device}"
    meta = [tensor.to("meta") for tensor in (x, weight, down, up)]
    assert low_rank.unsupported(*meta) == "tensors are on meta"
    for rank in 0, 257:
        why = low_rank.unsupported(x, weight, down.new_zeros(rank, 5), up.new_zeros(7, rank))
        assert why == f"rank = {rank}, the kernel takes 1 to 256"


def test_cpu_tensors_need_the_interpreter(monkeypatch):
    import triton.language as tl

    tensors = [tensor.cpu() for tensor in random_tensors(2, 5, 7, 3, torch.float32)]
    x, weight, _, down, up, _ = tensors
    monkeypatch.setattr(common, "INTERPRETED", tl.constexpr(False))
    why = low_rank.unsupported(x, weight, down, up)
    assert why == "tensors are on cpu, and TRITON_INTERPRET was not set before triton was imported"
