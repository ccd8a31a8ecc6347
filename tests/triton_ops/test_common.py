import pytest
import torch

from tests.support import DEVICE

pytest.importorskip("triton", reason="triton is not installed")
import triton
import triton.language as tl

from triton_ops import common


@triton.jit
def copy_kernel(source_ptr, target_ptr, rows, cols, source_stride, target_stride):
    i = tl.arange(0, 16)
    tile = common.load_tile(source_ptr, i, i, rows, cols, source_stride, 1)
    common.store_tile(target_ptr, tile, i, i, rows, cols, target_stride, 1)


def test_offsets_beyond_32_bits():
    """Rows 2³⁰ elements apart, so that the third begins at 2³¹; of the memory only these rows are touched."""
    storage = torch.UntypedStorage(2 * (2**31 + 5), device=DEVICE)
    far = torch.tensor([], dtype=torch.float16, device=DEVICE).set_(storage, 0, (3, 5), (2**30, 1))
    near = torch.arange(15, dtype=torch.float16, device=DEVICE).reshape(3, 5)
    common.launch(copy_kernel, (1,), near, far, 3, 5, near.stride(0), far.stride(0))
    assert torch.equal(far, near)
    back = torch.zeros_like(near)
    common.launch(copy_kernel, (1,), far, back, 3, 5, far.stride(0), back.stride(0))
    assert torch.equal(back, near)


def test_stores_round_to_nearest_even():
    values = torch.tensor([1, -1, 0, 3.3895e38, torch.inf, -torch.inf, torch.nan], device=DEVICE)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], device=DEVICE)
    source = torch.cat([values, ties]).reshape(1, -1)
    target = torch.zeros_like(source, dtype=torch.bfloat16)
    common.launch(copy_kernel, (1,), source, target, 1, source.shape[1], 1, 1)
    torch.testing.assert_close(target, source.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_tf32_only_where_torch_allows_it():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = False
        assert common.dot_precision(torch.float32) == "ieee"
        matmul.allow_tf32 = True
        assert common.dot_precision(torch.float32) == "tf32"
        assert common.dot_precision(torch.bfloat16) == "ieee"
    finally:
        matmul.allow_tf32 = before


def test_tf32_through_the_newer_interface():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for setting in "ieee", "tf32":
            matmul.fp32_precision = setting
            assert common.dot_precision(torch.float32) == setting
    finally:
        matmul.fp32_precision = before
