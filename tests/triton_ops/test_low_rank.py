from unittest import mock

import pytest
import torch

from hybrid_kernels import reference
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import Dropout, common, low_rank, selection, skinny

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Under the interpreter tiles are 16 x 16 x 16, so these have partial tiles on every side.
SHAPES = {  # M, K, N, R
    "odd": (37, 45, 29, 5),
    "tile rows in two groups": (150, 20, 40, 3),
    "one row, split sum": (1, 330, 61, 17),
    "rank in two tiles": (19, 33, 50, 150),
    "rank 256": (20, 18, 35, 256),
    "rank 1": (35, 17, 33, 1),
    "one tile of columns": (20, 35, 9, 4),
}


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    """Memory that a launcher allocates and a kernel does not write shows as NaN in what it returns."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


@pytest.fixture
def ran(monkeypatch):
    """{operation: variant} of what runs."""
    noted = {}
    monkeypatch.setattr(
        selection, "note", lambda operation, variant, *_: noted.__setitem__(operation, variant)
    )
    return noted


def random_tensors(m, k, n, r, dtype):
    """x, weight, bias, down, up, dy"""
    generator = torch.Generator().manual_seed(m + k + n + r)
    shapes = (m, k), (n, k), (n,), (r, k), (n, r), (m, n)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def plain_dropout(x, dropout):
    """The same mask in x's dtype, scaled as plain PyTorch scales."""
    if dropout is None:
        return x
    kept = reference.seeded_dropout(torch.ones_like(x), dropout.threshold / 2**16, dropout.seed) > 0
    return x * kept / (1 - dropout.threshold / 2**16)


def plain_low_rank_add(base, x, down, up, dropout=None):
    down, up = down.to(x.dtype), up.to(x.dtype)
    r = 0 if dropout is None else dropout.dropped_rank
    p = torch.cat([plain_dropout(x, dropout) @ down[:r].mT, x @ down[r:].mT], dim=-1)
    return base + p @ up.mT


def plain_low_rank_linear(x, weight, bias, down, up, dropout=None):
    return plain_low_rank_add(torch.nn.functional.linear(x, weight, bias), x, down, up, dropout)


def with_gradients(function, dy, inputs, *options):
    """The result and the gradients with respect to the inputs, by autograd."""
    leaves = [leaf if leaf is None else leaf.detach().requires_grad_() for leaf in inputs]
    y = function(*leaves, *options)
    return [y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)]


def in_float64(function, dy, inputs, dropout):
    options = () if dropout is None else (dropout.threshold / 2**16, dropout.dropped_rank, dropout.seed)
    return with_gradients(function, dy.double(), [i if i is None else i.double() for i in inputs], *options)


def check_linear(x, weight, bias, down, up, dy, variant=None, backward=None, dropout=None):
    y, p = low_rank.forward(x, weight, bias, down, up, dropout, variant)
    dx, d_down, d_up = low_rank.backward(
        dy, x, weight, down, up, p, True, True, True, dropout, backward or variant
    )
    inputs = x, weight, bias, down, up
    expected = in_float64(reference.low_rank_linear, dy, inputs, dropout)
    plain = with_gradients(plain_low_rank_linear, dy, inputs, dropout)
    assert_close_by_scale(y, expected[0], plain[0], 2)
    if dropout is None:
        assert_close_by_scale(p, x.double() @ down.double().mT, x @ down.to(x.dtype).mT, 2)
    for actual, index in (dx, 1), (d_down, -2), (d_up, -1):
        assert_close_by_scale(actual, expected[index], plain[index], 3)
        assert actual.is_contiguous()


VARIANTS = [  # forward, and what is asked for in the backward
    ("one_pass", "fused"),
    ("epilogue", "epilogue"),
    ("addmm", "addmm"),
    ("accumulate", "accumulate"),
    ("epilogue", "separate"),
    ("addmm", "matmul"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("variants", VARIANTS, ids="-".join)
def test_linear_and_its_gradients(shape, dtype, variants, ran):
    check_linear(*random_tensors(*shape, dtype), *variants)
    asked = dict.fromkeys(selection.VARIANTS["forward"], "forward") | {"matmul": "down_gradient"}
    expected = {asked[variants[0]]: variants[0]}
    if shape[3] > low_rank.ONE_PASS_MAX_RANK and variants[0] == "one_pass":
        expected = {"forward": "epilogue"}
    if variants[1] in ("epilogue", "addmm", "accumulate"):
        expected["input_gradient"] = variants[1]
    if variants[1] == "matmul":
        expected |= {"down_gradient": "matmul", "output_gradient": "matmul"}
    if variants[1] in ("fused", "separate"):
        fits = 8 * shape[3] <= 16 * dtype.itemsize  # tiles are 16 columns wide here
        fits &= shape[2] * dtype.itemsize % 16 == 0
        expected["output_gradient"] = variants[1] if fits else "separate"
    assert expected.items() <= ran.items()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 5, 16, 17, 100])
