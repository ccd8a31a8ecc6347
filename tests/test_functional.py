"""The fast functions against the float64 reference, forward and every gradient, by the scale-free rule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from hybrid_kernels import functional, reference, use_backend
from tests.csrc.cayley_support import exact, unpack
from tests.support import DEVICE, assert_close_by_scale, compare, make

F, R = functional, reference
REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


LINEAR_SHAPES = [  # leading dimensions of x, K, N, r, n
    ((5,), 12, 9, 3, 4),
    ((2, 3), 33, 17, 1, 2),
    ((1,), 7, 1, 1, 2),
    ((4, 1, 2), 64, 65, 16, 16),
    ((), 8, 6, 2, 2),
    ((130,), 31, 40, 5, 31 - 1),
]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(("lead", "k", "n", "r", "h"), LINEAR_SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_hybrid_linear(lead, k, n, r, h, with_bias, dtype) -> None:
    def draw() -> list[Tensor]:
        return [
            make(*lead, k, dtype=dtype),
            make(n, k, dtype=dtype, scale=k**-0.5),
            make(r, k, dtype=dtype, scale=k**-0.5),
            make(n, r, dtype=dtype),
            make(k, h, dtype=dtype),
            make(1, dtype=dtype).sigmoid()[0],
        ]

    bias = make(n, dtype=dtype) if with_bias else None

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x, w, a, b, u, mixing):
            return function(x, w, None if bias is None else bias.to(x.dtype), a, b, u, mixing, 0.5)

        return call

    compare(of(F.hybrid_linear), of(R.hybrid_linear), draw)


@pytest.mark.parametrize("dtype", REAL)
def test_low_rank_linear_every_gradient_and_stride(dtype) -> None:
    def draw() -> list[Tensor]:
        x = make(6, 10, dtype=dtype).t()[:, :6]  # transposed: columns are not contiguous
        weight = make(8, 12, dtype=dtype)[:, ::2]  # strided rows
        return [x, weight, make(8, dtype=dtype), make(6, 3, dtype=dtype).t(), make(3, 8, dtype=dtype).t()]

    compare(F.low_rank_linear, R.low_rank_linear, draw)

    def draw_add() -> list[Tensor]:
        x, _, _, down, up = draw()
        return [make(10, 8, dtype=dtype), x, down, up]

    compare(F.low_rank_add, R.low_rank_add, draw_add)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *product(("auto", "eager"), (torch.float32, torch.bfloat16, torch.float64)),
        *product(("triton",), (torch.float32, torch.bfloat16)),
    ],
)
@pytest.mark.parametrize("dropped", [3, 5])
def test_dropout_is_the_same_on_every_backend(dropped, backend, dtype) -> None:
    dropout = 0.4, dropped, torch.tensor(99, device=DEVICE)
    with use_backend(backend):
        compare(
            lambda *tensors: F.low_rank_linear(*tensors, *dropout),
            lambda *tensors: R.low_rank_linear(*tensors, *dropout),
            lambda: [make(*shape, dtype=dtype) for shape in ((2, 7, 33), (20, 33), (20,), (5, 33), (20, 5))],
        )
        compare(
            lambda *tensors: F.low_rank_add(*tensors, *dropout),
            lambda *tensors: R.low_rank_add(*tensors, *dropout),
            lambda: [make(*shape, dtype=dtype) for shape in ((14, 20), (14, 33), (5, 33), (20, 5))],
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_of_the_low_rank_branch_alone(dtype) -> None:
    seed = torch.tensor(5, device=DEVICE)

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, a, b, u: function(x, w, None, a, b, u, 0.4, 0.5, 0.5, seed)

    shapes = (6, 24), (17, 24), (3, 24), (17, 3), (24, 4)
    compare(of(F.hybrid_linear), of(R.hybrid_linear), lambda: [make(*shape, dtype=dtype) for shape in shapes])


@pytest.mark.parametrize("backend", ["auto", "eager", "reference", "triton"])
def test_dropout_of_no_rows_and_of_nearly_everything(backend) -> None:
    a, b, seed = make(2, 6), make(5, 2), torch.tensor(3, device=DEVICE)
    with use_backend(backend):
        assert F.low_rank_linear(make(0, 6), make(5, 6), None, a, b, 0.5, 2, seed).shape == (0, 5)
        y = F.low_rank_linear(make(4, 6), make(5, 6), None, a, b, 0.9999999, 2, seed)
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
def test_backward_inside_autocast_is_the_backward_outside(backend) -> None:
    x, w, u = make(4, 16), make(12, 16), make(16, 4)
    a, b = make(3, 16), make(12, 3)

    def gradients(inside: bool) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, a, b, u)]
        with use_backend(backend):
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                y = F.hybrid_linear(leaves[0], w, None, *leaves[1:], 0.4, 0.5) + F.householder_rotate(
                    leaves[0], leaves[3]
                ).sum(-1, keepdim=True)
                if inside:
                    return list(torch.autograd.grad(y.float().sum(), leaves))
            return list(torch.autograd.grad(y.float().sum(), leaves))

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_mixing_of_one_element() -> None:
    mixing = torch.full((1,), 0.3, device=DEVICE, requires_grad=True)
    y = F.hybrid_linear(make(4, 6), make(5, 6), None, make(2, 6), make(5, 2), make(6, 2), mixing, 1.0)
    (gradient,) = torch.autograd.grad(y.sum(), mixing)
    assert gradient.shape == (1,)


def test_seeds_follow_the_generator() -> None:
    torch.manual_seed(3)
    first, second = F.dropout_seed(DEVICE), F.dropout_seed(DEVICE)
    torch.manual_seed(3)
    assert F.dropout_seed(DEVICE) == first != second


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_wider_factors_come_in_their_own_dtype(dtype) -> None:
    x, w = make(6, 16, dtype=dtype), make(8, 16, dtype=dtype)
    a, b = make(3, 16).requires_grad_(), make(8, 3).requires_grad_()
    for function, arguments in (F.low_rank_linear, (x, w, None)), (F.low_rank_add, (x @ w.mT, x)):
        y = function(*arguments, a, b)
        assert y.dtype == dtype
        assert [g.dtype for g in torch.autograd.grad(y.sum(), (a, b))] == [torch.float32] * 2


def test_stride_zero_gradient() -> None:
    x, w, a, b = make(4, 6), make(5, 6), make(2, 6).requires_grad_(), make(5, 2)
    (gradient,) = torch.autograd.grad(
        F.low_rank_linear(x, w, None, a, b).sum(), a
    )  # dy is an expanded scalar
    (truth,) = torch.autograd.grad(R.low_rank_linear(x, w, None, a, b).sum(), a)
    torch.testing.assert_close(gradient, truth)


def test_zero_rows() -> None:
    x = make(0, 6).requires_grad_()
    a, u = make(2, 6).requires_grad_(), make(6, 2).requires_grad_()
    y = F.hybrid_linear(x, make(5, 6), make(5), a, make(5, 2), u, 0.5, 1.0)
    assert y.shape == (0, 5)
    gradients = torch.autograd.grad(y.sum(), (x, a, u))
    assert [tuple(g.shape) for g in gradients] == [(0, 6), (2, 6), (6, 2)]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("features", "reflections"), [(6, 2), (33, 7), (16, 16), (40, 1)])
def test_householder_rotate(features, reflections, transpose, dtype) -> None:
    compare(
        lambda x, u: F.householder_rotate(x, u, transpose),
        lambda x, u: R.householder_rotate(x, u, transpose),
        lambda: [make(3, 5, features, dtype=dtype), make(features, reflections, dtype=dtype)],
    )


@pytest.mark.parametrize("u_dtype", ["as x", torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_householder_rotate_of_half_types(dtype, u_dtype) -> None:
    """The plain side rounds the float32 factors to x's dtype: the factor form, by autograd."""
    u_dtype = dtype if u_dtype == "as x" else u_dtype
    x, u, dy = make(3, 5, 33, dtype=dtype), make(33, 7, dtype=u_dtype), make(3, 5, 33, dtype=dtype)

    def plain(x: Tensor, u: Tensor) -> Tensor:
        v, t = R.householder_factors(u.float())
        return x - (x @ v.to(x.dtype)) @ (v @ t).to(x.dtype).mT

    results = []
    for function, kind in (
        (F.householder_rotate, None),
        (R.householder_rotate, torch.float64),
        (plain, None),
    ):
        leaves = [tensor.detach().to(kind or tensor.dtype).requires_grad_() for tensor in (x, u)]
        y = function(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    assert [result.dtype for result in results[0]] == [dtype, dtype, u_dtype]
    for index, (mine, true, simple) in enumerate(zip(*results, strict=True)):
        assert_close_by_scale(mine, true, simple, 2 if index == 0 else 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_householder_factors(dtype) -> None:
    for index in (0, 1):
        compare(
            lambda u, i=index: F.householder_factors(u)[i],
            lambda u, i=index: R.householder_factors(u)[i],
            lambda: [make(20, 9, dtype=dtype)],
        )
        compare(
            lambda u, i=index: torch.cat([factors[i] for factors in F.householder_factors_many([u, u])]),
            lambda u, i=index: torch.cat([R.householder_factors(u)[i]] * 2),
            lambda: [make(20, 9, dtype=dtype)],
        )


def test_zero_and_paired_columns() -> None:
    u = make(12, 4, dtype=torch.float64)
    u[:, 2] = 0
    u.requires_grad_()
    x = make(3, 12, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(F.householder_rotate(x, u).sin().sum(), u)
    (truth,) = torch.autograd.grad(R.householder_rotate(x, u).sin().sum(), u)
    torch.testing.assert_close(gradient, truth)
    assert not gradient[:, 2].any()
    paired = make(64, 4).repeat_interleave(2, dim=1)
    x = make(5, 64)
    assert (F.householder_rotate(x, paired) - x).norm() <= 1e-6 * x.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *COMPLEX])
@pytest.mark.parametrize("b", [1, 2, 3, 8, 17, 33])
@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 2), (0,)])
def test_cayley(batch, b, dtype) -> None:
    compare(F.cayley, R.cayley, lambda: [torch.randn(*batch, b, b, dtype=dtype, device=DEVICE)])
    shape = (*batch, b * (b - 1) // 2)
    if b == 1:  # nothing to differentiate
        empty = torch.randn(*shape, dtype=dtype, device=DEVICE)
        assert torch.equal(F.cayley_packed(empty, 1), torch.ones(*batch, 1, 1, dtype=dtype, device=DEVICE))
    else:
        compare(
            lambda p: F.cayley_packed(p, b),
            lambda p: R.cayley_packed(p, b),
            lambda: [torch.randn(*shape, dtype=dtype, device=DEVICE)],
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *COMPLEX])
def test_cayley_packed_many(dtype) -> None:
    sizes, shapes = [3, 17, 3, 8], [(2, 3), (136,), (1, 4, 3), (3, 28)]

    def many(*packed: Tensor) -> Tensor:
        return torch.cat([q.flatten() for q in F.cayley_packed_many(packed, sizes)])

    def each(*packed: Tensor) -> Tensor:
        return torch.cat([R.cayley_packed(p, b).flatten() for p, b in zip(packed, sizes, strict=True)])

    compare(many, each, lambda: [torch.randn(*shape, dtype=dtype, device=DEVICE) for shape in shapes])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cayley_of_half_types_is_computed_in_float32(dtype) -> None:
    packed = make(4, 6, dtype=dtype)
    q = F.cayley_packed(packed, 4)
    assert q.dtype == torch.float32
    assert_close_by_scale(q, R.cayley_packed(packed.double(), 4), R.cayley_packed(packed.float(), 4), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *COMPLEX])
