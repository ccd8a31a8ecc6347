"""HybridLinear, HouseholderRotation, CayleyRotation and their shared adapter."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hybrid_kernels import functional, reference, use_backend
from hybrid_kernels.nn import CayleyRotation, HouseholderRotation, HybridAdapter, HybridLinear
from hybrid_kernels.nn.cache import FactorCache
from hybrid_kernels.nn.hybrid_linear import hybrid_forward
from tests.support import DEVICE, assert_close_by_scale
from triton_ops import selection

KINDS = {
    "plain": {},
    "rotation": {"unitary_block_size": 4},
    "complex rotation": {"unitary_block_size": 3, "unitary_complex": True},
    "learned mixing": {"mixing": "learned", "mixing_value": 0.3},
}


class OpaqueLinear(nn.Linear):
    """A subclass stands for quantised layers: it must be called, not read."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def trained(kind: str, aligned: bool = False, base: nn.Linear | None = None) -> HybridLinear:
    """A layer whose adapter has left its start, in float64."""
    layer = HybridLinear(base or nn.Linear(24, 20).double(), rank=3, reflections=4, **KINDS[kind])
    if aligned:
        layer.adapter.set_start(torch.randn(3, 24), torch.randn(20, 3))
    with torch.no_grad():
        for parameter in layer.adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def expected(layer: HybridLinear, x: torch.Tensor) -> torch.Tensor:
    """The layer by the reference: rotate, then the mixed weight."""
    adapter = layer.adapter
    if adapter.has_rotation:
        x = x @ torch.block_diag(*adapter.rotation())
    lora_A, lora_B = adapter.low_rank()
    return reference.hybrid_linear(
        x,
        layer.weight,
        layer.bias,
        lora_A,
        lora_B,
        adapter.householder_u,
        adapter.coefficient().to(x.dtype),
        adapter.scaling,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base_layer(kind) -> None:
    base = nn.Linear(24, 20, dtype=torch.float64)
    x = torch.randn(5, 24, dtype=torch.float64)
    y = base(x)
    layer = HybridLinear(base, rank=3, reflections=4, **KINDS[kind])
    torch.testing.assert_close(layer(x), y)
    layer.adapter.set_start(torch.randn(3, 24), torch.randn(20, 3))
    for value in (0.0, 0.4, 1.0):  # whatever λ does later
        layer.adapter.mixing.fill_(value)
        torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_reference_forward_and_backward(kind, aligned) -> None:
    layer = trained(kind, aligned)
    x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    y, truth = layer(x), expected(layer, x)
    torch.testing.assert_close(y, truth)
    wanted = [x, *layer.adapter.parameters()]
    for mine, true in zip(
        torch.autograd.grad(y.sin().sum(), wanted),
        torch.autograd.grad(truth.sin().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_by_the_scale_free_rule(kind, backend) -> None:
    columns = []
    for _ in range(16):  # taken together: the error of the one number dλ alone is a matter of luck
        layer = trained(kind, aligned=True).float().to(DEVICE)
        exact = copy.deepcopy(layer).double()
        x = torch.randn(4, 24, device=DEVICE, requires_grad=True)
        x64 = x.detach().double().requires_grad_()
        dy = torch.randn(4, 20, device=DEVICE)

        def run(model, inputs, dy=dy):
            y = model(inputs)
            return [y, *torch.autograd.grad(y, [inputs, *model.adapter.parameters()], dy.to(y.dtype))]

        with use_backend(backend):
            mine = run(layer, x)
        with use_backend("reference"):
            columns.append(list(zip(mine, run(exact, x64), run(layer, x), strict=True)))
    for index, column in enumerate(zip(*columns, strict=True)):
        actual, truth, plain = (torch.stack(each) for each in zip(*column, strict=True))
        assert_close_by_scale(actual, truth, plain, 2 if index == 0 else 3)


@pytest.mark.parametrize("variant", ["one_pass", "epilogue", "addmm", "accumulate"])
def test_every_variant_is_reached(variant) -> None:
    layer = trained("plain").float().to(DEVICE)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(40, 24, device=DEVICE, requires_grad=True)
    selection.RAN.clear()
    with use_backend("triton", variant=variant):
        y = layer(x)
        y.sum().backward()
    ran = {(operation, name) for operation, name, *_ in selection.RAN}
    assert ("forward", variant) in ran
    assert ("input_gradient", "addmm" if variant == "one_pass" else variant) in ran
    with use_backend("reference"):
        assert_close_by_scale(y, exact(x.double()), layer(x), 2)


@pytest.mark.parametrize("backend", ["auto", "eager", "triton"])
@pytest.mark.parametrize("opaque", [False, True])
def test_dropout_in_training_only(backend, opaque) -> None:
    base = (OpaqueLinear if opaque else nn.Linear)(24, 20, device=DEVICE)
    layer = HybridLinear(base, rank=3, reflections=4, dropout=0.5)
    layer.adapter.set_start(torch.randn(3, 24), torch.randn(20, 3))
    x = torch.randn(6, 24, device=DEVICE)
    start = copy.deepcopy(layer).double()  # B A and B₀ A₀ see the same dropped x
    torch.testing.assert_close(start(x.double()), start.base_layer(x.double()))
    with torch.no_grad():
        for parameter in layer.adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    exact = copy.deepcopy(layer).double()
    with use_backend(backend):
        torch.manual_seed(1)
        y = layer(x)
        other = layer(x)
        steady = layer.eval()(x)
    torch.manual_seed(1)
    seed = functional.dropout_seed(DEVICE)
    adapter = exact.adapter
    arguments = (adapter.householder_u, adapter.coefficient(), adapter.scaling, 0.5, seed)
    truth = reference.hybrid_linear(x.double(), exact.weight, exact.bias, *adapter.low_rank(), *arguments)
    single = [layer.adapter.householder_u, layer.adapter.coefficient(), *arguments[2:]]
    plain = reference.hybrid_linear(x, layer.weight, layer.bias, *layer.adapter.low_rank(), *single)
    assert_close_by_scale(y, truth, plain, 2)
    assert not torch.allclose(y, other)
    torch.testing.assert_close(steady.double(), exact.eval()(x.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_dropout_under_checkpointing_is_drawn_once(use_reentrant) -> None:
    layer = trained("plain").float()
    layer.adapter.dropout = 0.5
    x = torch.randn(6, 24, requires_grad=True)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(7)
        y = checkpoint(layer, x, use_reentrant=use_reentrant) if checkpointed else layer(x)
        layer.zero_grad()
        x.grad = None
        y.sin().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in layer.adapter.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_training_step_with_dropout_forgets_cached_factors() -> None:
    layer = trained("plain").float()
    layer.adapter.dropout = 0.5
    x = torch.randn(6, 24)
    with torch.no_grad():
        layer.eval()(x)
    layer.train()(x).sum().backward()
    layer.adapter.lora_B.data.add_(1.0)  # escapes the version counter, as some optimizers do
    with torch.no_grad():
        y = layer.eval()(x)
        torch.testing.assert_close(y, copy.deepcopy(layer)(x))


def test_dropout_of_two_adapters_draws_two_masks() -> None:
    first, second = (HybridAdapter(24, 20, rank=3, reflections=4, dropout=0.5) for _ in range(2))
    for adapter in (first, second):
        with torch.no_grad():
            adapter.lora_B.normal_()
    base, x = nn.Linear(24, 20), torch.randn(6, 24)
    torch.manual_seed(2)
    y = hybrid_forward(base, x, [first, second], FactorCache(), True)
    torch.manual_seed(2)
    separate = [hybrid_forward(base, x, [adapter], FactorCache(), True) for adapter in (first, second)]
    torch.testing.assert_close(y, separate[0] + separate[1] - base(x))


@pytest.mark.parametrize("kind", KINDS)
def test_opaque_base_layer_gives_the_same(kind) -> None:
    layer = trained(kind)
    opaque = OpaqueLinear(24, 20).double()
    opaque.load_state_dict(layer.base_layer.state_dict())
    other = copy.deepcopy(layer)
    other.base_layer = opaque.requires_grad_(False)
    x = torch.randn(4, 24, dtype=torch.float64)
    torch.testing.assert_close(other(x), layer(x))
    mine = torch.autograd.grad(other(x).sin().sum(), list(other.adapter.parameters()))
    true = torch.autograd.grad(layer(x).sin().sum(), list(layer.adapter.parameters()))
    for a, b in zip(mine, true, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(TypeError, match="OpaqueLinear"):
        other.to_linear()


def test_hooks_on_the_base_layer_run() -> None:
    layer = trained("plain")
    seen = []
    layer.base_layer.register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(2, 24, dtype=torch.float64))
    assert seen


@pytest.mark.parametrize("kind", KINDS)
def test_to_linear(kind) -> None:
    layer = trained(kind, aligned=True)
    x = torch.randn(4, 24, dtype=torch.float64)
    plain = layer.to_linear()
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_and_device_follow_the_base_layer(dtype) -> None:
    layer = HybridLinear(
        nn.Linear(16, 8, bias=False, dtype=dtype), rank=2, reflections=2, unitary_block_size=4
    )
    assert {p.dtype for p in layer.adapter.parameters()} == {dtype}
    assert layer.adapter.mixing.dtype == torch.promote_types(dtype, torch.float32)
    assert layer(torch.randn(3, 16, dtype=dtype)).dtype == dtype
    assert not any(p.requires_grad for p in layer.base_layer.parameters())
    assert HybridLinear(nn.Linear(8, 8, device="meta"), rank=2, reflections=2).adapter.lora_A.is_meta


def test_factors_are_cached_in_evaluation_only_and_follow_every_change(monkeypatch) -> None:
    layer = trained("rotation").eval()
    calls = []
    original = HybridAdapter.factors
    monkeypatch.setattr(HybridAdapter, "factors", lambda self, w: calls.append(1) or original(self, w))
    x = torch.randn(2, 24, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        layer(x)
        assert len(calls) == 1
        for tensor in (layer.adapter.lora_A, layer.adapter.mixing, layer.weight):
            tensor.mul_(1.1)
            torch.testing.assert_close(layer(x), expected(layer, x))
        assert len(calls) == 4
        layer.train()
        layer(x)
        layer(x)
        assert len(calls) == 6
    layer.eval()(x)  # with gradients
    layer(x)
    assert len(calls) == 8
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected(layer, x))


def test_copies_and_pickles_stand_alone() -> None:
    layer = trained("plain").eval()
    x = torch.randn(2, 24, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(other(x), y)
            other.adapter.lora_B.add_(1.0)
            assert not torch.allclose(other(x), y)
            torch.testing.assert_close(layer(x), y)


def test_state_dict_round_trip() -> None:
    layer = trained("learned mixing")
    fresh = HybridLinear(nn.Linear(24, 20).double(), rank=3, reflections=4, **KINDS["learned mixing"])
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(2, 24, dtype=torch.float64)
    torch.testing.assert_close(fresh(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_in_one_graph(kind) -> None:
    layer = trained(kind)
    x = torch.randn(4, 24, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_householder_rotation_module() -> None:
    rotation = HouseholderRotation(16, 4, dtype=torch.float64)
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(rotation(x), x)
    with torch.no_grad():
        rotation.u.add_(torch.randn_like(rotation.u))
    torch.testing.assert_close(rotation(x), reference.householder_rotate(x, rotation.u))
    torch.testing.assert_close(rotation(x), x @ rotation.matrix())
    torch.testing.assert_close(rotation(x).norm(dim=-1), x.norm(dim=-1))


def test_real_cayley_rotation_module() -> None:
    rotation = CayleyRotation(12, 4, dtype=torch.float64)
    x = torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(rotation(x), x)
    with torch.no_grad():
        rotation.skew.add_(torch.randn_like(rotation.skew))
    torch.testing.assert_close(
        rotation(x), reference.block_rotate(x, reference.cayley_packed(rotation.skew, 4))
    )
    torch.testing.assert_close(rotation(x), x @ rotation.matrix())


def test_complex_cayley_rotation_acts_on_interleaved_pairs() -> None:
    rotation = CayleyRotation(12, 3, complex_blocks=True, dtype=torch.float64)
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(rotation(x), x)
    with torch.no_grad():
        rotation.skew.add_(torch.randn_like(rotation.skew))
    a = torch.zeros(2, 3, 3, dtype=torch.complex128)
    for i in range(3):
        a[:, i, i] = 1j * rotation.skew[:, i, i]
        for j in range(i + 1, 3):
            a[:, i, j] = rotation.skew[:, i, j] + 1j * rotation.skew[:, j, i]
            a[:, j, i] = -a[:, i, j].conj()
    z = torch.view_as_complex(x.reshape(5, 6, 2))
    turned = reference.block_rotate(z, reference.cayley(a))
    torch.testing.assert_close(rotation(x), torch.view_as_real(turned).reshape(5, 12))


@pytest.mark.parametrize("mixing", ["gradient_norm", "fixed", "learned"])
def test_one_branch_alone_is_lora_or_householder(mixing) -> None:
    """Without the other branch there is nothing to mix: W + s B A, and W H."""
    torch.manual_seed(0)
    base = nn.Linear(8, 6, dtype=torch.float64)
    x = torch.randn(5, 8, dtype=torch.float64)
    low_rank = HybridLinear(base, rank=2, reflections=0, alpha=3.0, mixing=mixing)
    chain = HybridLinear(base, rank=0, reflections=4, mixing=mixing)
    for layer in (low_rank, chain):
        assert torch.equal(layer.adapter.coefficient(), torch.tensor(float(layer is low_rank)).double())
        torch.testing.assert_close(layer(x), base(x), rtol=0, atol=1e-14)
        with torch.no_grad():
            for parameter in layer.adapter.parameters():
                parameter.normal_()
        layer(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in layer.adapter.parameters())
    a = low_rank.adapter
    torch.testing.assert_close(low_rank(x), base(x) + x @ a.lora_A.T @ a.lora_B.T * 3.0 / 2**0.5)
    turned = reference.householder_rotate(x, chain.adapter.householder_u)
    torch.testing.assert_close(chain(x), base(turned))


BAD = [
    (lambda: HybridLinear(nn.Linear(8, 6), rank=-1), "rank is -1"),
    (lambda: HybridLinear(nn.Linear(8, 6), rank=0, reflections=0), "rank and reflections are both 0"),
    (lambda: HybridLinear(nn.Linear(8, 6), rank=7), "rank is 7.*= 6"),
    (lambda: HybridLinear(nn.Linear(8, 6), rank=2, reflections=3), "reflections is 3; it must be even"),
    (lambda: HybridLinear(nn.Linear(8, 6), rank=2, reflections=10), "at most in_features = 8"),
    (lambda: HybridLinear(nn.Linear(8, 6), rank=2, reflections=2, mixing="norm"), "mixing is 'norm'"),
    (lambda: HybridLinear(nn.Linear(8, 6), rank=2, reflections=2, mixing_value=2.0), "mixing_value is 2.0"),
    (
        lambda: HybridLinear(nn.Linear(8, 6), rank=2, reflections=2, mixing="learned", mixing_value=1.0),
        "strictly",
    ),
    (lambda: HybridLinear(nn.Linear(8, 6), rank=2, reflections=2, unitary_block_size=3), "block_size is 3"),
    (lambda: CayleyRotation(12, 4, complex_blocks=True), "twice it must divide"),
    (lambda: CayleyRotation(12, 1), "at least 2"),
    (lambda: HouseholderRotation(4, 6), "at most in_features = 4"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_base_layer_must_have_features() -> None:
    with pytest.raises(TypeError, match="base_layer is a Conv2d"):
        HybridLinear(nn.Conv2d(3, 3, 1), rank=1)
