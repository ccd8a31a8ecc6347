"""Running the checks: the same inputs through a function on a backend, through plain PyTorch, and in float64."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid_kernels.cases.base import Inputs, OperatorCase, dtype_name, flattened, generator, shape_name
from hybrid_kernels.ops.backend import BackendError, Choices, use_backend
from hybrid_kernels.validation import rule
from hybrid_kernels.validation.layouts import Layout, far_shortage
from hybrid_kernels.validation.plan import (
    Check,
    Plan,
    chosen_backends,
    chosen_cases,
    chosen_device,
    chosen_dtypes,
    interpreted,
    plan,
)

#: (checks done, all checks, what is checked now)
OnProgress = Callable[[int, int, Check], None]
PASSED, FAILED = "passed", "failed"
DECLINED, NOT_APPLICABLE, NOT_CHECKED = "declined", "does not apply", "not checked"
# Triton's interpreter runs kernels one NumPy call after another: of a larger tensor it would take minutes.
INTERPRETED_ELEMENTS = 2**17


@dataclass(frozen=True)
class Result:
    """One tensor of one check, or, with ``tensor`` empty, a check that came to no comparison.

    ``tensor`` is "y", "y[1]", "gradient of u" or "gradient of us[1]". ``error``, ``plain_error``, ``allowed`` and
    ``ratio`` are those of `hybrid_kernels.validation.rule.Judgement`. ``outcome`` is "passed", "failed", "declined" (the backend asked for
    does not take the input), "does not apply" (the function has no implementation of that name) or "not checked"
    (there was not the memory, or the interpreter would take too long); ``message`` says why. ``ran`` has the
    backends that ran, as "operator: backend".
    """

    operator: str
    backend: str
    device: str
    dtype: str
    shape: Mapping[str, int]
    layout: str
    tensor: str
    outcome: str
    error: float | None = None
    plain_error: float | None = None
    allowed: float | None = None
    ratio: float | None = None
    message: str | None = None
    ran: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.outcome == PASSED

    @property
    def failed(self) -> bool:
        return self.outcome == FAILED


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed; the CPU's allocator has no class of its own for that."""
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "DefaultCPUAllocator" in text)
    )


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The arguments with each tensor changed, those in lists too."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return type(value)(map(changed, value)) if isinstance(value, (list, tuple)) else value

    return {name: changed(value) for name, value in inputs.items()}


def leaves(inputs: Inputs, names: Sequence[str]) -> dict[str, Tensor]:
    """{"u": …} or {"us[0]": …, "us[1]": …}: the tensors of arguments by name."""
    found = {}
    for name in names:
        value = inputs[name]
        if isinstance(value, Tensor):
            found[name] = value
        else:
            found |= {f"{name}[{i}]": t for i, t in enumerate(value or ()) if isinstance(t, Tensor)}
    return found


def evaluate(
    function: Callable[..., Any], inputs: Inputs, names: Sequence[str], gradients: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    """{"y": …, "gradient of u": …}: results, and the gradients of the arguments ``names``, None for no gradients.

    ``gradients`` are those of the results; without them the results alone. Where an argument has none it is zero.
    """
    inputs = mapped(inputs, torch.Tensor.detach)
    wanted = leaves(inputs, names)
    for leaf in wanted.values():
        leaf.requires_grad_()
    results = flattened(function(**inputs))
    found = {"y" if len(results) == 1 else f"y[{i}]": y.detach() for i, y in enumerate(results)}
    if not wanted or gradients is None:
        return found
    pairs = [(y, dy) for y, dy in zip(results, gradients, strict=True) if y.requires_grad]
    if not pairs:
        given: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in wanted.values()]
    else:
        results, gradients = zip(*pairs, strict=True)
        given = torch.autograd.grad(
            results, list(wanted.values()), gradients, allow_unused=True, materialize_grads=True
        )
    return found | {f"gradient of {name}": g for name, g in zip(wanted, given, strict=True)}


@dataclass
class Draw:
    """Inputs, the gradients of results, what must come out, and what plain PyTorch is off by."""

    inputs: Inputs
    gradients: list[Tensor]
    truth: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    plain_errors: dict[str, float]


