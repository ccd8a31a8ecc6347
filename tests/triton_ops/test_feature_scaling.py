from unittest import mock

import pytest
import torch

from hybrid_kernels import functional, reference, use_backend
from tests.support import DEVICE, assert_close_by_scale, compare, make

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import common, feature_scaling

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def nan_poisoned_outputs(monkeypatch):
    """Memory that a launcher allocates and a kernel does not write shows as NaN in what it returns."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(torch.nan))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (17, 33), (16, 16), (0, 5), (300, 7)])
def test_gradients(m, n, dtype):
    with use_backend("triton"):
        compare(
            lambda y, scale: functional.scale_features(y, scale, None),
            lambda y, scale: reference.scale_features(y, scale, None),
            lambda: [make(m, n, dtype=dtype), make(n, dtype=dtype)],
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float32_sums_of_the_gradient_of_a_float32_scale_split_and_strided(dtype):
    y, dz, scale = make(20, 600, dtype=dtype).mT, make(1, 1, dtype=dtype).expand(600, 20), make(20, 2)[:, 0]
    with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
        dy, d_scale = feature_scaling.gradients(dz, y, scale, True)
    assert launch.call_args.args[1][1] > 1, "no sum was split"
    assert dy.dtype == dtype and d_scale.dtype == torch.float32
    assert torch.equal(dy, dz * scale.to(dtype))
    truth = (dz.double() * y.double()).sum(0)
    assert_close_by_scale(d_scale, truth, (dz.float() * y.float()).sum(0), 3)
    none, same = feature_scaling.gradients(dz, y, scale, False)
    assert none is None and torch.equal(same, d_scale)


def test_unsupported_says_why():
    y, scale = make(2, 3), make(3)
    assert feature_scaling.unsupported(y, y, scale) is None
    why = feature_scaling.unsupported(y, y, scale.double())
    assert why == "scale is torch.float64, the kernel takes float32, float16, bfloat16"
    assert feature_scaling.unsupported(y, y, scale.to("meta")) == f"scale is on meta while y is on {DEVICE}"
