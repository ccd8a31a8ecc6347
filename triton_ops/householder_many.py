"""Householder factors of many layers of different shapes, and their gradients, in one launch for each padded n.

The kernels are those of triton_ops.householder. A layer's address, shape and strides come from a table on the device,
which is kept as long as the tensors stay where they are; the results of all layers are views of one allocation.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton

from triton_ops import householder

# What a tensor's place comes to: address, shape, strides.
Place = tuple[int, tuple[int, ...], tuple[int, ...]]


class Plan(NamedTuple):
    """The launches of many layers, the offsets of each layer's results in one memory, and the size of that."""

    groups: list[householder.Group]
    offsets: list[list[int]]
    size: int


def _place(tensor: torch.Tensor) -> Place:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _stream(device: torch.device) -> int:
    """A table copied on one stream is not known to have arrived on another."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _on_device(rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """The rows as int64 on the device, without waiting for it."""
    if device.type != "cuda":
        return torch.tensor(rows, dtype=torch.int64, device=device)
    return torch.tensor(rows, dtype=torch.int64).pin_memory().to(device, non_blocking=True)


def _plan(
    shapes: list[tuple[int, int]], sizes: list[list[int]], rows: list[list[int]], device: torch.device
) -> Plan:
    """Layers of one padded n go together. `rows` are the layers' tables but for the offsets, which end them."""
    offsets: list[list[int]] = []
    size = 0
    for each in sizes:
        offsets.append([])
        for count in each:
            offsets[-1].append(size)
            size += triton.cdiv(count, 16) * 16  # every result on an aligned address
    groups = []
    for block in householder.BLOCKS:
        members = [index for index, (_, n) in enumerate(shapes) if householder.padded(n) == block]
        if members:
            lengths = [shapes[index][0] for index in members]
            table = _on_device([rows[index] + offsets[index] for index in members], device)
            widest = max(shapes[index][1] for index in members)
            groups.append(householder.Group(len(members), max(lengths), sum(lengths), widest, table))
    return Plan(groups, offsets, size)


@functools.lru_cache(maxsize=64)
def _factors_plan(us: tuple[Place, ...], product: bool, device: torch.device, stream: int) -> Plan:
    shapes = [(k, n) for _, (k, n), _ in us]
    sizes = [[k * n, n * n, k * n if product else 0] for k, n in shapes]
    rows = [[address, k, n, *strides] for address, (k, n), strides in us]
    return _plan(shapes, sizes, rows, device)


@functools.lru_cache(maxsize=64)
def _backward_plan(
    places: tuple[tuple[Place, int, int, Place | None, Place | None], ...], device: torch.device, stream: int
) -> Plan:
    shapes, rows = [], []
    for (address, (k, n), strides), v, t, dv, dt in places:
        gradients = [(0, (), (0, 0)) if place is None else place for place in (dv, dt)]
        shapes.append((k, n))
        rows.append(
            [address, v, t, *(gradient[0] for gradient in gradients), k, n, *strides]
            + [stride for gradient in gradients for stride in gradient[2]]
        )
    return _plan(shapes, [[k * n] for k, n in shapes], rows, device)


def factors_many(
    us: Sequence[torch.Tensor], product: bool = True
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """(v, t, z) as `factors_with_product` for layers u (K, n) of any shapes; z is None without ``product``.

    All us share a dtype and device. One launch of each kernel for all layers of a padded n. The results are views of
    one allocation.
    """
    if not us:
        return []
    device = us[0].device
    plan = _factors_plan(tuple(map(_place, us)), product, device, _stream(device))
    memory = torch.empty(plan.size, device=device, dtype=torch.float32)
    for group in plan.groups:
        householder.launch_factors(group, us[0], (0, 0, 0), memory, memory, memory if product else None)
    results = []
    for u, (v, t, z) in zip(us, plan.offsets, strict=True):
        k, n = u.shape
        stride = (n, 1)
        results.append(
            (
                memory.as_strided((k, n), stride, v),
                memory.as_strided((n, n), stride, t),
                memory.as_strided((k, n), stride, z) if product else None,
            )
        )
    return results


def backward_many(
    us: Sequence[torch.Tensor],
    vs: Sequence[torch.Tensor],
    ts: Sequence[torch.Tensor],
    dvs: Sequence[torch.Tensor | None],
    dts: Sequence[torch.Tensor | None],
) -> list[torch.Tensor]:
    """du of every layer as `backward`, for what `factors_many` takes. The results are views of one allocation."""
    if not us:
        return []
    device = us[0].device
    vs, ts = [v.contiguous() for v in vs], [t.contiguous() for t in ts]
    places = tuple(
        (_place(u), v.data_ptr(), t.data_ptr(), *(None if g is None else _place(g) for g in (dv, dt)))
        for u, v, t, dv, dt in zip(us, vs, ts, dvs, dts, strict=True)
    )
    plan = _backward_plan(places, device, _stream(device))
    memory = torch.empty(plan.size, device=device, dtype=us[0].dtype)
    for group in plan.groups:
        if group.longest:
            householder.launch_backward(group, us[0], vs[0], ts[0], vs[0], ts[0], memory, 0, 0)
    return [
        memory.as_strided(u.shape, (u.shape[1], 1), offset)
        for u, (offset,) in zip(us, plan.offsets, strict=True)
    ]
