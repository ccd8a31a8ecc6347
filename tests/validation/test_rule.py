"""The scale-free rule, on numbers whose errors are known, and on all functions in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from hybrid_kernels.cases.operators import OPERATORS
from hybrid_kernels.validation import rule
from hybrid_kernels.validation.layouts import LAYOUTS
from hybrid_kernels.validation.plan import Check
from hybrid_kernels.validation.run import evaluate, make_draw

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_error_may_be_factor_times_that_of_plain_pytorch(dtype, scale) -> None:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    truth = torch.ones(100, dtype=wide) * scale
    step = torch.finfo(dtype).eps * scale
    result = (truth + 4 * step).to(dtype)
    exact = rule.distance(result, truth)
    assert rule.judge(result, truth, exact / 1.99, rule.FORWARD).passed
    judged = rule.judge(result, truth, exact / 2.01, rule.FORWARD)
    assert not judged.passed and judged.error == exact and judged.ratio == pytest.approx(2.01)
    assert rule.judge(result, truth, exact / 2.01, rule.GRADIENT).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_rounding_is_granted_where_plain_pytorch_is_exact(dtype) -> None:
    truth = torch.full((1,), 1 + torch.finfo(dtype).eps / 2.1, dtype=torch.float64)
    if dtype != torch.float64:
        assert rule.judge(truth.to(dtype), truth, 0.0, rule.FORWARD).passed
    off = truth.to(dtype) + torch.finfo(dtype).eps * 2
    assert not rule.judge(off, truth, 0.0, rule.FORWARD).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_fails_even_where_plain_pytorch_is_not_either(bad) -> None:
    truth = torch.ones(3, dtype=torch.float64)
    result = torch.tensor([1.0, bad, 1.0])
    for plain in (0.0, bad):
        judged = rule.judge(result, truth, plain, rule.FORWARD)
        assert not judged.passed and judged.ratio == math.inf


def test_nothing_off_by_nothing_passes() -> None:
    judged = rule.judge(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.float64), 0.0, rule.FORWARD)
    assert judged.passed and judged.ratio == 0
    assert not rule.judge(torch.full((2,), 1e-30), torch.zeros(2, dtype=torch.float64), 0.0, 3.0).passed


def test_a_truth_that_is_not_in_double_precision_or_of_another_shape_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"truth has dtype torch\.float32"):
        rule.judge(torch.ones(2), torch.ones(2), 0.0, rule.FORWARD)
    with pytest.raises(ValueError, match=r"shape \(2,\); it must be \(3,\)"):
        rule.judge(torch.ones(2), torch.ones(3, dtype=torch.float64), 0.0, rule.FORWARD)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_results_accurate_to_single_precision_fail_by_far_in_double(name, one_thread) -> None:
    """Those of the reference in float32, exact in every digit that float32 has."""
    case = OPERATORS[name]
    dtype = torch.complex128 if torch.complex128 in case.dtypes else torch.float64
    draw = make_draw(Check(case, "auto", dtype, case.shapes[0], LAYOUTS["contiguous"]), CPU, 0, 0)
    fast = evaluate(case.fast, draw.inputs, case.differentiable, draw.gradients)
    compared = 0
    for tensor, truth in draw.truth.items():
        if draw.plain_errors[tensor] == 0:  # zero, or copied from an argument
            continue
        compared += 1
        factor = rule.GRADIENT if tensor.startswith("gradient of ") else rule.FORWARD
        assert rule.judge(fast[tensor], truth, draw.plain_errors[tensor], factor).passed, tensor
        rounded = rule.narrowed(truth).to(truth.dtype)
        assert rule.judge(rounded, truth, draw.plain_errors[tensor], factor).ratio > 1e4, tensor
    assert compared >= 1
