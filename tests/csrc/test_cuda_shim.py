"""The shim itself: what it has to find, each on a kernel of cuda_shim/probes.cu that is wrong in one way; launches."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.csrc.cuda_shim import (
    HERE,
    ORDERS,
    STREAM,
    Array,
    CudaShim,
    ShimError,
    compile_library,
    why_no_shim,
)

pytestmark = pytest.mark.skipif(why_no_shim() is not None, reason=str(why_no_shim()))

PROBES = [
    line.split(",")[0].strip()
    for line in (HERE / "probes.cu").read_text().partition("enum Probe {")[2].partition("}")[0].splitlines()
    if line.strip()
]
THREADS, BLOCKS = 64, 2
INVALID_VALUE, INVALID_CONFIGURATION, OUT_OF_RESOURCES = 1, 9, 701


@pytest.fixture(scope="module")
def shim() -> CudaShim:
    return CudaShim(compile_library([HERE / "probes.cu", HERE / "scheduler.cpp"]))


def launch(
    shim: CudaShim,
    probe: str,
    x: Tensor,
    blocks: int = BLOCKS,
    threads: int = THREADS,
    shared_bytes: int = THREADS * 4,
    stream: int = STREAM,
) -> int:
    pointer, what, count = ctypes.c_void_p(x.data_ptr()), PROBES.index(probe), ctypes.c_int(threads)
    index = ctypes.c_int(4)  # one past the array of kPastLocalArray
    return shim.call(
        "run_probe",
        ctypes.c_int(what),
        pointer,
        blocks,
        count,
        shared_bytes,
        index,
        ctypes.c_void_p(stream),
    )


def results(shim: CudaShim, probe: str) -> list[Tensor]:
    """By order of the threads."""
    found = []
    for order in ORDERS:
        x = torch.arange(1.0, BLOCKS * THREADS + 1)
        assert launch(shim.having(order=order), probe, x) == 0
        found.append(x)
    return found


def reversed_blocks(x: Tensor) -> Tensor:
    return x.view(BLOCKS, THREADS).flip(1).flatten()


def warp_sums(x: Tensor) -> Tensor:
    return x.view(-1, 32).cumsum(1).flatten()


def shuffled(x: Tensor) -> Tensor:
    t = torch.arange(BLOCKS * THREADS) % THREADS
    lane, warp = t % 32, torch.arange(BLOCKS * THREADS) // 32 * 32
    mirrored, neighbour = 31 - lane, lane ^ 1
    octet = (t // 8 == 5 // 8) | (t // 8 == 40 // 8)
    return (
        x[warp + mirrored]
        + x[warp + neighbour]
        + 100 * (t // 32 * 32 + neighbour + 0.5)
        + 0.25 * octet
        + 0.125
    )


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ("kReverse", reversed_blocks),
        ("kWarpSums", warp_sums),
        ("kShuffles", shuffled),
    ],
)
def test_right_kernels(shim: CudaShim, probe: str, expected: Callable[[Tensor], Tensor]) -> None:
    right = expected(torch.arange(1.0, BLOCKS * THREADS + 1))
    for found in results(shim, probe):
        assert torch.equal(found, right)


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ("kNoBarrier", reversed_blocks),
        ("kNoWarpBarrier", warp_sums),
        ("kAheadOfOthers", lambda x: x.view(BLOCKS, 2, 32)[:, :1].expand(BLOCKS, 2, 32).flatten()),
    ],
)
def test_missing_barriers_show(shim: CudaShim, probe: str, expected: Callable[[Tensor], Tensor]) -> None:
    right = expected(torch.arange(1.0, BLOCKS * THREADS + 1))
    assert not all(torch.equal(found, right) for found in results(shim, probe))


def test_orders(shim: CudaShim) -> None:
    """Without a barrier, the threads that run first find nothing to read."""

    def early(order: str, seed: int = 0) -> list[int]:
        x = torch.ones(BLOCKS * THREADS)
        launch(shim.having(order=order, seed=seed), "kNoBarrier", x)
        return x[:THREADS].isnan().nonzero().flatten().tolist()

    half = THREADS // 2
    assert early("ascending") == [*range(half)] and early("descending") == [*range(half, THREADS)]
    random = [early("random", seed) for seed in range(4)]
    assert all(len(found) == half for found in random)
    assert early("random", 3) == random[3] and any(found != random[0] for found in random)


@pytest.mark.parametrize(
    ("probe", "nans"),
    [("kReadsPastEnd", BLOCKS), ("kReadsUnwritten", BLOCKS * THREADS), ("kReadsLastBlock", THREADS)],
)
def test_shared_memory_is_nan_where_nothing_was_written(shim: CudaShim, probe: str, nans: int) -> None:
    for found in results(shim, probe):
        assert found.isnan().sum() == nans


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("kEndedThread", r"wait for each other: .*waits in __syncthreads.*thread 3 of block \d has ended"),
        ("kDifferentBarriers", r"meet at different barriers: .*probes\.cu:\d+, .*probes\.cu:\d+"),
        ("kDifferentKinds", r"wait for each other: .*waits in __syncwarp.*waits in __syncthreads"),
        ("kOutsideMask", r"a lane that is not in the mask: .*__shfl_sync at probes\.cu"),
        ("kReadsOutsideMask", r"reads lane \d+, which takes no part: .*__shfl_xor_sync"),
        ("kLanesApart", r"lanes meet in different places: .*__shfl(_xor)?_sync.*__shfl(_xor)?_sync"),
        ("kWritesPastEnd", r"block \d wrote to byte 256 of 256 bytes of shared memory"),
        ("kMisaligned", r"misaligned or null pointer .* at .*probes\.cu"),
        ("kPastLocalArray", r"index 4 is out of bounds at .*probes\.cu"),
    ],
)
def test_faults_are_reported(shim: CudaShim, probe: str, message: str, order: str) -> None:
    x = torch.zeros(BLOCKS * THREADS)
    with pytest.raises(ShimError, match=message):
        launch(shim.having(order=order), probe, x)
    assert launch(shim, "kReverse", x) == 0  # and the next launch finds nothing of it


def test_lanes_that_a_block_lacks(shim: CudaShim) -> None:
    with pytest.raises(ShimError, match="the mask names lanes that the block lacks"):
        launch(shim, "kWarpSums", torch.zeros(BLOCKS * THREADS), threads=40)


def test_other_stream(shim: CudaShim) -> None:
    with pytest.raises(ShimError, match="another stream than the one given"):
        launch(shim, "kReverse", torch.zeros(BLOCKS * THREADS), stream=0)


@pytest.mark.parametrize("first", [0, 1])
def test_writing_outside_an_array(shim: CudaShim, first: int) -> None:
    array = Array(torch.zeros(THREADS + first), shim.offset)
    launch(shim, "kReverse", array.value[first:], blocks=1)
    array.check("x")
    launch(shim, "kReverse", array.value[first:], blocks=1, threads=THREADS + 1, shared_bytes=THREADS * 4 + 4)
    with pytest.raises(ShimError, match="wrote outside x"):
        array.check("x")


def test_limits_of_a_launch(shim: CudaShim) -> None:
    x = torch.zeros(2048)
    assert launch(shim, "kReverse", x, blocks=0) == 0 and shim.launches == 0
    assert launch(shim, "kReverse", x, blocks=1, threads=1024, shared_bytes=4096) == 0 and shim.launches == 1
    assert launch(shim, "kReverse", x, blocks=1, threads=1025, shared_bytes=8192) == INVALID_CONFIGURATION
    assert launch(shim, "kReverse", x, blocks=2**31) == INVALID_CONFIGURATION
    assert launch(shim, "kReverse", x, blocks=2**32 + 1) == INVALID_CONFIGURATION
    assert launch(shim, "kReverse", x, blocks=-1) == INVALID_CONFIGURATION
    small = shim.having(shared_bytes=99 * 1024)
    assert launch(small, "kReverse", x, blocks=1, shared_bytes=99 * 1024) == 0
    assert launch(small, "kReverse", x, blocks=1, shared_bytes=99 * 1024 + 1) == INVALID_VALUE


def test_errors_of_a_launch_are_returned(shim: CudaShim) -> None:
    x = torch.zeros(BLOCKS * THREADS)
    assert launch(shim.having(failing_launch=0), "kReverse", x) == OUT_OF_RESOURCES
    assert launch(shim.having(failing_launch=1), "kReverse", x) == 0
    assert launch(shim.having(pending_error=INVALID_VALUE), "kReverse", x) == INVALID_VALUE
    # The launch's own error goes before one that was pending.
    both = shim.having(failing_launch=0, pending_error=INVALID_VALUE)
    assert launch(both, "kReverse", x) == OUT_OF_RESOURCES
