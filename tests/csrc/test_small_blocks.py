"""The compiled operators of small blocks and of scaled features: layouts, threads, choices, instruction sets.

Their accuracy is that of ``tests/test_peft_functions.py``, which this file runs again with fewer instructions.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid_kernels import _extension
from hybrid_kernels.ops import block_rotation, butterfly_rotation, cayley_neumann, feature_scaling

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=str(_extension.load()))
OPERATORS = torch.ops.hybrid_kernels_cpp


def everything(
    x: Tensor, dy: Tensor, q: Tensor, packed: Tensor, grad_r: Tensor, scale: Tensor
) -> list[Tensor]:
    coefficients = cayley_neumann.coefficients_of(6)
    return [
        OPERATORS.butterfly_rotate(x, q),
        *OPERATORS.butterfly_backward(dy, x, q, True, True),
        OPERATORS.neumann_forward(packed, grad_r.shape[-1], coefficients),
        OPERATORS.neumann_backward(grad_r, packed, coefficients),
        *OPERATORS.scale_backward(dy, x, scale, True),
    ]


def arguments(
    rows: int, m: int, k: int, b: int, matrices: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    features = k * b
    shapes = (
        (rows, features),
        (rows, features),
        (m, k, b, b),
        (matrices, b * (b - 1) // 2),
        (matrices, b, b),
        (features,),
    )
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


# One group of all features and many groups, so that rows and groups are divided.
SIZES = [(400, 3, 4, 32, 70), (331, 1, 96, 8, 999), (300, 2, 2, 66, 3), (200, 1, 1, 100, 5)]


@pytest.mark.parametrize("size", SIZES)
def test_bitwise_independent_of_threads(size) -> None:
    torch.manual_seed(2)
    inputs = arguments(*size)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(everything(*inputs))
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("size", SIZES)
def test_shapes_of_many_threads_and_parts_are_those_of_plain_pytorch(size) -> None:
    torch.manual_seed(3)
    torch.set_num_threads(3)
    x, dy, q, packed, grad_r, scale = arguments(*size, torch.float64)
    packed = packed / packed.shape[1]
    plain = [*block_or_butterfly(x, dy, q), cayley_neumann._eager(packed, q.shape[-1], 6)]
    plain += [
        cayley_neumann._eager_backward(grad_r, packed, 6),
        *feature_scaling._eager_backward(dy, x, scale, True),
    ]
    for mine, same in zip(everything(x, dy, q, packed, grad_r, scale), plain, strict=True):
        torch.testing.assert_close(mine, same)


def block_or_butterfly(x: Tensor, dy: Tensor, q: Tensor) -> list[Tensor]:
    if q.shape[0] > 1:
        return [butterfly_rotation._eager(x, q), *butterfly_rotation._eager_backward(dy, x, q, True, True)]
    (blocks,) = q
    gradient = block_rotation._eager_weight_gradient(x, dy, blocks)
    return [block_rotation._eager(x, blocks), block_rotation._eager(dy, blocks.mT), gradient[None]]


@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
        lambda t: torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0],
        lambda t: t.reshape(-1)[:1].expand(t.shape),
        lambda t: torch._neg_view(t),
    ],
    ids=["transposed", "every other", "one number", "negated view"],
)
def test_strides(layout) -> None:
    torch.manual_seed(1)
    inputs = [layout(t) for t in arguments(29, 2, 4, 6, 3)]
    copies = [t.clone() for t in inputs]
    for mine, same in zip(everything(*inputs), everything(*(t.contiguous() for t in inputs)), strict=True):
        assert torch.equal(mine, same)
    assert all(torch.equal(t, copy) for t, copy in zip(inputs, copies, strict=True))


def test_only_what_is_needed_is_returned() -> None:
    x, dy, q, _, _, scale = arguments(4, 2, 2, 6, 1)
    for needs in ([True, False], [False, True]):
        assert [t is not None for t in OPERATORS.butterfly_backward(dy, x, q, *needs)] == needs
    assert OPERATORS.scale_backward(dy, x, scale, False)[0] is None


def test_bad_input() -> None:
    x, dy, q, packed, grad_r, scale = arguments(4, 2, 2, 6, 1)
    with pytest.raises(ValueError, match=r"x must have shape \(rows, 12\), got \[4, 11\]"):
        OPERATORS.butterfly_rotate(x[:, 1:], q)
    with pytest.raises(ValueError, match="an even b and a k divisible"):
        OPERATORS.butterfly_rotate(x, q.new_zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="b at least 1, got"):
        OPERATORS.butterfly_backward(dy[:, :0], x[:, :0], q[..., :0, :0], True, True)
    with pytest.raises(TypeError, match="x must be float32 or float64"):
        OPERATORS.butterfly_rotate(x.bfloat16(), q.bfloat16())
    with pytest.raises(ValueError, match="dy must have the shape of x"):
        OPERATORS.butterfly_backward(dy[1:], x, q, True, True)
    with pytest.raises(ValueError, match=r"packed must have shape \(..., 15\)"):
        OPERATORS.neumann_forward(packed[:, 1:], 6, [1.0, 2.0])
    with pytest.raises(ValueError, match="grad_r must have shape"):
        OPERATORS.neumann_backward(grad_r[:, 1:], packed, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"scale must have shape \(12,\)"):
        OPERATORS.scale_backward(dy, x, scale[1:], True)


@pytest.mark.parametrize(
    ("rows", "b", "dtype", "capability", "backend"),
    [
        (64, 32, torch.float32, "AVX2", "cpp"),
        (64, 128, torch.float64, "AVX512", "cpp"),
        (63, 32, torch.float32, "AVX2", "eager"),
        (64, 130, torch.float32, "AVX2", "eager"),
        (64, 32, torch.bfloat16, "AVX2", "eager"),
        (64, 32, torch.complex64, "AVX2", "eager"),
        (64, 32, torch.float32, "DEFAULT", "eager"),
    ],
)
def test_what_runs_by_itself(monkeypatch, rows, b, dtype, capability, backend) -> None:
    monkeypatch.setattr(_extension, "_cpu_capability", lambda: capability)
    x, q = torch.randn(rows, 4 * b, dtype=dtype), torch.randn(2, 4, b, b, dtype=dtype)
    chosen = [block_rotation._rotate.select(x, q[0]), block_rotation._weight_gradient.select(x, x, q[0])]
    if not dtype.is_complex:
        chosen += [
            butterfly_rotation._rotate.select(x, q),
            butterfly_rotation._gradients.select(x, x, q, True, True),
        ]
    assert {implementation.backend for implementation in chosen} == {backend}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only, off x86-64")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability) -> None:
    """ATen chooses once per process."""
    if os.environ.get("ATEN_CPU_CAPABILITY") is not None:
        pytest.skip("ATEN_CPU_CAPABILITY is set already")
    functions = Path(__file__).parents[1] / "test_peft_functions.py"
    selected = "parts_are or strides or (cpp and (butterfly or neumann or scale) and not every_number)"
    command = [sys.executable, "-m", "pytest", "-q", __file__, str(functions), "-k", selected]
    run = subprocess.run(
        command,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
