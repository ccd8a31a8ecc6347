"""Finding the hybrid adapters of a model, be they PEFT layers or plain `HybridLinear` modules."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from hybrid_kernels.adapters.layer import HybridLayer
from hybrid_kernels.nn.adapter import HybridAdapter
from hybrid_kernels.nn.hybrid_linear import HybridLinear


def named_adapters(
    model: nn.Module, adapter_name: str | None = None
) -> Iterator[tuple[str, HybridLayer | HybridLinear, HybridAdapter]]:
    """(name, layer, adapter) of every hybrid layer: of PEFT layers the adapter of that name, or all active ones."""
    for name, module in model.named_modules():
        if isinstance(module, HybridLinear):
            yield name, module, module.adapter
        elif isinstance(module, HybridLayer):
            wanted = module.active_adapters if adapter_name is None else [adapter_name]
            for each in wanted:
                if each in module.hybrid_adapters:
                    yield name, module, module.adapter(each)


def require_adapters(
    model: nn.Module, adapter_name: str | None = None
) -> list[tuple[str, HybridLayer | HybridLinear, HybridAdapter]]:
    """`named_adapters` as a list; ValueError if there are none."""
    found = list(named_adapters(model, adapter_name))
    if not found:
        which = "" if adapter_name is None else f" named {adapter_name!r}"
        raise ValueError(f"model (a {type(model).__name__}) has no hybrid adapter{which}")
    return found