def make_draw(check: Check, device: torch.device, seed: int, index: int) -> Draw:
    case, dtype = check.case, check.dtype
    # Of neither backend nor layout: a failing one is made again alone, and the same numbers go through all.
    random = generator(seed, case.name, shape_name(check.shape), dtype_name(dtype), index)
    inputs = case.draw(check.shape, dtype, device, random)
    names = case.differentiable
    plain_inputs, wide_inputs = mapped(inputs, rule.narrowed), mapped(inputs, rule.widened)
    sample = evaluate(case.reference, inputs, (), None)  # whose dtypes the gradients have
    gradients = []
    for y in sample.values():
        wide = torch.complex128 if y.is_complex() else torch.float64
        dy = torch.randn(y.shape, dtype=wide, generator=random).to(device, y.dtype)
        gradients.append(check.layout.gradient(dy) if check.layout.gradient else dy)
    truth = evaluate(case.reference, wide_inputs, names, [rule.widened(dy) for dy in gradients])
    plain_gradients = [rule.narrowed(dy) for dy in gradients]
    plain = evaluate(case.reference, plain_inputs, names, plain_gradients)
    if any(t.dtype in rule.DOUBLE for t in sample.values()):
        exact = evaluate(
            case.reference,
            mapped(plain_inputs, rule.widened),
            names,
            [rule.widened(dy) for dy in plain_gradients],
        )
    else:
        exact = truth
    given = leaves(inputs, names)
    dtypes = {
        name: sample[name].dtype if name in sample else given[name.removeprefix("gradient of ")].dtype
        for name in truth
    }
    plain_errors = {name: rule.plain_error(plain[name], exact[name], dtypes[name]) for name in truth}
    return Draw(inputs, gradients, truth, dtypes, plain_errors)


def placed(draw: Draw, layout: Layout) -> tuple[Inputs, list[Tensor]]:
    """The inputs and gradients of a draw in the storage of a layout."""
    tensors: list[Tensor] = []
    mapped(draw.inputs, lambda t: (tensors.append(t), t)[1])
    moved = iter(layout.place([*tensors, *draw.gradients]))
    inputs = mapped(draw.inputs, lambda t: next(moved))
    return inputs, list(moved)


def run_check(check: Check, draws: Sequence[Draw], device: torch.device) -> list[Result]:
    """The results of one check, whatever happens but Ctrl-C."""

    def result(tensor: str, outcome: str, **fields: Any) -> Result:
        return Result(
            check.case.name,
            check.backend,
            str(device),
            dtype_name(check.dtype),
            dict(check.shape),
            check.layout.name,
            tensor,
            outcome,
            **fields,
        )

    tensors = flattened(list(draws[0].inputs.values())) + draws[0].gradients
    if check.backend == "triton" and interpreted(device):
        largest = max(t.numel() for t in tensors)
        if largest > INTERPRETED_ELEMENTS:
            message = f"Triton's interpreter is tried with tensors of up to {INTERPRETED_ELEMENTS} elements"
            return [result("", NOT_CHECKED, message=message)]
    shortage = far_shortage(tensors) if check.layout.far else None
    if shortage is not None:
        return [result("", NOT_CHECKED, message=f"memory: {shortage}")]
    names = check.layout.needs(check.case.differentiable)
    found = []
    try:
        with Choices() as choices, use_backend(check.backend):
            for draw in draws:
                inputs, gradients = placed(draw, check.layout)
                found.append(evaluate(check.case.fast, inputs, names, gradients))
                del inputs, gradients
    except BackendError as error:
        return [result("", DECLINED, message=str(error))]
    except Exception as error:
        ran = _ran(choices)
        if out_of_memory(error):
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return [result("", NOT_CHECKED, message=f"memory: {_first_line(error)}", ran=ran)]
        return [result("", FAILED, message=f"{type(error).__name__}: {_first_line(error)}", ran=ran)]
    ran = _ran(choices)
    if check.backend not in ("auto", "reference", *(backend for _, backend in choices.made)):
        message = f"it has no implementation named {check.backend!r}"
        return [result("", NOT_APPLICABLE, message=message, ran=ran)]
    expected = [name for name in draws[0].truth if not name.startswith("gradient of ")]
    given = [name for name in found[0] if not name.startswith("gradient of ")]
    if given != expected:
        message = f"it gives {len(given)} results; it must give {len(expected)}"
        return [result("", FAILED, message=message, ran=ran)]
    return [result(name, **_judged(name, found, draws), ran=ran) for name in found[0]]


