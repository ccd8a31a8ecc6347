"""The factor pair of the hybrid update, and the gradients of its parameters (the factorise stage).

    z = v t,   c = W z                        H = I − v t vᵀ from triton_ops.householder
    down = [A; vᵀ],   up = [λ s B, (λ − 1) c]

    dA = d_down[:r]                           dB = λ s d_up[:, :r]          dc = (λ − 1) d_up[:, r:]
    dλ = s ⟨d_up[:, :r], B⟩ + ⟨d_up[:, r:], c⟩
    dz = Wᵀ dc,   dv = d_down[r:]ᵀ + dz tᵀ,   dt = vᵀ dz,   then du by triton_ops.householder

Shapes: W (N, K); A (r, K); B (N, r); u, v, z (K, n); t (n, n); c, dc (N, n); down (r + n, K); up (N, r + n); λ one
number, read on the device; s a Python number. W is float32, float16 or bfloat16, and W z is computed in its dtype with
float32 sums; A, B, u and all results are float32, never TF32. Any strides.

The two large products are triton_ops.skinny's; the rest is put together and taken apart here, in one launch each.
"""

import functools

import torch
import triton
import triton.language as tl

from triton_ops import common, householder, skinny


@triton.jit
def join_factors_kernel(
    a_ptr, b_ptr, v_ptr, c_ptr, mixing_ptr, down_ptr, up_ptr,
    K, N, r, n, scaling,
    stride_ar, stride_ak,
    stride_bn, stride_br,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """down and up, contiguous, from A, B and the contiguous v and c; one program a block of rows of up or columns of
    down, those of up first."""
    program = tl.program_id(0)
    tiles_n = tl.cdiv(N, BLOCK)
    ranks = tl.arange(0, BLOCK_R)
    if program < tiles_n:
        rows = program * BLOCK + tl.arange(0, BLOCK)
        mixing = tl.load(mixing_ptr).to(tl.float32)
        for start in range(0, r, BLOCK_R):
            b = common.load_tile(b_ptr, rows, start + ranks, N, r, stride_bn, stride_br)
            common.store_tile(up_ptr, b * (mixing * scaling), rows, start + ranks, N, r, r + n, 1)
        for start in range(0, n, BLOCK_R):
            c = common.load_tile(c_ptr, rows, start + ranks, N, n, n, 1)
            common.store_tile(up_ptr + r, c * (mixing - 1.0), rows, start + ranks, N, n, r + n, 1)
    else:
        cols = (program - tiles_n) * BLOCK + tl.arange(0, BLOCK)
        for start in range(0, r, BLOCK_R):
            a = common.load_tile(a_ptr, start + ranks, cols, r, K, stride_ar, stride_ak)
            common.store_tile(down_ptr, a, start + ranks, cols, r, K, K, 1)
        below = down_ptr + common.step(r, K)
        for start in range(0, n, BLOCK_R):
            v = common.load_tile(v_ptr, cols, start + ranks, K, n, n, 1)
            common.store_tile(below, tl.trans(v), start + ranks, cols, n, K, K, 1)


@triton.jit
def split_gradient_kernel(
    d_up_ptr, b_ptr, c_ptr, mixing_ptr, d_b_ptr, d_c_ptr, d_mixing_ptr,
    N, r, n, scaling,
    stride_un, stride_ur,
    stride_bn, stride_br,
    BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dB and dc, contiguous, and parts of dλ, unless their pointers are None; a program a block of rows."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ranks = tl.arange(0, BLOCK_R)
    mixing = tl.load(mixing_ptr).to(tl.float32)
    with_b = tl.zeros((BLOCK, BLOCK_R), tl.float32)
    with_c = tl.zeros((BLOCK, BLOCK_R), tl.float32)
    for start in range(0, r, BLOCK_R):
        d = common.load_tile(d_up_ptr, rows, start + ranks, N, r, stride_un, stride_ur).to(tl.float32)
        if d_b_ptr is not None:
            common.store_tile(d_b_ptr, d * (mixing * scaling), rows, start + ranks, N, r, r, 1)
        if d_mixing_ptr is not None:
            with_b += d * common.load_tile(b_ptr, rows, start + ranks, N, r, stride_bn, stride_br)
    d_up_ptr += common.step(r, stride_ur)
    for start in range(0, n, BLOCK_R):
        d = common.load_tile(d_up_ptr, rows, start + ranks, N, n, stride_un, stride_ur).to(tl.float32)
        if d_c_ptr is not None:
            common.store_tile(d_c_ptr, d * (mixing - 1.0), rows, start + ranks, N, n, n, 1)
        if d_mixing_ptr is not None:
            with_c += d * common.load_tile(c_ptr, rows, start + ranks, N, n, n, 1)
    if d_mixing_ptr is not None:
        part = tl.sum(tl.sum(with_b * scaling + with_c, axis=1), axis=0)
        tl.store(d_mixing_ptr + tl.program_id(0), part)


@triton.jit
def vector_gradient_kernel(
    d_down_ptr, dz_ptr, t_ptr, dv_ptr,
    K, n,
    stride_dr, stride_dk,
    BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """dv = d_downᵀ + dz tᵀ (K, n), contiguous as dz and t are, for d_down (n, K); one program a block of rows."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.arange(0, BLOCK_N)
    dv = tl.trans(common.load_tile(d_down_ptr, cols, rows, n, K, stride_dr, stride_dk)).to(tl.float32)
    for start in range(0, n, BLOCK_I):
        inner = start + tl.arange(0, BLOCK_I)
        dz = common.load_tile(dz_ptr, rows, inner, K, n, n, 1)
        t = common.load_tile(t_ptr, inner, cols, n, n, 1, n)
        dv = common.dot(dz, t, dv, "ieee")
    common.store_tile(dv_ptr, dv, rows, cols, K, n, n, 1)


def unsupported(weight: torch.Tensor, u: torch.Tensor) -> str | None:
    """Why these inputs cannot run here, or None when they can."""
    if u.dtype != torch.float32:
        return f"u is {u.dtype}, the kernel takes float32"
    return householder.unsupported(u) or common.unsupported_mixed(common.DTYPES, weight=weight, u=u)


def _blocks(*sizes: int) -> tuple[int, int]:
    """(rows or columns of a program, columns of the rank at a time)."""
    return (16, 16) if common.INTERPRETED.value else (64, min(max(map(triton.next_power_of_2, sizes)), 32))


def factors(
    weight: torch.Tensor,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    mixing: torch.Tensor,
    scaling: float,
    v: torch.Tensor,
    z: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(down, up, c), contiguous, from v and z = v t as `householder.factors_with_product` gives them."""
    (k, n), (out_features, r) = v.shape, lora_B.shape
    c = skinny.matmul(weight, z, dtype=torch.float32, exact=True)
    down = torch.empty((r + n, k), device=v.device, dtype=torch.float32)
    up = torch.empty((out_features, r + n), device=v.device, dtype=torch.float32)
    block, block_r = _blocks(r, n)
    common.launch(
        join_factors_kernel,
        (triton.cdiv(out_features, block) + triton.cdiv(k, block),),
        lora_A, lora_B, v, c, mixing, down, up,
        k, out_features, r, n, scaling,
        *lora_A.stride(), *lora_B.stride(),
        BLOCK=block, BLOCK_R=max(block_r, 16),
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return down, up, c


def backward(
    d_down: torch.Tensor,
    d_up: torch.Tensor,
    weight: torch.Tensor,
    lora_B: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    t: torch.Tensor,
    c: torch.Tensor,
    mixing: torch.Tensor,
    scaling: float,
    need_B: bool,
    need_u: bool,
    need_mixing: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(dB, du, dλ), None for what is not needed; v, t and c are contiguous. dA is d_down[:r]."""
    (k, n), (out_features, r) = v.shape, lora_B.shape
    block, block_r = _blocks(r, n)
    programs = triton.cdiv(out_features, block)
    empty = functools.partial(torch.empty, device=u.device, dtype=torch.float32)
    d_B = empty((out_features, r)) if need_B else None
    d_c = empty((out_features, n)) if need_u else None
    parts = empty((programs,)) if need_mixing else None
    common.launch(
        split_gradient_kernel,
        (programs,),
        d_up, lora_B, c, mixing, d_B, d_c, parts,
        out_features, r, n, scaling,
        *d_up.stride(), *lora_B.stride(),
        BLOCK=block, BLOCK_R=max(block_r, 16),
        num_warps=4, num_stages=1,
    )  # fmt: skip
    d_mixing = None if parts is None else parts.sum().to(mixing.dtype)
    if d_c is None:
        return d_B, None, d_mixing
    dz = skinny.matmul(weight.mT, d_c, dtype=torch.float32, exact=True)
    dt = skinny.matmul(v.mT, dz, exact=True)
    dv = empty((k, n))
    below = d_down[r:]
    block_n = max(triton.next_power_of_2(n), 16)
    rows = 16 if common.INTERPRETED.value else 64
    common.launch(
        vector_gradient_kernel,
        (triton.cdiv(k, rows),),
        below, dz, t, dv,
        k, n,
        *below.stride(),
        BLOCK=rows, BLOCK_N=block_n, BLOCK_I=16,
        num_warps=4 if block_n <= 64 else 8, num_stages=1,
    )  # fmt: skip
    return d_B, householder.backward(u, v, t, dv, dt), d_mixing
