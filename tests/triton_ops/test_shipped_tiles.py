"""The tiles that ship, on the GPU they are for: results, gradients and repeatability of every configuration.

The other tests here run on shapes for the interpreter's small tiles; on a GPU those reach the launchers' small tables
only. These shapes reach the large ones. HYBRID_KERNELS_SHRUNKEN=1 runs the same code on small shapes without a GPU.
"""

import os
from unittest import mock

import pytest
import torch

from hybrid_kernels import reference
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from tests.triton_ops import test_block_rotation as rotation_checks
from tests.triton_ops import test_householder as householder_checks
from tests.triton_ops import test_householder_rotation as reflection_checks
from tests.triton_ops import test_low_rank as low_rank_checks
from triton_ops import (
    Dropout,
    block_rotation,
    common,
    householder,
    householder_many,
    householder_rotation,
    low_rank,
    selection,
    skinny,
)

ON_GPU = DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(
    not ON_GPU and not os.environ.get("HYBRID_KERNELS_SHRUNKEN"),
    reason="the shipped tiles need a GPU; set HYBRID_KERNELS_SHRUNKEN=1 to run this on small shapes without one",
)

# Rows are never a multiple of a tile. The large product takes its large tiles where every processor gets one, on
# GPUs of up to 260 of them.
ALIGNED = (8192 + 37, 1024, 1536) if ON_GPU else (32 + 5, 48, 32)
# Rows of 2 or 4 bytes more than a multiple of 16: masks on every side and narrow tiles.
UNALIGNED = (2048 + 37, 1023, 1537) if ON_GPU else (32 + 5, 45, 29)
RANKS = (16, 32, 48, 128, 256)
FEW_ROWS = (1, 16, 37, 256) if ON_GPU else (1, 16, 37)
REPEATS = 20 if ON_GPU else 2
KINDS = {
    "ieee": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
}
# Forward, and what is asked for in the backward.
VARIANTS = [
    ("epilogue", "epilogue"),
    ("addmm", "addmm"),
    ("accumulate", "accumulate"),
    ("epilogue", "separate"),
    ("addmm", "matmul"),
]


@pytest.fixture(params=KINDS)
def dtype(request):
    """A dtype, torch's own products in TF32 or not, as ours then are."""
    dtype, allow_tf32 = KINDS[request.param]
    before = selection.dot_precision(torch.float32) == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    yield dtype
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


