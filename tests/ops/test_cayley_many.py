"""The Cayley transform of many layers together."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from hybrid_kernels import functional, ops, use_backend
from hybrid_kernels.nn.rotations import cayley_of, cayley_of_many
from hybrid_kernels.ops.backend import Operator, unavailable
from hybrid_kernels.ops.cayley_many import cayley_with_value, skew_hermitian

SIZES = [5, 3, 5, 5]
SHAPES = [(2, 10), (4, 3), (1, 3, 10), (10,)]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The operators that run, by name."""
    ran: list[str] = []
    original = Operator.__call__

    def recording(self, *args):
        ran.append(self.name)
        return original(self, *args)

    monkeypatch.setattr(Operator, "__call__", recording)
    return ran


def leaves(dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in SHAPES]


def loss(qs: list[torch.Tensor]) -> torch.Tensor:
    return sum(((index + 1) * q).sin().sum() for index, q in enumerate(qs))


@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_one_call_forward_and_one_backward_for_each_size(backend, calls) -> None:
    if unavailable(backend) is not None:
        pytest.skip(unavailable(backend))
    packed = leaves()
    with use_backend(backend):
        apart = [functional.cayley_packed(p, b) for p, b in zip(packed, SIZES, strict=True)]
        gradients = torch.autograd.grad(loss(apart), packed)
        calls.clear()
        together = functional.cayley_packed_many(packed, SIZES)
        assert calls == ["cayley_packed_forward"] * 2
        calls.clear()
        mine = torch.autograd.grad(loss(together), packed)
        assert calls == ["cayley_packed_backward"] * 2
        assert torch.autograd.gradcheck(lambda *p: functional.cayley_packed_many(p, SIZES), packed)
    for one, other in zip([*together, *mine], [*apart, *gradients], strict=True):
        torch.testing.assert_close(one, other)


def test_other_dtypes_subclasses_and_what_needs_no_gradient(calls) -> None:
    class Shard(torch.Tensor):
        pass

    packed = [*leaves(), *leaves(torch.complex64), *(p.detach() for p in leaves())]
    packed.append(packed[0].detach().as_subclass(Shard))
    sizes = [*SIZES * 3, 5]
    many = functional.cayley_packed_many(packed, sizes)
    assert len(calls) == 5  # two sizes of float64, two of complex64, the subclass
    assert [q.requires_grad for q in many] == [True] * 8 + [False] * 5
    for q, p, b in zip(many, packed, sizes, strict=True):
        assert torch.equal(q, functional.cayley_packed(p, b))
    assert functional.cayley_packed_many([], []) == []


def test_the_rotations_of_modules_real_and_complex(calls) -> None:
    skews = [torch.randn(2, 6), torch.randn(3, 4, 4), torch.randn(5, 6), torch.randn(1, 4, 4)]
    kinds = [(4, False), (4, True)] * 2
    many = cayley_of_many(skews, kinds)
    assert sorted(calls) == ["cayley_forward", "cayley_packed_forward"]
    for q, skew, kind in zip(many, skews, kinds, strict=True):
        assert torch.equal(q, cayley_of(skew, kind))


def test_compiled_it_is_one_node_for_each_size() -> None:
    nodes = []

    def keep(graph, _):
        nodes.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return graph

    compiled = torch.compile(
        lambda *p: loss(functional.cayley_packed_many(p, SIZES)),
        fullgraph=True,
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep),
    )
    packed = leaves()
    value = compiled(*packed)
    mine = torch.autograd.grad(value, packed)
    truth = loss(functional.cayley_packed_many(packed, SIZES))
    for one, other in zip([value, *mine], [truth, *torch.autograd.grad(truth, packed)], strict=True):
        torch.testing.assert_close(one, other)
    forward, backward = nodes
    assert forward.count("hybrid_kernels.cayley_packed.default") == 2
    assert backward.count("hybrid_kernels.cayley_backward.default") == 2


TRANSFORMS = {
    "packed": lambda skew: ops.cayley_packed(skew, 4),
    "packed, bfloat16": lambda skew: ops.cayley_packed(skew.float(), 4),
    "full": ops.cayley,
    "full, complex": ops.cayley,
    "of a module, complex": lambda skew: ops.cayley(skew_hermitian(skew)),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_with_the_value_known_only_the_gradient_is_computed(kind, calls) -> None:
    dtype = {"full, complex": torch.complex64, "packed, bfloat16": torch.bfloat16}.get(kind, torch.float32)
    shape = (2, 6) if kind.startswith("packed") else (2, 4, 4)
    skew = torch.randn(shape, dtype=dtype, requires_grad=True)
    truth = TRANSFORMS[kind](skew)
    weight = torch.randn_like(truth)
    (true_gradient,) = torch.autograd.grad(truth, skew, weight)
    value = truth.detach()
    calls.clear()
    q = cayley_with_value(skew, value)
    assert not calls and torch.equal(q, truth)
    with torch.autocast("cpu", dtype=torch.bfloat16), use_backend("eager"):
        (gradient,) = torch.autograd.grad(q, skew, weight, retain_graph=True)
    torch.testing.assert_close(gradient, true_gradient)
    (gradient,) = torch.autograd.grad(q.abs().square().sum(), skew, create_graph=True)
    with pytest.raises(RuntimeError, match="once differentiable"):
        gradient.abs().sum().backward()
    assert cayley_with_value(skew.detach(), value) is value
    with torch.no_grad():
        assert cayley_with_value(skew, value) is value
