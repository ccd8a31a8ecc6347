"""Which cases are measured: the same by the command line, by pytest and in the processes that measure other commits."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from ..cases.base import BenchmarkCase, Shape

KINDS = ("operators", "layers", "models")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: The model whose step is measured where none is named, and the one for a quick look.
MODEL = {"cpu": "llama-small", "cuda": "llama-1b"}
QUICK_MODEL = "llama-tiny"
BATCH, TOKENS, QUICK_TOKENS = 1, 512, 64


def cases(
    *,
    kinds: Sequence[str] = (),
    operators: Sequence[str] = (),
    layers: Sequence[str] = (),
    model: str | None = None,
    model_layers: int | None = None,
    batch: int | None = None,
    tokens: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    shapes: str | None = None,
    sweep: str | None = None,
    compiled: bool = True,
    quick: bool = False,
) -> list[BenchmarkCase]:
    """The cases for these arguments, all of them JSON-able; nothing is drawn or built yet.

    ``kinds`` empty: those that the other arguments name something of, or all. ``operators`` are names in
    `hybrid_kernels.functional`; ``layers`` select cases of layers, or of the model where one is named, by a part of
    their name or how the name of their own side begins ("hybrid", "accelerate", "features"). With kind "layers" a
    ``model`` gives the shapes. ``dtype`` None is float32 on a CPU and bfloat16 on a GPU; ``shapes`` is a text such as
    "512x768x768" or "m512-k768-n768-r32,…". Where nothing is chosen at all, each kind has its first shape only;
    ``quick``: that too, without torch.compile, and of models a tiny one.
    Raises ValueError for a name that there is not.
    """
    _known("--kind", kinds, KINDS)
    _known("--dtype", [dtype] if dtype else [], DTYPES)
    on = _device(device)
    as_type = DTYPES[dtype or ("bfloat16" if on.type == "cuda" else "float32")]
    named = {"operators": operators, "layers": layers and not model, "models": model}
    chosen = kinds or [kind for kind, given in named.items() if given] or KINDS
    survey = not (kinds or operators or layers or model or shapes or sweep)
    compiled = compiled and not quick
    found: list[BenchmarkCase] = []
    if "operators" in chosen:
        found += _operators(operators, on, as_type, shapes, sweep, compiled, survey or quick)
    given = _parsed(shapes)
    # As the operators do: without a choice of kinds shapes go to those that have all of the sizes.
    fitting = given is None or all(set(shape) == set("mkn") for shape in given)
    if "layers" in chosen and (kinds or layers or (fitting and _swept("layers", on, sweep))):
        sizes = _model_shapes(model, batch, tokens) if model and shapes is None else None
        found += _layers(layers, on, as_type, sizes or given, sweep, compiled, survey or quick)
    if "models" in chosen and (kinds or model or (given is None and _swept("models", on, sweep))):
        if given is not None and not {"operators", "layers"} & {*chosen}:
            raise ValueError("--shapes is of operators and layers; of a model there are --batch and --tokens")
        found += _models(model, layers, on, as_type, model_layers, batch, tokens, sweep, quick)
    unmatched = [name for name in layers if not _matching(found, [name])]
    if unmatched or not found:
        raise ValueError(
            f"there is no such case: {', '.join(unmatched or layers)}; --list without it names those there are"
        )
    # A model may have layers of one shape with and without a bias.
    return list({case.id: case for case in found}.values())


def _swept(kind: str, device: torch.device, sweep: str | None) -> bool:
    """Whether cases of that kind have the size that varies."""
    from ..cases import layers, models

    return sweep is None or sweep in (layers.SWEEPS[device.type] if kind == "layers" else models.SWEEPS)


def _operators(
    names: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    shapes: str | None,
    sweep: str | None,
    compiled: bool,
    first: bool,
) -> list[BenchmarkCase]:
    from ..cases.operators import benchmark_cases

    found = benchmark_cases(device, dtype, names or None, shapes, compiled, sweep)
    if first and shapes is None and sweep is None:
        found = list({case.name: case for case in reversed(found)}.values())[::-1]
    return found


def _parsed(shapes: str | None) -> list[Shape] | None:
    from ..cases.operator_shapes import shapes_of

    return None if shapes is None else shapes_of(shapes)


def _model_shapes(model: str, batch: int | None, tokens: int | None) -> list[Shape]:
    from ..cases.configs import linear_layers, load_config

    rows = (batch or BATCH) * (tokens or TOKENS)
    return [
        {"m": rows, "k": layer.in_features, "n": layer.out_features}
        for layer in linear_layers(load_config(model))
    ]


def _layers(
    names: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    shapes: Sequence[Shape] | None,
    sweep: str | None,
    compiled: bool,
    first: bool,
) -> list[BenchmarkCase]:
    from ..cases import layers

    if first and shapes is None:
        shapes = layers.SHAPES[device.type][:1]
    found = layers.cases(device, dtype, shapes, sweep=sweep, compiled=compiled)
    if sweep is None:
        found += layers.cases(device, dtype, shapes, features=True, compiled=compiled)
    return _matching(found, names)


def _models(
    model: str | None,
    names: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None,
    batch: int | None,
    tokens: int | None,
    sweep: str | None,
    quick: bool,
) -> list[BenchmarkCase]:
    from ..cases import models

    name = model or (QUICK_MODEL if quick else MODEL[device.type])
    tokens = tokens or (QUICK_TOKENS if quick else TOKENS)
    found = models.cases(name, device, dtype, layers, batch or BATCH, tokens, sweep=sweep)
    return _matching(found, names)


def _matching(cases: list[BenchmarkCase], names: Sequence[str]) -> list[BenchmarkCase]:
    return [
        case
        for case in cases
        if not names or any(name in case.name or case.ours.startswith(name) for name in names)
    ]


def _known(option: str, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{option} is {name!r}; it may be one of {', '.join(map(repr, known))}")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; it may be 'cpu' or 'cuda', with an index or without")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device is {name!r}, and torch sees no GPU")
    return device
