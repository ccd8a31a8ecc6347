"""The torch.library operators: registrations, gradients in float64, torch.compile, checkpointing."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hybrid_kernels import functional, ops
from hybrid_kernels.ops.backend import unavailable, use_backend
from hybrid_kernels.ops.block_rotation import block_rotate_weight_gradient
from hybrid_kernels.ops.feature_scaling import scale_features_backward

D = torch.float64


def leaf(*shape: int, dtype: torch.dtype = D) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def prepared() -> tuple[torch.Tensor, ...]:
    """v, t and v t of some reflections (7, 4)."""
    v, t = (factor.detach() for factor in ops.householder_factors(leaf(7, 4)))
    return v, t, v @ t


torch.manual_seed(0)
CASES = {
    "low_rank_linear": (ops.low_rank_linear, (leaf(2, 3, 6), leaf(5, 6), leaf(5), leaf(2, 6), leaf(5, 2))),
    "low_rank_linear, no bias": (ops.low_rank_linear, (leaf(4, 6), leaf(5, 6), None, leaf(2, 6), leaf(5, 2))),
    "low_rank_add": (ops.low_rank_add, (leaf(2, 3, 5), leaf(2, 3, 6), leaf(2, 6), leaf(5, 2))),
    "low_rank_linear, dropout": (
        ops.low_rank_linear,
        (leaf(2, 3, 6), leaf(5, 6), leaf(5), leaf(3, 6), leaf(5, 3), 0.5, 2, torch.tensor(4)),
    ),
    "low_rank_add, dropout": (
        ops.low_rank_add,
        (leaf(2, 3, 5), leaf(2, 3, 6), leaf(2, 6), leaf(5, 2), 0.5, 2, torch.tensor(4)),
    ),
    "project": (ops.project, (leaf(5, 6), leaf(6, 2))),
    "householder_factors": (ops.householder_factors, (leaf(7, 3),)),
    "householder_rotate": (ops.householder_rotate, (leaf(2, 3, 6), leaf(6, 2), leaf(6, 2))),
    "hybrid_factors": (
        ops.hybrid_factors,
        (leaf(5, 7), leaf(2, 7), leaf(5, 2), leaf(7, 4), torch.tensor(0.3, dtype=D, requires_grad=True), 1.5),
    ),
    "hybrid_factors, reflections given": (
        ops.hybrid_factors,
        (leaf(5, 7), leaf(2, 7), leaf(5, 2), leaf(7, 4), torch.tensor(0.3, dtype=D), 1.5, *prepared()),
    ),
    "cayley": (ops.cayley, (leaf(2, 4, 4),)),
    "cayley, complex": (ops.cayley, (leaf(2, 4, 4, dtype=torch.complex128),)),
    "cayley_packed": (ops.cayley_packed, (leaf(2, 6), 4)),
    "cayley_packed, complex": (ops.cayley_packed, (leaf(2, 6, dtype=torch.complex128), 4)),
    **{
        f"cayley_neumann_packed, {terms} terms": (ops.cayley_neumann_packed, (leaf(2, 6), 4, terms))
        for terms in (2, 3, 5, 6, 9)
    },
    "cayley, refined": (ops.cayley, (leaf(2, 4, 4, dtype=torch.complex128), True)),
    "cayley_packed, refined": (ops.cayley_packed, (leaf(2, 6), 4, True)),
    "block_rotate": (ops.block_rotate, (leaf(3, 6), leaf(2, 3, 3))),
    "block_rotate, complex": (
        ops.block_rotate,
        (leaf(3, 6, dtype=torch.complex128), leaf(2, 3, 3, dtype=torch.complex128)),
    ),
    "butterfly_rotate": (ops.butterfly_rotate, (leaf(2, 3, 8), leaf(2, 2, 4, 4))),
    "scale_features": (ops.scale_features, (leaf(2, 3, 5), leaf(5), leaf(5))),
    "scale_features, no bias": (ops.scale_features, (leaf(4, 5), leaf(5), None)),
    "scale_features, transposed": (
        ops.scale_features,
        (leaf(5, 4).detach().mT.requires_grad_(), leaf(5), leaf(5)),
    ),
    "rotated_low_rank_linear": (
        ops.rotated_low_rank_linear,
        (leaf(2, 2, 6), leaf(2, 3, 3), leaf(5, 6), leaf(5), leaf(4, 6), leaf(5, 4)),
    ),
}
WIDER_FACTORS = {  # more exact than x: for registrations, too coarse for gradcheck
    "low_rank_linear": (
        ops.low_rank_linear,
        (leaf(4, 6, dtype=torch.float32), leaf(5, 6, dtype=torch.float32), None, leaf(2, 6), leaf(5, 2)),
    ),
    "block_rotate": (
        ops.block_rotate,
        (leaf(3, 6, dtype=torch.bfloat16), leaf(2, 3, 3, dtype=torch.float32)),
    ),
    "butterfly_rotate": (
        ops.butterfly_rotate,
        (leaf(3, 8, dtype=torch.bfloat16), leaf(2, 2, 4, 4, dtype=torch.float32)),
    ),
    "scale_features": (
        ops.scale_features,
        (leaf(3, 8, dtype=torch.bfloat16), leaf(8, dtype=torch.float32), leaf(8, dtype=torch.float32)),
    ),
    "scale_features_backward, transposed": (
        scale_features_backward,
        (*(torch.randn(8, 3, dtype=torch.bfloat16).mT for _ in range(2)), torch.randn(8), True),
    ),
    "block_rotate_weight_gradient": (
        block_rotate_weight_gradient,
        (*(torch.randn(3, 6, dtype=torch.bfloat16) for _ in range(2)), torch.randn(2, 3, 3)),
    ),
    "rotated_low_rank_linear": (
        ops.rotated_low_rank_linear,
        (
            *(leaf(*s, dtype=torch.bfloat16) for s in ((3, 6),)),
            leaf(2, 3, 3, dtype=torch.float32),
            leaf(5, 6, dtype=torch.bfloat16),
            None,
            *(leaf(*s, dtype=torch.float32) for s in ((4, 6), (5, 4))),
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case) -> None:
    operator, arguments = CASES[case]
    torch.library.opcheck(getattr(torch.ops.hybrid_kernels, operator.__name__).default, arguments)


@pytest.mark.parametrize("case", WIDER_FACTORS)
def test_opcheck_of_factors_wider_than_x(case) -> None:
    operator, arguments = WIDER_FACTORS[case]
    torch.library.opcheck(getattr(torch.ops.hybrid_kernels, operator.__name__).default, arguments)


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case) -> None:
    operator, arguments = CASES[case]
    if "given" in case:  # of what u they were made, gradcheck does not know
        arguments = (*arguments[:3], arguments[3].detach(), *arguments[4:])
    assert torch.autograd.gradcheck(operator, arguments)


def test_only_the_gradients_asked_for_are_computed() -> None:
    operator, (x, weight, bias, down, up) = CASES["low_rank_linear"]
    y, _ = operator(x.detach(), weight.detach(), bias.detach(), down, up.detach())
    assert y.requires_grad
    y.sum().backward()
    assert down.grad is not None and up.grad is None and x.grad is None
    down.grad = None


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("lead", [(70,), (2, 35)])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (functional.low_rank_linear, ((8, 16), (8,), (2, 16), (8, 2))),
        (lambda x, b, *factors: functional.low_rank_add(x @ b, x, *factors), ((16, 8), (2, 16), (8, 2))),
        (lambda x, *t: functional.low_rank_linear_many(x, *zip(t))[0], ((8, 16), (8,), (2, 16), (8, 2))),
        (functional.rotated_low_rank_linear, ((4, 4, 4), (8, 16), (8,), (2, 16), (8, 2))),
        (functional.householder_rotate, ((16, 4),)),
        (functional.block_rotate, ((4, 4, 4),)),
        (functional.butterfly_rotate, ((2, 4, 4, 4),)),
        (functional.scale_features, ((16,), (16,))),
        (lambda x, p: functional.cayley_neumann_packed(p, 4, 5), ((3, 6),)),
    ],
)  # fmt: skip
def test_results_may_be_changed_in_place(function, shapes, lead, backend) -> None:
    """As those of `nn.Linear`: by an activation that works in place, or a residual that is added."""
    x, *tensors = leaf(*lead, 16), *(leaf(*shape) for shape in shapes)
    with use_backend(backend):
        truth = torch.autograd.grad((function(x, *tensors) * 2).sin().sum(), tensors)
        changed = torch.autograd.grad(function(x, *tensors).mul_(2).sin().sum(), tensors)
    for mine, true in zip(changed, truth, strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("needed", range(6))
def test_rotated_linear_with_one_gradient(needed) -> None:
    operator, inputs = CASES["rotated_low_rank_linear"]
    arguments = [a.detach().requires_grad_(index == needed) for index, a in enumerate(inputs)]
    assert torch.autograd.gradcheck(lambda *a: operator(*a)[0], arguments)


@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_rotation_computes_only_the_gradients_asked_for(backend) -> None:
    if unavailable(backend) is not None:
        pytest.skip(unavailable(backend))
    _, inputs = CASES["householder_rotate"]
    with use_backend(backend):
        every = torch.autograd.grad(ops.householder_rotate(*inputs)[0].sin().sum(), inputs)
        for index in range(3):
            arguments = [t if position == index else t.detach() for position, t in enumerate(inputs)]
            (one,) = torch.autograd.grad(ops.householder_rotate(*arguments)[0].sin().sum(), inputs[index])
            torch.testing.assert_close(one, every[index])
        assert torch.autograd.gradcheck(ops.householder_rotate, inputs)


def test_factors_of_many_layers_are_those_of_each() -> None:
    us = [leaf(7, 3), leaf(5, 1), leaf(7, 3).detach()]
    weights = [torch.randn(7, 3, dtype=D), torch.randn(3, 3, dtype=D)]

    def loss(factors) -> torch.Tensor:
        (v, t), (single, _), (frozen, _) = factors
        return (v * weights[0]).sum() + (t * weights[1]).sum() + (single + frozen[:5, :1]).sin().sum()

    many = functional.householder_factors_many(us)
    assert not many[2][0].requires_grad
    truth = loss([functional.householder_factors(u) for u in us])
    for mine, true in zip(
        torch.autograd.grad(loss(many), us[:2]), torch.autograd.grad(truth, us[:2]), strict=True
    ):
        torch.testing.assert_close(mine, true)
    compiled = torch.compile(functional.householder_factors_many, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss(compiled(us)), truth)
    assert functional.householder_factors_many([]) == []


def test_second_derivatives_raise_instead_of_being_wrong() -> None:
    operator, arguments = CASES["low_rank_linear"]
    y, _ = operator(*arguments)
    (dx,) = torch.autograd.grad(y.sin().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once differentiable"):
        torch.autograd.grad(
            dx.sum(), arguments[3], retain_graph=True
        )  # on whose way torch's decorator is not
    with pytest.raises(RuntimeError, match="once differentiable"):
        dx.sum().backward()


def hybrid(x, a, b, u, mixing, weight):
    return functional.hybrid_linear(x, weight, None, a, b, u, mixing, 2.0)


def hybrid_arguments() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return leaf(3, 8), leaf(2, 8), leaf(5, 2), leaf(8, 4), torch.tensor(0.3, dtype=D, requires_grad=True)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic) -> None:
    weight = torch.randn(5, 8, dtype=D)
    arguments = hybrid_arguments()
    compiled = torch.compile(hybrid, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    y, truth = compiled(*arguments, weight), hybrid(*arguments, weight)
    torch.testing.assert_close(y, truth)
    for mine, true in zip(
        torch.autograd.grad(y.sin().sum(), arguments),
        torch.autograd.grad(truth.sin().sum(), arguments),
        strict=True,
    ):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant) -> None:
    weight = torch.randn(5, 8, dtype=D)
    arguments = hybrid_arguments()
    y = checkpoint(hybrid, *arguments, weight, use_reentrant=use_reentrant)
    y.sin().sum().backward()
    truth = torch.autograd.grad(hybrid(*arguments, weight).sin().sum(), arguments)
    for argument, true in zip(arguments, truth, strict=True):
        torch.testing.assert_close(argument.grad, true)
