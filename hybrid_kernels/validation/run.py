"""Running the checks: the same inputs through a function on a backend, through plain PyTorch, and in float64."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hybrid_kernels.benchmarking.timing import out_of_memory
from hybrid_kernels.cases.base import Inputs, dtype_name, flattened, generator, shape_name
from hybrid_kernels.ops.backend import BackendError, Choices, use_backend
from hybrid_kernels.validation import rule
from hybrid_kernels.validation.layouts import Layout, far_shortage
from hybrid_kernels.validation.plan import (
    Check,
    Plan,
    available_bytes,
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
INTERPRETED_ELEMENTS = 2**13
# How many times as many draws decide where a few failed.
AGAIN = 8
GRADIENT_OF = "gradient of "


@dataclass(frozen=True)
class Result:
    """One tensor of one check, or, with ``tensor`` empty, a check that came to no comparison.

    ``tensor`` is "y", "y[1]", "gradient of u" or "gradient of us[1]". ``error``, ``plain_error``, ``allowed`` and
    ``ratio`` are those of `hybrid_kernels.validation.rule.Judgement`. ``outcome`` is "passed", "failed",
    "declined" (the backend asked for does not take the input), "does not apply" (the function has no implementation of
    that name) or "not checked" (no memory for it, or too much for Triton's interpreter); ``message`` says why.
    ``ran`` has the backends that ran, as "operator: backend".
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
    if not wanted or gradients is None or [y.shape for y in results] != [dy.shape for dy in gradients]:
        return found  # results that are wrong in number or shape are compared as they are
    pairs = [(y, dy) for y, dy in zip(results, gradients, strict=True) if y.requires_grad]
    if not pairs:
        given: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in wanted.values()]
    else:
        given = torch.autograd.grad(
            [y for y, _ in pairs],
            list(wanted.values()),
            [dy for _, dy in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    return found | {GRADIENT_OF + name: g for name, g in zip(wanted, given, strict=True)}


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
    ways = [case.reference, *([case.plain] if case.plain else [])]
    plain = [evaluate(way, plain_inputs, names, plain_gradients) for way in ways]
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
        name: sample[name].dtype if name in sample else given[name.removeprefix(GRADIENT_OF)].dtype
        for name in truth
    }
    terms = rule.largest_dimension([*truth.values(), *flattened(list(inputs.values()))])
    plain_errors = {
        name: max(rule.plain_error(each[name], exact[name], dtypes[name], terms) for each in plain)
        for name in truth
    }
    return Draw(inputs, gradients, truth, dtypes, plain_errors)


def placed(draw: Draw, layout: Layout) -> tuple[Inputs, list[Tensor]]:
    """Copies of the inputs and gradients of a draw, in the storage of a layout."""
    tensors = [t.clone() for t in flattened(list(draw.inputs.values()))]
    # A copy of an expanded gradient is expanded no more.
    gradients = [layout.gradient(dy.clone()) if layout.gradient else dy.clone() for dy in draw.gradients]
    moved = iter(layout.place([*tensors, *gradients]))
    inputs = mapped(draw.inputs, lambda t: next(moved))
    return inputs, list(moved)


def changed(draw: Draw, inputs: Inputs, gradients: Sequence[Tensor]) -> list[str]:
    """The names of what differs from the draw, of which it was `placed`: no function may change what it is given."""
    found = [
        name
        for name, value in draw.inputs.items()
        if not all(map(torch.equal, flattened([value]), flattened([inputs[name]])))
    ]
    return found + (["dy"] if not all(map(torch.equal, draw.gradients, gradients)) else [])


@contextmanager
def uninitialised_is_nan() -> Iterator[None]:
    """What torch.empty gives is filled with NaN: freed memory may hold the right numbers of an earlier call."""
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)  # the filling is a part of it
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Dd]eterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _result(check: Check, device: torch.device, tensor: str, outcome: str, **fields: Any) -> Result:
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


