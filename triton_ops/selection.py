"""Which variant of a kernel and which tiles run a shape: measured rows, and a default for everything unmeasured.

Rows are by GPU name, kind of product ("half", "tf32", "ieee"), operation and shape. Those in selection.json beside this
file were measured on the hardware they name and are part of the package; those in the user's cache folder come from
`hybrid-kernels bench tune` and go first. A row serves the shapes of its class: every dimension within a factor of
two of its own. Where there is no row, an operation runs `DEFAULTS` with the tiles of its kernel's own table, on any
GPU, without a search.

The cache folder is ``HYBRID_KERNELS_CACHE``, else ``hybrid-kernels`` under ``XDG_CACHE_HOME`` or ``~/.cache``.
This module does not import triton.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

logger = logging.getLogger("hybrid_kernels")

#: The variants of each operation; how each works stands at the head of the kernel's file.
VARIANTS = {
    "forward": ("one_pass", "epilogue", "addmm", "accumulate"),
    "input_gradient": ("epilogue", "addmm", "accumulate"),
    "output_gradient": ("fused", "separate", "matmul"),
    "down_gradient": ("kernel", "matmul"),
    "projection": ("kernel", "matmul"),
}
#: What runs where nothing was measured: cuBLAS for the large products, our kernels for those with few columns.
DEFAULTS = {
    "forward": "addmm",
    "input_gradient": "addmm",
    "output_gradient": "fused",
    "down_gradient": "kernel",
    "projection": "kernel",
}
#: Below this ratio of times a measured operator replaces plain PyTorch by itself: the margin is the timings' noise.
WINS_BELOW = 0.98

COMMITTED = Path(__file__).with_name("selection.json")


class Tiles(NamedTuple):
    """How a kernel cuts its product: output rows, output columns, summed elements a step, warps, stages; and whether
    tiles are fetched through tensor descriptors (the copy engine of Hopper and newer) where the tensors allow it."""

    rows: int
    cols: int
    inner: int
    num_warps: int
    num_stages: int
    descriptors: bool = False


class Row(NamedTuple):
    """A measured choice: variant, its tiles (None: the kernel's own table), time over that of plain PyTorch."""

    variant: str
    tiles: Tiles | None
    ratio: float


def cache_file() -> Path:
    """Where `hybrid-kernels bench tune` keeps its rows."""
    folder = os.environ.get("HYBRID_KERNELS_CACHE")
    if folder:
        return Path(folder) / "selection.json"
    folder = os.environ.get("XDG_CACHE_HOME")
    if not folder:
        try:
            folder = str(Path.home() / ".cache")
        except RuntimeError:  # a user without a home
            folder = tempfile.gettempdir()
    return Path(folder) / "hybrid-kernels" / "selection.json"


def read(path: Path) -> dict[str, Any]:
    """{device name: {"rows": [...], …}} of a selection file, without what cannot be used, which a warning names."""
    try:
        content = json.loads(path.read_text())
        devices = {str(name): {**device, "rows": list(device["rows"])} for name, device in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is ignored: %s: %s", path, type(error).__name__, error)
        return {}
    for device in devices.values():
        for row in list(device["rows"]):
            reason = _why_unusable(row)
            if reason is not None:
                logger.warning("%s: a row is ignored: %s", path, reason)
                device["rows"].remove(row)
    return devices


def _why_unusable(row: Any) -> str | None:
    """None, or what is wrong with a row of a file."""
    if not isinstance(row, dict):
        return f"{row!r} is no object"
    for key in ("m", "k", "n", "r"):
        if not isinstance(row.get(key), int) or row[key] < 1:
            return f"{key} is {row.get(key)!r}; it must be a whole number from 1"
    if not isinstance(row.get("operation"), str) or row.get("kind") not in ("half", "tf32", "ieee"):
        return f"operation {row.get('operation')!r} of kind {row.get('kind')!r} is not known"
    if row.get("variant") not in VARIANTS.get(row["operation"], ("triton", "cuda")):
        return f"variant {row.get('variant')!r} of {row['operation']!r} is not known"
    if not isinstance(row.get("ratio"), (int, float)):
        return f"ratio is {row.get('ratio')!r}; it must be a number"
    tiles = row.get("tiles")
    if tiles is None:
        return None
    if not isinstance(tiles, list) or not 5 <= len(tiles) <= 6 or not all(isinstance(t, int) for t in tiles):
        return f"tiles is {tiles!r}; it must be five whole numbers and whether there are descriptors"
    if any(size and size & (size - 1) for size in tiles[:4]) or not tiles[0] or min(tiles[:5]) < 0:
        return f"tiles is {tiles!r}; sizes and warps must be powers of two"
    return None


def _row(row: dict[str, Any]) -> Row:
    tiles = row.get("tiles")
    return Row(row["variant"], None if tiles is None else Tiles(*tiles), row["ratio"])


@functools.cache
def _rows(device_name: str) -> tuple[dict[str, Any], ...]:
    """The measured rows of a GPU, the user's own before the package's."""
    files = (read(path).get(device_name, {}).get("rows", ()) for path in (cache_file(), COMMITTED))
    return tuple(itertools.chain(_PREFERRED.get(device_name, ()), *files))


_PREFERRED: dict[str, list[dict[str, Any]]] = {}


def prefer(device_name: str, rows: list[dict[str, Any]]) -> None:
    """Rows that go before those of the files, until `forget`."""
    _rows.cache_clear()
    _find.cache_clear()
    _PREFERRED[device_name] = rows


def forget() -> None:
    """Read the files again at the next choice."""
    _PREFERRED.clear()
    _rows.cache_clear()
    _find.cache_clear()


@functools.cache
def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dot_precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: TF32 for float32 exactly where torch's own matmul may use it."""
    if dtype != torch.float32:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    try:
        allowed = matmul.allow_tf32
    except RuntimeError:  # set through torch's newer interface, after which the older one refuses to be read
        allowed = matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


def kind(dtype: torch.dtype, exact: bool = False) -> str:
    """ "half", "tf32" or "ieee": the arithmetic of a product of this dtype, ``exact`` if it never takes TF32."""
    if dtype not in (torch.float32, torch.complex64):
        return "half"
    return "ieee" if exact else dot_precision(dtype)


def find(
    operation: str, like: torch.Tensor, m: int, k: int, n: int, r: int, exact: bool = False
) -> Row | None:
    """The measured row for an operation on tensors like this one, or None; ``exact`` if it never takes TF32."""
    if not (m and k and n and r):
        return None
    return _find(operation, device_name(like.device), kind(like.dtype, exact), m, k, n, r)


@functools.lru_cache(maxsize=4096)
def _find(operation: str, name: str, kind: str, m: int, k: int, n: int, r: int) -> Row | None:
    nearest, distance = None, math.inf
    for row in _rows(name):
        if row["operation"] != operation or row["kind"] != kind:
            continue
        steps = [abs(math.log2(own / row[key])) for key, own in (("m", m), ("k", k), ("n", n), ("r", r))]
        if max(steps) <= 1 and sum(steps) < distance:
            nearest, distance = _row(row), sum(steps)
    return nearest


_FORCED: dict[str, tuple[str, Tiles | None]] = {}


@contextlib.contextmanager
def forced(operation: str, choice: tuple[str, Tiles | None]) -> Iterator[None]:
    """While it lasts, the operation runs this variant with these tiles, whatever was measured or asked for."""
    _FORCED[operation] = choice
    try:
        yield
    finally:
        del _FORCED[operation]


def choose(
    operation: str, like: torch.Tensor, m: int, k: int, n: int, r: int, requested: str | None = None
) -> tuple[str, Tiles | None]:
    """(variant, tiles or None for the kernel's table); a ``requested`` variant of this operation is taken as it is."""
    if operation in _FORCED:
        return _FORCED[operation]
    row = find(operation, like, m, k, n, r)
    variant = row.variant if row else DEFAULTS[operation]
    if requested in VARIANTS[operation] and requested != variant:
        return requested, None
    return variant, row.tiles if row else None


def wins(operation: str, like: torch.Tensor, m: int, k: int, n: int, r: int, exact: bool = False) -> bool:
    """Whether a measurement on this GPU showed the Triton operator to beat plain PyTorch on such a shape."""
    if like.device.type != "cuda":
        return False
    row = find(operation, like, m, k, n, r, exact)
    return row is not None and row.ratio < WINS_BELOW


#: What has run in this process: {(operation, variant, tiles, device, dtype)}; `hybrid_kernels.info()` shows it.
RAN: set[tuple[str, str, Tiles | None, str, torch.dtype]] = set()


def note(operation: str, variant: str, tiles: Tiles | None, like: torch.Tensor) -> None:
    """Remember, and log once at DEBUG level, that a variant ran."""
    entry = (operation, variant, tiles, like.device.type, like.dtype)
    if entry not in RAN:
        RAN.add(entry)
        logger.debug("%s: variant %r, tiles %s, %s on %s", operation, variant, tiles, like.dtype, like.device)
