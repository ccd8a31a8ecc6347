"""Frozen linear layer with a rank-R factor pair, and its gradients (the apply stage).

    p = x downᵀ                        q = dy up
    y = x Wᵀ + b + p upᵀ               dx = dy W + q down
                                       d_up = dyᵀ p,  d_down = qᵀ x

Shapes: x, dx (M, K); W (N, K); b (N,); down (R, K); up (N, R); y, dy (M, N); p, q (M, R); 1 ≤ R ≤ 256.
Any strides, M = 0 included. float32, float16 or bfloat16, one dtype throughout; sums are float32.

Two kernels serve all six products. `skinny_matmul_kernel` computes those with R columns: p, q and both
parameter gradients. They have few output tiles and a long sum, so the sum is split over programs and the
partial sums are added afterwards, in a fixed order and without atomics. `matmul_low_rank_kernel` computes y
and dx: one large product, whose float32 accumulator takes the rank-R term and the bias before it is stored.
"""

import torch
import triton
import triton.language as tl

from triton_ops import common, skinny

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_RANK = 256


@triton.jit
def matmul_low_rank_kernel(
    a_ptr, b_ptr, c_ptr, d_ptr, bias_ptr, base_ptr, out_ptr,
    M, N, K, R,
    stride_am, stride_ak,
    stride_bk, stride_bn,
    stride_cm, stride_cr,
    stride_dr, stride_dn,
    stride_bias,
    stride_base_m, stride_base_n,
    stride_om, stride_on,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = a b + c d + bias + base, less the terms whose pointers are None.

    a (M, K), b (K, N), c (M, R), d (R, N), bias (N,), base and out (M, N); one program a tile of out.
    """
    tile_m, tile_n = common.grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if a_ptr is not None:
        for start in range(0, K, BLOCK_K):
            inner = start + tl.arange(0, BLOCK_K)
            a = common.load_tile(a_ptr, rows, inner, M, K, stride_am, stride_ak)
            b = common.load_tile(b_ptr, inner, cols, K, N, stride_bk, stride_bn)
            accumulator = common.dot(a, b, accumulator, PRECISION)
    for start in range(0, R, BLOCK_R):
        inner = start + tl.arange(0, BLOCK_R)
        c = common.load_tile(c_ptr, rows, inner, M, R, stride_cm, stride_cr)
        d = common.load_tile(d_ptr, inner, cols, R, N, stride_dr, stride_dn)
        accumulator = common.dot(c, d, accumulator, PRECISION)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols.to(tl.int64) * stride_bias, mask=cols < N, other=0.0)
        accumulator += bias.to(tl.float32)[None, :]
    if base_ptr is not None:
        base = common.load_tile(base_ptr, rows, cols, M, N, stride_base_m, stride_base_n)
        accumulator += base.to(tl.float32)
    common.store_tile(out_ptr, accumulator, rows, cols, M, N, stride_om, stride_on)


# By device family, then by kind of product ("half", "tf32", "ieee"); "default" where a family says nothing.
# Chosen by compiling (no spills, shared memory fits: triton_ops.aot), not yet by timing.
MATMUL_TILES = {
    "default": {
        "half": common.Tiles(128, 128, 32, 8, 3),
        "tf32": common.Tiles(128, 64, 32, 8, 3),
        "ieee": common.Tiles(64, 64, 16, 4, 2),
    },
    "sm80": {"half": common.Tiles(128, 256, 32, 8, 3)},
    "sm90": {"half": common.Tiles(128, 256, 64, 8, 3), "tf32": common.Tiles(128, 128, 32, 8, 3)},
    "sm100": {"half": common.Tiles(128, 256, 64, 8, 3), "tf32": common.Tiles(128, 128, 32, 8, 3)},
    "gfx942": {"half": common.Tiles(256, 128, 32, 8, 2)},
    "interpreter": dict.fromkeys(("half", "tf32", "ieee"), common.Tiles(16, 16, 16, 1, 1)),
}
# For outputs too small to give every processor a tile of the size above.
SMALL_MATMUL_TILES = {
    "default": {
        "half": common.Tiles(64, 64, 64, 8, 3),
        "tf32": common.Tiles(64, 64, 32, 4, 3),
        "ieee": common.Tiles(32, 64, 16, 4, 2),
    },
    "interpreter": MATMUL_TILES["interpreter"],
}


def _matmul_low_rank(
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    c: torch.Tensor,
    d: torch.Tensor,
    bias: torch.Tensor | None = None,
    base: torch.Tensor | None = None,
) -> torch.Tensor:
    """a b + c d + bias + base (M, N), contiguous, less the terms that are None; shapes as in the kernel."""
    (m, r), n = c.shape, d.shape[1]
    tiles = common.tiles(MATMUL_TILES, c.device, c.dtype)
    # Without a b the kernel only streams its output, which wants many small programs too.
    if a is None or triton.cdiv(m, tiles.rows) * triton.cdiv(n, tiles.cols) < common.processors(c.device):
        tiles = common.tiles(SMALL_MATMUL_TILES, c.device, c.dtype)
    out = torch.empty((m, n), device=c.device, dtype=c.dtype)
    if out.numel():
        common.launch(
            matmul_low_rank_kernel,
            (triton.cdiv(m, tiles.rows) * triton.cdiv(n, tiles.cols),),
            a, b, c, d, bias, base, out,
            m, n, 0 if a is None else a.shape[1], r,
            *_strides(a, 2), *_strides(b, 2), *c.stride(), *d.stride(),
            *_strides(bias, 1), *_strides(base, 2), *out.stride(),
            BLOCK_M=tiles.rows, BLOCK_N=tiles.cols, BLOCK_K=tiles.inner, BLOCK_R=16 if r <= 16 else 32,
            GROUP_M=8, PRECISION=common.dot_precision(c.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return out


def _strides(tensor: torch.Tensor | None, dimensions: int) -> tuple[int, ...]:
    return (0,) * dimensions if tensor is None else tensor.stride()


def unsupported(
    x: torch.Tensor, weight: torch.Tensor | None, down: torch.Tensor, up: torch.Tensor
) -> str | None:
    """Why these inputs cannot run here, or None when they can. `weight` is None for `add_forward`."""
    if not 1 <= down.shape[0] <= MAX_RANK:
        return f"rank = {down.shape[0]}, the kernel takes 1 to {MAX_RANK}"
    matrices = {"x": x, "weight": weight, "down": down, "up": up}
    return common.unsupported_tensors(
        DTYPES, **{name: matrix for name, matrix in matrices.items() if matrix is not None}
    )


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, p): y = x Wᵀ + b + p upᵀ (M, N) and p = x downᵀ (M, R), which the backward needs."""
    p = skinny.matmul(x, down.mT)
    return _matmul_low_rank(x, weight.mT, p, up.mT, bias=bias), p


def add_forward(
    base: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, p): y = base + p upᵀ and p = x downᵀ, where base (M, N) is the output of a layer without a weight.

    y has the dtype of x, and its gradient with respect to base is dy.
    """
    p = skinny.matmul(x, down.mT)
    return _matmul_low_rank(None, None, p, up.mT, base=base), p


def backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    p: torch.Tensor,
    needs_dx: bool,
    needs_down: bool,
    needs_up: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(dx, d_down, d_up) of `forward`, or of `add_forward` if weight is None; None for what is not needed."""
    dx = d_down = d_up = None
    if needs_dx or needs_down:
        q = skinny.matmul(dy, up)
        if needs_dx:
            dx = _matmul_low_rank(None if weight is None else dy, weight, q, down)
        if needs_down:
            d_down = skinny.matmul(x.mT, q, transposed=True)
    if needs_up:
        d_up = skinny.matmul(dy.mT, p)
    return dx, d_down, d_up
