"""Broken kernels are found by `hybrid-kernels validate`, and named."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hybrid_kernels.cases import operators
from tests.validation.broken import BREAKS
from tests.validation.support import reshaped


@pytest.mark.parametrize("name", list(BREAKS))
def test_what_is_broken_is_named(name, command, product) -> None:
    break_it, expected = BREAKS[name]
    break_it(product)
    code, out, _ = command("--quick", "--backend", "eager,cpp")
    assert code == 1
    for text in expected:
        assert text in out
    assert "failed: " in out and "product, eager" not in out and "gradient of x:" not in out
    if name == "wrong_in_bfloat16_alone":
        assert "cpp, float32, m5" not in out and "cpp, float64, m5" not in out
    if name == "wrong_for_strided_input":
        assert "m5-k7-n3, contiguous" not in out


def test_a_backend_that_changes_an_argument_spoils_no_other(command, product) -> None:
    BREAKS["changes_an_argument"][0](product)
    _, out, _ = command("--backend", "cpp,eager", "--dtype", "float32")
    assert "product, cpp, float32" in out and "product, eager" not in out


def test_kernels_run_as_they_do_elsewhere_after_it(command, product) -> None:
    command("--quick")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("layout", ["frozen weights", "gradient for the first alone"])
def test_wrong_without_the_gradient_of_a_weight_is_found(layout, command, monkeypatch) -> None:
    case = operators.OPERATORS["low_rank_linear"]
    right = case.fast

    def fast(**arguments):
        y = right(**arguments)
        return y if arguments["weight"].requires_grad or not y.requires_grad else y * 1.001

    broken = reshaped(case, {"m": 5, "k": 7, "n": 3, "r": 2, "bias": 1})
    broken = dataclasses.replace(broken, fast=fast)
    monkeypatch.setattr(operators, "OPERATORS", {"low_rank_linear": broken})
    code, out, _ = command("--dtype", "float32", "--backend", "eager")
    assert code == 1 and f"m5-k7-n3-r2-bias1, {layout}, y: error" in out and "contiguous, y" not in out
    if layout == "frozen weights":
        code, out, _ = command("--dtype", "float32", "--backend", "eager", "--quick")
        assert code == 1 and f"m5-k7-n3-r2-bias1, {layout}, y: error" in out