def half_dropped(rank):
    """Dropout of part of the ranks, of a probability that is no power of two."""
    return Dropout(max(rank // 2, 1), 22000, torch.tensor(2**40 + 3, device=DEVICE))


def check_repeats(run):
    """The same bits every time: no atomics, and no race between the warps of a kernel."""
    first = run()
    for _ in range(REPEATS):
        for mine, again in zip(first, run(), strict=True):
            assert torch.equal(mine, again)


@pytest.mark.parametrize("variants", VARIANTS, ids="-".join)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("with_dropout", [False, True], ids=["", "dropout"])
def test_linear_and_its_gradients(variants, rank, with_dropout, dtype):
    dropout = half_dropped(rank) if with_dropout else None
    tensors = low_rank_checks.random_tensors(*ALIGNED, rank, dtype)
    with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        low_rank_checks.check_linear(*tensors, *variants, dropout)
    if variants == ("epilogue", "epilogue"):
        large = common.tiles(low_rank.MATMUL_TILES, DEVICE, dtype)
        calls = [call for call in launch.call_args_list if call.args[0] is low_rank.matmul_low_rank_kernel]
        assert len(calls) == 2
        for call in calls:
            assert call.kwargs["BLOCK_M"] == large.rows, "these shapes no longer reach the large tiles"
            assert call.kwargs["DESCRIPTORS"] == large.descriptors


@pytest.mark.parametrize("variants", VARIANTS, ids="-".join)
@pytest.mark.parametrize("rank", [16, 48])
@pytest.mark.parametrize("with_dropout", [False, True], ids=["", "dropout"])
def test_unaligned_linear_and_its_gradients(variants, rank, with_dropout, dtype):
    dropout = half_dropped(rank) if with_dropout else None
    tensors = low_rank_checks.random_tensors(*UNALIGNED, rank, dtype)
    low_rank_checks.check_linear(*tensors, *variants, dropout)


@pytest.mark.parametrize("m", FEW_ROWS)
@pytest.mark.parametrize("rank", [rank for rank in RANKS if rank <= low_rank.ONE_PASS_MAX_RANK])
@pytest.mark.parametrize("with_dropout", [False, True], ids=["", "dropout"])
def test_few_rows_in_one_pass(m, rank, with_dropout, dtype):
    dropout = half_dropped(rank) if with_dropout else None
    tensors = low_rank_checks.random_tensors(m, *ALIGNED[1:], rank, dtype)
    low_rank_checks.check_linear(*tensors, "one_pass", "fused", dropout)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("with_dropout", [False, True], ids=["", "dropout"])
def test_add_and_its_gradients(rank, with_dropout, dtype):
    dropout = half_dropped(rank) if with_dropout else None
    x, _, _, down, up, dy = low_rank_checks.random_tensors(*ALIGNED, rank, dtype)
    base = torch.randn_like(dy)
    y, p = low_rank.add_forward(base, x, down, up, dropout)
    gradients = low_rank.backward(dy, x, None, down, up, p, True, True, True, dropout)
    expected = low_rank_checks.in_float64(reference.low_rank_add, dy, (base, x, down, up), dropout)
    plain = low_rank_checks.with_gradients(
        low_rank_checks.plain_low_rank_add, dy, (base, x, down, up), dropout
    )
    assert_close_by_scale(y, expected[0], plain[0], 2)
    for actual, gradient, plain_gradient in zip(gradients, expected[2:], plain[2:], strict=True):
        assert_close_by_scale(actual, gradient, plain_gradient, 3)


@pytest.mark.parametrize("variants", [*VARIANTS, ("one_pass", "fused")], ids="-".join)
@pytest.mark.parametrize("with_dropout", [False, True], ids=["", "dropout"])
def test_linear_and_its_gradients_repeat_bit_for_bit(variants, with_dropout, dtype):
    rank = 32
    dropout = half_dropped(rank) if with_dropout else None
    x, weight, bias, down, up, dy = low_rank_checks.random_tensors(*ALIGNED, rank, dtype)
    forward, backward = variants

    def run():
        y, p = low_rank.forward(x, weight, bias, down, up, dropout, forward)
        needs = True, True, True
        return y, p, *low_rank.backward(dy, x, weight, down, up, p, *needs, dropout, backward)

    check_repeats(run)


@pytest.mark.parametrize("rank", RANKS)
def test_output_gradient_repeats_bit_for_bit(rank, dtype):
    """Alone, since its two sums and their parts are the most intricate of these kernels."""
    if rank > skinny.OUTPUT_GRADIENT_MAX_RANK:
        pytest.skip(f"one pass takes ranks up to {skinny.OUTPUT_GRADIENT_MAX_RANK}")
    _, _, _, _, up, dy = low_rank_checks.random_tensors(*ALIGNED, rank, dtype)
    p = torch.randn(len(dy), rank, device=DEVICE).to(dtype)
    check_repeats(lambda: skinny.output_gradient(dy, up, p))


REFLECTIONS = sorted(householder.BLOCKS) if ON_GPU else [16, 32]
FEATURES = 4096 + 5 if ON_GPU else 64 + 5


@pytest.mark.parametrize("n", REFLECTIONS)
def test_householder_factors_and_their_gradient(n):
    u = householder_checks.random_reflections(FEATURES, n)
    dv, dt = householder_checks.random_gradients(u)
    v, t, z = results = householder.factors_with_product(u)
    expected_v, expected_t = reference.householder_factors(u.double())
    plain_v, plain_t = householder_checks.plain_factors(u)
    for mine, exact, plain in zip(
        results,
        (expected_v, expected_t, expected_v @ expected_t),
        (plain_v, plain_t, plain_v @ plain_t),
        strict=True,
    ):
        assert_close_by_scale(mine, exact, plain, 2)
    householder_checks.check_backward(u, dv, dt)
    ((many_v, many_t, many_z), _) = householder_many.factors_many([u, u[: FEATURES // 2]])
    assert torch.equal(many_v, v) and torch.equal(many_t, t) and torch.equal(many_z, z)
    check_repeats(lambda: (*householder.factors_with_product(u), householder.backward(u, v, t, dv, dt)))


@pytest.mark.parametrize("n", [16, 32, 64, 128, 256] if ON_GPU else [16, 32])
@pytest.mark.parametrize("rows", [16384 + 37, 256 + 5] if ON_GPU else [32 + 5], ids=str)
@pytest.mark.parametrize("wide_factors", [False, True], ids=["", "float32 factors"])
def test_householder_rotation_and_its_gradients(n, rows, wide_factors, dtype):
    x, v, z, dy = reflection_checks.random_tensors(
        rows, ALIGNED[1], n, dtype, torch.float32 if wide_factors else None
    )
    reflection_checks.check(x, v, z, dy)

    def run():
        y, p = householder_rotation.forward(x, v, z)
        return y, p, *householder_rotation.backward(dy, x, v, z, p, True, True, True)

    check_repeats(run)


# A block that fills part of a tile, one a tile, and blocks that are cut into several.
@pytest.mark.parametrize("b", [4, 16, 32, 48, 64, 128, 256] if ON_GPU else [4, 16, 24])
def test_block_rotation_and_its_gradients(b, dtype):
    x, q, down, dxr, dp = rotation_checks.random_tensors(ALIGNED[0], max(ALIGNED[1] // b, 1), b, 16, dtype)
    rotation_checks.check_rotation(x, q, dxr)
    rotation_checks.check_projection(x, q, down, dxr, dp)

    def run():
        xr, p = block_rotation.rotate_project(x, q, down)
        return block_rotation.rotate(x, q), block_rotation.weight_gradient(x, dxr, q), xr, p

    check_repeats(run)


@pytest.mark.parametrize("rank", [*RANKS, block_rotation.MAX_FUSED_RANK])
@pytest.mark.parametrize("b", [32, 256] if ON_GPU else [16, 24])
def test_rotation_fused_with_the_projection(b, rank, dtype):
    tensors = rotation_checks.random_tensors(ALIGNED[0], max(ALIGNED[1] // b, 1), b, rank, dtype)
    rotation_checks.check_projection(*tensors)
