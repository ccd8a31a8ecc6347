from unittest import mock

import pytest
import torch

from hybrid_kernels import reference
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import common, householder, householder_many

# With tiles of 64 rows for n ≤ 16, 32 to 64 and 16 beyond, a sum over K is split past four of them.
SHAPES = [
    (45, 1),
    (7, 1),
    (45, 5),
    (33, 16),
    (64, 17),
    (70, 50),
    (140, 128),
    (20, 33),
    (601, 9),
    (285, 20),
    (150, 70),
]


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def random_reflections(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def plain_factors(u):
    norm = torch.linalg.vector_norm(u, dim=0)
    v = torch.where(norm > 0, u / torch.where(norm > 0, norm, 1.0), 0.0)
    identity = torch.eye(u.shape[1], device=u.device, dtype=u.dtype)
    return v, torch.linalg.solve_triangular(identity / 2 + (v.mT @ v).triu(1), identity, upper=True)


def product(v, t):
    return torch.eye(len(v), device=v.device, dtype=v.dtype) - v @ t @ v.mT


def check(u, results=None):
    v, t, z = householder.factors_with_product(u) if results is None else results
    if results is None:
        for mine, same in zip((v, t), householder.factors(u), strict=True):
            assert torch.equal(mine, same)
    expected_v, expected_t = reference.householder_factors(u.double())
    plain_v, plain_t = plain_factors(u.float())
    assert_close_by_scale(v, expected_v, plain_v, 2)
    assert_close_by_scale(t, expected_t, plain_t, 2)
    assert_close_by_scale(z, expected_v @ expected_t, plain_v @ plain_t, 2)
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
    scale = torch.logspace(-15, 15, 20, device=DEVICE)
    u = random_reflections(64, 20) * scale
    check(u)
    dv, dt = random_gradients(u)
    du = householder.backward(u, *householder.factors(u), dv, dt)
    expected, plain = expected_gradients(u, dv, dt)
    # The gradient scales as 1/‖u‖: without that, one column would hide the others.
    assert_close_by_scale(du * scale, expected * scale.double(), plain * scale, 3)


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


def random_gradients(u):
    """dv and dt for u, dt not triangular: what lies below its diagonal must not count."""
    generator = torch.Generator().manual_seed(1000 + u.numel())
    shapes = u.shape, (*u.shape[:-2], u.shape[-1], u.shape[-1])
    return [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]


def expected_gradients(u, dv, dt):
    """du in float64 by the reference, and as plain PyTorch gives it, for one layer."""
    result = []
    for factors, dtype in (reference.householder_factors, torch.float64), (plain_factors, torch.float32):
        leaf = u.detach().to(dtype).requires_grad_()
        pairs = zip(factors(leaf), (dv, dt), strict=True)  # a single reflection has a constant t
        gradients = [(f, g.to(dtype)) for f, g in pairs if g is not None and f.requires_grad]
        outputs, gradients = zip(*gradients, strict=True)
        result += torch.autograd.grad(outputs, leaf, gradients)
    return result


def check_backward(u, dv, dt, du=None):
    if du is None:
        du = householder.backward(u, *householder.factors(u), dv, dt)
    expected, plain = expected_gradients(u, dv, dt)
    assert_close_by_scale(du, expected, plain.to(u.dtype), 3)
    assert du.is_contiguous()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(shape):
    u = random_reflections(*shape)
    dv, dt = random_gradients(u)
    check_backward(u, dv, dt)


@pytest.mark.parametrize("shape", [(285, 20), (45, 5)], ids=str)
def test_backward_of_one_result_alone(shape):
    u = random_reflections(*shape)
    dv, dt = random_gradients(u)
    check_backward(u, dv, None)
    if shape[1] > 1:
        check_backward(u, None, dt)
    v, t = householder.factors(u)
    assert torch.equal(householder.backward(u, v, t, None, None), torch.zeros_like(u))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_backward_of_half_types(dtype):
    u = random_reflections(45, 17, dtype=dtype)
    check_backward(u, *random_gradients(u))


def test_backward_of_any_strides():
    u = random_reflections(45, 17)
    dv, dt = random_gradients(u)

    def spaced(tensor):
        larger = tensor.new_full([3 * size + 2 for size in tensor.shape], torch.nan)
        return larger[tuple(slice(2, None, 3) for _ in tensor.shape)].copy_(tensor)

    def transposed(tensor):
        return tensor.mT.contiguous().mT

    def one_value(tensor):
        return tensor.flatten()[:1].reshape(1, 1).expand_as(tensor)

    for of_u, of_gradients in (transposed, transposed), (spaced, spaced), (spaced, one_value):
        check_backward(of_u(u), of_gradients(dv), of_gradients(dt))
        ((v, t, _),) = householder_many.factors_many([of_u(u)])
        check(of_u(u), (v, t, v @ t))
        (du,) = householder_many.backward_many([of_u(u)], [v], [t], [of_gradients(dv)], [of_gradients(dt)])
        check_backward(u, of_gradients(dv), of_gradients(dt), du)
    v, t = householder.factors(u)
    elsewhere = [transposed(v), transposed(t)]
    assert torch.equal(householder.backward(u, *elsewhere, dv, dt), householder.backward(u, v, t, dv, dt))


def test_backward_of_zero_columns_and_equal_pairs():
    u = random_reflections(40, 3).repeat_interleave(2, dim=1)
    check_backward(u, *random_gradients(u))
    u[:, [0, 3]] = 0
    dv, dt = random_gradients(u)
    check_backward(u, dv, dt)
    v, t = householder.factors(u)
    assert torch.count_nonzero(householder.backward(u, v, t, dv, dt)[:, [0, 3]]) == 0


def test_backward_of_layers_in_one_launch():
    u = random_reflections(2, 3, 45, 5)
    v, t = householder.factors(u)
    dv, dt = random_gradients(u)
    du = householder.backward(u, v, t, dv, dt)
    for layer in [(0, 0), (0, 2), (1, 1)]:
        check_backward(u[layer], dv[layer], dt[layer], du[layer])
    assert householder.backward(u[:0], v[:0], t[:0], dv[:0], dt[:0]).shape == (0, 3, 45, 5)


MANY = [(601, 9), (45, 1), (33, 16), (64, 17), (20, 5), (150, 70), (285, 20), (33, 33)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_of_different_shapes_in_one_launch(dtype):
    shapes = MANY if dtype == torch.float32 else MANY[:5]
    launches = 2 * len({householder.padded(n) for _, n in shapes})
    us = [random_reflections(*shape, dtype=dtype) for shape in shapes]
    with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        results = householder_many.factors_many(us)
        assert len(launch.call_args_list) == launches
        launch.reset_mock()
        gradients = [random_gradients(u) for u in us]
        dvs = [None if index == 2 else dv for index, (dv, _) in enumerate(gradients)]
        dts = [None if index in (0, 2, 3) else dt for index, (_, dt) in enumerate(gradients)]
        vs, ts, _ = zip(*results, strict=True)
        dus = householder_many.backward_many(us, vs, ts, dvs, dts)
        assert len(launch.call_args_list) == launches
    for u, result, dv, dt, du in zip(us, results, dvs, dts, dus, strict=True):
        check(u, result)
        # Bit for bit what the layer gives alone.
        for mine, alone in zip(result, householder.factors_with_product(u), strict=True):
            assert torch.equal(mine, alone)
        assert torch.equal(du, householder.backward(u, *result[:2], dv, dt))
        if dv is None and dt is None:
            assert torch.count_nonzero(du) == 0
        else:
            check_backward(u, dv, dt, du)
    without = householder_many.factors_many(us, product=False)
    for (v, t, z), (same_v, same_t, none) in zip(results, without, strict=True):
        assert torch.equal(v, same_v) and torch.equal(t, same_t)
        assert z.is_contiguous() and none is None
    assert householder_many.factors_many([]) == householder_many.backward_many([], [], [], [], []) == []


def test_a_shorter_layer_may_have_more_parts():
    """32 tiles of 16 rows make 8 parts of 4, a row more makes 7 of 5."""
    us = [random_reflections(512, 70), random_reflections(513, 66)]
    (short_v, short_t, _), longer = householder_many.factors_many(us)
    check(us[1], longer)
    v, t = householder.factors(us[0])
    assert torch.equal(short_v, v) and torch.equal(short_t, t)
    dv, dt = random_gradients(us[0])
    du, _ = householder_many.backward_many(us, [v, us[1]], [t, us[1][:66]], [dv, None], [dt, None])
    assert torch.equal(du, householder.backward(us[0], v, t, dv, dt))


def test_the_table_is_made_once_for_tensors_that_stay_and_anew_for_others():
    us = [random_reflections(*shape) for shape in MANY[:4]]
    with mock.patch.object(householder_many, "_on_device", side_effect=householder_many._on_device) as made:
        first = householder_many.factors_many(us)
        tables = made.call_count
        assert tables > 0
        us[0].mul_(-2)  # values may change where they are
        second = householder_many.factors_many(us)
        assert made.call_count == tables
        assert torch.equal(second[0][0], -first[0][0])
        moved = [u.clone() for u in us]
        us[1].zero_()
        for mine, moved_u in zip(householder_many.factors_many(moved), moved, strict=True):
            check(moved_u, mine)
        assert made.call_count == 2 * tables
        householder_many.factors_many([moved[0][:300], *moved[1:]])  # the same address, another shape
        assert made.call_count == 3 * tables


def test_no_rows():
    v, t, z = householder.factors_with_product(torch.zeros(0, 1, device=DEVICE))
    assert v.shape == z.shape == (0, 1)
    assert torch.equal(t, torch.full((1, 1), 2.0, device=DEVICE))
    u = random_reflections(45, 5)
    (empty, _, _), (full, _, _) = householder_many.factors_many([u[:0, :1], u])
    assert empty.shape == (0, 1)
    assert torch.equal(full, householder.factors(u)[0])


def test_sums_are_split_and_repeat_bit_for_bit():
    u = random_reflections(601, 9)
    dv, dt = random_gradients(u)
    with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        v, t, z = householder.factors_with_product(u)
        du = householder.backward(u, v, t, dv, dt)
    grids = [call.args[1] for call in launch.call_args_list]
    assert all(grid[1] > 1 for grid in grids), "K of this test no longer reaches the partial sums"
    assert grids[1][1] > 1 and grids[3][1] > 1, "nor several chunks"
    for mine, again in zip((v, t, z), householder.factors_with_product(u), strict=True):
        assert torch.equal(mine, again)
    assert torch.equal(du, householder.backward(u, v, t, dv, dt))


def test_unsupported_says_why():
    assert householder.unsupported(random_reflections(10, 4)) is None
    why = householder.unsupported(random_reflections(300, 200))
    assert why == "n = 200 reflections, the kernel takes 1 to 128"
    why = householder.unsupported(random_reflections(10, 4).double())
    assert why == "u is torch.float64, the kernel takes float32, float16, bfloat16"
