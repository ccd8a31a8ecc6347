"""The models of the training-stack tests, and how a run on the fast path is held against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NoReturn
from unittest import mock

import pytest
import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn

from hybrid_kernels import accelerate, use_backend
from hybrid_kernels.adapters import HybridConfig
from hybrid_kernels.adapters.acceleration.base import AcceleratedLayer
from tests.adapters.acceleration.support import LLAMA_LINEAR, METHODS, llama, moved, tokens
from tests.support import assert_close_by_scale

PEFT = ("lora", "dora", "hra", "oft", "boft_2")  # stock PEFT, accelerated
HYBRID = ("hybrid", "hybrid_unitary")  # this package's own method
KINDS = PEFT + HYBRID

DEVICES = (
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
)

Results = list[Tensor]
"""Of a run: an output first, then gradients or what depends on them."""


def configuration(kind: str) -> PeftConfig:
    if kind in PEFT:
        return METHODS[kind](target_modules=LLAMA_LINEAR, task_type="CAUSAL_LM")
    unitary = ["q_proj", "o_proj", "down_proj"] if kind == "hybrid_unitary" else None
    return HybridConfig(
        r=4,
        reflections=4,
        target_modules=LLAMA_LINEAR,
        unitary_modules=unitary,
        unitary_block_size=8,
        task_type="CAUSAL_LM",
    )


def plain_base(layers: int = 1) -> nn.Module:
    return llama(num_hidden_layers=layers, use_cache=False)


def adapt(base: nn.Module, kind: str) -> nn.Module:
    """The model under an adapter that has moved off its start, in training mode."""
    return moved(get_peft_model(base, configuration(kind))).train()


def plain(kind: str, layers: int = 1) -> nn.Module:
    """A Llama as PEFT adapts it; the same at each call."""
    return adapt(plain_base(layers), kind)


def fast(kind: str, layers: int = 1) -> nn.Module:
    """`plain` on this package's operators."""
    return accelerated(plain(kind, layers))


def accelerated(model: nn.Module) -> nn.Module:
    if model.peft_config["default"].peft_type != "HYBRID":  # which needs no acceleration
        report = accelerate(model)
        assert not report.left_alone, str(report)
    return model


@contextmanager
def no_stock_forward(model: nn.Module) -> Iterator[None]:
    """An error where an accelerated layer runs as PEFT has it."""

    def forward(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("an accelerated layer ran PEFT's forward")

    layers = [module for module in model.modules() if isinstance(module, AcceleratedLayer)]
    with ExitStack() as stack:
        for original in {layer._acceleration.original for layer in layers}:
            stack.enter_context(mock.patch.object(original, "forward", forward))
        yield


def gradients(model: nn.Module) -> Tensor:
    """All of them in one vector: a norm over many numbers is no matter of luck."""
    return torch.cat([p.grad.detach().flatten().clone() for p in model.parameters() if p.requires_grad])


def step(model: nn.Module, ids: Tensor | None = None) -> Results:
    """Logits and gradients of one forward and backward, on the fast path where the model is accelerated."""
    model.zero_grad()
    device = next(model.parameters()).device
    ids = (tokens() if ids is None else ids).to(device)
    with no_stock_forward(model):
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
    return [output.logits.detach(), gradients(model)]


def plain_backend(kind: str) -> AbstractContextManager[object]:
    """For the plain model: the hybrid has no stock PEFT to be held against, so it runs on the reference."""
    return use_backend("reference" if kind in HYBRID else "auto")


def assert_as_plain(
    kind: str,
    results: Results,
    run: Callable[[nn.Module], Results] = step,
    layers: int = 1,
    device: str = "cpu",
) -> None:
    """``results`` of the fast path against ``run`` on the plain model, whose float64 twin is the truth."""
    with plain_backend(kind):
        simple = run(plain(kind, layers).to(device))
        truth = run(plain(kind, layers).double().to(device))
    for index, (result, true, same) in enumerate(zip(results, truth, simple, strict=True)):
        assert_close_by_scale(result.to(same.dtype), true.double(), same, 2 if index == 0 else 3)
