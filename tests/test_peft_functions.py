"""The functions of OFT, BOFT and DoRA layers: against the float64 reference, and the reference against PEFT itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybrid_kernels import _extension, functional, reference, use_backend
from hybrid_kernels._arguments import widened
from hybrid_kernels.ops import feature_scaling
from tests.support import DEVICE, assert_close_by_scale, compare, make

F, R = functional, reference
BACKENDS = ["cpp", "eager"]
REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BUTTERFLIES = [  # leading dimensions of x, m, k, b
    ((5,), 1, 3, 5),
    ((2, 3), 2, 2, 2),
    ((70,), 2, 6, 10),
    ((), 3, 4, 8),
    ((33,), 3, 12, 6),
    ((7, 1), 4, 8, 4),
    ((9,), 2, 2, 32),
    ((0,), 2, 4, 4),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _supported(request) -> None:
    """Skips what the compiled kernels do not take; `test_what_runs_by_itself` has what they leave to plain PyTorch."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("backend") == "cpp":
        reason = _extension.unsupported_floating(make(1, dtype=parameters.get("dtype", torch.float32)))
        if reason is not None:
            pytest.skip(reason)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("lead", "m", "k", "b"), BUTTERFLIES)
def test_butterfly_rotate(lead, m, k, b, dtype, backend) -> None:
    with use_backend(backend):
        compare(
            F.butterfly_rotate,
            R.butterfly_rotate,
            lambda: [make(*lead, k * b, dtype=dtype), make(m, k, b, b, dtype=dtype)],
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("m", [1, 3])
def test_butterfly_rotate_of_any_strides(m, backend) -> None:
    """x transposed and strided, blocks transposed, and the gradient of a sum, whose strides are all 0."""

    def draw() -> list[Tensor]:
        return [make(24, 10).t()[::2], make(m, 4, 6, 6).mT]

    def summed(function):
        return lambda x, q: function(x, q).sum().expand(2, 3)

    with use_backend(backend):
        compare(F.butterfly_rotate, R.butterfly_rotate, draw)
        compare(summed(F.butterfly_rotate), summed(R.butterfly_rotate), draw)


@pytest.mark.parametrize("needed", ["x", "q"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_butterfly_rotate_with_one_gradient(backend, needed) -> None:
    x, q = make(5, 24, dtype=torch.float64), make(2, 4, 6, 6, dtype=torch.float64)
    (x if needed == "x" else q).requires_grad_()
    with use_backend(backend):
        assert torch.autograd.gradcheck(F.butterfly_rotate, (x, q))


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("q_dtype", [torch.float32, torch.float64])
def test_butterfly_rotate_by_wider_blocks(q_dtype, x_dtype) -> None:
    x, q = make(2, 9, 16, dtype=x_dtype), make(2, 4, 4, 4, dtype=q_dtype).requires_grad_()
    y, plain = F.butterfly_rotate(x, q), R.butterfly_rotate(x, q.to(x_dtype))
    truth = R.butterfly_rotate(x.double(), q.double())
    assert_close_by_scale(y, truth, plain, 2)
    dy = make(2, 9, 16, dtype=x_dtype)
    gradient, plain_gradient, true_gradient = (
        torch.autograd.grad(result, q, dy.to(result.dtype))[0] for result in (y, plain, truth)
    )
    assert gradient.dtype == q_dtype
    assert_close_by_scale(gradient, true_gradient.double(), plain_gradient, 3)


@pytest.mark.parametrize(("m", "k", "b"), [(1, 3, 4), (2, 4, 6), (3, 4, 8), (3, 12, 4), (4, 8, 2)])
def test_the_butterfly_is_that_of_peft(m, k, b) -> None:
    """Its permutation matrices and its products of them (`peft.tuners.boft.layer.Linear.forward`)."""
    boft = pytest.importorskip("peft.tuners.boft.layer").BOFTLayer
    q, x = torch.randn(m, k, b, b, dtype=torch.float64), torch.randn(5, k * b, dtype=torch.float64)
    product = torch.eye(k * b, dtype=torch.float64)
    for level in range(m):
        order = boft.block_butterfly_perm(None, k * b, k // 2**level, b // 2, m - 1)
        permutation = boft.perm2mat(None, order).double()
        product = permutation @ torch.block_diag(*q[level]) @ permutation.mT @ product
    torch.testing.assert_close(R.butterfly_rotate(x, q), x @ product)
    torch.testing.assert_close(F.butterfly_rotate(x, q), x @ product)


TERMS = [1, 2, 3, 4, 5, 6, 7, 8, 11]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("terms", TERMS)
def test_cayley_neumann_of_every_number_of_terms(terms, dtype, backend) -> None:
    with use_backend(backend):
        compare(
            lambda packed: F.cayley_neumann_packed(packed, 5, terms),
            lambda packed: R.cayley_neumann_packed(packed.to(widened(packed.dtype)), 5, terms),
            lambda: [make(2, 3, 10, dtype=dtype, scale=0.2)],
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", [4, 5])
@pytest.mark.parametrize(
    ("lead", "b"),
    [((2, 2), 2), ((), 3), ((9,), 8), ((0,), 6), ((3,), 17), ((5,), 32), ((2,), 100)],
)
def test_cayley_neumann_of_every_block_size(lead, b, terms, dtype, backend) -> None:
    with use_backend(backend):
        compare(
            lambda packed: F.cayley_neumann_packed(packed, b, terms),
            lambda packed: R.cayley_neumann_packed(packed, b, terms),
            lambda: [make(*lead, b * (b - 1) // 2, dtype=dtype, scale=0.3 * b**-0.5)],
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_cayley_neumann_of_any_strides(backend) -> None:
    def of(function):
        return lambda packed: function(packed.mT, 4, 5).sum((0, 1)).mT.expand(3, 4, 4)

    with use_backend(backend):
        compare(
            of(F.cayley_neumann_packed),
            of(R.cayley_neumann_packed),
            lambda: [make(2, 6, 7, scale=0.2)[:, :, ::2]],
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_cayley_neumann_of_one_by_one_matrices(backend) -> None:
    packed = make(2, 3, 0).requires_grad_()
    with use_backend(backend):
        r = F.cayley_neumann_packed(packed, 1, 5)
        assert torch.equal(r, torch.ones_like(r)) and r.shape == (2, 3, 1, 1)
        r.sum().backward()
    assert packed.grad.shape == packed.shape


@pytest.mark.parametrize("terms", TERMS)
def test_the_truncated_series_is_that_of_peft(terms) -> None:
    layer = pytest.importorskip("peft.tuners.oft.layer")
    packed = make(3, 15, dtype=torch.float64, scale=0.3)
    module = layer.OFTRotationModule(3, 15, 6, 18, num_cayley_neumann_terms=terms)
    truth = module._cayley_batch(packed, 6, True, terms)
    torch.testing.assert_close(R.cayley_neumann_packed(packed, 6, terms), truth)
    torch.testing.assert_close(F.cayley_neumann_packed(packed, 6, terms), truth)


SCALED = [((5,), 7), ((2, 3), 33), ((), 6), ((0,), 4), ((300,), 130), ((3,), 1), ((1,), 1000)]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("lead", "n"), SCALED)
def test_scale_features(lead, n, dtype, backend, with_bias) -> None:
    def of(function):
        return lambda y, scale, *bias: function(y, scale, *(bias or (None,)))

    shapes = [(*lead, n), (n,), *[(n,)] * with_bias]
    with use_backend(backend):
        compare(
            of(F.scale_features),
            of(R.scale_features),
            lambda: [make(*shape, dtype=dtype) for shape in shapes],
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_features_of_any_strides(backend) -> None:
    def draw() -> list[Tensor]:
        return [make(40, 20).t()[::2], make(40, 2)[:, 0], make(1).expand(40)]

    def summed(function):
        return lambda *tensors: function(*tensors).sum().expand(2, 3)

    with use_backend(backend):
        compare(F.scale_features, R.scale_features, draw)
        compare(summed(F.scale_features), summed(R.scale_features), draw)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", range(3))
def test_scale_features_with_one_gradient(needed, backend) -> None:
    tensors = [make(*shape, dtype=torch.float64) for shape in ((5, 12), (12,), (12,))]
    tensors[needed].requires_grad_()
    with use_backend(backend):
        assert torch.autograd.gradcheck(F.scale_features, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_sums_of_the_gradient_of_a_float32_scale(dtype) -> None:
    """As exact as the products of y and its gradient, which float32 holds, not as half types are."""
    y, dz = make(5000, 3, dtype=dtype), make(5000, 3, dtype=dtype)
    scale, bias = make(3).requires_grad_(), make(3).requires_grad_()
    z = F.scale_features(y, scale, bias)
    assert z.dtype == dtype
    gradients = torch.autograd.grad(z, (scale, bias), dz)
    truths = (dz.double() * y.double()).sum(0), dz.double().sum(0)
    plains = (dz.float() * y.float()).sum(0), dz.float().sum(0)
    for gradient, truth, plain in zip(gradients, truths, plains, strict=True):
        assert_close_by_scale(gradient, truth, plain, 3)


def test_plain_pytorch_sums_the_gradient_of_a_scale_in_parts(monkeypatch) -> None:
    monkeypatch.setattr(feature_scaling, "CHUNK", 24)
    with use_backend("eager"):
        compare(
            lambda y, scale: F.scale_features(y, scale, None),
            lambda y, scale: R.scale_features(y, scale, None),
            lambda: [make(7, 12), make(12)],
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_these_functions_alone(backend) -> None:
    functions = {
        F.butterfly_rotate: (make(4, 16), make(2, 4, 4, 4)),
        F.scale_features: (make(4, 16), make(16), make(16)),
        lambda packed: F.cayley_neumann_packed(packed, 6, 5): (make(3, 15),),
    }
    for function, tensors in functions.items():
        leaves = [tensor.requires_grad_() for tensor in tensors]
        with use_backend(backend):
            outside = function(*leaves)
            gradients = torch.autograd.grad(outside.sin().sum(), leaves)
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                inside = function(*leaves)
                within = torch.autograd.grad(inside.sin().sum(), leaves)
        assert torch.equal(inside, outside)
        assert all(map(torch.equal, within, gradients))


X = make(4, 12)
BAD = [  # call, error, what its message names
    (lambda: F.butterfly_rotate(X.int(), make(1, 3, 4, 4)), TypeError, "x has dtype torch.int32"),
    (lambda: F.butterfly_rotate(X.to(torch.complex64), make(1, 3, 4, 4)), TypeError, "x has dtype torch.complex64"),
    (lambda: F.butterfly_rotate(X, make(3, 4, 4)), ValueError, r"q has shape \(3, 4, 4\).*\(m, k, b, b\)"),
    (lambda: F.butterfly_rotate(X, make(0, 3, 4, 4)), ValueError, r"q has shape \(0, 3, 4, 4\).*m ≥ 1"),
    (lambda: F.butterfly_rotate(X, make(1, 2, 4, 4)), ValueError, r"x has shape \(4, 12\).*must be 8, k·b of q"),
    (lambda: F.butterfly_rotate(X, make(2, 4, 3, 3)), ValueError, r"q has shape \(2, 4, 3, 3\).*b must be even"),
    (lambda: F.butterfly_rotate(X, make(3, 6, 2, 2)), ValueError, r"k divisible by 2\^\(m−1\) = 4"),
    (lambda: F.butterfly_rotate(X, make(1, 3, 4, 4).int()), TypeError, "q has dtype torch.int32"),
    (lambda: F.butterfly_rotate(X, make(1, 3, 4, 4).to("meta")), TypeError, "q is on meta but x is on"),
    (lambda: F.cayley_neumann_packed(make(2, 5), 4, 5), ValueError, r"packed has shape \(2, 5\).*must be 6"),
    (lambda: F.cayley_neumann_packed(make(2, 6), 4, 0), ValueError, "terms is 0"),
    (lambda: F.cayley_neumann_packed(make(2, 6).to(torch.complex64), 4, 5), TypeError, "packed has dtype torch.compl"),
    (lambda: F.scale_features(X.int(), make(12), None), TypeError, "y has dtype torch.int32"),
    (lambda: F.scale_features(X, make(12, 1), None), ValueError, r"scale has shape \(12, 1\).*\(out_features,\)"),
    (lambda: F.scale_features(X, make(11), None), ValueError, r"y has shape \(4, 12\).*must be 11"),
    (lambda: F.scale_features(X, make(12), make(1)), ValueError, r"bias has shape \(1,\).*of scale, \(12,\)"),
    (lambda: F.scale_features(X, make(12).int(), None), TypeError, "scale has dtype torch.int32"),
    (lambda: F.scale_features(X, make(12), make(12).to("meta")), TypeError, "bias is on meta but y is on"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_names_the_argument(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
