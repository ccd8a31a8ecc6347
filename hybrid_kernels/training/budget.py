"""One budget of trainable parameters for every method: the sizes that come closest to it.

Trainable parameters of an adapter, summed over its layers with K inputs and N outputs (the classification head, which
all methods train alike, is not counted):

    LoRA, LoRA-GA   r (K + N)
    HRA             r K
    OFT             K (b − 1) / 2                 the packed strict upper triangles of K / b blocks
    BOFT            m K b + N                     m factors of K / b blocks, which PEFT holds as whole b × b matrices
    uRNN            7 K / 2                       no size to choose
    hybrid          r (K + N) + n K, and K (b − 1) / 2 where a rotation is, 1 where λ is learned
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from transformers import PreTrainedModel

from hybrid_kernels.training.method_config import (
    AnyMethod,
    BoftMethod,
    FullMethod,
    HraMethod,
    HybridMethod,
    LoraGaMethod,
    LoraMethod,
    OftMethod,
    PretrainedMethod,
    UrnnMethod,
)
from hybrid_kernels.training.methods import add_adapter, required, skeleton

TOLERANCE = 0.05
"""How much of the budget a method may go above it."""

M = TypeVar("M", bound=AnyMethod)
Layers = dict[str, tuple[int, int]]


def fit_budget(
    method: M,
    model: PreTrainedModel,
    budget: int,
    *,
    head: Sequence[str] = (),
) -> M:
    """The method with the sizes whose number of trainable parameters is closest to ``budget``, at most 5 % above it.

    It chooses r of LoRA, LoRA-GA and HRA, block_size of OFT and BOFT, and r and reflections of the hybrid, half of what
    its rotations leave of the budget each; a branch of size 0 stays away and leaves all to the other. Other sizes that
    ``method`` has do not matter; α, BOFT's factors and all else stay. Block sizes are divisors of all in_features and
    few, so that OFT and BOFT may end far below the budget: report `adapter_parameters`. Full fine-tuning, uRNN and the
    pretrained model have no size and come back as they are.

    Args:
        model: the base model, without an adapter; only its configuration is used.
        budget: trainable parameters, head not counted.
        head: as `methods.add_adapter` takes it.

    Raises ValueError, naming the nearest counts there are, if all sizes are more than 5 % above the budget.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget}; it must be at least 1")
    if isinstance(method, PretrainedMethod | FullMethod | UrnnMethod):
        return method
    layers = target_layers(method, model, head=head)
    fits: dict[int, M] = {}
    for fit in _sizes(method, layers, budget):
        fits.setdefault(count_parameters(fit, layers), fit)  # of equals the first: the more even split
    allowed = [count for count in fits if count <= (1 + TOLERANCE) * budget]
    if not allowed:
        nearest = ", ".join(f"{count:,}" for count in sorted(fits)[:2]) or "none"
        raise ValueError(
            f"budget is {budget:,}; method {method.name or method.method!r} on {len(layers)} layers comes no nearer "
            f"than {nearest} trainable parameters: give more, or fewer target_modules"
        )
    return fits[min(allowed, key=lambda count: abs(count - budget))]


def adapter_parameters(method: AnyMethod, model: PreTrainedModel, *, head: Sequence[str] = ()) -> int:
    """How many parameters the method trains besides the head, by the formulas above; arguments as in `fit_budget`."""
    if not method.trains:
        return 0
    if not isinstance(method, FullMethod):
        return count_parameters(method, target_layers(method, model, head=head))
    trained = add_adapter(skeleton(model), list(head), method, seed=0)
    return sum(
        parameter.numel()
        for name, parameter in trained.named_parameters()
        if parameter.requires_grad and not name.startswith(tuple(f"{module}." for module in head))
    )


