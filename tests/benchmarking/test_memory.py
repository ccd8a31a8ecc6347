import torch

from hybrid_kernels.benchmarking import memory
from tests.benchmarking.support import CPU


def test_the_peak_is_exact_for_known_allocations():
    kept = torch.empty(10_000)  # there before: does not count

    def step():
        first = torch.empty(1000)  # 4000 bytes
        second = torch.empty(500)  # + 2000
        del first  # - 4000
        third = torch.empty(2000)  # + 8000: the peak, 10000
        del second
        return third + kept[:1]  # - 2000 + 8000: the peak is 16000

    assert memory.peak_bytes(step, CPU) == 16_000
    assert memory.peak_bytes(step, CPU) == 16_000  # not only in a process that is fresh


def test_nothing_allocated_is_no_peak():
    assert memory.peak_bytes(lambda: None, CPU) == 0


def test_the_peak_of_a_backward_counts_its_gradients():
    x = torch.randn(64, 32, requires_grad=True)
    loss = (x * 2).sum()
    peak = memory.peak_bytes(lambda: torch.autograd.grad(loss, x), CPU)
    assert 64 * 32 * 4 <= peak <= 64 * 32 * 4 + 64


def test_profiling_writes_nothing_to_stderr(capfd):
    memory.peak_bytes(lambda: torch.empty(3), CPU)
    assert capfd.readouterr().err == ""
