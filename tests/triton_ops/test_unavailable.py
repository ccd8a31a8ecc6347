import sys

import pytest
import torch

import triton_ops


def test_available_here():
    pytest.importorskip("triton", reason="triton is not installed")
    assert triton_ops.unavailable() is None


def test_available_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_ops.unavailable().startswith("triton is not installed")


def test_available_without_gpu_or_interpreter(monkeypatch):
    triton = pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    why = triton_ops.unavailable()
    assert why == "there is no GPU, and TRITON_INTERPRET was not set before triton was imported"