@pytest.mark.parametrize("shape", [(37, 45), (1, 18), (150, 33), (128, 32)], ids=str)
def test_output_gradient_in_one_pass(shape, rank, dtype):
    (m, n), generator = shape, torch.Generator().manual_seed(rank)
    columns = []
    for _ in range(8):  # taken together: of a single number plain PyTorch's error is a matter of luck
        sizes = (m, n), (n, rank), (m, rank)
        dy, up, p = (torch.randn(size, generator=generator).to(DEVICE, dtype) for size in sizes)
        exact = dy.double() @ up.double(), dy.double().mT @ p.double()
        columns.append((*skinny.output_gradient(dy, up, p), *exact, dy @ up, dy.mT @ p))
    q, d_up, exact_q, exact_d_up, plain_q, plain_d_up = map(torch.stack, zip(*columns, strict=True))
    assert_close_by_scale(q, exact_q, plain_q, 2)
    assert_close_by_scale(d_up, exact_d_up, plain_d_up, 2)


@pytest.mark.parametrize("shape", [(32, 18), (18, 32), (32, 32)], ids=str)
def test_output_gradient_reads_nothing_beside_dy(shape):
    """Whole tiles in one direction, partial ones in the other, and NaN all around."""
    m, n = shape
    larger = torch.full((m + 16, n + 16), torch.nan, device=DEVICE)
    dy = larger[:m, :n].copy_(random_tensors(m, 4, n, 4, torch.float32)[-1])
    up, p = torch.ones(n, 4, device=DEVICE), torch.ones(m, 4, device=DEVICE)
    for result, truth in zip(skinny.output_gradient(dy, up, p), (dy.sum(1), dy.sum(0)), strict=True):
        torch.testing.assert_close(result, truth[:, None].expand_as(result))