def target_layers(method: Any, model: PreTrainedModel, *, head: Sequence[str] = ()) -> Layers:
    """(in_features, out_features) of each layer that a method with these target_modules adapts, by PEFT's rules."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # PEFT itself says which layers those are, on a model without memory.
    probe = LoraMethod.model_validate(
        {"method": "lora", "name": method.name or method.method, "r": 1, "alpha": 1}
        | {"target_modules": method.target_modules}
    )
    adapted: Any = add_adapter(skeleton(model), list(head), probe, seed=0)
    layers: Any = [(name, each) for name, each in adapted.named_modules() if isinstance(each, BaseTunerLayer)]
    return {
        name.removeprefix("base_model.model."): (each.in_features, each.out_features) for name, each in layers
    }


def count_parameters(method: AnyMethod, layers: Layers) -> int:
    """Trainable parameters of an adapter on these layers, by the formulas above."""
    inputs = sum(k for k, _ in layers.values())
    outputs = sum(n for _, n in layers.values())
    match method:
        case LoraMethod() | LoraGaMethod():
            return required(method, "r") * (inputs + outputs)
        case HraMethod():
            return required(method, "r") * inputs
        case OftMethod():
            return inputs * (required(method, "block_size") - 1) // 2
        case BoftMethod():
            return method.factors * inputs * required(method, "block_size") + outputs
        case UrnnMethod():
            return 7 * inputs // 2
        case HybridMethod():
            branches = required(method, "r") * (inputs + outputs) + required(method, "reflections") * inputs
            return branches + _besides(method, layers)
        case FullMethod() | PretrainedMethod():
            raise TypeError(f"method {method.method!r} has no adapter; see adapter_parameters")


def _besides(method: HybridMethod, layers: Layers) -> int:
    """The hybrid's parameters outside its two branches: rotations, and λ where it is learned."""
    from hybrid_kernels.adapters.config import matches

    modules = method.unitary_modules
    rotated = sum(k for name, (k, _) in layers.items() if modules is not None and matches(modules, name))
    # An adapter with one branch has nothing to mix.
    learned = method.mixing == "learned" and method.r != 0 and method.reflections != 0
    return rotated * (method.unitary_block_size - 1) // 2 + learned * len(layers)


def _sizes(method: Any, layers: Layers, budget: int) -> list[Any]:
    """The method in all its sizes, or for the hybrid in those around the budget."""
    least = min(min(k, n) for k, n in layers.values())
    features = [k for k, _ in layers.values()]
    match method:
        case LoraMethod():
            return [_with(method, r=r) for r in range(1, least + 1)]
        case LoraGaMethod():
            return [_with(method, r=r) for r in range(1, least // 2 + 1)]
        case HraMethod():
            return [_with(method, r=r) for r in range(2, min(features) + 1, 2)]
        case OftMethod():
            common = math.gcd(*features)
            return [_with(method, block_size=b) for b in range(2, common + 1) if common % b == 0]
        case BoftMethod():
            common = math.gcd(*features)
            cover = 2 ** (method.factors - 1)
            return [_with(method, block_size=b) for b in range(2, common + 1, 2) if common % (b * cover) == 0]
    return _hybrid_sizes(method, layers, budget, least)


def _hybrid_sizes(method: HybridMethod, layers: Layers, budget: int, least: int) -> list[AnyMethod]:
    """Both branches near half of what is left of the budget, the reflections taking up what the rank leaves."""
    inputs = sum(k for k, _ in layers.values())
    a_rank = inputs + sum(n for _, n in layers.values())
    left = budget - _besides(method, layers)
    share = left if method.reflections == 0 else left // 2
    most = least // 2 if method.gradient_aligned else least  # the aligned start takes 2 r singular vectors
    ranks = [0] if method.r == 0 else _around(share // a_rank, 1, 1, most)
    found: list[AnyMethod] = []
    for r in ranks:
        rest = (left - r * a_rank) // inputs
        most_reflections = min(k for k, _ in layers.values()) // 2 * 2
        counts = [0] if method.reflections == 0 else _around(rest // 2 * 2, 2, 2, most_reflections)
        found += [_with(method, r=r, reflections=n) for n in counts]
    return found


def _around(value: int, step: int, least: int, most: int) -> list[int]:
    """``value`` and the one after it, brought within bounds."""
    return sorted({max(least, min(most, candidate)) for candidate in (value, value + step)})


def _with(method: AnyMethod, **sizes: int) -> AnyMethod:
    return type(method).model_validate({**method.model_dump(), **sizes})
