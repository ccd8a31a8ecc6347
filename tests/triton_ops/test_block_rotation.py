from unittest import mock

import pytest
import torch

from hybrid_kernels import functional, reference, use_backend
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import block_rotation, common

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Under the interpreter tiles are 16 x 16 x 16: three blocks of 5 are packed into one and leave a partial group, blocks
# of more than 16 are cut into tiles and chunks with partial ones, and so are the rows.
SHAPES = [  # M, k, b
    (37, 35, 1),
    (19, 21, 2),
    (20, 7, 4),
    (17, 8, 5),
    (1, 4, 5),
    (33, 3, 16),
    (35, 4, 24),
    (18, 3, 33),
    (5, 1, 64),
    (21, 2, 100),
    (3, 2, 128),
    (17, 1, 256),
]


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    """Memory that a launcher allocates and a kernel does not write shows as NaN in what it returns."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def random_tensors(m, k, b, r, dtype, wide=torch.float32):
    """x, q, down, dxr, dp; the factors q and down in another dtype, as a rule a wider one"""
    generator = torch.Generator().manual_seed(m + k + b + r)
    shapes = ((m, k * b), dtype), ((k, b, b), wide), ((r, k * b), wide), ((m, k * b), dtype), ((m, r), dtype)
    return [torch.randn(shape, generator=generator).to(DEVICE, kind) for shape, kind in shapes]


def plain_block_rotate(x, q):
    return torch.bmm(x.unflatten(-1, q.shape[:2]).transpose(0, 1), q.to(x.dtype)).transpose(0, 1).flatten(1)


def plain_rotate_project(x, q, down):
    xr = plain_block_rotate(x, q)
    return xr, xr @ down.to(x.dtype).mT


def with_gradients(function, gradients, *inputs):
    """The results and the gradients with respect to the inputs, by autograd."""
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    return [*(r.detach() for r in results), *torch.autograd.grad(results, leaves, gradients)]


def reference_rotate_project(x, q, down):
    xr = reference.block_rotate(x, q)
    return xr, xr @ down.mT


def in_float64(function, gradients, *inputs):
    return with_gradients(function, [g.double() for g in gradients], *(i.double() for i in inputs))


def check_rotation(x, q, dy):
    y, dx = block_rotation.rotate(x, q), block_rotation.rotate(dy, q.mT)
    dq = block_rotation.weight_gradient(x, dy, q)
    expected = in_float64(reference.block_rotate, [dy], x, q)
    plain = with_gradients(plain_block_rotate, [dy], x, q)
    assert dq.dtype == q.dtype
    assert_close_by_scale(y, expected[0], plain[0], 2)
    assert_close_by_scale(dx, expected[1], plain[1], 3)
    assert_close_by_scale(dq, expected[2], plain[2], 3)
    assert y.is_contiguous() and dx.is_contiguous() and dq.is_contiguous()


def kernels_with_gradients(dxr, dp, x, q, down):
    """What the kernels give, the two products with dp in plain PyTorch."""
    xr, p = block_rotation.rotate_project(x, q, down)
    total = torch.addmm(dxr, dp, down.to(dp.dtype))
    d_down = (dp.mT @ xr).to(down.dtype)
    return [xr, p, block_rotation.rotate(total, q.mT), block_rotation.weight_gradient(x, total, q), d_down]


def check_projection(x, q, down, dxr, dp):
    actual = kernels_with_gradients(dxr, dp, x, q, down)
    expected = in_float64(reference_rotate_project, [dxr, dp], x, q, down)
    plain = with_gradients(plain_rotate_project, [dxr, dp], x, q, down)
    for index, (mine, true, simple) in enumerate(zip(actual, expected, plain, strict=True)):
        assert_close_by_scale(mine, true, simple, 2 if index < 2 else 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotation_and_its_gradients(shape, dtype):
    x, q, _, dy, _ = random_tensors(*shape, 1, dtype)
    check_rotation(x, q, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b", [5, 24])
def test_float32_sums_of_the_gradient_of_float32_blocks(b, dtype):
    """As exact as the products of x and dy, which float32 holds, not as half types are."""
    x, q, _, dy, _ = random_tensors(150, 3, b, 1, dtype)
    dq = block_rotation.weight_gradient(x, dy, q)
    expected = in_float64(reference.block_rotate, [dy], x, q)[2]
    plain = with_gradients(plain_block_rotate, [dy.float()], x.float(), q)[2]
    assert_close_by_scale(dq, expected, plain, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_in_other_dtypes_than_x(dtype):
    for other in DTYPES:
        x, q, down, dxr, dp = random_tensors(20, 3, 5, 4, dtype, other)
        check_rotation(x, q, dxr)
        check_projection(x, q, down, dxr, dp)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("r", [3, 65])
def test_wider_factors_are_rounded_as_plain_pytorch_rounds(r, dtype):
    x, q, down, _, _ = random_tensors(20, 7, 5, r, dtype)
    xr, p = block_rotation.rotate_project(x, q, down)
    rounded_xr, rounded_p = block_rotation.rotate_project(x, q.to(dtype), down.to(dtype))
    assert torch.equal(xr, rounded_xr) and torch.equal(p, rounded_p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r", [1, 5, 17, 64, 65, 150, 256])
@pytest.mark.parametrize("shape", [(19, 7, 5), (18, 3, 24)], ids=str)
def test_projection_and_its_gradients(shape, r, dtype):
    check_projection(*random_tensors(*shape, r, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_projection_of_every_block_size(shape):
    x, q, down, _, _ = random_tensors(*shape, 3, torch.float16)
    xr, p = block_rotation.rotate_project(x, q, down)
    expected = reference_rotate_project(x.double(), q.double(), down.double())
    plain = plain_rotate_project(x, q, down)
    assert_close_by_scale(xr, expected[0], plain[0], 2)
    assert_close_by_scale(p, expected[1], plain[1], 2)
    assert torch.equal(xr, block_rotation.rotate(x, q))
    # p is that of xr as it is stored
    assert_close_by_scale(p, xr.double() @ down.half().double().mT, xr @ down.half().mT, 2)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the tiles are those of the interpreter")
@pytest.mark.parametrize(("k", "b", "programs"), [(7, 5, 3), (35, 1, 3), (2, 16, 2), (2, 24, 4)])
def test_small_blocks_share_a_tile(k, b, programs):
    x, q, _, _, _ = random_tensors(16, k, b, 1, torch.float32)
    with mock.patch.object(common, "launch") as launch:
        block_rotation.rotate(x, q)
        block_rotation.weight_gradient(x, x, q)
    grids = [call.args[1] for call in launch.call_args_list]
    assert grids[0] == (programs,)
    assert grids[1][0] == programs * -(-b // 16)


@pytest.mark.parametrize(
    ("r", "kernels"),
    [(64, ["rotate_project_kernel"]), (65, ["rotate_kernel", "skinny_matmul_kernel"])],
)
def test_the_projection_is_fused_up_to_a_rank(r, kernels):
    x, q, down, _, _ = random_tensors(16, 3, 5, r, torch.float32)
    with mock.patch.object(common, "launch") as launch:
        block_rotation.rotate_project(x, q, down)
    assert [call.args[0].__name__ for call in launch.call_args_list] == kernels


def transposed(tensor):
    return tensor.mT.contiguous().mT


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
@pytest.mark.parametrize("shape", [(37, 5, 5), (21, 2, 33)], ids=str)
def test_any_strides(shape, layout):
    x, q, down, dxr, dp = (layout(tensor) for tensor in random_tensors(*shape, 5, torch.float32))
    check_rotation(x, q, dxr)
    check_projection(x, q, down, dxr, dp)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows(dtype):
    for r in 3, 150:
        x, q, down, dxr, dp = random_tensors(0, 3, 5, r, dtype)
        assert block_rotation.rotate(x, q).shape == (0, 15)
        assert torch.equal(block_rotation.weight_gradient(x, dxr, q), torch.zeros_like(q))
        xr, p = block_rotation.rotate_project(x, q, down)
        assert (xr.shape, p.shape) == ((0, 15), (0, r))
        assert xr.dtype == p.dtype == dtype
        assert not any(gradient.any() for gradient in kernels_with_gradients(dxr, dp, x, q, down)[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_sums_are_split_and_repeat_bit_for_bit(dtype):
    rows = random_tensors(150, 3, 5, 3, dtype)
    columns = random_tensors(3, 50, 5, 3, dtype)
    for tensors, run in (
        (rows, lambda: block_rotation.weight_gradient(rows[0], rows[3], rows[1])),
        (columns, lambda: block_rotation.rotate_project(*columns[:3])[1]),
    ):
        with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
            first = run()
        (call,) = launch.call_args_list
        assert call.args[1][1] > 1, (
            "no sum was split: the shape of this test no longer reaches the partial sums"
        )
        assert torch.equal(first, run())
        check_rotation(tensors[0], tensors[1], tensors[3])
        check_projection(*tensors)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the tiles are those of the interpreter")
def test_a_program_writes_its_own_columns_alone():
    """The interpreter runs one program after another, so that the last to write would hide a race for the memory."""

    def launch_one(kernel, grid, *args, **meta):
        assert grid[0] > 1
        launch(kernel, (1, 1), *args, **meta)

    launch = common.launch
    x, q, down, dy, _ = random_tensors(20, 70, 5, 3, torch.float32)
    with mock.patch.object(common, "launch", launch_one):
        y = block_rotation.rotate(x, q)
        dq = block_rotation.weight_gradient(x, dy, q)
        xr, _ = block_rotation.rotate_project(x, q, down)
    columns = int(xr[0].isfinite().sum())
    assert columns % 15 == 0 and columns < 350, "whole groups, and not all of them"
    for result, written in (y, y[:16, :15]), (dq, dq[:3]), (xr, xr[:16, :columns]):
        assert written.isfinite().all()
        assert result.isfinite().sum() == written.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_block_rotate_on_triton(dtype):
    """functional.block_rotate of three dimensions, whose blocks and their gradient stay float32."""
    x, q, _, dy, _ = (tensor.requires_grad_() for tensor in random_tensors(12, 7, 5, 1, dtype))
    folded = x.view(3, 4, 35)
    with use_backend("triton"), mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        y = functional.block_rotate(folded, q)
        dx, dq = torch.autograd.grad(y, (x, q), dy.view(3, 4, 35))
    kernels = [call.args[0].__name__ for call in launch.call_args_list]
    assert kernels == ["rotate_kernel", "rotate_kernel", "block_gradient_kernel"]
    assert y.shape == folded.shape and y.dtype == dtype and dq.dtype == torch.float32
    assert torch.equal(dq, block_rotation.weight_gradient(x, dy, q)), "rounded on its way"
    expected = in_float64(reference.block_rotate, [dy], x, q)
    plain = with_gradients(plain_block_rotate, [dy], x, q)
    assert_close_by_scale(y.flatten(0, 1), expected[0], plain[0], 2)
    assert_close_by_scale(dx, expected[1], plain[1], 3)
    assert_close_by_scale(dq, expected[2], plain[2], 3)


BUTTERFLIES = [(20, 2, 6, 2), (17, 3, 12, 4), (35, 2, 2, 10), (19, 3, 4, 24), (3, 2, 2, 64), (150, 2, 4, 6)]


def butterfly_tensors(m, levels, k, b, dtype):
    x, _, _, dy, _ = random_tensors(m, k, b, 1, dtype)
    q = torch.randn(levels, k, b, b, generator=torch.Generator().manual_seed(levels)).to(DEVICE)
    return x, q, dy


@pytest.mark.parametrize("layout", ["contiguous", "any strides"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", BUTTERFLIES, ids=str)
def test_butterfly_and_its_gradients(shape, dtype, layout):
    """Blocks packed into a tile and cut into several, in partial groups; every level a launch, and no copy between."""
    x, q, dy = butterfly_tensors(*shape, dtype)
    if layout == "any strides":
        x, q, dy = spaced(x), q.mT, one_value(dy)
    leaves = [leaf.detach().requires_grad_() for leaf in (x, q)]
    with use_backend("triton"):
        y = functional.butterfly_rotate(*leaves)
        mine = [y.detach(), *torch.autograd.grad(y, leaves, dy)]
    with use_backend("eager"):
        plain = with_gradients(functional.butterfly_rotate, [dy], x, q)
    expected = in_float64(reference.butterfly_rotate, [dy], x, q)
    for index, (actual, true, simple) in enumerate(zip(mine, expected, plain, strict=True)):
        assert_close_by_scale(actual, true, simple, 3 if index else 2)


def test_a_butterfly_is_a_launch_a_level():
    x, q, dy = butterfly_tensors(20, 3, 4, 6, torch.float32)
    with use_backend("triton"), mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        x.requires_grad_()
        y = functional.butterfly_rotate(x, q)
        torch.autograd.grad(y, x, dy)
    levels = [(call.args[0].__name__, call.kwargs["LEVEL"]) for call in launch.call_args_list]
    assert levels == [("rotate_kernel", level) for level in (2, 1, 0, 0, 1, 2)]


def test_only_the_needed_gradients():
    """Frozen blocks cost no gradient of blocks, a frozen input no rotation of the gradient."""
    x, q, down, _, up = random_tensors(6, 3, 5, 4, torch.float32)
    weight, up = torch.randn(6, 15, device=DEVICE), up.contiguous()
    used = {"x": ["rotate_kernel"], "q": ["block_gradient_kernel"], "down": []}
    for needed, expected in used.items():
        leaves = {name: t.detach() for name, t in (("x", x), ("q", q), ("down", down))}
        leaves[needed].requires_grad_()
        with use_backend("triton"):
            y = functional.rotated_low_rank_linear(leaves["x"], leaves["q"], weight, None, leaves["down"], up)
            with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
                torch.autograd.grad(y.sum(), leaves[needed])
        kernels = [call.args[0].__name__ for call in launch.call_args_list]
        assert [name for name in kernels if name in ("rotate_kernel", "block_gradient_kernel")] == expected


def test_triton_is_not_chosen_unasked():
    x, q, down, _, _ = random_tensors(2, 3, 5, 4, torch.float32)
    with mock.patch.object(common, "launch") as launch:
        functional.block_rotate(x, q)
        functional.rotated_low_rank_linear(x, q, x.new_zeros(4, 15), None, down, x.new_zeros(4, 4))
    assert not launch.called


def test_unsupported_says_why():
    x, q, down, _, _ = random_tensors(2, 3, 5, 4, torch.float16)
    assert block_rotation.unsupported(x, q) is None
    assert block_rotation.unsupported_project(x, q, down) is None
    why = block_rotation.unsupported(x, q.double())
    assert why == "q is torch.float64, the kernel takes float32, float16, bfloat16"
    why = block_rotation.unsupported_project(x.to(torch.complex64), q, down)
    assert why == "x is torch.complex64, the kernel takes float32, float16, bfloat16"
    assert (
        block_rotation.unsupported_project(x, q, down.to("meta"))
        == f"down is on meta while x is on {x.device}"
    )
    assert block_rotation.unsupported(x.to("meta"), q.to("meta")) == "tensors are on meta"
    for rank in 0, 257:
        why = block_rotation.unsupported_project(x, q, down.new_zeros(rank, 15))
        assert why == f"rank = {rank}, the kernel takes 1 to 256"


def test_complex_rows_are_refused_by_name_and_left_to_eager_otherwise():
    x, q = (tensor.to(torch.complex64) for tensor in random_tensors(2, 3, 5, 1, torch.float32)[:2])
    assert torch.equal(functional.block_rotate(x, q), plain_block_rotate(x, q))
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"block_rotate: x is torch.complex64"):
        functional.block_rotate(x, q)
