from unittest import mock

import pytest
import torch

from hybrid_kernels import reference
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import common, householder, hybrid

SHAPES = {  # N, K, r, n
    "odd": (29, 45, 3, 5),
    "tiles met exactly": (32, 48, 16, 16),
    "several tiles of ranks": (50, 70, 40, 33),
    "one row": (1, 20, 1, 2),
    "n = 128": (20, 140, 2, 128),
}
SCALING = 1.5


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def random_tensors(n, k, r, h, weight_dtype=torch.float32):
    """weight, A, B, u, mixing, and gradients of down and up"""
    generator = torch.Generator().manual_seed(n + k + r + h)
    shapes = (n, k), (r, k), (n, r), (k, h), (), (r + h, k), (n, r + h)
    weight, a, b, u, mixing, *gradients = (
        torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes
    )
    return [weight.to(weight_dtype), a, b, u, mixing.sigmoid()], gradients


def exact_factors(weight, a, b, u, mixing):
    v, t = reference.householder_factors(u)
    down = torch.cat([a, v.mT])
    return down, torch.cat([mixing * SCALING * b, (mixing - 1) * (weight @ (v @ t))], dim=1)


def plain_factors(weight, a, b, u, mixing):
    """As one would write it in plain PyTorch: the product with W in W's dtype."""
    v = u / torch.linalg.vector_norm(u, dim=0)
    identity = torch.eye(u.shape[1], device=u.device, dtype=u.dtype)
    t = torch.linalg.solve_triangular((v.mT @ v).triu(1) + identity / 2, identity, upper=True)
    c = (weight @ (v @ t).to(weight.dtype)).to(u.dtype)
    return torch.cat([a, v.mT]), torch.cat([mixing * SCALING * b, (mixing - 1) * c], dim=1)


def with_gradients(function, inputs, gradients):
    weight, *parameters = inputs
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]
    outputs = function(weight, *leaves)
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, gradients)]


def kernels(inputs, gradients):
    weight, a, b, u, mixing = inputs
    v, t, z = householder.factors_with_product(u)
    down, up, c = hybrid.factors(weight, a, b, mixing, SCALING, v, z)
    d_down, d_up = gradients
    d_b, d_u, d_mixing = hybrid.backward(
        d_down, d_up, weight, b, u, v, t, c, mixing, SCALING, True, True, True
    )
    return [down, up, d_down[: a.shape[0]], d_b, d_u, d_mixing]


def check(inputs, gradients):
    actual = kernels(inputs, gradients)
    truth = with_gradients(exact_factors, [i.double() for i in inputs], [g.double() for g in gradients])
    plain = with_gradients(plain_factors, inputs, gradients)
    for index, columns in enumerate(zip(actual[:-1], truth[:-1], plain[:-1], strict=True)):
        assert_close_by_scale(*columns, 2 if index < 2 else 3)
    return actual[-1], truth[-1], plain[-1]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_factors_and_gradients(shape):
    check(*random_tensors(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["tiles met exactly"]], ids=str)
def test_half_weights(shape, dtype):
    check(*random_tensors(*shape, dtype))


def test_gradient_of_mixing():
    columns = []
    for size in range(16):  # taken together: of a single number plain PyTorch's error is a matter of luck
        columns.append(check(*random_tensors(40 + size, 33, 5, 4)))
    assert_close_by_scale(*map(torch.stack, zip(*columns, strict=True)), 3)


def test_any_strides():
    (weight, a, b, u, mixing), (d_down, d_up) = random_tensors(29, 45, 3, 5)

    def spaced(tensor):
        larger = tensor.new_full([3 * size + 2 for size in tensor.shape], torch.nan)
        return larger[tuple(slice(2, None, 3) for _ in tensor.shape)].copy_(tensor)

    def transposed(tensor):
        return tensor.mT.contiguous().mT

    for layout in spaced, transposed:
        check([*map(layout, (weight, a, b, u)), mixing], [layout(d_down), layout(d_up)])
    check([weight, a, b, u, mixing], [d_down[:1].expand_as(d_down), d_up[:1, :1].expand_as(d_up)])


def test_zero_columns_have_no_gradient():
    inputs, gradients = random_tensors(29, 45, 3, 6)
    inputs[3][:, 2] = 0
    *_, d_u, _ = kernels(inputs, gradients)
    assert torch.count_nonzero(d_u[:, 2]) == 0
    assert torch.isfinite(d_u).all()


def test_tf32_stays_out_of_the_factorisation():
    """Whatever torch allows its own products; the interpreter has no TF32, so what is asked for is looked at."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = True
        with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
            kernels(*random_tensors(29, 45, 3, 5))
    finally:
        matmul.allow_tf32 = before
    assert {call.kwargs["PRECISION"] for call in launch.call_args_list if "PRECISION" in call.kwargs} == {
        "ieee"
    }


def test_only_the_needed_gradients():
    (weight, a, b, u, mixing), (d_down, d_up) = random_tensors(29, 45, 3, 5)
    v, t, z = householder.factors_with_product(u)
    _, _, c = hybrid.factors(weight, a, b, mixing, SCALING, v, z)
    arguments = d_down, d_up, weight, b, u, v, t, c, mixing, SCALING
    every = hybrid.backward(*arguments, True, True, True)
    for index in range(3):
        needs = [position == index for position in range(3)]
        some = hybrid.backward(*arguments, *needs)
        assert [gradient is not None for gradient in some] == needs
        assert torch.equal(some[index], every[index])


def test_unsupported_says_why():
    (weight, _, _, u, _), _ = random_tensors(29, 45, 3, 5)
    assert hybrid.unsupported(weight, u) is None
    assert hybrid.unsupported(weight.bfloat16(), u) is None
    assert hybrid.unsupported(weight, u.double()) == "u is torch.float64, the kernel takes float32"
    why = hybrid.unsupported(weight.double(), u)
    assert why == "weight is torch.float64, the kernel takes float32, float16, bfloat16"
    why = hybrid.unsupported(weight, u.new_zeros(300, 130))
    assert why == "n = 130 reflections, the kernel takes 1 to 128"
