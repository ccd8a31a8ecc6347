import pytest
import torch

from hybrid_kernels.benchmarking import roofline
from tests.benchmarking.support import CPU


def test_the_share_is_the_least_time_over_the_time():
    # 1e12 operations take 1 ms, 1e9 bytes 0.5 ms.
    rates = {"flop_rate": 1e15, "copy_rate": 2e12}
    assert roofline.share(1e12, 1e9, 4e-3, **rates) == {"share": pytest.approx(0.25), "bound": "compute"}
    assert roofline.share(1e11, 1e9, 1e-3, **rates) == {"share": pytest.approx(0.5), "bound": "memory"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_are_measured_in_the_dtype(dtype):
    found = roofline.rates(CPU, dtype, size=64)
    assert 1e6 < found.flop_rate < 1e14 and 1e6 < found.copy_rate < 1e13
