"""The fast functions against the float64 reference, forward and every gradient, by the scale-free rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybrid_kernels import functional as F
from hybrid_kernels import reference as R
from hybrid_kernels import use_backend
from tests.support import DEVICE, assert_close_by_scale, compare, make

REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


COMPLEX = [torch.complex64, torch.complex128]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
