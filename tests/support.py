"""What tests of several packages share."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hybrid_kernels.validation import rule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def assert_close_by_scale(
    actual: Tensor, reference64: Tensor, same_dtype_plain: Tensor, factor: float
) -> None:
    """The rule of `hybrid_kernels.validation.rule`: no tolerance that has to be tuned to a scale.

    `reference64` is the float64 result, `same_dtype_plain` what plain PyTorch gives in the dtype of `actual`.
    Use factor 2 for results and 3 for gradients.
    """
    assert actual.dtype == same_dtype_plain.dtype, (actual.dtype, same_dtype_plain.dtype)
    assert actual.shape == reference64.shape == same_dtype_plain.shape, (actual.shape, reference64.shape)
    plain = rule.plain_error(same_dtype_plain, reference64, actual.dtype, terms=1)
    assert_judged(rule.judge(actual, reference64, plain, factor))


def assert_judged(judged: rule.Judgement) -> None:
    assert judged.passed, (
        f"error {judged.error:.3e} > {judged.allowed:.3e}; plain PyTorch {judged.plain_error:.3e}"
    )


def wide(t: Tensor) -> Tensor:
    return rule.widened(t).requires_grad_()


INSTANCES = 8


def compare(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], draw: Callable[[], list[Tensor]]
) -> None:
    """``fast`` and ``plain`` (a reference function) on the same tensors; ``plain`` in float64 is the truth.

    Errors are taken over several draws together: on a handful of numbers plain PyTorch is exact by luck now and then.
    In double precision plain and truth are the same computation; what plain makes is taken from single precision.
    """

    def run(
        function: Callable[..., Tensor], tensors: list[Tensor], dy: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = function(*leaves)
        dy = torch.randn_like(y) if dy is None else dy.to(y.dtype)
        return dy, [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    columns = []
    for _ in range(INSTANCES):
        tensors = draw()
        dy, mine = run(fast, tensors, None)
        _, true = run(plain, [rule.widened(t) for t in tensors], dy)
        double = dy.dtype in rule.DOUBLE
        narrow = [rule.narrowed(t) for t in tensors]
        _, simple = run(plain, narrow, dy)
        exact = run(plain, [rule.widened(t) for t in narrow], rule.narrowed(dy))[1] if double else true
        if not double:
            simple[0] = simple[0].to(dy.dtype)
        terms = rule.largest_dimension([*tensors, *true])
        errors = [
            rule.plain_error(*each, result.dtype, terms)
            for *each, result in zip(simple, exact, mine, strict=True)
        ]
        columns.append(list(zip(mine, true, errors, strict=True)))
    for index, column in enumerate(zip(*columns, strict=True)):
        results, truths, errors = zip(*column, strict=True)
        factor = rule.FORWARD if index == 0 else rule.GRADIENT
        assert_judged(rule.judge(torch.stack(results), torch.stack(truths), math.hypot(*errors), factor))


def make(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(DEVICE, dtype)
