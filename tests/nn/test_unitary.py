"""StructuredUnitary, FullUnitary, and complex blocks on pairs of real features."""

import copy
import math

import pytest
import torch

from hybrid_kernels import reference
from hybrid_kernels.nn import CayleyRotation, FullUnitary, StructuredUnitary
from tests.support import DEVICE, assert_close_by_scale

REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def as_complex(x: torch.Tensor) -> torch.Tensor:
    return torch.complex(x[..., 0::2], x[..., 1::2])


def as_pairs(z: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(z.resolve_conj()).flatten(-2)


def orthogonal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(*shape, dtype=dtype))[0]


def test_structured_unitary_is_the_reference_on_real_and_complex_features() -> None:
    module = StructuredUnitary(14, dtype=torch.float64)
    x = torch.randn(2, 3, 14, dtype=torch.float64, requires_grad=True)
    y = module(x)
    truth = reference.structured_unitary(x, module.phases, module.reflections, module.permutation)
    torch.testing.assert_close(y, truth)
    wanted = [x, module.phases, module.reflections]
    for mine, true in zip(
        torch.autograd.grad(y.sin().sum(), wanted),
        torch.autograd.grad(truth.sin().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, true)
    torch.testing.assert_close(as_pairs(module(as_complex(x))), y)


@pytest.mark.parametrize("identity_start", [False, True])
def test_structured_unitary_computes_x_times_its_orthogonal_matrix(identity_start) -> None:
    module = StructuredUnitary(18, identity_start, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    x, q = torch.randn(4, 18, dtype=torch.float64), module.matrix()
    torch.testing.assert_close(module(x), x @ q)
    torch.testing.assert_close(q.mT @ q, torch.eye(18, dtype=torch.float64))


def test_structured_unitary_starts_as_in_the_paper() -> None:
    module = StructuredUnitary(4000)
    assert module.phases.shape == (3, 2000)
    for values, bound in (module.phases, math.pi), (module.reflections, 1.0):
        assert values.abs().max() <= bound
        # The variance of U(−a, a) is a²/3; that of its estimate from N values is (4/45) a⁴/N.
        spread = bound**2 * (4 / 45 / values.numel()) ** 0.5
        assert abs(values.square().mean().item() - bound**2 / 3) < 5 * spread
        assert abs(values.mean().item()) < 5 * bound / (3 * values.numel()) ** 0.5
    assert torch.equal(module.permutation.sort().values, torch.arange(2000))
    assert not torch.equal(module.permutation, torch.arange(2000))
    draws = [StructuredUnitary(40, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    for name, tensor in draws[0].state_dict().items():
        assert torch.equal(tensor, draws[1].state_dict()[name])
        assert not torch.equal(tensor, draws[2].state_dict()[name])
    assert StructuredUnitary(8, device="meta").phases.is_meta


@pytest.mark.parametrize("features", [2, 8, 14, 90])
@pytest.mark.parametrize("dtype", REAL)
def test_structured_unitary_may_start_as_the_identity(dtype, features) -> None:
    module = StructuredUnitary(features, identity_start=True, dtype=dtype)
    x = torch.randn(50, features, dtype=dtype)
    n = features // 2
    z = as_complex(x.to(torch.promote_types(dtype, torch.float32)))
    transformed = torch.fft.ifft(torch.fft.fft(z, norm="ortho"), norm="ortho")
    floor = torch.finfo(z.dtype).eps * z.abs().norm()
    assert (as_complex(module(x).to(z.real.dtype)) - z).norm() <= 3 * max((transformed - z).norm(), floor)
    if n > 1:  # reflections of one complex dimension are −1, whatever their vector
        gradients = torch.autograd.grad((module(x) * torch.randn_like(x)).sum(), list(module.parameters()))
        assert all(row.any() for gradient in gradients for row in gradient)


def test_structured_unitary_state_carries_the_permutation() -> None:
    module, other = StructuredUnitary(40), StructuredUnitary(40)
    x = torch.randn(3, 40)
    assert not torch.allclose(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    assert module.bfloat16().permutation.dtype == torch.int64


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("complex_blocks", [True, False])
def test_full_unitary_applies_its_parameter(complex_blocks, dtype) -> None:
    module = FullUnitary(12, 3, complex_blocks, dtype=dtype)
    assert module.u.dtype == torch.promote_types(dtype, torch.float32)
    x = torch.randn(5, 12, dtype=dtype)
    assert torch.equal(module(x), x)
    with torch.no_grad():
        if complex_blocks:
            module.u.copy_(torch.view_as_real(orthogonal(2, 3, 3, dtype=torch.complex128)))
        else:
            module.u.copy_(orthogonal(4, 3, 3))

    def dense(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        if not complex_blocks:
            return reference.block_rotate(x, u.to(x.dtype))
        return as_pairs(reference.block_rotate(as_complex(x), torch.view_as_complex(u.to(x.dtype))))

    truth = dense(x.double(), module.u)
    if dtype == torch.float64:
        torch.testing.assert_close(module(x), truth)
    else:
        plain = reference.block_rotate(x, module.blocks().to(dtype))
        assert_close_by_scale(module(x), truth, plain, 2)
    torch.testing.assert_close(module.double()(x.double()), x.double() @ module.matrix())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("complex_blocks", [True, False])
def test_full_unitary_in_a_model_that_is_cast(complex_blocks, dtype) -> None:
    module = FullUnitary(12, 3, complex_blocks).to(dtype)
    x = torch.randn(5, 12, dtype=dtype)
    assert torch.equal(module(x), x)
    module(x).sum().backward()
    assert module.u.grad.dtype == dtype


def test_full_unitary_of_one_block() -> None:
    assert FullUnitary(6).u.shape == (1, 6, 6)
    assert FullUnitary(6, complex_blocks=True).u.shape == (1, 3, 3, 2)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_complex_cayley_blocks_act_as_the_complex_matrix(size, dtype) -> None:
    """Forward and gradients, in every dtype, against the complex matrix on x₀ + i x₁ in double precision."""
    features = 4 * size
    columns = []
    for _ in range(8):
        rotation = CayleyRotation(features, size, complex_blocks=True, dtype=dtype, device=DEVICE)
        with torch.no_grad():
            rotation.skew.normal_()
        x = torch.randn(2, 7, features, dtype=dtype, device=DEVICE)
        dy = torch.randn(2, 7, features, dtype=dtype, device=DEVICE)

        def act(x: torch.Tensor, skew: torch.Tensor) -> torch.Tensor:
            """The dense definition in x's dtype; where that has no complex one, as real matrices [[C, S], [−S, C]]."""
            upper, lower = torch.triu(skew, 1), torch.tril(skew, -1)
            imaginary = lower + lower.mT + torch.diag_embed(skew.diagonal(dim1=-2, dim2=-1))
            q = reference.cayley(torch.complex(upper - upper.mT, imaginary))
            if x.dtype in (torch.float32, torch.float64):
                return as_pairs(reference.block_rotate(as_complex(x), q))
            c, s = (torch.block_diag(*part).to(x.dtype) for part in (q.real, q.imag))
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a @ c - b @ s, a @ s + b @ c], dim=-1).flatten(-2)

        results = []
        wide = torch.promote_types(dtype, torch.float32)
        for x_dtype, skew_dtype, function in (
            (dtype, dtype, None),
            (torch.float64, torch.float64, act),
            (dtype, wide, act),
        ):
            leaf = x.to(x_dtype).requires_grad_()
            skew = (
                rotation.skew if function is None else rotation.skew.detach().to(skew_dtype).requires_grad_()
            )
            y = rotation(leaf) if function is None else function(leaf, skew)
            results.append([y, *torch.autograd.grad(y, (leaf, skew), dy.to(y.dtype))])
        results[2][2] = results[2][2].to(dtype)
        columns.append(list(zip(*results, strict=True)))
    for index, column in enumerate(zip(*columns, strict=True)):
        mine, true, plain = (torch.stack(each) for each in zip(*column, strict=True))
        if dtype == torch.float64:
            torch.testing.assert_close(mine, true)
        else:
            assert_close_by_scale(mine, true, plain, 2 if index == 0 else 3)


MODULES = {
    "structured": lambda: StructuredUnitary(12, dtype=torch.float64),
    "structured, identity start": lambda: StructuredUnitary(12, True, dtype=torch.float64),
    "full": lambda: FullUnitary(12, 4, dtype=torch.float64),
    "full, complex": lambda: FullUnitary(12, 3, True, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", MODULES)
def test_compiles_in_one_graph(kind) -> None:
    module = MODULES[kind]()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)
    wanted = [x, *module.parameters()]
    y, truth = compiled(x), module(x)
    torch.testing.assert_close(y, truth)
    for mine, true in zip(
        torch.autograd.grad(y.sin().sum(), wanted),
        torch.autograd.grad(truth.sin().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, true)


BAD = [
    (lambda: StructuredUnitary(7), "features is 7; it must be even"),
    (lambda: StructuredUnitary(0), "features is 0"),
    (lambda: FullUnitary(12, 5), "block_size is 5.*divide features = 12"),
    (lambda: FullUnitary(12, 4, True), "block_size is 4.*twice it"),
    (lambda: FullUnitary(7, complex_blocks=True), "features = 7"),
    (lambda: FullUnitary(12, 0), "block_size is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
