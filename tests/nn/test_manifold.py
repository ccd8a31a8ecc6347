"""Steps along the unitary matrices: the update, and parameter groups of torch's optimizers that take it."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW

from hybrid_kernels.nn import (
    CayleyRotation,
    FullUnitary,
    cayley_update,
    enable_unitary_groups,
    unitary_parameter_groups,
)

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def unitary(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random, and of determinant 1 where real: what rotations reach."""
    u = torch.linalg.qr(torch.randn(*shape, dtype=wide(dtype)))[0]
    if not dtype.is_complex:
        u[..., 0] *= torch.linalg.det(u)[..., None]
    return u.to(dtype)


def defect(u: torch.Tensor) -> float:
    u = u.detach().to(wide(u.dtype))
    return torch.linalg.matrix_norm(u.mH @ u - torch.eye(u.shape[-1], dtype=u.dtype)).max().item()


def is_unitary(u: torch.Tensor) -> bool:
    """Within twice the defect of torch's own QR in the same dtype, or twice what rounding U may cost, ε √b."""
    rounding = torch.finfo(u.dtype).eps * u.shape[-1] ** 0.5
    return defect(u) <= 2 * max(defect(torch.linalg.qr(u.detach()).Q), rounding)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (3, 4, 4), (2, 1, 2, 2), (0, 3, 3)])
