"""The operators on their Triton implementations, forward and backward, through the checked functions."""

from unittest import mock

import pytest
import torch

from hybrid_kernels import functional, reference
from hybrid_kernels.ops.backend import use_backend
from tests.support import DEVICE, assert_close_by_scale

pytest.importorskip("triton", reason="triton is not installed")
from triton_ops import common


def random(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rotate_and_its_gradients(dtype, transpose):
    x, u, dy = random(2, 7, 33, dtype=dtype), random(33, 5), random(2, 7, 33, dtype=dtype).flip(0)

    def plain(x, u):
        v, t = reference.householder_factors(u)
        return x - (x @ v.to(x.dtype)) @ (v @ (t.mT if transpose else t)).to(x.dtype).mT

    def fast(x, u):
        with use_backend("triton"):
            return functional.householder_rotate(x, u, transpose)

    def true(x, u):
        return reference.householder_rotate(x, u, transpose)

    results = []
    for function, kind in ((fast, None), (true, torch.float64), (plain, None)):
        leaves = [tensor.detach().to(kind or tensor.dtype).requires_grad_() for tensor in (x, u)]
        y = function(*leaves)
        with use_backend("triton"):
            results.append([y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    for index, (mine, truth, simple) in enumerate(zip(*results, strict=True)):
        assert_close_by_scale(mine, truth, simple, 2 if index == 0 else 3)


def test_factors_of_many_layers_take_one_launch_of_each_kernel():
    us = [random(45, 5).requires_grad_(), random(33, 16), random(20, 3).requires_grad_()]

    def gradients(factors):
        (v, t), (_, frozen), (single, _) = factors
        loss = (v * random(45, 5)).sum() + t.sin().sum() + (single * random(20, 3)).sum() * frozen[0, 0]
        return torch.autograd.grad(loss, [us[0], us[2]])

    with use_backend("triton"):
        with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
            many = functional.householder_factors_many(us)
            assert len(launch.call_args_list) == 2
            mine = gradients(many)
            assert len(launch.call_args_list) == 4
        each = [functional.householder_factors(u) for u in us]
        for pair, alone in zip(many, each, strict=True):
            assert torch.equal(pair[0], alone[0]) and torch.equal(pair[1], alone[1])
        for du, alone in zip(mine, gradients(each), strict=True):
            assert torch.equal(du, alone)
        # What Triton cannot take together goes one by one.
        with mock.patch.object(common, "launch", side_effect=common.launch) as launch:
            functional.householder_factors_many([us[0]])
            assert len(launch.call_args_list) == 2
        with pytest.raises(RuntimeError, match="float64"):
            functional.householder_factors_many([us[0], us[0].double()])