@pytest.mark.parametrize("variant", selection.VARIANTS["forward"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_wider_factors_are_rounded_inside_and_have_wide_gradients(dtype, variant):
    x, weight, bias, down, up, dy = random_tensors(37, 45, 29, 5, dtype)
    down, up = (
        t.float() + 1e-4 * torch.arange(t.numel(), device=DEVICE).reshape(t.shape) for t in (down, up)
    )
    y, p = low_rank.forward(x, weight, bias, down, up, None, variant)
    narrow = low_rank.forward(x, weight, bias, down.to(dtype), up.to(dtype), None, variant)
    assert torch.equal(y, narrow[0])
    assert torch.equal(p, narrow[1])
    dx, d_down, d_up = low_rank.backward(dy, x, weight, down, up, p, True, True, True, None, variant)
    assert d_down.dtype == d_up.dtype == torch.float32
    assert_close_by_scale(d_up, dy.double().mT @ p.double(), dy.float().mT @ p.float(), 2)
    q = dy @ up.to(dtype)
    assert_close_by_scale(d_down, q.double().mT @ x.double(), q.float().mT @ x.float(), 2)
    plain = dy @ weight + q @ down.to(dtype)
    exact = dy.double() @ weight.double() + (dy.double() @ up.double()) @ down.double()
    assert_close_by_scale(dx, exact, plain, 3)


@pytest.mark.parametrize("transposed_weight", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tiles_fetched_by_descriptor(dtype, transposed_weight, monkeypatch):
    """Odd rows; features that are no multiple of the tile, but of the 16 bytes a descriptor asks for."""
    tiles = common.Tiles(16, 16, 16, 1, 1, descriptors=True)
    monkeypatch.setitem(low_rank.MATMUL_TILES, "interpreter", dict.fromkeys(("half", "tf32", "ieee"), tiles))
    monkeypatch.setitem(low_rank.SMALL_MATMUL_TILES, "interpreter", low_rank.MATMUL_TILES["interpreter"])
    x, weight, bias, down, up, dy = random_tensors(37, 56, 40, 5, dtype)
    if transposed_weight:
        weight = transposed(weight)
    with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        check_linear(x, weight, bias, down, up, dy, "epilogue")
    flags = [call.kwargs["DESCRIPTORS"] for call in launch.call_args_list if "DESCRIPTORS" in call.kwargs]
    assert flags == [True, True]
    with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        check_linear(x[:, 1:], weight[:, 1:], bias, down[:, 1:], up, dy, "epilogue")  # 16-byte rows no more
    flags = [call.kwargs["DESCRIPTORS"] for call in launch.call_args_list if "DESCRIPTORS" in call.kwargs]
    assert flags[0] is False


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["rank in two tiles"]], ids=str)
def test_add_and_its_gradients(shape, dtype):
    x, _, _, down, up, dy = random_tensors(*shape, dtype)
    base = torch.randn_like(dy)
    for dropout in (None, Dropout(min(shape[3], 20), 20000, torch.tensor(7, device=DEVICE))):
        y, p = low_rank.add_forward(base, x, down, up, dropout)
        gradients = low_rank.backward(dy, x, None, down, up, p, True, True, True, dropout)
        expected = in_float64(reference.low_rank_add, dy, (base, x, down, up), dropout)
        plain = with_gradients(plain_low_rank_add, dy, (base, x, down, up), dropout)
        assert_close_by_scale(y, expected[0], plain[0], 2)
        for actual, gradient, plain_gradient in zip(gradients, expected[2:], plain[2:], strict=True):
            assert_close_by_scale(actual, gradient, plain_gradient, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", selection.VARIANTS["forward"])
@pytest.mark.parametrize("dropped", [1, 3, 7, 16, 20])
def test_dropout(dropped, variant, dtype):
    """Of no row, part of the rows, a whole tile and all rows of down; 37 · 45 elements in partial tiles."""
    dropout = Dropout(dropped, 22000, torch.tensor(2**62 + 12345, device=DEVICE))
    check_linear(*random_tensors(37, 45, 29, 20, dtype), variant, dropout=dropout)


def test_dropout_of_long_sums_and_one_row():
    for shape in (150, 9, 7, 3), (1, 330, 61, 17):
        dropout = Dropout(2, 30000, torch.tensor(-5, device=DEVICE))
        check_linear(*random_tensors(*shape, torch.float32), dropout=dropout)


def test_dropped_elements_have_no_gradient():
    x, weight, _, down, up, dy = random_tensors(20, 24, 16, 4, torch.float32)
    dropout = Dropout(4, 32768, torch.tensor(1, device=DEVICE))
    _, p = low_rank.forward(x, weight, None, down, up, dropout)
    dx, _, _ = low_rank.backward(dy, x, None, down, up, p, True, False, False, dropout)
    dropped = reference.seeded_dropout(torch.ones_like(x), 0.5, dropout.seed) == 0
    assert 0.3 < dropped.double().mean() < 0.7
    assert torch.equal(dx == 0, dropped)


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


@pytest.mark.parametrize("variants", VARIANTS[:-1], ids="-".join)  # the last one's strides are ATen's affair
@pytest.mark.parametrize("layout", [transposed, spaced, repeated_rows, one_value])
def test_any_strides(layout, variants):
    x, weight, bias, down, up, dy = random_tensors(37, 21, 35, 5, torch.float32)
    check_linear(layout(x), layout(weight), layout(bias), layout(down), layout(up), layout(dy), *variants)
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
    assert low_rank.unsupported(x, weight, down, up.half()) is None
    why = low_rank.unsupported(x, weight.half(), down, up)
    assert why == "weight is torch.float16 while x is torch.float32"
    why = low_rank.unsupported(x, weight, down, up.double())
    assert why == "up is torch.float64, the kernel takes float32, float16, bfloat16"
    assert low_rank.unsupported(x, weight, down, up.to("meta")) == f"up is on meta while x is on {x.device}"
    meta = [tensor.to("meta") for tensor in (x, weight, down, up)]
    assert low_rank.unsupported(*meta) == "tensors are on meta"
    why = low_rank.unsupported(x, weight, down.new_zeros(65, 5), up.new_zeros(7, 65), "one_pass")
    assert why == "rank = 65, variant 'one_pass' takes 1 to 64"
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
