"""One definition of an operator, two ways in.

`torch.library` operators are what torch.compile, export and fake tensors need, and cost some 50 µs of Python a call in
eager mode, more than the small products of an adapter. Plain tensors outside of tracing therefore go through an
`torch.autograd.Function` around the very same forward, setup_context and backward (both take them with the same
signatures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``backward`` with autocast off, which a call of backward() within an autocast block would bring in."""

    def run(ctx: Any, *gradients: Any) -> Any:
        device = next((g.device.type for g in gradients if isinstance(g, Tensor)), None)
        if device is None or not torch.is_autocast_enabled(device):
            return backward(ctx, *gradients)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *gradients)

    return run


class _Underivable(torch.autograd.Function):
    """The first ``count`` tensors, in a graph that depends on all of them and raises when it is gone back through."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            "the operators of hybrid_kernels are once differentiable; second derivatives are those of plain PyTorch, "
            "with hybrid_kernels.use_backend('reference') or after hybrid_kernels.restore"
        )


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``backward`` without a derivative of its own: as torch's decorator of this name, which `torch.autograd.grad`
    to some inputs passes by, for what it raises from is on no way to them."""

    def run(ctx: Any, *gradients: Any) -> Any:
        with torch.no_grad():
            outputs = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return outputs
        single = isinstance(outputs, Tensor)
        outputs = (outputs,) if single else outputs
        computed = [output for output in outputs if isinstance(output, Tensor)]
        given = [gradient for gradient in gradients if isinstance(gradient, Tensor)]
        saved = [tensor for tensor in ctx.saved_tensors if isinstance(tensor, Tensor)]
        marked = iter(_Underivable.apply(len(computed), *computed, *given, *saved))
        result = tuple(next(marked) if isinstance(output, Tensor) else output for output in outputs)
        return result[0] if single else result

    return run


def _is_plain(arguments: Iterable[Any]) -> bool:
    """Whether every tensor among them is no subclass, such as a fake tensor, that torch.library must be shown."""
    for argument in arguments:
        kind = type(argument)
        if kind is not Tensor and kind is not nn.Parameter and isinstance(argument, Tensor):
            return False
    return True


def _owned(output: Any) -> Any:
    """The results, none of them a view: autograd lets nobody change in place a view that a Function returns.

    Layers that follow do that to the results of `nn.Linear`, and so to ours. Nothing is copied.
    """
    if isinstance(output, Tensor):
        return torch.ops.aten._unsafe_view.default(output, output.shape) if output._is_view() else output
    return type(output)(map(_owned, output))


def _function(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` of an `torch.autograd.Function`; ``forward(ctx, *args)`` is its setup_context too.

    With a setup_context of its own, Function.apply would inspect the signature of forward at every call. Saved
    intermediates carry no graph, so a second derivative would be silently wrong: it raises instead.
    """
    members = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(backward))}
    return type(name, (torch.autograd.Function,), members).apply  # type: ignore[attr-defined]


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

        def forward_with_context(ctx: Any, *args: Any) -> Any:
            output = _owned(forward(*args))
            setup_context(ctx, args, output)
            return output

        direct = _function(name, forward_with_context, backward)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_plain(args):
            return custom_op(*args)
        return direct(*args) if torch.is_grad_enabled() else forward(*args)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = forward.__doc__
    return call


def _flattened(arguments: Iterable[Any]) -> list[Any]:
    flat: list[Any] = []
    for argument in arguments:
        if type(argument) is list:
            flat += argument
        else:
            flat.append(argument)
    return flat


def _nested(flat: Iterable[Any], like: Iterable[int | None]) -> tuple[Any, ...]:
    """`_flattened` undone: a list of that length for each number, one element for each None."""
    elements = iter(flat)
    return tuple(next(elements) if length is None else list(islice(elements, length)) for length in like)


def operator_of_lists(
    name: str,
    forward: Callable[..., list[Tensor]],
    fake: Callable[..., list[Tensor]],
    setup_context: Callable[..., None],
    backward: Callable[..., tuple[Any, ...]],
) -> Callable[..., list[Tensor]]:
    """`operator` of tensors and lists of tensors, none of them None, that returns a list of tensors.

    Autograd tracks no tensors in lists, so they go through it one by one. ``ctx.needs_input_grad`` and what
    ``backward(ctx, *gradients)`` returns are nested as the arguments are.
    """
    custom_op = torch.library.custom_op(f"hybrid_kernels::{name}", forward, mutates_args=())
    custom_op.register_fake(fake)
    backward = without_autocast(backward)
    custom_op.register_autograd(lambda ctx, gradients: backward(ctx, *gradients), setup_context=setup_context)

    def flat_forward(ctx: Any, lengths: tuple[int | None, ...], *flat: Tensor) -> tuple[Tensor, ...]:
        args = _nested(flat, lengths)
        output = _owned(forward(*args))
        setup_context(ctx, args, output)
        ctx.lengths = lengths
        return tuple(output)

    def flat_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        flat = ctx.needs_input_grad
        ctx.needs_input_grad = _nested(flat[1:], ctx.lengths)
        try:
            return None, *_flattened(backward(ctx, *gradients))
        finally:
            ctx.needs_input_grad = flat

    direct = _function(name, flat_forward, flat_backward)

    def call(*args: Any) -> list[Tensor]:
        if torch.compiler.is_compiling():
            return custom_op(*args)
        flat = _flattened(args)
        if not _is_plain(flat):
            return custom_op(*args)
        return list(direct(tuple(len(a) if type(a) is list else None for a in args), *flat))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = forward.__doc__
    return call
