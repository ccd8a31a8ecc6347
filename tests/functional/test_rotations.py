"""The fast functions against the float64 reference, forward and every gradient, by the scale-free rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybrid_kernels import functional as F
from hybrid_kernels import reference as R
from tests.csrc.cayley_support import exact, unpack
from tests.support import DEVICE, assert_close_by_scale, compare, make

REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


COMPLEX = [torch.complex64, torch.complex128]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