def _judged(name: str, found: Sequence[Mapping[str, Tensor]], draws: Sequence[Draw]) -> dict[str, Any]:
    """Outcome and figures of one tensor, over all draws together."""
    for each, draw in zip(found, draws, strict=True):
        shape, must_shape = tuple(each[name].shape), tuple(draw.truth[name].shape)
        dtype, must_dtype = each[name].dtype, draw.dtypes[name]
        if shape != must_shape or dtype != must_dtype:
            message = (
                f"it has shape {shape} and dtype {dtype_name(dtype)}; "
                f"it must have shape {must_shape} and dtype {dtype_name(must_dtype)}"
            )
            return {"outcome": FAILED, "message": message}
    judged = rule.judge(
        torch.cat([each[name].flatten() for each in found]),
        torch.cat([draw.truth[name].flatten() for draw in draws]),
        math.hypot(*(draw.plain_errors[name] for draw in draws)),
        rule.GRADIENT if name.startswith("gradient of ") else rule.FORWARD,
    )
    figures = {
        "error": judged.error,
        "plain_error": judged.plain_error,
        "allowed": judged.allowed,
        "ratio": judged.ratio,
    }
    message = None if math.isfinite(judged.error) else "there are NaN or infinite numbers in it"
    return {"outcome": PASSED if judged.passed else FAILED, "message": message, **figures}


def _ran(choices: Choices) -> tuple[str, ...]:
    return tuple(sorted(f"{operator}: {backend}" for operator, backend in choices.made))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def run(planned: Plan, on_progress: OnProgress | None = None) -> Iterator[Result]:
    """The results as they come."""
    done = 0
    cached_for: tuple[str, torch.dtype] | None = None
    cache: dict[Any, list[Draw] | str] = {}
    for group in planned.groups:
        first = group[0]
        if cached_for != (first.case.name, first.dtype):
            cached_for, cache = (first.case.name, first.dtype), {}
        key = shape_name(first.shape), first.layout.gradient
        for check in group:
            if on_progress is not None:
                on_progress(done, planned.total, check)
            if key not in cache:
                cache[key] = _draws(first, planned)
            draws = cache[key]
            if isinstance(draws, str):
                outcome = NOT_CHECKED if draws.startswith("memory: ") else FAILED
                yield Result(
                    check.case.name,
                    check.backend,
                    str(planned.device),
                    dtype_name(check.dtype),
                    dict(check.shape),
                    check.layout.name,
                    "",
                    outcome,
                    message=draws,
                )
            else:
                yield from run_check(check, draws, planned.device)
            done += 1
    if on_progress is not None and planned.total:
        on_progress(done, planned.total, planned.groups[-1][-1])


def _draws(check: Check, planned: Plan) -> list[Draw] | str:
    """What the checks of a group share, or why it cannot be had."""
    try:
        return [make_draw(check, planned.device, planned.seed, index) for index in range(planned.draws)]
    except Exception as error:
        if out_of_memory(error):
            return f"memory: {_first_line(error)}"
        return f"plain PyTorch: {type(error).__name__}: {_first_line(error)}"


def validate(
    operators: Iterable[str] | None = None,
    backends: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    quick: bool = False,
    on_progress: OnProgress | None = None,
    cases: Mapping[str, OperatorCase] | None = None,
) -> Iterator[Result]:
    """Every function of `hybrid_kernels.functional` against the float64 reference, by `validation.rule`.

    ``operators``, ``backends`` and ``dtypes`` are names, None for all, of the backends all that run on ``device``, which
    is the GPU if there is one. The inputs depend on ``seed``, function, shape and dtype alone. ``quick``: one shape in
    a few layouts. ``on_progress(done, all, check)`` is called before each check and at the end. ``cases`` are validated in
    place of `hybrid_kernels.cases.operators.OPERATORS`.

    Yields a `Result` for each tensor of each check. Raises ValueError, at once, for a name or device that is not there.
    """
    if cases is None:
        from hybrid_kernels.cases.operators import OPERATORS

        cases = OPERATORS
    return run(planned(operators, backends, dtypes, device, seed, quick, cases), on_progress)


def planned(
    operators: Iterable[str] | None,
    backends: Iterable[str] | None,
    dtypes: Iterable[str] | None,
    device: str | torch.device | None,
    seed: int,
    quick: bool,
    cases: Mapping[str, OperatorCase],
) -> Plan:
    """What `validate` of the same arguments runs."""
    where = chosen_device(device)
    chosen = chosen_cases(operators, cases)
    return plan(
        chosen, chosen_backends(backends, where), chosen_dtypes(dtypes, chosen), where, seed, quick
    )
