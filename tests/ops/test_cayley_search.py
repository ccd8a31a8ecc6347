"""The rows that choose between the CUDA kernels of the Cayley transform and plain PyTorch, with C++ in their place."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
from hybrid_kernels.ops import cayley_search, cayley_transform
from hybrid_kernels.ops.backend import unavailable
from triton_ops import selection

pytestmark = pytest.mark.skipif(unavailable("cpp") is not None, reason=str(unavailable("cpp")))


@pytest.fixture(autouse=True)
def forget():
    yield
    selection.forget()


def rows(monkeypatch, shapes=((6, 5),)):
    lines = []
    monkeypatch.setattr(cayley_search.search, "ROUNDS", 2)
    return cayley_search.rows(torch.device("cpu"), lines.append, shapes, backend="cpp"), lines


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
        (torch.complex64, 64, 32, False),  # measured, and slower
        (torch.float64, 64, 32, False),  # not measured
    ],
)
def test_the_rows_decide(monkeypatch, dtype, blocks, size, chosen):
    monkeypatch.setattr(selection, "device_name", lambda device: "a GPU")
    row = {"kind": "ieee", "m": 64, "k": 32, "n": 1, "r": 1, "variant": "cuda", "tiles": None}
    selection.prefer(
        "a GPU",
        [row | {"operation": "cayley", "ratio": 0.5}, row | {"operation": "cayley_complex", "ratio": 1.1}],
    )
    packed = OnGpu((blocks, size * (size - 1) // 2), dtype)
    full = OnGpu((blocks, size, size), dtype)
    preferred = cayley_transform._cuda_preferred
    assert preferred(packed, size) == preferred(full) == preferred(full, full) == chosen
    assert not preferred(OnGpu((blocks, 0), dtype), 1)
