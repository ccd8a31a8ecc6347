"""TF32 stays out of the factorise stage."""

import threading

import pytest
import torch

from hybrid_kernels.ops import cayley_transform, householder, hybrid, precision, projection


@pytest.fixture
def matmul():
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    yield settings
    settings.allow_tf32 = before


@pytest.mark.parametrize("allowed", [True, False])
def test_off_while_it_runs_and_back_afterwards(allowed, matmul, monkeypatch):
    monkeypatch.setattr(precision, "_on_gpu", lambda args: True)
    matmul.allow_tf32 = allowed
    seen = []

    @precision.without_tf32
    def product(fails):
        seen.append(matmul.fp32_precision if hasattr(matmul, "fp32_precision") else matmul.allow_tf32)
        if fails:
            raise RuntimeError("no")

    product(False)
    with pytest.raises(RuntimeError, match="no"):
        product(True)
    assert seen in (["ieee"] * 2, [False] * 2)
    assert matmul.allow_tf32 is allowed


def test_overlapping_calls_put_back_what_was_there_before_the_first(matmul, monkeypatch):
    monkeypatch.setattr(precision, "_on_gpu", lambda args: True)
    matmul.allow_tf32 = True
    inside, leave = threading.Event(), threading.Event()

    @precision.without_tf32
    def slow():
        inside.set()
        leave.wait(10)

    thread = threading.Thread(target=slow)

    @precision.without_tf32
    def outer():
        thread.start()
        inside.wait(10)

    outer()
    off = matmul.fp32_precision == "ieee" if hasattr(matmul, "fp32_precision") else not matmul.allow_tf32
    leave.set()
    thread.join()
    assert off, "on again while the other call was still at work"
    assert matmul.allow_tf32


def test_nothing_is_touched_on_the_cpu(matmul, monkeypatch):
    monkeypatch.delattr(precision.torch.backends.cuda, "matmul")
    x = torch.ones(2, 2)
    assert precision.without_tf32(torch.mm)(x, x).sum() == 8


@pytest.mark.parametrize(
    "function",
    [
        householder._eager,
        householder._eager_backward,
        hybrid._eager,
        hybrid._eager_backward,
        projection._eager,
        cayley_transform._eager,
    ],
)
def test_the_plain_factorisation_is_wrapped(function):
    assert function.__wrapped__ is not None
