"""Other ways to compute the operators: plain PyTorch (`operator_plain`), that compiled, and other libraries.

A floor is what nothing can beat: the frozen layer, or a copy of the activations. All take the arguments that are drawn
for ours (`operator_inputs`), without reflections that are none and without elements dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import hybrid_kernels as hk

from . import operator_plain as plain
from .base import Inputs, Side, flattened

#: Arguments of a layer that an adapter leaves as they are.
FROZEN = ("weight", "weights", "bias", "biases")
Builder = Callable[[Inputs], Side]


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor):
        floating = value.is_floating_point() or value.is_complex()
        return value.detach().requires_grad_() if floating else value
    return [_leaf(part) for part in value] if isinstance(value, (tuple, list)) else value


def trained(arguments: Inputs) -> tuple[Inputs, list[Tensor]]:
    """The arguments with new leaves for what is not `FROZEN`, and these."""
    made = {name: value if name in FROZEN else _leaf(value) for name, value in arguments.items()}
    return made, [tensor for value in made.values() for tensor in flattened(value) if tensor.requires_grad]


def gradients_like(outputs: Any) -> list[Tensor]:
    """Random gradients for results: for the same shapes and dtypes the same ones."""
    return [
        torch.randn(
            tensor.shape,
            dtype=tensor.dtype,
            device=tensor.device,
            generator=torch.Generator(tensor.device).manual_seed(index),
        )
        for index, tensor in enumerate(flattened(outputs))
    ]


def side(
    function: Callable[..., Any],
    arguments: Inputs,
    leaves: Sequence[Tensor],
    shaped: Callable[..., Any] | None = None,
    **options: Any,
) -> Side:
    """``function(**arguments)``; ``shaped`` gives results of the same shapes where ``function`` is to be left alone."""
    with torch.no_grad():
        gradients = gradients_like((shaped or function)(**arguments))
    return Side(lambda: function(**arguments), leaves, gradients, **options)


def of(function: Callable[..., Any]) -> Builder:
    """The side that calls a function of the drawn arguments."""
    return lambda inputs: side(function, *trained(inputs))


def compiled(function: Callable[..., Any]) -> Builder:
    def build(inputs: Inputs) -> Side:
        torch.compiler.reset()  # a compiled function counts its shapes, and gives up after a few
        torch._functorch.config.donated_buffer = False  # or the backward alone runs but once
        arguments, leaves = trained(inputs)
        return side(torch.compile(function, dynamic=False), arguments, leaves, shaped=function)

    return build


# Other libraries.


def solved_cayley(skew: Tensor, refine: bool = False) -> Tensor:
    return hk.reference.cayley(plain.wide(skew))


def solved_cayley_packed(packed: Tensor, block_size: int, refine: bool = False) -> Tensor:
    return hk.reference.cayley(plain.unpacked(packed, block_size))


def peft_cayley(series: bool) -> Builder:
    """PEFT's own function: Q by torch.linalg.solve, or a truncated series for Qᵀ."""

    def build(inputs: Inputs) -> Side:
        from peft.tuners.oft.layer import OFTRotationModule

        (blocks, elements), size = inputs["packed"].shape, inputs["block_size"]
        if inputs["packed"].is_complex():
            raise TypeError(f"PEFT's matrices are A − Aᵀ, not skew-Hermitian for {inputs['packed'].dtype}")
        module = OFTRotationModule(blocks, elements, size, blocks * size, use_cayley_neumann=series)
        module.to(inputs["packed"].device)
        terms = inputs.get("terms", module.num_cayley_neumann_terms)
        arguments, leaves = trained({"packed": inputs["packed"]})
        return side(lambda packed: module._cayley_batch(packed, size, series, terms), arguments, leaves)

    return build


def orthogonal(skew_of: Callable[[Inputs], Tensor]) -> Builder:
    """torch's own parametrization, (I − X/2)⁻¹(I + X/2) for X of the lower triangle of a full matrix: that is −2A."""

    def build(inputs: Inputs) -> Side:
        a = skew_of(inputs)
        module: Any = nn.Module()
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        module.weight = nn.Parameter(identity.expand_as(a).contiguous())
        nn.utils.parametrizations.orthogonal(module, orthogonal_map="cayley")
        parameter = module.parametrizations.weight.original
        with torch.no_grad():
            parameter.copy_(-2.0 * a)
        return side(lambda: module.weight, {}, [parameter])

    return build


def _torch_householder() -> Callable[[Tensor], Tensor]:
    try:
        from torch_householder import torch_householder_orgqr
    except ImportError as error:
        raise ImportError("torch-householder is not installed: pip install torch-householder") from error
    return torch_householder_orgqr


def _square(u: Tensor) -> Tensor:
    return nn.functional.pad(u, (0, u.shape[0] - u.shape[1]))


def torch_householder_columns(inputs: Inputs) -> Side:
    """The first columns of H, as many as reflections: this package's orthonormal frame."""
    product = _torch_householder()
    return side(lambda u: product(u), *trained(inputs))