def test_update_is_the_formula(shape, dtype) -> None:
    u, gradient = unitary(*shape, dtype=dtype), torch.randn(*shape, dtype=dtype)
    a = gradient @ u.mH - u @ gradient.mH
    identity = torch.eye(shape[-1], dtype=dtype)
    expected = torch.linalg.solve(identity + 0.15 * a, (identity - 0.15 * a) @ u)
    torch.testing.assert_close(cayley_update(u, gradient, 0.3), expected)
    torch.testing.assert_close(cayley_update(u, gradient, torch.tensor(0.3, dtype=torch.float64)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_torchs_gradient_descends_at_the_rate_of_the_formula(dtype) -> None:
    """dL/dμ = −½ ‖A‖² at μ = 0, with the gradient that torch computes; its conjugate gives another slope."""
    x, y = torch.randn(20, 5, dtype=dtype), torch.randn(20, 5, dtype=dtype)

    def loss(u: torch.Tensor) -> torch.Tensor:
        return ((x @ u).sin() - y).abs().square().sum()

    u = unitary(5, 5, dtype=dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(u), u)

    def slope(gradient: torch.Tensor) -> float:
        step = 1e-6
        later, earlier = (loss(cayley_update(u.detach(), gradient, s)) for s in (step, -step))
        return ((later - earlier) / (2 * step)).item()

    a = gradient @ u.mH - u @ gradient.mH
    expected = -0.5 * a.abs().square().sum().item()
    assert slope(gradient) == pytest.approx(expected, rel=1e-4)
    if dtype.is_complex:
        assert slope(gradient.conj()) != pytest.approx(expected, rel=1e-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [1, 8, 40])
def test_a_thousand_updates_stay_unitary(b, dtype) -> None:
    u = unitary(b, b, dtype=dtype)
    for _ in range(1000):
        u = cayley_update(u, torch.randn_like(u), 0.3 / b**0.5)
    assert is_unitary(u)


def test_update_under_autocast_is_that_without() -> None:
    u, gradient = unitary(2, 6, 6, dtype=torch.float32), torch.randn(2, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cayley_update(u, gradient, 0.1)
    assert torch.equal(inside, cayley_update(u, gradient, 0.1))


class Model(nn.Module):
    """An orthogonal, a complex and an ordinary layer, one after the other."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.orthogonal = FullUnitary(8, 4, dtype=dtype)
        self.linear = nn.Linear(8, 8, dtype=dtype)
        self.complex = FullUnitary(8, 2, complex_blocks=True, dtype=dtype)
        self.rotation = CayleyRotation(8, 4, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.complex(self.rotation(self.linear(self.orthogonal(x))))

    def unitary_matrices(self) -> list[torch.Tensor]:
        return [self.orthogonal.u, torch.view_as_complex(self.complex.u)]


X, Y = torch.randn(30, 8, dtype=torch.float64), torch.randn(30, 8, dtype=torch.float64)
ADAMW = {"lr": 1e-2, "weight_decay": 0.1}


def backward(model: nn.Module, scale: float = 1.0) -> torch.Tensor:
    model.zero_grad()
    x, y = (tensor.to(model.linear.weight.dtype) for tensor in (X, Y))
    loss = scale * (model(x) - y).square().mean()
    loss.backward()
    return loss.detach()


def expected_step(model: Model, learning_rate: float, inner: AdamW) -> dict[str, torch.Tensor]:
    """What a step must leave, with ``inner`` over copies of the ordinary parameters: the gradients are there."""
    after = {}
    for name, parameter in model.named_parameters():
        if name == "orthogonal.u":
            after[name] = cayley_update(parameter.detach(), parameter.grad, learning_rate)
        elif name == "complex.u":
            u, gradient = (torch.view_as_complex(t) for t in (parameter.detach(), parameter.grad))
            after[name] = torch.view_as_real(cayley_update(u, gradient, learning_rate))
    ordinary = dict(model.named_parameters())
    for name, twin in zip(inner.names, inner.param_groups[0]["params"], strict=True):
        twin.grad = ordinary[name].grad.clone()
    inner.step()
    return after | dict(zip(inner.names, inner.param_groups[0]["params"], strict=True))


def inner_of(model: Model) -> AdamW:
    names = [name for name, _ in model.named_parameters() if not name.endswith(".u")]
    ordinary = dict(model.named_parameters())
    inner = AdamW([ordinary[name].detach().clone().requires_grad_() for name in names], **ADAMW)
    inner.names = names
    return inner


KINDS = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "amsgrad": {"amsgrad": True},
    "tensor lr": {"lr": torch.tensor(1e-2, dtype=torch.float64), "foreach": False},
}


@pytest.mark.parametrize("closure", ["none", "positional", "keyword"])
@pytest.mark.parametrize("kind", KINDS)
def test_unitary_groups_move_on_the_manifold_and_the_others_as_ever(kind, closure) -> None:
    model = Model()
    optimizer = AdamW(unitary_parameter_groups(model, lr=0.05), **copy.deepcopy(ADAMW | KINDS[kind]))
    assert enable_unitary_groups(enable_unitary_groups(optimizer)) is optimizer  # and no second update a step
    inner = inner_of(model)
    inner.param_groups[0]["amsgrad"] = kind == "amsgrad"
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for step in range(4):
        backward(model)
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        inner.param_groups[0]["lr"] = 1e-2 * 0.5**step
        wanted = expected_step(model, 0.05 * 0.5**step, inner)
        if closure == "none":
            optimizer.step()
        else:
            arguments = [lambda: backward(model)] if closure == "positional" else []
            keywords = {"closure": lambda: backward(model)} if closure == "keyword" else {}
            for parameter in model.parameters():  # what a closure is for: there is no gradient before it
                parameter.grad = None
            assert optimizer.step(*arguments, **keywords) is not None
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, wanted[name])
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=0)
        scheduler.step()
    assert set(optimizer.state) == {p for n, p in model.named_parameters() if not n.endswith(".u")}


@pytest.mark.parametrize("make", [AdamW, SGD, Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_training_lowers_the_loss_and_stays_unitary(make) -> None:
    model = Model(torch.float32)
    optimizer = enable_unitary_groups(
        make(unitary_parameter_groups(model, lr=0.3), lr=1e-2, weight_decay=0.1)
    )
    first = backward(model)
    for _ in range(60):
        backward(model)
        optimizer.step()
    assert backward(model) < 0.9 * first
    for u in model.unitary_matrices():
        assert is_unitary(u)
        assert (u - torch.eye(u.shape[-1])).norm() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_recovers_a_unitary_matrix(dtype) -> None:
    """Least squares with plain matrices as parameters: the loss falls by orders of magnitude."""
    target = unitary(3, 6, 6, dtype=dtype)
    u = nn.Parameter(torch.eye(6, dtype=dtype).repeat(3, 1, 1))
    optimizer = enable_unitary_groups(SGD([{"params": [u], "unitary": True}], lr=0.3, momentum=0.9))
    x = torch.randn(3, 50, 6, dtype=dtype)
    losses = []
    for _ in range(600):
        optimizer.zero_grad()
        loss = (x @ u - x @ target).abs().square().sum() / 100
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-9 * losses[0]
    assert all(later < earlier for earlier, later in pairwise(losses[:20]))
    assert is_unitary(u)
    torch.testing.assert_close(u.detach(), target, rtol=1e-3, atol=1e-4)


def test_maximize_ascends() -> None:
    u, target = nn.Parameter(torch.eye(4, dtype=torch.float64)), unitary(4, 4)
    optimizer = enable_unitary_groups(SGD([{"params": [u], "unitary": True}], lr=0.1, maximize=True))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (u - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("unscale", [True, False])
def test_gradient_scaler(unscale, fused) -> None:
    model = Model(torch.float32)
    optimizer = enable_unitary_groups(AdamW(unitary_parameter_groups(model, lr=0.05), fused=fused, **ADAMW))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # it makes its state at its first use
    backward(model)
    wanted = expected_step(model, 0.05, inner_of(model))
    backward(model, scale=1024.0)
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, wanted[name])
    before = copy.deepcopy(model.state_dict())
    for parameter in (model.linear.bias, model.complex.u):  # one infinity, wherever it is, skips the step
        backward(model)
        parameter.grad.view(-1)[1] = float("inf")
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])


def test_parameters_without_a_gradient_stay() -> None:
    model = Model()
    optimizer = enable_unitary_groups(AdamW(unitary_parameter_groups(model, lr=0.05), **ADAMW))
    backward(model)
    model.complex.u.grad = None
    model.complex.u.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert torch.equal(model.complex.u, before["complex.u"])
    assert model.complex.u.grad is None
    assert not torch.equal(model.orthogonal.u, before["orthogonal.u"])


def test_groups_of_a_model() -> None:
    model = Model()
    model.linear.bias.requires_grad_(False)
    groups = unitary_parameter_groups(model, lr=0.5)
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["linear.weight", "rotation.skew"],
        ["orthogonal.u"],
        ["complex.u"],
    ]
    assert [(group.get("unitary"), group.get("lr")) for group in groups] == [
        (None, None),
        (True, 0.5),
        ("pairs", 0.5),
    ]
    assert (
        len(unitary_parameter_groups(nn.Linear(2, 2))) == len(unitary_parameter_groups(FullUnitary(4))) == 1
    )


def test_state_round_trip_goes_on_as_if_never_stopped() -> None:
    def build() -> tuple[Model, AdamW]:
        model = Model()
        return model, enable_unitary_groups(AdamW(unitary_parameter_groups(model, lr=0.05), **ADAMW))

    model, optimizer = build()
    for _ in range(3):
        backward(model)
        optimizer.step()
    other, resumed = build()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, step in (model, optimizer), (other, resumed):
        backward(each)
        step.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_a_state_from_an_ordinary_optimizer_leaves_groups_unitary() -> None:
    model = Model()
    groups = unitary_parameter_groups(model, lr=0.05)
    plain = AdamW([{k: v for k, v in group.items() if k != "unitary"} for group in groups], **ADAMW)
    optimizer = enable_unitary_groups(AdamW(groups, **ADAMW))
    optimizer.load_state_dict(plain.state_dict())
    backward(model)
    optimizer.step()
    assert all(is_unitary(u) for u in model.unitary_matrices())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(AdamW(model.parameters()).state_dict())


class Chained(SGD):
    """Its step is its parent's, hooks and all."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("with_closure", [True, False])
def test_a_step_within_a_step_updates_once(with_closure) -> None:
    SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # torch installs hooks on a class at its first instance
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    for each, make in (model, SGD), (twin, Chained):
        optimizer = enable_unitary_groups(make(unitary_parameter_groups(each, lr=0.05), lr=0.1))
        backward(each)
        optimizer.step((lambda each=each: backward(each)) if with_closure else None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])
    assert not torch.equal(model.orthogonal.u[0], torch.eye(4, dtype=torch.float64))


def test_a_closure_that_fails_loses_no_gradient() -> None:
    model = Model()
    optimizer = enable_unitary_groups(AdamW(unitary_parameter_groups(model, lr=0.05), **ADAMW))
    backward(model)

    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        optimizer.step(fail)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_groups_added_later_are_checked_before_anything_moves() -> None:
    model = Model()
    optimizer = enable_unitary_groups(AdamW(unitary_parameter_groups(model, lr=0.05), **ADAMW))
    late = nn.Parameter(unitary(3, 3))
    optimizer.add_param_group({"params": [("late", late)], "unitary": True, "lr": 0.1})
    wrong = nn.Parameter(2 * unitary(3, 3))
    backward(model)
    late.grad = torch.randn_like(late)
    before = late.detach().clone()
    optimizer.step()
    assert is_unitary(late)
    assert not torch.equal(late, before)
    optimizer.add_param_group({"params": [("wrong", wrong)], "unitary": True, "lr": 0.1})
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"wrong is not unitary: .* is 3\.0e\+00"):
        optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert model.orthogonal.u.grad is not None


def enabled(*parameters: torch.Tensor, unitary: object = True, names: bool = False) -> None:
    listed = [nn.Parameter(parameter) for parameter in parameters]
    params = [(f"layer.{i}", parameter) for i, parameter in enumerate(listed)] if names else listed
    enable_unitary_groups(SGD([{"params": params, "unitary": unitary}], lr=0.1))


EYE = torch.eye(3)
BAD = [
    (lambda: enabled(EYE, torch.zeros(3, 4)), ValueError, r"parameter 1 of group 0 has shape \(3, 4\); .*square"),
    (lambda: enabled(EYE, torch.zeros(4), names=True), ValueError, r"layer\.1 has shape \(4,\)"),
    (lambda: enabled(EYE + 0.1, names=True), ValueError, r"layer\.0 is not unitary"),
    (lambda: enabled(EYE * 1.001), ValueError, "not unitary.* is 2.0e-03.*at most 3.5e-04"),
    (lambda: enabled(EYE * float("nan")), ValueError, "not unitary"),
    (lambda: enabled(torch.stack([EYE, 2 * EYE])), ValueError, "not unitary"),
    (lambda: enabled(EYE.bfloat16()), TypeError, "parameter 0 of group 0 has dtype torch.bfloat16; it may be torch.f"),
    (lambda: enabled(EYE, unitary="pairs"), ValueError, r"has shape \(3, 3\).*\(..., b, b, 2\)"),
    (lambda: enabled(torch.zeros(3, 4, 2), unitary="pairs"), ValueError, r"parameter 0 of group 0 has shape \(3, 4\)"),
    (lambda: enabled(EYE.to(torch.complex64), unitary="pairs"), TypeError, "dtype torch.complex64; it may be torch.f"),
    (lambda: enabled(EYE, unitary="yes"), ValueError, "unitary is 'yes'"),
    (lambda: enabled(EYE, unitary=False), ValueError, 'no parameter group with "unitary"'),
    (lambda: enable_unitary_groups(LBFGS([nn.Parameter(EYE)])), TypeError, "optimizer is LBFGS"),
    (lambda: cayley_update(torch.zeros(3, 4), EYE, 0.1), ValueError, r"u has shape \(3, 4\)"),
    (lambda: cayley_update(EYE, torch.zeros(3, 4), 0.1), ValueError, r"grad has shape \(3, 4\)"),
    (lambda: cayley_update(EYE, EYE.double(), 0.1), ValueError, "grad has .* dtype torch.float64"),
    (lambda: cayley_update(EYE.half(), EYE.half(), 0.1), TypeError, "u has dtype torch.float16"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
