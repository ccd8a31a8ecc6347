"""The gradients of features scaled one by one, z = y ⊙ scale + bias, in one pass.

    dy = dz ⊙ scale        d_scale = Σ_rows dz ⊙ y

Shapes: y, dz, dy (M, N), scale, d_scale (N,). Any strides, M = 0 included. float32, float16 or bfloat16; scale may be
of another of these dtypes than y and is rounded to y's. Sums are float32.
"""

import torch
import triton
import triton.language as tl

from triton_ops import common


@triton.jit
def scale_gradients_kernel(
    dz_ptr, y_ptr, scale_ptr, dy_ptr, sums_ptr,
    M, N,
    chunk,  # rows of one program
    stride_dzm, stride_dzn,
    stride_ym, stride_yn,
    stride_s,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dy (M, N), contiguous, unless dy_ptr is None, and sums[s] = Σ dz ⊙ y over part s of the rows, (splits, N).

    Grid (tiles of columns, splits).
    """
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    last = tl.minimum((split + 1) * chunk, M)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    scale = tl.load(scale_ptr + cols.to(tl.int64) * stride_s, mask=cols < N, other=0.0)
    scale = common.rounded(scale, y_ptr.dtype.element_ty).to(tl.float32)
    for start in range(split * chunk, last, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        dz = common.load_tile(dz_ptr, rows, cols, last, N, stride_dzm, stride_dzn).to(tl.float32)
        y = common.load_tile(y_ptr, rows, cols, last, N, stride_ym, stride_yn).to(tl.float32)
        sums += dz * y
        if dy_ptr is not None:
            common.store_tile(dy_ptr, dz * scale[None, :], rows, cols, last, N, N, 1)
    tl.store(sums_ptr + split.to(tl.int64) * N + cols, tl.sum(sums, axis=0), mask=cols < N)


def unsupported(dz: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> str | None:
    """Why `gradients` cannot run here, or None when it can."""
    return common.unsupported_mixed(common.DTYPES, y=y, dz=dz, scale=scale)


def gradients(
    dz: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, need_y: bool
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """dy (M, N), contiguous, in y's dtype, or None where it is not needed, and d_scale (N,) in scale's dtype."""
    m, n = y.shape
    block_m, block_n = (16, 16) if common.INTERPRETED.value else (16, 256)
    tiles_n, steps = triton.cdiv(n, block_n), max(triton.cdiv(m, block_m), 1)
    steps_each = common.steps_each(steps, tiles_n, y.device)
    splits = triton.cdiv(steps, steps_each)
    dy = torch.empty((m, n), device=y.device, dtype=y.dtype) if need_y else None
    sums = torch.empty((splits, n), device=y.device, dtype=torch.float32)
    if sums.numel():
        common.launch(
            scale_gradients_kernel,
            (tiles_n, splits),
            dz, y, scale, dy, sums,
            m, n, steps_each * block_m,
            *dz.stride(), *y.stride(), *scale.stride(),
            BLOCK_M=block_m, BLOCK_N=block_n,
            num_warps=4, num_stages=2,
        )  # fmt: skip
    return dy, (sums[0] if splits == 1 else sums.sum(0)).to(scale.dtype)
