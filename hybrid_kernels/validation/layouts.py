"""The layouts in which each shape is tried: the same numbers in other storage, other gradients, other needs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Element offsets from here on do not fit an int32.
FAR = 2**31


@dataclass(frozen=True)
class Layout:
    """``place`` moves all arguments and gradients to other storage; ``gradient`` replaces that of an output.

    ``needs`` gives those of the differentiable arguments that require a gradient. ``empty``: with zero rows. ``far``:
    ``place`` allocates `far_bytes`.
    """

    name: str
    place: Callable[[Sequence[Tensor]], list[Tensor]] = list
    gradient: Callable[[Tensor], Tensor] | None = None
    needs: Callable[[tuple[str, ...]], tuple[str, ...]] = lambda names: names
    empty: bool = False
    far: bool = False


def _rows(t: Tensor) -> Tensor:
    """With a last dimension, to be laid out row by row: a vector is a column."""
    return t[:, None] if t.ndim == 1 else t


def _view(storage: Tensor, shape: Sequence[int], start: int, pitch: int) -> Tensor:
    """A view (..., columns) whose rows lie ``pitch`` elements apart, the first from ``start`` on."""
    strides = [pitch * math.prod(shape[i + 1 : -1]) for i in range(len(shape) - 1)]
    return storage.as_strided(shape, [*strides, 1], start)


def _filled(view: Tensor, t: Tensor) -> Tensor:
    view.copy_(_rows(t).detach())
    return view[:, 0] if t.ndim == 1 else view


def pitched(t: Tensor) -> Tensor:
    """Rows with a pitch, from an odd offset on; what lies between them is NaN. Vectors have a stride."""
    if t.ndim == 0 or not (t.is_floating_point() or t.is_complex()):
        return t
    shape = _rows(t).shape
    pitch = shape[-1] + 3
    storage = t.new_full((math.prod(shape[:-1]) * pitch + 1,), math.nan)
    return _filled(_view(storage, shape, 1, pitch), t)


def transposed(t: Tensor) -> Tensor:
    """Columns contiguous; a vector has a stride."""
    return t.detach().mT.contiguous().mT if t.ndim > 1 else pitched(t)


def _group(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t for t in tensors if t.dtype == dtype and t.ndim > 0]


def _spans(tensors: Sequence[Tensor]) -> tuple[int, list[int], int]:
    """(columns that pitches are a multiple of, pitches, elements that the rows span) for `far`."""
    shapes = [_rows(t).shape for t in tensors]
    columns = 2 ** math.ceil(math.log2(max(sum(shape[-1] for shape in shapes), 1)))
    counts = [math.prod(shape[:-1]) for shape in shapes]
    pitches = [columns * math.ceil(FAR / (columns * max(count - 1, 1))) for count in counts]
    spans = [max(count - 1, 1) * pitch for count, pitch in zip(counts, pitches, strict=True)]
    return columns, pitches, max(spans, default=0) + columns


def _floating(tensors: Sequence[Tensor]) -> list[torch.dtype]:
    return sorted({t.dtype for t in tensors if t.is_floating_point() or t.is_complex()}, key=str)


def far_bytes(tensors: Sequence[Tensor]) -> int:
    """What `far` allocates for them."""
    return sum(
        (FAR + _spans(_group(tensors, dtype))[2]) * torch.empty((), dtype=dtype).element_size()
        for dtype in _floating(tensors)
    )


def far(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Rows so far apart that element offsets pass 2³¹, all in one storage of each dtype.

    It begins 2³¹ elements into the storage, so that an offset that wraps reads wrong numbers, not foreign memory. On a
    CPU the pages between are never touched. Pitches are multiples of one number of columns, and no two tensors share a
    column of it, so no two overlap.
    """
    placed = {id(t): t for t in tensors}
    for dtype in _floating(tensors):
        group = _group(tensors, dtype)
        if not group:
            continue
        _, pitches, span = _spans(group)
        storage = torch.empty(FAR + span, dtype=dtype, device=group[0].device)
        start = FAR
        for t, pitch in zip(group, pitches, strict=True):
            shape = _rows(t).shape
            one_row = math.prod(shape[:-1]) == 1
            placed[id(t)] = _filled(_view(storage, shape, start + (FAR if one_row else 0), pitch), t)
            start += shape[-1]
    return [placed[id(t)] for t in tensors]


def far_shortage(tensors: Sequence[Tensor]) -> str | None:
    """None, or that this machine has not the memory for `far`."""
    need = far_bytes(tensors)
    device = tensors[0].device
    if device.type == "cuda":
        have = torch.cuda.mem_get_info(device)[0]
    else:  # no page between the rows is touched, so what counts is what the system promises: all it has
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need <= have:
        return None
    return f"offsets past 2^31 take {need / 2**30:.0f} GiB, and there are {have / 2**30:.0f}"


def _one_number(dy: Tensor) -> Tensor:
    """As of y.sum(): stride 0 in every dimension."""
    return dy.flatten()[:1].squeeze(0).expand(dy.shape) if dy.numel() else dy


def _one_row(dy: Tensor) -> Tensor:
    """As of y.sum over the rows, weighted by feature: stride 0 in all dimensions but the last."""
    if dy.ndim < 2 or not dy.numel():
        return _one_number(dy)
    return dy.flatten(0, -2)[0].expand(dy.shape)


def _adapter(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in ("weight", "weights", "bias", "biases"))


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("contiguous"),
        Layout("rows with a pitch", lambda tensors: [pitched(t) for t in tensors]),
        Layout("transposed", lambda tensors: [transposed(t) for t in tensors]),
        Layout("gradient of one number", gradient=_one_number),
        Layout("gradient of one row", gradient=_one_row),
        Layout("frozen weights", needs=_adapter),
        Layout("gradient for the first alone", needs=lambda names: names[:1]),
        Layout("gradient for all but the first", needs=lambda names: names[1:]),
        Layout("gradient for every second", needs=lambda names: names[::2]),
        Layout("gradient for the others", needs=lambda names: names[1::2]),
        Layout("no gradient", needs=lambda names: ()),
        Layout("no rows", empty=True),
        Layout("offsets past 2^31", far, far=True),
    )
}
#: What --quick tries: strides of arguments and gradients, nothing at all, and some gradients.
QUICK = ("contiguous", "rows with a pitch", "frozen weights", "no rows")
