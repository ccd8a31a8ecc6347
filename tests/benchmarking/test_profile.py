import pytest
import torch

import hybrid_kernels as hk
from hybrid_kernels.benchmarking.profile import profile
from tests.benchmarking.support import CPU


def test_the_operator_that_takes_the_time_comes_first_with_its_share_and_calls():
    a = torch.randn(300, 300)

    def step():
        for _ in range(3):
            torch.mm(a, a)

    rows = profile(step, CPU)
    assert rows[0]["name"] == "aten::mm" and rows[0]["calls"] == 3 and rows[0]["share"] > 0.5
    assert not rows[0]["own"]
    shares = [row["share"] for row in rows]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    assert len(profile(step, CPU, top=1)) == 1


def test_the_packages_own_operators_are_marked():
    x, u = torch.randn(8, 16, requires_grad=True), torch.randn(16, 2, requires_grad=True)
    gradient = torch.randn(8, 16)

    def step():
        with hk.use_backend("eager"):
            torch.autograd.grad(hk.functional.householder_rotate(x, u), [x, u], gradient)

    own = {row["name"]: row["own"] for row in profile(step, CPU, top=1000)}
    assert own["householder_rotate"] and own["householder_rotateBackward"] and not own["aten::mm"]