def torch_householder_rotation(inputs: Inputs) -> Side:
    """It gives as many columns of H as it is given vectors; those of zeros are no reflections."""
    product = _torch_householder()

    def rotate(x: Tensor, u: Tensor, transpose: bool) -> Tensor:
        h = product(_square(u))
        return x @ (h if transpose else h.T)

    return side(rotate, *trained(inputs))


def _reflectors(u: Tensor) -> tuple[Tensor, Tensor]:
    """LAPACK's: vᵢ begins with i zeros and a one, which are not stored, so of u the lower trapezoid counts alone."""
    lower = u.tril()
    diagonal = lower.diagonal()
    return lower / diagonal, 2.0 * diagonal.square() / lower.square().sum(0)


def lapack_columns(u: Tensor) -> Tensor:
    """The first columns of H, as many as reflections."""
    return torch.linalg.householder_product(*_reflectors(u))


def lapack_rotation(x: Tensor, u: Tensor, transpose: bool) -> Tensor:
    lower, tau = _reflectors(u)
    h = torch.linalg.householder_product(_square(lower), tau)
    return x @ (h if transpose else h.T)


def _plain(name: str) -> dict[str, Builder]:
    function = getattr(plain, name)
    return {"plain PyTorch": of(function), COMPILED: compiled(function)}


COMPILED = "torch.compile"
SERIES = "PEFT OFT, series"
_ORTHOGONAL = "torch orthogonal, Cayley"
PEERS: dict[str, Mapping[str, Builder]] = {
    "low_rank_linear": _plain("low_rank_linear"),
    "low_rank_linear_many": _plain("low_rank_linear_many"),
    "low_rank_add": _plain("low_rank_add"),
    "rotated_low_rank_linear": _plain("rotated_low_rank_linear"),
    "scale_features": _plain("scale_features"),
    "householder_factors": {
        **_plain("householder_factors"),
        "torch-householder, columns of H": torch_householder_columns,
        "torch.linalg.householder_product, columns of H": of(lapack_columns),
    },
    "householder_factors_many": _plain("householder_factors_many"),
    "householder_rotate": {
        **_plain("householder_rotate"),
        "torch-householder": torch_householder_rotation,
        "torch.linalg.householder_product": of(lapack_rotation),
    },
    "hybrid_factors": _plain("hybrid_factors"),
    "hybrid_linear": _plain("hybrid_linear"),
    "cayley": {
        **_plain("cayley"),
        "torch.linalg.solve": of(solved_cayley),
        _ORTHOGONAL: orthogonal(lambda inputs: (inputs["skew"] - inputs["skew"].mH) / 2),
    },
    "cayley_packed": {
        **_plain("cayley_packed"),
        "torch.linalg.solve": of(solved_cayley_packed),
        "PEFT OFT, solve": peft_cayley(series=False),
        f"{SERIES} (approximate)": peft_cayley(series=True),
        _ORTHOGONAL: orthogonal(lambda inputs: plain.unpacked(inputs["packed"], inputs["block_size"])),
    },
    "cayley_packed_many": _plain("cayley_packed_many"),
    "cayley_neumann_packed": {**_plain("cayley_neumann_packed"), SERIES: peft_cayley(series=True)},
    "block_rotate": _plain("block_rotate"),
    "butterfly_rotate": {
        **_plain("butterfly_rotate"),
        "dense product": of(lambda **arguments: hk.reference.butterfly_rotate(**arguments)),
    },
    "structured_unitary": _plain("structured_unitary"),
}


class _Copy(torch.autograd.Function):
    """Copies the activations, and in the backward their gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()


def _copy(name: str) -> tuple[str, Builder]:
    def build(inputs: Inputs) -> Side:
        arguments, leaves = trained({"x": inputs[name]})
        return side(lambda x: _Copy.apply(x), arguments, leaves)

    return "copy", build


def _frozen_layer(inputs: Inputs) -> Side:
    arguments, leaves = trained({name: inputs[name] for name in ("x", "weight", "bias")})
    return side(lambda x, weight, bias: nn.functional.linear(x, weight, bias), arguments, leaves)


def _frozen_layers(inputs: Inputs) -> Side:
    arguments, leaves = trained({name: inputs[name] for name in ("x", "weights", "biases")})

    def linears(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
        return [nn.functional.linear(x, *layer) for layer in zip(weights, biases, strict=True)]

    return side(linears, arguments, leaves)


FLOORS: dict[str, tuple[str, Builder]] = {
    **dict.fromkeys(
        ("low_rank_linear", "rotated_low_rank_linear", "hybrid_linear"), ("frozen layer", _frozen_layer)
    ),
    "low_rank_linear_many": ("frozen layers", _frozen_layers),
    "low_rank_add": _copy("base"),
    "scale_features": _copy("y"),
    **dict.fromkeys(
        ("householder_rotate", "block_rotate", "butterfly_rotate", "structured_unitary"), _copy("x")
    ),
}
