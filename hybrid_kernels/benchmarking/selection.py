"""Which cases are measured: the same by the command line, by pytest and in the processes that measure other commits."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from ..cases.base import BenchmarkCase

KINDS = ("operators", "layers", "models")
SWEEPS = ("tokens", "width", "rank", "reflections", "blocks")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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

    ``kinds`` empty: those that ``operators``, ``layers`` and ``model`` name something of, or all. ``dtype`` None is
    float32 on a CPU and bfloat16 on a GPU. Raises ValueError for a name that there is not.
    """
    _known("--kind", kinds, KINDS)
    _known("--sweep", [sweep] if sweep else [], SWEEPS)
    _known("--dtype", [dtype] if dtype else [], DTYPES)
    on = _device(device)
    as_type = DTYPES[dtype or ("bfloat16" if on.type == "cuda" else "float32")]
    named = [kind for kind, given in zip(KINDS, (operators, layers, model), strict=True) if given]
    chosen = kinds or named or KINDS
    found: list[BenchmarkCase] = []
    if "operators" in chosen:
        from ..cases import operators as of_operators

        found += of_operators.benchmark_cases(on, as_type, operators or None, shapes, compiled, sweep)
    return found


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