@pytest.mark.parametrize(("b", "norm"), [(5, 100.0), (32, 1.0), (32, 300.0), (130, 1e-3), (130, 1e4)])
def test_refined_cayley(b, norm, dtype) -> None:
    """float32 ends within one rounding of the exact result; float64 has no wider residual."""
    packed = torch.randn(2, b * (b - 1) // 2, dtype=dtype) * (norm / (2 * b**0.5))
    wide = torch.promote_types(dtype, torch.float64)
    a = unpack(packed.to(wide), b)
    exact_q, _ = exact(a, torch.zeros_like(a))
    packed = packed.to(DEVICE)
    plain, refined = (F.cayley_packed(packed, b, refine).cpu() for refine in (False, True))

    def error(q: torch.Tensor) -> float:
        return torch.linalg.vector_norm(q.to(wide) - exact_q).item()

    if wide == dtype:
        assert error(refined) <= 2 * error(R.cayley(a))
    else:
        rounding = torch.finfo(dtype).eps / 2 * torch.linalg.vector_norm(exact_q).item()
        assert error(refined) <= 1.01 * rounding
        assert norm < 100 or error(refined) < error(plain) / 2
    assert torch.equal(F.cayley(a.to(DEVICE, dtype), refine=True).cpu(), refined)


@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX])
@pytest.mark.parametrize(("lead", "k", "b"), [((5,), 3, 4), ((2, 3), 1, 7), ((0,), 2, 2), ((1,), 5, 1)])
def test_block_rotate(lead, k, b, dtype) -> None:
    wide_dtype = torch.complex128 if dtype.is_complex else torch.float64

    def draw() -> list[Tensor]:
        shapes = ((*lead, k * b), (k, b, b))
        return [torch.randn(*shape, dtype=wide_dtype, device=DEVICE).to(dtype) for shape in shapes]

    compare(F.block_rotate, R.block_rotate, draw)


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("q_dtype", [torch.float32, torch.float64])
def test_block_rotate_by_wider_blocks(q_dtype, x_dtype) -> None:
    """The blocks of a Cayley transform are float32 whatever x is; so is then their gradient."""
    x, q = make(2, 9, 12, dtype=x_dtype), make(3, 4, 4, dtype=q_dtype).requires_grad_()
    y, plain = F.block_rotate(x, q), R.block_rotate(x, q.to(x_dtype))
    truth = R.block_rotate(x.double(), q.double())
    assert_close_by_scale(y, truth, plain, 2)
    dy = make(2, 9, 12, dtype=x_dtype)
    gradient, plain_gradient, true_gradient = (
        torch.autograd.grad(result, q, dy.to(result.dtype))[0] for result in (y, plain, truth)
    )
    assert gradient.dtype == q_dtype
    assert_close_by_scale(gradient, true_gradient.double(), plain_gradient, 3)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_rotated_low_rank_linear(with_bias, dtype, backend) -> None:
    bias = make(20, dtype=dtype) if with_bias else None

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, q, w, a, b: function(x, q, w, None if bias is None else bias.to(x.dtype), a, b)

    shapes = (3, 7, 30), (5, 6, 6), (20, 30), (4, 30), (20, 4)
    with use_backend(backend):
        compare(
            of(F.rotated_low_rank_linear),
            of(R.rotated_low_rank_linear),
            lambda: [make(*shape, dtype=dtype) for shape in shapes],
        )


