"""Rows times a chain of Householder reflections, given its factors, and the gradients (the apply stage of a rotation).

    p = x v                            q = dy z
    y = x − p zᵀ                       dx = dy − q vᵀ
                                       dv = −xᵀ q,  dz = −dyᵀ p

With H = H₁…Hₙ = I − v t vᵀ, z = v t gives y = x Hᵀ and z = v tᵀ gives y = x H.

Shapes: x, y, dy, dx (M, K); v, z, dv, dz (K, n); p, q (M, n); 1 ≤ n ≤ 256. Any strides, M = 0 included.
x is float32, float16 or bfloat16, and p, y, q and dx are as x; v and z may be float32 beside a narrower x: they are
rounded to x's dtype on the way into the products, whose sums are float32. dv and dz are as v and z.

One kernel, once forward and once backward with v and z exchanged. A program has a block of rows and goes over K twice,
first for p, then, from the end, where x was read last and is in the L2 cache still, for y: little more than reading x
and writing y. Few rows make few programs, each of which walks K alone: below 16 rows a processor a part of the GPU
idles. For a handful of rows a sum split over programs (`skinny.matmul`, then `low_rank.add_forward`) may be faster;
that is not chosen here.
"""

import torch
import triton
import triton.language as tl

from triton_ops import common, skinny

MAX_REFLECTIONS = 256


@triton.jit
def householder_rotate_kernel(
    x_ptr, v_ptr, z_ptr, y_ptr, p_ptr,
    M, K, n,
    stride_xm, stride_xk,
    stride_vk, stride_vn,
    stride_zk, stride_zn,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """p = x v (M, n) and y = x − p zᵀ (M, K), both contiguous; grid (blocks of rows,)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i = tl.arange(0, BLOCK_N)
    steps = tl.cdiv(K, BLOCK_K)
    p = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        x = common.load_tile(x_ptr, rows, k, M, K, stride_xm, stride_xk)
        v = common.load_tile(v_ptr, k, i, K, n, stride_vk, stride_vn)
        p = common.dot(x, common.rounded(v, x_ptr.dtype.element_ty), p, PRECISION)
    common.store_tile(p_ptr, p, rows, i, M, n, n, 1)
    minus_p = common.rounded(-p, x_ptr.dtype.element_ty)
    for step in range(steps):
        k = (steps - 1 - step) * BLOCK_K + tl.arange(0, BLOCK_K)
        x = common.load_tile(x_ptr, rows, k, M, K, stride_xm, stride_xk)
        z = common.load_tile(z_ptr, i, k, n, K, stride_zn, stride_zk)
        z = common.rounded(z, x_ptr.dtype.element_ty)
        y = common.dot(minus_p, z, x.to(tl.float32), PRECISION)
        common.store_tile(y_ptr, y, rows, k, M, K, K, 1)


# Columns come from n. `rows` are for n ≤ 128 and `inner`, the step over K, for n ≤ 64: they shrink as n grows.
# Chosen by compiling (no spills, shared memory fits: triton_ops.aot), not yet by timing.
ROTATE_TILES = {
    "default": {
        "half": common.Tiles(64, 0, 64, 4, 3),
        "tf32": common.Tiles(64, 0, 32, 4, 3),
        "ieee": common.Tiles(32, 0, 32, 4, 2),
    },
    "sm100": {"half": common.Tiles(64, 0, 64, 8, 3)},
    "interpreter": dict.fromkeys(("half", "tf32", "ieee"), common.Tiles(16, 16, 16, 1, 1)),
}
# For too few rows to give every processor a block of the size above.
SMALL_ROTATE_TILES = {
    "default": {
        "half": common.Tiles(16, 0, 64, 4, 3),
        "tf32": common.Tiles(16, 0, 32, 4, 3),
        "ieee": common.Tiles(16, 0, 32, 4, 2),
    },
    "sm100": {"tf32": common.Tiles(16, 0, 32, 4, 2)},
    "interpreter": ROTATE_TILES["interpreter"],
}


def _rotate(x: torch.Tensor, v: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (m, k), n = x.shape, v.shape[1]
    block_n = max(triton.next_power_of_2(n), 16)
    tiles = common.tiles(ROTATE_TILES, x.device, x.dtype)
    if triton.cdiv(m, tiles.rows) < common.processors(x.device):
        tiles = common.tiles(SMALL_ROTATE_TILES, x.device, x.dtype)
    rows = max(tiles.rows * 128 // max(block_n, 128), 16)
    y = torch.empty((m, k), device=x.device, dtype=x.dtype)
    p = torch.empty((m, n), device=x.device, dtype=x.dtype)
    if m:
        common.launch(
            householder_rotate_kernel,
            (triton.cdiv(m, rows),),
            x, v, z, y, p,
            m, k, n,
            *x.stride(), *v.stride(), *z.stride(),
            BLOCK_M=rows, BLOCK_K=max(tiles.inner * 64 // max(block_n, 64), 16), BLOCK_N=block_n,
            PRECISION=common.dot_precision(x.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return y, p


def unsupported(x: torch.Tensor, v: torch.Tensor, z: torch.Tensor) -> str | None:
    """Why these inputs cannot run here, or None when they can."""
    if not 1 <= v.shape[1] <= MAX_REFLECTIONS:
        return f"n = {v.shape[1]} reflections, the kernel takes 1 to {MAX_REFLECTIONS}"
    reason = common.unsupported_tensors(common.DTYPES, x=x)
    if reason is not None:
        return reason
    for name, factor in (("v", v), ("z", z)):
        if factor.device != x.device:
            return f"{name} is on {factor.device} while x is on {x.device}"
        if factor.dtype not in (x.dtype, torch.float32):
            return f"{name} is {factor.dtype} while x is {x.dtype}; it may be that or float32"
    return None


def forward(x: torch.Tensor, v: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, p): y = x − (x v) zᵀ (M, K) and p = x v (M, n), which the backward needs, both in x's dtype."""
    return _rotate(x, v, z)


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    v: torch.Tensor,
    z: torch.Tensor,
    p: torch.Tensor,
    needs_dx: bool,
    needs_dv: bool,
    needs_dz: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(dx, dv, dz) of `forward`; None for what is not needed."""
    dx = dv = dz = None
    if needs_dx:
        dx, q = _rotate(dy, z, v)
    elif needs_dv:
        q = skinny.matmul(dy, z.to(dy.dtype))
    if needs_dv:
        dv = skinny.matmul(x.mT, q, dtype=v.dtype).neg_()
    if needs_dz:
        dz = skinny.matmul(dy.mT, p, dtype=z.dtype).neg_()
    return dx, dv, dz
