"""The rows that choose between the CUDA kernels of the Cayley transform and plain PyTorch, with C++ in their place."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from hybrid_kernels.ops import cayley_search, cayley_transform
from hybrid_kernels.ops.backend import unavailable
from triton_ops import search, selection

pytestmark = pytest.mark.skipif(unavailable("cpp") is not None, reason=str(unavailable("cpp")))


@pytest.fixture(autouse=True)
def forget():
    yield
    selection.forget()


def rows(monkeypatch, shapes=((6, 5),), **settings):
    lines = []
    monkeypatch.setattr(cayley_search.search, "ROUNDS", 2)
    return cayley_search.rows(torch.device("cpu"), lines.append, shapes, backend="cpp", **settings), lines


def test_a_row_for_each_shape_and_dtype(monkeypatch):
    found, lines = rows(monkeypatch, shapes=((6, 5), (2, 3), (2**20, 64)))
    assert [(row["operation"], row["m"], row["k"]) for row in found] == [
        ("cayley", 6, 5),
        ("cayley", 2, 3),
        ("cayley_complex", 6, 5),
        ("cayley_complex", 2, 3),
    ]
    assert len(lines) == 4 and all(row["kind"] == "ieee" and row["ratio"] > 0 for row in found)
    assert all(selection._why_unusable({**row, "variant": "cuda"}) is None for row in found)


def test_a_wrong_kernel_is_left_out_and_named(monkeypatch):
    honest = cayley_transform._packed_backward.implementations[0].function
    wrong = cayley_transform.Implementation("cpp", lambda *args: -honest(*args))
    monkeypatch.setattr(
        cayley_transform._packed_backward,
        "implementations",
        (wrong, *cayley_transform._packed_backward.implementations[1:]),
    )
    found, lines = rows(monkeypatch)
    assert found == [] and all("left out, result 1 has error" in line for line in lines) and len(lines) == 2


def test_a_kernel_that_cannot_run_is_left_out_and_named(monkeypatch):
    def fails(*args):
        raise RuntimeError(
            "CUDA error: no kernel image is available\nCUDA kernel errors might be reported later"
        )

    monkeypatch.setattr(
        cayley_transform._packed_forward,
        "implementations",
        (
            cayley_transform.Implementation("cpp", fails),
            *cayley_transform._packed_forward.implementations[1:],
        ),
    )
    found, lines = rows(monkeypatch)
    assert found == [] and len(lines) == 2
    assert all(
        line.endswith("left out, RuntimeError: CUDA error: no kernel image is available") for line in lines
    )


def test_no_shape_is_begun_after_the_limit(monkeypatch):
    found, (line,) = rows(monkeypatch, shapes=((6, 5), (2, 3)), limit=-1.0)
    assert found == [] and line == "out of time: 6 blocks of 5, torch.float32, and what follows are left out"


class OnGpu:
    """What the choice looks at, of a tensor on a GPU that is not here."""

    is_cuda = True
    device = torch.device("cuda")

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = torch.Size(shape), dtype

    def numel(self) -> int:
        return self.shape.numel()


@pytest.mark.parametrize(
    ("dtype", "blocks", "size", "chosen"),
    [
        (torch.float32, 64, 32, True),
        (torch.float32, 128, 16, True),
        (torch.float32, 129, 32, False),  # more than twice the blocks that were measured
        (torch.float32, 64, 128, False),
        (torch.complex64, 64, 32, True),
        (torch.complex64, 64, 8, False),  # measured, and slower
        (torch.float64, 64, 32, False),  # not measured
    ],
)
def test_the_rows_decide(monkeypatch, dtype, blocks, size, chosen):
    monkeypatch.setattr(selection, "device_name", lambda device: "a GPU")
    measured = [(torch.float32, 32, 0.5), (torch.complex64, 32, 0.5), (torch.complex64, 8, 1.1)]
    rows = [
        search.row_of(cayley_transform.MEASURED[each], (64, b, 1, 1), each, "cuda", None, ratio, exact=True)
        for each, b, ratio in measured
    ]
    selection.prefer("a GPU", rows)
    packed = OnGpu((blocks, size * (size - 1) // 2), dtype)
    full = OnGpu((blocks, size, size), dtype)
    preferred = cayley_transform._cuda_preferred
    assert preferred(packed, size) == preferred(full) == preferred(full, full) == chosen
    assert not preferred(OnGpu((blocks, 0), dtype), 1)