def test_one_pass_is_of_few_ranks_and_of_unrotated_layers() -> None:
    """Where it cannot be, the forward says so; a rotated layer, which has no such variant, runs whole."""
    x, q, w, a, b = (make(*shape) for shape in ((3, 70), (7, 10, 10), (9, 70), (66, 70), (9, 66)))
    with use_backend("triton", variant="one_pass"):
        with pytest.raises(RuntimeError, match="rank = 66, variant 'one_pass' takes 1 to 64"):
            F.low_rank_linear(x, w, None, a, b)
        compare(
            lambda x, a: F.rotated_low_rank_linear(x, q.to(x.dtype), w.to(x.dtype), None, a, b.to(x.dtype)),
            lambda x, a: R.rotated_low_rank_linear(x, q.to(x.dtype), w.to(x.dtype), None, a, b.to(x.dtype)),
            lambda: [make(3, 70), make(66, 70)],
        )


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("rounded", [torch.float32, torch.bfloat16])
def test_householder_factors_of_many_features_lose_no_digits(rounded, backend) -> None:
    """A norm summed one feature after another did, on the eager backend, up to twelve times plain PyTorch's error."""
    with use_backend(backend):
        compare(
            lambda u: F.householder_factors(u)[0],
            lambda u: R.householder_factors(u)[0],
            lambda: [make(512, 24, dtype=rounded).float()],
        )


