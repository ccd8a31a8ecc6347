"""One definition of an operator, two ways in.

`torch.library` operators are what torch.compile, export and fake tensors need, and cost some 50 µs of Python a call in
eager mode, more than the small products of an adapter. Plain tensors outside of tracing therefore go through an
`torch.autograd.Function` around the very same forward, setup_context and backward (both take them with the same
signatures).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``backward`` with autocast off, which a call of backward() within an autocast block would bring in."""

    def run(ctx: Any, *gradients: Any) -> Any:
        device = next((g.device.type for g in gradients if isinstance(g, Tensor)), None)
        if device is None or not torch.is_autocast_enabled(device):
            return backward(ctx, *gradients)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *gradients)

    return run


def operator(
    name: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register ``hybrid_kernels::name`` and return the function to call.

    ``forward`` is annotated (its schema is inferred), returns no view of an input and changes none; ``fake`` computes
    the result's metadata. ``setup_context(ctx, inputs, output)`` and ``backward(ctx, *gradients)`` are as in
    `torch.autograd.Function`; without them the operator is not differentiable.
    """
    custom_op = torch.library.custom_op(f"hybrid_kernels::{name}", forward, mutates_args=())
    custom_op.register_fake(fake)
    direct = forward
    if setup_context is not None and backward is not None:
        backward = without_autocast(backward)
        custom_op.register_autograd(backward, setup_context=setup_context)

        # With a setup_context of its own, Function.apply would inspect the signature of forward at every call.
        def forward_with_context(ctx: Any, *args: Any) -> Any:
            output = forward(*args)
            setup_context(ctx, args, output)
            return output

        # Saved intermediates carry no graph, so a second derivative would be silently wrong: it raises instead.
        members = {
            "forward": staticmethod(forward_with_context),
            "backward": staticmethod(once_differentiable(backward)),
        }
        direct = type(name, (torch.autograd.Function,), members).apply  # type: ignore[attr-defined]

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return custom_op(*args)
        for argument in args:
            kind = type(argument)
            if kind is not Tensor and kind is not nn.Parameter and isinstance(argument, Tensor):
                return custom_op(*args)
        return direct(*args)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = forward.__doc__
    return call