def run_check(
    check: Check, draws: Sequence[Draw], device: torch.device, found: list[dict[str, Tensor]]
) -> list[Result]:
    """The results of one check, whatever happens but Ctrl-C.

    ``found`` is what came of the first draws, none at first; what comes of the others is added to it.
    """

    def single(outcome: str, message: str, ran: tuple[str, ...] = ()) -> list[Result]:
        return [_result(check, device, "", outcome, message=message, ran=ran)]

    tensors = flattened(list(draws[0].inputs.values())) + draws[0].gradients
    largest = max(t.numel() for t in tensors)
    if check.backend == "triton" and interpreted(device) and largest > INTERPRETED_ELEMENTS:
        return single(
            NOT_CHECKED,
            f"Triton's interpreter is tried with tensors of up to {INTERPRETED_ELEMENTS} elements",
        )
    shortage = far_shortage(tensors) if check.layout.far else None
    if shortage is not None:
        return single(NOT_CHECKED, f"memory: {shortage}")
    names = check.layout.needs(check.case.differentiable)
    overwritten: dict[str, None] = {}
    try:
        with Choices() as choices, use_backend(check.backend):
            for draw in draws[len(found) :]:
                inputs, gradients = placed(draw, check.layout)
                with uninitialised_is_nan():
                    found.append(evaluate(check.case.fast, inputs, names, gradients))
                overwritten |= dict.fromkeys(changed(draw, inputs, gradients))
                del inputs, gradients
    except BackendError as error:
        return single(DECLINED, error.reason)
    except Exception as error:
        ran = _ran(choices)
        if out_of_memory(error):
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return single(NOT_CHECKED, f"memory: {_first_line(error)}", ran)
        return single(FAILED, f"{type(error).__name__}: {_first_line(error)}", ran)
    ran = _ran(choices)
    if check.backend not in ("auto", "reference", *(backend for _, backend in choices.made)):
        return single(NOT_APPLICABLE, f"no implementation named {check.backend!r} takes part in it", ran)
    expected, given = (
        [name for name in each if not name.startswith(GRADIENT_OF)] for each in (draws[0].truth, found[0])
    )
    if given != expected:
        return single(FAILED, f"it gives {len(given)} results; it must give {len(expected)}", ran)
    results = [_result(check, device, name, **_judged(name, found, draws), ran=ran) for name in found[0]]
    results += [
        _result(check, device, name, FAILED, message="it is changed by the call", ran=ran)
        for name in overwritten
    ]
    ours = {backend for _, backend in choices.made} - {"eager"}
    if check.layout.far and not ours and any(r.failed for r in results) and _plain_is_wrong(check, draws):
        message = f"{check.layout.name}: PyTorch's own products are wrong there, and no kernel of ours ran"
        return single(NOT_CHECKED, message, ran)
    return results


def _plain_is_wrong(check: Check, draws: Sequence[Draw]) -> bool:
    """Whether plain PyTorch fails in a layout as well: some CPU libraries take no offsets past 2³¹."""
    found = []
    for draw in draws:
        inputs, gradients = placed(draw, check.layout)
        found.append(evaluate(check.case.reference, inputs, check.case.differentiable, gradients))
        del inputs, gradients
    return any(_judged(name, found, draws)["outcome"] == FAILED for name in found[0])


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
        rule.GRADIENT if name.startswith(GRADIENT_OF) else rule.FORWARD,
    )
    figures = {
        "error": judged.error,
        "plain_error": judged.plain_error,
        "allowed": judged.allowed,
        "ratio": judged.ratio,
    }
    not_finite = None if math.isfinite(judged.error) else "there are NaN or infinite numbers in it"
    return {"outcome": PASSED if judged.passed else FAILED, "message": not_finite, **figures}


def _ran(choices: Choices) -> tuple[str, ...]:
    return tuple(sorted(f"{operator}: {backend}" for operator, backend in choices.made))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


