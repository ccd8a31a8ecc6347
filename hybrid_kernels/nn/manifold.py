"""Steps along the orthogonal and unitary matrices, as an option of the parameter groups of any torch optimizer.

    A = G Uᴴ − U Gᴴ        U ← (I + μ/2 A)⁻¹ (I − μ/2 A) U = cayley(μ/2 A) U        U ← ½ U (3I − UᴴU)

G is the gradient, μ the learning rate. Wisdom, Powers, Hershey, Le Roux and Atlas, "Full-capacity unitary recurrent
neural networks", arXiv 1611.00035, after Tagare, "Notes on optimization on Stiefel manifolds", 2011.

torch's gradient of a complex U is ∂L/∂Re U + i ∂L/∂Im U, so that dL = Re tr(Gᴴ dU); along dU = −A U that is
−½ ‖A‖² ≤ 0: G as it stands, not its conjugate, descends.

The last formula, one step of Newton and Schulz, is there because rounding adds up otherwise, as the square root of the
number of updates. ‖UᴴU − I‖ (Frobenius) after 1,000 updates with random gradients, without it and with it (on a CPU,
torch 2.13; complex U the same within a third):

                  b = 8              64                 256
    float32       8.8e-6, 2.7e-7     5.7e-5, 1.3e-6     1.6e-4, 3.7e-6
    float64       2.0e-14, 7.9e-16   1.0e-13, 2.7e-15   4.0e-13, 1.0e-14

With it the defect is that of the tenth update as of the thousandth: about ε √b. It takes two products where the update
takes two and an inverse, at every update, and so needs no count of updates in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from hybrid_kernels import functional
from hybrid_kernels.nn.unitary import FullUnitary
from hybrid_kernels.ops.precision import without_tf32

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

REAL_DTYPES = (torch.float32, torch.float64)
DTYPES = (*REAL_DTYPES, torch.complex64, torch.complex128)


def cayley_update(u: Tensor, grad: Tensor, learning_rate: float | Tensor) -> Tensor:
    """U after one update along the manifold, for unitary u (..., b, b) with the gradient ``grad`` of its shape.

    float32, float64, complex64 or complex128; not differentiable.
    """
    _check_square("u", u)
    if grad.shape != u.shape or grad.dtype != u.dtype:
        raise ValueError(
            f"grad has shape {tuple(grad.shape)} and dtype {grad.dtype}; it must have those of u, {tuple(u.shape)} and "
            f"{u.dtype}"
        )
    return _update(u, grad, learning_rate)


@torch.no_grad()
@without_tf32
def _update(u: Tensor, grad: Tensor, learning_rate: float | Tensor) -> Tensor:
    with torch.autocast(u.device.type, enabled=False):
        # The skew-Hermitian part that `cayley` takes of μ G Uᴴ is μ/2 A.
        u = functional.cayley(learning_rate * (grad @ u.mH)) @ u
        return 1.5 * u - 0.5 * (u @ (u.mH @ u))


def _listed(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(str, dtypes))


def _check_square(name: str, u: Tensor) -> None:
    if u.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {u.dtype}; it may be {_listed(DTYPES)}")
    if u.ndim < 2 or u.shape[-1] != u.shape[-2] or u.shape[-1] < 1:
        raise ValueError(f"{name} has shape {tuple(u.shape)}; it must be square matrices (..., b, b)")


@torch.no_grad()
@without_tf32
def _defect(u: Tensor) -> float:
    """The largest ‖UᴴU − I‖/√b of the matrices u (..., b, b)."""
    identity = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    defects = torch.linalg.matrix_norm(u.mH @ u - identity) / u.shape[-1] ** 0.5
    return defects.max().item() if defects.numel() else 0.0


def unitary_parameter_groups(model: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """The trainable parameters of ``model`` as groups for an optimizer: those of its `FullUnitary`, and the rest.

    ``options``, such as lr, go to the unitary groups. Groups name their parameters, and none is empty.
    """
    others: dict[str, Any] = {"params": []}
    orthogonal: dict[str, Any] = {"params": [], "unitary": True, **options}
    pairs: dict[str, Any] = {"params": [], "unitary": "pairs", **options}
    group_of = {
        module.u: pairs if module.complex_blocks else orthogonal
        for module in model.modules()
        if isinstance(module, FullUnitary)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group_of.get(parameter, others)["params"].append((name, parameter))
    return [group for group in (others, orthogonal, pairs) if group["params"]]


def enable_unitary_groups(optimizer: AnyOptimizer) -> AnyOptimizer:
    """Let ``optimizer`` update its groups with a true ``unitary`` along the manifold; returns it.

        enable_unitary_groups(AdamW([{"params": [u], "unitary": True, "lr": 0.1}, {"params": others}]))

    ``unitary`` may be True, for parameters (..., b, b), orthogonal where real and unitary where complex; "pairs", for
    complex ones kept as real (..., b, b, 2); or False. Its group's lr is μ, which schedulers move; ``maximize`` counts.
    Momentum, moments and weight decay do not apply to a unitary group: it takes plain gradient steps, and a decay of U
    has no effect along the manifold (G = U gives A = 0). Other groups are the optimizer's, as if the unitary ones had
    no gradients; these are there again after its step. Closures, learning rates that are tensors, gradient scalers
    (torch's take real gradients alone: use "pairs") and the loading of states work; parameters without a gradient stay.
    Not for sharded parameters. A copy or a pickle of the optimizer has no hooks: call this again on it.

    Raises ValueError, TypeError where an optimizer calls its closure more than once (LBFGS), where no group is unitary,
    or a parameter of one is not: within √ε, what a single Newton–Schulz step takes to rounding. Parameters of groups
    that are added later are checked at the next step, before anything moves.
    """
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "optimizer is LBFGS, which moves all parameters along one line; it may be any that calls its closure once"
        )
    if not any(group.get("unitary") for group in optimizer.param_groups):
        raise ValueError(
            'optimizer has no parameter group with "unitary"; at least one must have it, True or "pairs"'
        )
    steps = _UnitarySteps()
    steps.check(optimizer)
    optimizer.register_step_pre_hook(steps.before)
    optimizer.register_step_post_hook(steps.after)
    optimizer.register_load_state_dict_pre_hook(steps.before_load)
    return optimizer


def _unitary(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor, str]]:
    """Every parameter of a unitary group, with its group and its name."""
    for index, group in enumerate(optimizer.param_groups):
        if group.get("unitary"):
            for position, parameter in enumerate(group["params"]):
                unnamed = f"parameter {position} of group {index}"
                yield group, parameter, group["param_names"][position] if "param_names" in group else unnamed


def _matrices(group: dict[str, Any], tensor: Tensor) -> Tensor:
    return torch.complex(*tensor.unbind(-1)) if group["unitary"] == "pairs" else tensor


class _UnitarySteps:
    """The hooks of one optimizer."""

    def __init__(self) -> None:
        self.checked: set[int] = set()
        # Filled from what still has a gradient, so that a step within a step (of a subclass that calls its parent's),
        # or a second enabling, updates once.
        self.hidden: dict[Tensor, tuple[dict[str, Any], Tensor]] = {}

    def check(self, optimizer: Optimizer) -> None:
        """Raise for a parameter of a unitary group, not seen before, that is no unitary matrix."""
        for group, parameter, name in _unitary(optimizer):
            if id(parameter) in self.checked:
                continue
            if group["unitary"] not in (True, "pairs"):
                raise ValueError(f'unitary is {group["unitary"]!r}; it may be True, "pairs" or False')
            paired = group["unitary"] == "pairs"
            if paired and parameter.dtype not in REAL_DTYPES:
                raise TypeError(f"{name} has dtype {parameter.dtype}; it may be {_listed(REAL_DTYPES)}")
            if paired and parameter.shape[-1:] != (2,):
                raise ValueError(
                    f'{name} has shape {tuple(parameter.shape)}; in a group with unitary "pairs" it must be '
                    "(..., b, b, 2)"
                )
            u = _matrices(group, parameter.detach())
            _check_square(name, u)
            defect, limit = _defect(u), torch.finfo(u.dtype).eps ** 0.5
            if not defect <= limit:
                raise ValueError(
                    f"{name} is not unitary: ‖UᴴU − I‖/√b is {defect:.1e}; in a unitary group it must be at most "
                    f"{limit:.1e}"
                )
            self.checked.add(id(parameter))

    def hide(self, optimizer: Optimizer) -> None:
        """Take the gradients of the unitary groups out of the optimizer's sight."""
        for group, parameter, _ in _unitary(optimizer):
            if parameter.grad is not None:
                self.hidden[parameter] = group, parameter.grad
                parameter.grad = None

    def show(self) -> None:
        for parameter, (_, gradient) in self.hidden.items():
            parameter.grad = gradient
        self.hidden.clear()

    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.check(optimizer)
        self.hide(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            return None

        def closure_out_of_sight() -> Any:
            self.show()
            result = closure()
            self.hide(optimizer)
            return result

        return args[:1], {**kwargs, "closure": closure_out_of_sight}

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Set by a GradScaler during the step of a fused optimizer, which then unscales, or skips the step, itself.
        scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        for parameter, (group, gradient) in self.hidden.items():
            if scale is not None:
                gradient.div_(scale.to(gradient.device))
            u = _matrices(group, parameter)
            step = -group["lr"] if group.get("maximize") else group["lr"]
            updated = cayley_update(u, _matrices(group, gradient), step)
            if found_inf is not None:
                updated = torch.where(found_inf.to(u.device) > 0, u, updated)
            parameter.copy_(torch.view_as_real(updated) if group["unitary"] == "pairs" else updated)
        self.show()

    def before_load(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        """Keep whether a group is unitary: a state from elsewhere must not turn its steps to ordinary ones."""
        saved, groups = state["param_groups"], optimizer.param_groups
        if len(saved) != len(groups):
            return None  # which torch refuses
        kept = [
            {**loaded, "unitary": group.get("unitary", False)}
            for loaded, group in zip(saved, groups, strict=True)
        ]
        return {**state, "param_groups": kept}
