"""Each layout keeps values and gradients, and has the strides and offsets that it says."""

from __future__ import annotations

import pytest
import torch

from hybrid_kernels.validation import layouts
from hybrid_kernels.validation.layouts import LAYOUTS

SHAPES = [(), (5,), (1,), (4, 3), (1, 6), (2, 3, 4), (0, 3)]


def skip_without_memory(name: str, t: torch.Tensor) -> None:
    shortage = layouts.far_shortage([t]) if LAYOUTS[name].far else None
    if shortage is not None:
        pytest.skip(shortage)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_values_are_kept(name, shape) -> None:
    if LAYOUTS[name].far and 0 in shape:
        return  # there is nothing that could lie far apart
    t = torch.randn(shape, dtype=torch.float16)
    skip_without_memory(name, t)
    index = torch.arange(3)
    moved, same = LAYOUTS[name].place([t, index])
    assert torch.equal(moved, t) and torch.equal(same, index)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_gradients_are_kept(name) -> None:
    x, w = torch.randn(4, 3), torch.randn(2, 3)
    dy = torch.randn(4, 2)
    skip_without_memory(name, dy)
    layout = LAYOUTS[name]
    replaced = layout.gradient(dy) if layout.gradient else dy
    placed = layout.place([x, w, replaced])
    a, b = (t.detach().requires_grad_() for t in placed[:2])
    found = torch.autograd.grad(a @ b.mT, [a, b], placed[2])
    torch.testing.assert_close(found[0], replaced @ w)
    torch.testing.assert_close(found[1], replaced.mT @ x)


def test_rows_have_a_pitch_and_nan_between_them() -> None:
    t = torch.randn(2, 3, 4)
    moved = layouts.pitched(t)
    assert moved.stride() == (21, 7, 1) and moved.storage_offset() == 1
    between = moved.as_strided((6, 3), (7, 1), 5)
    assert between.isnan().all()
    assert layouts.pitched(torch.randn(5)).stride() == (4,)


def test_transposed_storage() -> None:
    assert layouts.transposed(torch.randn(4, 3)).stride() == (1, 4)
    assert layouts.transposed(torch.randn(2, 4, 3)).stride() == (12, 1, 4)


def test_expanded_gradients_have_stride_zero() -> None:
    dy = torch.randn(4, 3)
    assert layouts._one_number(dy).stride() == (0, 0)
    assert layouts._one_row(dy).stride() == (0, 1)
    assert layouts._one_row(torch.randn(0, 3)).shape == (0, 3)


def test_offsets_pass_2_to_31_and_no_two_tensors_overlap() -> None:
    tensors = [torch.randn(shape).half() for shape in ((5, 3), (3, 4), (7,), (1, 6), (2, 3, 2))]
    skip_without_memory("offsets past 2^31", tensors[0])
    moved = layouts.far(tensors)
    addresses = set()
    for t, original in zip(moved, tensors, strict=True):
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        reach = last if original.shape != (1, 6) else t.storage_offset() - layouts.FAR
        assert reach >= layouts.FAR
        # An int32 that wraps stays within the storage.
        assert t.storage_offset() >= layouts.FAR
        places = torch.arange(t.storage_offset(), t.storage_offset() + 1)
        for size, stride in zip(t.shape, t.stride(), strict=True):
            places = (places[:, None] + torch.arange(size) * stride).flatten()
        assert addresses.isdisjoint(places.tolist())
        addresses.update(places.tolist())
    assert all(torch.equal(a, b) for a, b in zip(moved, tensors, strict=True))


def test_too_little_memory_is_said(monkeypatch) -> None:
    monkeypatch.setattr(layouts.os, "sysconf", lambda name: 2**15)
    assert layouts.far_shortage([torch.randn(4, 4)]) == "offsets past 2^31 take 16 GiB, and there are 1"
    monkeypatch.setattr(layouts.os, "sysconf", lambda name: 2**20)
    assert layouts.far_shortage([torch.randn(4, 4)]) is None


def test_some_need_gradients() -> None:
    names = ("x", "w", "b")
    assert LAYOUTS["gradient for the first alone"].needs(names) == ("x",)
    assert LAYOUTS["gradient for all but the first"].needs(names) == ("w", "b")
    assert LAYOUTS["no gradient"].needs(names) == ()