class Draws:
    """What the checks of a group share, made when it is first asked for."""

    def __init__(self, check: Check, planned: Plan) -> None:
        self.check, self.planned = check, planned
        self.made: list[Draw] = []

    def first(self, count: int) -> list[Draw] | str:
        """So many draws, or why they cannot be had."""
        need = self.planned.reference_bytes(self.check.shape)
        have = available_bytes(self.planned.device)
        if need > have:
            return (
                f"memory: the reference takes about {need / 2**30:.1f} GiB, and {have / 2**30:.1f} are free"
            )
        try:
            while len(self.made) < count:
                self.made.append(
                    make_draw(self.check, self.planned.device, self.planned.seed, len(self.made))
                )
        except Exception as error:
            if out_of_memory(error):
                return f"memory: {_first_line(error)}"
            return f"plain PyTorch: {type(error).__name__}: {_first_line(error)}"
        return self.made[:count]


def checked(check: Check, draws: Draws) -> list[Result]:
    """The results of one check. What fails is looked at again together with more draws, and that verdict holds.

    On a few numbers plain PyTorch is now and then exact by luck; on all of many draws it is not. What was wrong once
    stays wrong: the first draws are not run again.
    """
    device = draws.planned.device
    count = 1 if check.backend == "triton" and interpreted(device) else draws.planned.draws
    results: list[Result] = []
    found: list[dict[str, Tensor]] = []
    for more in (1, AGAIN):
        made = draws.first(count * more)
        if isinstance(made, str):
            outcome = NOT_CHECKED if made.startswith("memory: ") else FAILED
            return [_result(check, device, "", outcome, message=made)]
        results = run_check(check, made, device, found)
        if not any(result.failed and result.message is None for result in results):
            break
    return results


def run(planned: Plan, on_progress: OnProgress | None = None) -> Iterator[Result]:
    """The results as they come."""
    done = 0
    cached_for: Any = None
    cache: dict[Any, Draws] = {}
    for group in planned.groups:
        first = group[0]
        if cached_for != (first.case.name, first.dtype):
            cached_for, cache = (first.case.name, first.dtype), {}
        key = shape_name(first.shape), first.layout.gradient
        draws = cache.setdefault(key, Draws(first, planned))
        for check in group:
            if on_progress is not None:
                on_progress(done, planned.total, check)
            yield from checked(check, draws)
            done += 1
    if on_progress is not None and planned.total:
        on_progress(done, planned.total, planned.groups[-1][-1])


def validate(
    operators: Iterable[str] | None = None,
    backends: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    quick: bool = False,
    on_progress: OnProgress | None = None,
    model: str | None = None,
    rows: int = 3,
) -> Iterator[Result]:
    """Every function of `hybrid_kernels.functional` against the float64 reference, by `validation.rule`.

    ``operators``, ``backends`` and ``dtypes`` are names, None for all, of the backends all that run on ``device``,
    which is the GPU if there is one. The inputs depend on ``seed``, function, shape and dtype alone. ``quick``: one
    shape in a few layouts. ``on_progress(done, all, check)`` is called before each check and at the end. ``model``: on
    the sizes of a Transformers model's linear layers with ``rows`` rows, and its layers as modules, in place of the
    usual shapes; a name or folder, as `hybrid_kernels.cases.configs.load_config` takes it.

    Yields a `Result` for each tensor of each check. Raises ValueError, at once, for a name or device that is not there.
    """
    return run(planned(operators, backends, dtypes, device, seed, quick, model, rows), on_progress)


def planned(
    operators: Iterable[str] | None,
    backends: Iterable[str] | None,
    dtypes: Iterable[str] | None,
    device: str | torch.device | None,
    seed: int,
    quick: bool,
    model: str | None,
    rows: int,
) -> Plan:
    """What `validate` of the same arguments runs."""
    where = chosen_device(device)
    chosen_on_device = chosen_backends(backends, where)
    if model is None:
        from hybrid_kernels.cases.operators import OPERATORS as cases
    else:
        from hybrid_kernels.validation import models

        cases = models.cases(model, rows)
    chosen = chosen_cases(operators, cases)
    built = plan(
        chosen, chosen_on_device, chosen_dtypes(dtypes, chosen), where, seed, quick, model is not None
    )
    return built if model is None else replace(built, reference_bytes=models.reference_bytes)