def test_autocast_computes_in_its_dtype_and_factorises_in_float32() -> None:
    x, w, u = make(8, 16), make(12, 16), make(16, 4)
    a, b = make(3, 16), make(12, 3)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        y = F.hybrid_linear(x, w, None, a, b, u, 0.5, 1.0)
        v, t = F.householder_factors(u)
        q = F.cayley(make(2, 4, 4))
    assert y.dtype == torch.bfloat16
    assert v.dtype == t.dtype == q.dtype == torch.float32
    v64, t64 = R.householder_factors(u.double())
    v32, t32 = R.householder_factors(u)
    assert_close_by_scale(v @ t, v64 @ t64, v32 @ t32, 2)
    half = [tensor.bfloat16() for tensor in (x, w, a, b, u)]
    truth = R.hybrid_linear(*(t.double() for t in (x, w)), None, *(t.double() for t in (a, b, u)), 0.5, 1.0)
    assert_close_by_scale(y, truth, R.hybrid_linear(*half[:2], None, *half[2:], 0.5, 1.0), 2)


def test_wider_factors_than_activations() -> None:
    """PEFT's usual state: base layer and activations in bfloat16, adapters in float32."""
    x, w = make(6, 16, dtype=torch.bfloat16), make(8, 16, dtype=torch.bfloat16)
    a, b, u = make(2, 16), make(8, 2), make(16, 4)
    y = F.hybrid_linear(x, w, None, a, b, u, 0.3, 1.0)
    truth = R.hybrid_linear(x.double(), w.double(), None, a.double(), b.double(), u.double(), 0.3, 1.0)
    plain = R.hybrid_linear(x, w, None, a.bfloat16(), b.bfloat16(), u.bfloat16(), 0.3, 1.0)
    assert_close_by_scale(y, truth, plain, 2)


def widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


STRUCTURED = {  # n, leading dimensions of x
    "prime": (7, (2, 3)),
    "odd composite": (45, (4,)),
    "even": (12, (5, 1, 2)),
    "power of two": (64, (3,)),
    "two": (2, ()),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX])
@pytest.mark.parametrize("shape", STRUCTURED)
def test_structured_unitary(shape, dtype, backend) -> None:
    n, lead = STRUCTURED[shape]
    permutation = torch.randperm(n, device=DEVICE)

    def draw() -> list[Tensor]:
        parameters = [make(*s, dtype=torch.empty(0, dtype=dtype).real.dtype) for s in ((3, n), (2, n, 2))]
        if dtype.is_complex:
            return [torch.randn(*lead, n, dtype=dtype, device=DEVICE), *parameters]
        return [make(*lead, 2 * n, dtype=dtype), *parameters]

    with use_backend(backend):
        compare(
            lambda *tensors: F.structured_unitary(*tensors, permutation),
            lambda *tensors: R.structured_unitary(*map(widened, tensors), permutation),
            draw,
        )


@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_structured_unitary_of_wider_parameters(dtype, parameter_dtype) -> None:
    permutation = torch.randperm(9, device=DEVICE)
    x = make(4, 18, dtype=dtype)
    parameters = [make(*s, dtype=parameter_dtype).requires_grad_() for s in ((3, 9), (2, 9, 2))]
    y = F.structured_unitary(x, *parameters, permutation)
    truth = R.structured_unitary(x.double(), *(p.double() for p in parameters), permutation)
    plain = R.structured_unitary(x.float(), *(p.float() for p in parameters), permutation).to(dtype)
    assert_close_by_scale(y, truth, plain, 2)
    assert [g.dtype for g in torch.autograd.grad(y.float().sum(), parameters)] == [parameter_dtype] * 2


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("n", [1, 5])
def test_structured_unitary_gradcheck(n, pairs) -> None:
    D = torch.float64
    x = make(3, 2 * n, dtype=D) if pairs else torch.randn(3, n, dtype=torch.complex128, device=DEVICE)
    leaves = [t.requires_grad_() for t in (x, make(3, n, dtype=D), make(2, n, 2, dtype=D))]
    permutation = torch.randperm(n, device=DEVICE)
    assert torch.autograd.gradcheck(lambda *t: F.structured_unitary(*t, permutation), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_structured_unitary_of_one_complex_feature(dtype) -> None:
    """Reflections of C¹ are −1 whatever their vector: (D₃ D₂ D₁) (−1)² z, and no gradient but rounding's."""
    x, phases, reflections = (make(*s, dtype=dtype) for s in ((4, 2), (3, 1), (2, 1, 2)))
    order = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    y = F.structured_unitary(x, phases, reflections, order)
    z = torch.view_as_complex(x.double()) * torch.exp(1j * phases.double().sum())
    plain = R.structured_unitary(widened(x), widened(phases), widened(reflections), order).to(dtype)
    if dtype == torch.float64:
        torch.testing.assert_close(y, torch.view_as_real(z))
    else:
        assert_close_by_scale(y, torch.view_as_real(z), plain, 2)


def test_structured_unitary_without_reflections() -> None:
    """Zero vectors: W without R, zero gradient; one of two, or both."""
    permutation = torch.randperm(6, device=DEVICE)
    x, phases = make(4, 12, dtype=torch.float64), make(3, 6, dtype=torch.float64)
    for zeroed in ([0], [1], [0, 1]):
        reflections = make(2, 6, 2, dtype=torch.float64)
        reflections[zeroed] = 0
        reflections.requires_grad_()
        y = F.structured_unitary(x, phases, reflections, permutation)
        torch.testing.assert_close(y, R.structured_unitary(x, phases, reflections, permutation))
        (gradient,) = torch.autograd.grad(y.sin().sum(), reflections)
        assert torch.isfinite(gradient).all()
        assert not gradient[zeroed].any()
        assert all(gradient[i].any() for i in {0, 1} - set(zeroed))


def test_structured_unitary_of_any_layout() -> None:
    permutation = torch.randperm(5, device=DEVICE)
    phases, reflections = make(3, 5, dtype=torch.float64), make(2, 5, 2, dtype=torch.float64)
    x = make(4, 10, dtype=torch.float64)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(4, 10)  # starts in the middle of a pair
    truth = R.structured_unitary(x, phases, reflections, permutation)
    for same in (x.t().contiguous().t(), torch.stack([x, x], -1)[..., 0], shifted):
        y = F.structured_unitary(same, phases, reflections.mT.contiguous().mT, permutation)
        torch.testing.assert_close(y, truth)
    torch.testing.assert_close(
        F.structured_unitary(x[:1].expand(4, 10), phases, reflections, permutation)[3], truth[0]
    )
    z = torch.view_as_complex(x.reshape(4, 5, 2))
    conjugate = F.structured_unitary(z.conj(), phases, reflections, permutation)
    torch.testing.assert_close(
        conjugate, R.structured_unitary(z.conj().resolve_conj(), phases, reflections, permutation)
    )
    empty = x[:0].requires_grad_()
    leaves = [empty, phases.requires_grad_(), reflections.requires_grad_()]
    y = F.structured_unitary(*leaves, permutation)
    assert y.shape == (0, 10)
    assert not any(gradient.any() for gradient in torch.autograd.grad(y.sum(), leaves))


def test_structured_unitary_under_autocast_is_that_without() -> None:
    permutation = torch.randperm(8, device=DEVICE)
    x, phases, reflections = make(4, 16), make(3, 8), make(2, 8, 2)
    outside = F.structured_unitary(x, phases, reflections, permutation)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        inside = F.structured_unitary(x, phases, reflections, permutation)
    assert torch.equal(inside, outside)


X, W, A, B, U = make(4, 6), make(5, 6), make(2, 6), make(5, 2), make(6, 2)
SEED = torch.tensor(1, device=DEVICE)
P, V, ORDER = make(3, 3), make(2, 3, 2), torch.arange(3, device=DEVICE)


def many(x=X, w=W, bias=None, down=A, up=B):
    """Two layers, the first of them good."""
    return F.low_rank_linear_many(x, [W, w], [None, bias], [A, down], [B, up])


BAD = [  # call, error, what its message names
    (lambda: F.low_rank_linear(make(4, 7), W, None, A, B), ValueError, r"x has shape \(4, 7\).*must be 6"),
    (lambda: F.low_rank_linear(X, make(6), None, A, B), ValueError, r"weight has shape \(6,\)"),
    (lambda: F.low_rank_linear(X, W, make(6), A, B), ValueError, r"bias has shape \(6,\).*\(5,\)"),
    (lambda: F.low_rank_linear(X, W, None, make(2, 5), B), ValueError, r"down has shape \(2, 5\)"),
    (lambda: F.low_rank_linear(X, W, None, A, make(5, 3)), ValueError, r"up has shape \(5, 3\).*\(5, 2\)"),
    (lambda: F.low_rank_linear(X, W, None, make(0, 6), make(5, 0)), ValueError, "at least 1"),
    (lambda: F.low_rank_linear(X, W.double(), None, A, B), TypeError, "weight has dtype torch.float64 but x"),
    (lambda: F.low_rank_linear(X.long(), W.long(), None, A, B), TypeError, "x has dtype torch.int64"),
    (lambda: F.low_rank_linear(X, W, None, A.to("meta"), B), TypeError, "down is on meta but x is on"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 1.0, 2, SEED), ValueError, "dropout is 1.0.*below 1"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 0.5, 3, SEED), ValueError, "dropped_rank is 3.*rank of down, 2"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 0.5, 2), ValueError, "seed is None.*dropout_seed"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 0.5, 2, make(1)), ValueError, "seed has dtype torch.float32"),
    (lambda: F.low_rank_linear(X, W, None, A, B, 0.5, 2, SEED.to("meta")), TypeError, "seed is on meta but x"),
    (lambda: F.hybrid_linear(X, W, None, A, B, U, 0.5, 1.0, -0.1, SEED), ValueError, "dropout is -0.1"),
    (lambda: F.low_rank_linear_many(X, [], [], [], []), ValueError, "weights has 0 elements.*at least one"),
    (lambda: F.low_rank_linear_many(X, [W, W], [None], [A] * 2, [B] * 2), ValueError, "biases has 1 .*weights, 2"),
    (lambda: F.low_rank_linear_many(X, [W, W], [None] * 2, [A], [B] * 2), ValueError, "downs has 1 elements"),
    (lambda: F.low_rank_linear_many(X, [W, W], [None] * 2, [A] * 2, [B]), ValueError, "ups has 1 elements"),
    (lambda: many(w=make(5, 7)), ValueError, r"weights\[1\] has shape \(5, 7\).*\(out_features, 6\)"),
    (lambda: many(x=make(4, 7)), ValueError, r"x has shape \(4, 7\).*must be 6, the in_features of weights\[0\]"),
    (lambda: many(bias=make(4)), ValueError, r"biases\[1\] has shape \(4,\).*\(5,\)"),
    (lambda: many(down=make(2, 5)), ValueError, r"downs\[1\] has shape \(2, 5\)"),
    (lambda: many(down=make(0, 6), up=make(5, 0)), ValueError, r"downs\[1\] .* at least 1"),
    (lambda: many(up=make(5, 3)), ValueError, r"ups\[1\] has shape \(5, 3\).*\(5, 2\)"),
    (lambda: many(w=W.double()), TypeError, r"weights\[1\] has dtype torch.float64 but x has"),
    (lambda: many(bias=make(5).double()), TypeError, r"biases\[1\] has dtype torch.float64 but x has"),
    (lambda: many(down=A.int()), TypeError, r"downs\[1\] has dtype torch.int32"),
    (lambda: many(up=B.to("meta")), TypeError, r"ups\[1\] is on meta but x is on"),
    (lambda: F.low_rank_add(make(3, 5), X, A, B), ValueError, r"base has shape \(3, 5\)"),
    (lambda: F.householder_rotate(X, make(5, 2)), ValueError, r"x has shape \(4, 6\).*must be 5"),
    (lambda: F.householder_rotate(X, make(6, 0)), ValueError, "between 1 and in_features"),
    (lambda: F.householder_factors(make(3, 4)), ValueError, "between 1 and in_features"),
    (lambda: F.householder_factors_many([make(4, 3), make(3, 4)]), ValueError, r"us\[1\] has shape \(3, 4\)"),
    (lambda: F.householder_factors_many([make(4, 3).int()]), TypeError, r"us\[0\] has dtype torch.int32"),
    (lambda: F.hybrid_linear(X, W, None, A, B, U, 1.5, 1.0), ValueError, "mixing is 1.5"),
    (lambda: F.hybrid_linear(X, W, None, A, B, U, torch.ones(2), 1.0), ValueError, r"mixing has shape \(2,\)"),
    (lambda: F.hybrid_linear(X, W, None, A, B, U, SEED.float().to("meta"), 1.0), TypeError, "mixing is on meta"),
    (lambda: F.hybrid_linear(X, W, None, A, B, make(7, 2), 0.5, 1.0), ValueError, r"u has shape \(7, 2\)"),
    (lambda: F.hybrid_linear(X, W, None, A.int(), B, U, 0.5, 1.0), TypeError, "lora_A has dtype torch.int32"),
    (lambda: F.cayley(make(3, 4)), ValueError, r"skew has shape \(3, 4\)"),
    (lambda: F.cayley(make(3, 3).int()), TypeError, "skew has dtype torch.int32"),
    (lambda: F.cayley_packed(make(2, 5), 4), ValueError, r"packed has shape \(2, 5\).*must be 6"),
    (lambda: F.cayley_packed(make(2, 0), 0), ValueError, "block_size is 0"),
    (lambda: F.cayley_packed_many([make(2, 6)], []), ValueError, "block_sizes has 0 elements.*packed, 1"),
    (lambda: F.cayley_packed_many([make(6), make(5)], [4, 4]), ValueError, r"packed\[1\] has shape \(5,\).*be 6"),
    (lambda: F.cayley_packed_many([make(0)], [0]), ValueError, r"block_sizes\[0\] is 0"),
    (lambda: F.cayley_packed_many([make(6).int()], [4]), TypeError, r"packed\[0\] has dtype torch.int32"),
    (lambda: F.rotated_low_rank_linear(X, make(2, 4, 4), W, None, A, B), ValueError, "must be 8, k·b of q"),
    (lambda: F.rotated_low_rank_linear(X, make(2, 3, 3), W, make(4), A, B), ValueError, r"bias has shape \(4,\)"),
    (lambda: F.block_rotate(X, make(2, 4, 4)), ValueError, r"x has shape \(4, 6\).*must be 8"),
    (lambda: F.block_rotate(X, make(2, 3)), ValueError, r"q has shape \(2, 3\)"),
    (lambda: F.block_rotate(X, make(2, 3, 3).to(torch.complex64)), TypeError, "q has dtype torch.complex64"),
    (lambda: F.structured_unitary(X.int(), P, V, ORDER), TypeError, "x has dtype torch.int32"),
    (lambda: F.structured_unitary(make(4, 3), P, V, ORDER), ValueError, r"x has shape \(4, 3\).*must be 6, n of"),
    (lambda: F.structured_unitary(X.to(torch.complex64), P, V, ORDER), ValueError, r"x has .*must be 3, n of"),
    (lambda: F.structured_unitary(X, make(2, 3), V, ORDER), ValueError, r"phases has shape \(2, 3\)"),
    (lambda: F.structured_unitary(X, make(3, 0), V, ORDER), ValueError, "phases .* at least 1"),
    (lambda: F.structured_unitary(X, P.int(), V, ORDER), TypeError, "phases has dtype torch.int32"),
    (lambda: F.structured_unitary(X, P, make(2, 3), ORDER), ValueError, r"reflections has shape \(2, 3\)"),
    (lambda: F.structured_unitary(X, P, V.to("meta"), ORDER), TypeError, "reflections is on meta but x"),
    (lambda: F.structured_unitary(X, P, V, ORDER[:2]), ValueError, r"permutation has .*shape \(2,\)"),
    (lambda: F.structured_unitary(X, P, V, ORDER.int()), ValueError, "permutation has dtype torch.int32"),
    (lambda: F.structured_unitary(X, P, V, ORDER.to("meta")), TypeError, "permutation is on meta but x"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_names_the_argument(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
