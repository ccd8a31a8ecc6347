"""Frozen linear layer with a rank-R factor pair, and its gradients (the apply stage).

    p = x downᵀ                        q = dy up
    y = x Wᵀ + b + p upᵀ               dx = dy W + q down
                                       d_up = dyᵀ p,  d_down = qᵀ x

Shapes: x, dx (M, K); W (N, K); b (N,); down (R, K); up (N, R); y, dy (M, N); p, q (M, R); 1 ≤ R ≤ 256.
Any strides, M = 0 included. x, W, b, y, p, q in one of float32, float16, bfloat16; down and up in any of them: they are
rounded to x's dtype on their way into a product, and their gradients come in their own dtype from float32 sums.
With dropout (triton_ops.dropout) the first `dropped` rows of down see x with elements dropped, the others x.

Variants of y, and of dx in the same words:
    one_pass  a kernel reads x once and sums base product and projection side by side, then adds the rank-R term and
              the bias (y only; every tile of columns repeats the projection, so it is for few rows)
    epilogue  p first, then one kernel whose float32 accumulator of the large product takes the rank-R term and the bias
    addmm     the large product is cuBLAS's, and the rank-R term is added to it in place
    accumulate  the rank-R term and the bias are written first, and cuBLAS adds the large product to them as it stores:
              one pass over y less than addmm
q and d_up: "fused" reads dy once for both, "separate" twice. d_down, and p or q alone: our "kernel". cuBLAS for any of
these: "matmul".
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from triton_ops import Dropout, common, selection, skinny
from triton_ops.dropout import dropout_scale, kept_tile

MAX_RANK = 256
# One tile holds all columns of p beside the accumulator of y.
ONE_PASS_MAX_RANK = 64


@triton.jit
def matmul_low_rank_kernel(
    a_ptr, b_ptr,  # tensors, or their descriptors
    c_ptr, d_ptr, bias_ptr, base_ptr, out_ptr, seed_ptr,
    M, N, K, R,
    dropped, threshold,
    stride_am, stride_ak,
    stride_bk, stride_bn,
    stride_cm, stride_cr,
    stride_dr, stride_dn,
    stride_bias,
    stride_base_m, stride_base_n,
    stride_om, stride_on,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K: no mask along the sum
    DESCRIPTORS: tl.constexpr, B_COLUMNS_FIRST: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = a b + c d + bias + base, less the terms whose pointers are None.

    a (M, K), b (K, N), c (M, R), d (R, N), bias (N,), base and out (M, N); one program a tile of out. With DROPOUT, of
    the product of the first `dropped` columns of c and rows of d only kept elements count, scaled.
    """
    tile_m, tile_n = common.grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # The rank-R term goes first, so that one accumulator serves: what is masked is masked before the rest arrives.
    if DROPOUT:
        for start in range(0, dropped, BLOCK_R):
            inner = start + tl.arange(0, BLOCK_R)
            c = common.load_tile(c_ptr, rows, inner, M, dropped, stride_cm, stride_cr)
            d = common.load_tile(d_ptr, inner, cols, dropped, N, stride_dr, stride_dn)
            accumulator = common.dot(c, common.rounded(d, c.dtype), accumulator, PRECISION)
        kept = kept_tile(rows, tile_n * BLOCK_N, tl.load(seed_ptr), threshold, BLOCK_N)
        accumulator = tl.where(kept, accumulator * dropout_scale(threshold), 0.0)
        c_ptr += common.step(dropped, stride_cr)
        d_ptr += common.step(dropped, stride_dr)
        R -= dropped
    for start in range(0, R, BLOCK_R):
        inner = start + tl.arange(0, BLOCK_R)
        c = common.load_tile(c_ptr, rows, inner, M, R, stride_cm, stride_cr)
        d = common.load_tile(d_ptr, inner, cols, R, N, stride_dr, stride_dn)
        accumulator = common.dot(c, common.rounded(d, c.dtype), accumulator, PRECISION)
    if a_ptr is not None:
        if DESCRIPTORS:
            for start in range(0, K, BLOCK_K):
                a = a_ptr.load([tile_m * BLOCK_M, start])
                if B_COLUMNS_FIRST:
                    b = b_ptr.load([tile_n * BLOCK_N, start]).T
                else:
                    b = b_ptr.load([start, tile_n * BLOCK_N])
                accumulator = common.dot(a, b, accumulator, PRECISION)
        else:
            inner = tl.arange(0, BLOCK_K)
            a_ptrs = common.tile_pointers(a_ptr, rows, inner, stride_am, stride_ak)
            b_ptrs = common.tile_pointers(b_ptr, inner, cols, stride_bk, stride_bn)
            in_rows = (rows < M)[:, None]
            in_cols = (cols < N)[None, :]
            for start in range(0, K, BLOCK_K):
                a_mask = in_rows if EVEN_K else in_rows & (inner < K - start)[None, :]
                b_mask = in_cols if EVEN_K else in_cols & (inner < K - start)[:, None]
                a = tl.load(a_ptrs, mask=a_mask, other=0.0)
                b = tl.load(b_ptrs, mask=b_mask, other=0.0)
                accumulator = common.dot(a, b, accumulator, PRECISION)
                a_ptrs += common.step(BLOCK_K, stride_ak)
                b_ptrs += common.step(BLOCK_K, stride_bk)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols.to(tl.int64) * stride_bias, mask=cols < N, other=0.0)
        accumulator += bias.to(tl.float32)[None, :]
    if base_ptr is not None:
        base = common.load_tile(base_ptr, rows, cols, M, N, stride_base_m, stride_base_n)
        accumulator += base.to(tl.float32)
    common.store_tile(out_ptr, accumulator, rows, cols, M, N, stride_om, stride_on)


@triton.jit
def one_pass_kernel(
    x_ptr, weight_ptr, bias_ptr, down_ptr, up_ptr, y_ptr, p_ptr, seed_ptr,
    M, N, K, R,
    dropped, threshold,
    stride_xm, stride_xk,
    stride_wn, stride_wk,
    stride_bias,
    stride_dr, stride_dk,
    stride_un, stride_ur,
    stride_ym, stride_yn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    GROUP_M: tl.constexpr, EVEN_K: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = x Wᵀ + bias + p upᵀ and p = x downᵀ (contiguous), from one pass over x; one program a tile of y.

    Every program sums the p of its rows; those of the first column of tiles store it.
    """
    tile_m, tile_n = common.grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ranks = tl.arange(0, BLOCK_R)
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = common.tile_pointers(x_ptr, rows, inner, stride_xm, stride_xk)
    weight_ptrs = common.tile_pointers(weight_ptr, inner, cols, stride_wk, stride_wn)
    down_ptrs = common.tile_pointers(down_ptr, inner, ranks, stride_dk, stride_dr)
    in_rows = (rows < M)[:, None]
    in_cols = (cols < N)[None, :]
    in_ranks = (ranks < R)[None, :]
    low_rank = (ranks < dropped)[None, :]
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    p = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    if DROPOUT:
        seed = tl.load(seed_ptr)
    for start in range(0, K, BLOCK_K):
        across = True if EVEN_K else (inner < K - start)[None, :]
        along = True if EVEN_K else (inner < K - start)[:, None]
        x = tl.load(x_ptrs, mask=in_rows & across, other=0.0)
        weight = tl.load(weight_ptrs, mask=in_cols & along, other=0.0)
        down = common.rounded(tl.load(down_ptrs, mask=in_ranks & along, other=0.0), x.dtype)
        y = common.dot(x, weight, y, PRECISION)
        if DROPOUT:
            kept = kept_tile(rows, start, seed, threshold, BLOCK_K)
            zero = tl.zeros_like(down)
            seen = tl.where(kept, x, tl.zeros_like(x))
            p = common.dot(seen, tl.where(low_rank, down, zero), p, PRECISION)
            p = common.dot(x, tl.where(low_rank, zero, down), p, PRECISION)
        else:
            p = common.dot(x, down, p, PRECISION)
        x_ptrs += common.step(BLOCK_K, stride_xk)
        weight_ptrs += common.step(BLOCK_K, stride_wk)
        down_ptrs += common.step(BLOCK_K, stride_dk)
    if DROPOUT:
        p = tl.where(low_rank, p * dropout_scale(threshold), p)
    if tile_n == 0:
        common.store_tile(p_ptr, p, rows, ranks, M, R, R, 1)
    p = common.rounded(p, x_ptr.dtype.element_ty)
    up = common.load_tile(up_ptr, ranks, cols, R, N, stride_ur, stride_un)
    y = common.dot(p, common.rounded(up, p.dtype), y, PRECISION)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + cols.to(tl.int64) * stride_bias, mask=cols < N, other=0.0)
        y += bias.to(tl.float32)[None, :]
    common.store_tile(y_ptr, y, rows, cols, M, N, stride_ym, stride_yn)


# By device family, then by kind of product ("half", "tf32", "ieee"); "default" where a family says nothing.
# Chosen by compiling (no spills, shared memory fits: triton_ops.aot), not yet by timing.
MATMUL_TILES = {
    "default": {
        "half": common.Tiles(128, 128, 32, 8, 3),
        "tf32": common.Tiles(128, 64, 32, 8, 3),
        "ieee": common.Tiles(128, 64, 16, 8, 2),
    },
    "sm80": {"half": common.Tiles(128, 256, 32, 8, 3)},
    "sm90": {
        "half": common.Tiles(128, 256, 64, 8, 3, descriptors=True),
        "tf32": common.Tiles(128, 128, 32, 8, 3),
    },
    "sm100": {
        "half": common.Tiles(128, 256, 64, 8, 3, descriptors=True),
        "tf32": common.Tiles(128, 128, 32, 8, 3),
        "ieee": common.Tiles(64, 64, 16, 8, 2),
    },
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
# For few rows: as many column tiles as there are processors or more, long steps along the sum.
ONE_PASS_TILES = {
    "default": {
        "half": common.Tiles(16, 32, 64, 4, 3),
        "tf32": common.Tiles(16, 32, 64, 4, 3),
        "ieee": common.Tiles(16, 32, 16, 4, 2),
    },
    "sm80": {"half": common.Tiles(16, 32, 128, 4, 3)},
    "sm90": {"half": common.Tiles(16, 32, 128, 4, 3)},
    "sm100": {"half": common.Tiles(16, 32, 128, 4, 3)},
    "interpreter": MATMUL_TILES["interpreter"],
}


def _strides(tensor: torch.Tensor | None, dimensions: int) -> tuple[int, ...]:
    return (0,) * dimensions if tensor is None else tensor.stride()


def _describable(matrix: torch.Tensor) -> bool:
    """Whether a tensor descriptor can hold it: rows one after another, 16-byte aligned, sizes within int32."""
    return (
        matrix.stride(1) == 1
        and matrix.stride(0) * matrix.element_size() % 16 == 0
        and matrix.stride(0) >= matrix.shape[1]
        and matrix.data_ptr() % 16 == 0
        and min(matrix.shape) > 0
        and max(matrix.shape) < 2**31
    )


def _matmul_low_rank(
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    c: torch.Tensor,
    d: torch.Tensor,
    bias: torch.Tensor | None = None,
    base: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    dropout: Dropout | None = None,
    tiles: common.Tiles | None = None,
) -> torch.Tensor:
    """a b + c d + bias + base (M, N), less the terms that are None, into ``out`` (which may be base) or a contiguous
    new tensor; shapes as in the kernel."""
    (m, r), n = c.shape, d.shape[1]
    if tiles is None:
        tiles = common.tiles(MATMUL_TILES, c.device, c.dtype)
        # Without a b the kernel only streams its output, which wants many small programs too.
        programs = triton.cdiv(m, tiles.rows) * triton.cdiv(n, tiles.cols)
        if a is None or b is None or programs < common.processors(c.device):
            tiles = common.tiles(SMALL_MATMUL_TILES, c.device, c.dtype)
    if dropout is not None:  # the bits of the mask need registers beside the accumulator
        tiles = tiles._replace(cols=max(tiles.cols // 2, 16))
    if a is not None and b is not None and not common.aligned(a, b):
        tiles = common.narrowed(common.tiles(SMALL_MATMUL_TILES, c.device, c.dtype))
    if out is None:
        out = torch.empty((m, n), device=c.device, dtype=c.dtype)
    k = 0 if a is None else a.shape[1]
    columns_first = b is not None and b.stride(1) != 1
    left: torch.Tensor | TensorDescriptor | None = a
    right: torch.Tensor | TensorDescriptor | None = b
    descriptors = False
    if tiles.descriptors and a is not None and b is not None:
        source = b.mT if columns_first else b
        descriptors = _describable(a) and _describable(source)
        if descriptors:
            block = [tiles.cols, tiles.inner] if columns_first else [tiles.inner, tiles.cols]
            left = TensorDescriptor.from_tensor(a, [tiles.rows, tiles.inner])
            right = TensorDescriptor.from_tensor(source, block)
    dropped, threshold, seed = dropout or (0, 0, None)
    if out.numel():
        common.launch(
            matmul_low_rank_kernel,
            (triton.cdiv(m, tiles.rows) * triton.cdiv(n, tiles.cols),),
            left, right, c, d, bias, base, out, seed,
            m, n, k, r,
            dropped, threshold,
            *_strides(a, 2), *_strides(b, 2), *c.stride(), *d.stride(),
            *_strides(bias, 1), *_strides(base, 2), *out.stride(),
            BLOCK_M=tiles.rows, BLOCK_N=tiles.cols, BLOCK_K=tiles.inner,
            BLOCK_R=16 if r <= 16 or dropout is not None else 32,
            GROUP_M=8, EVEN_K=k % tiles.inner == 0, DESCRIPTORS=descriptors, B_COLUMNS_FIRST=columns_first,
            DROPOUT=dropout is not None, PRECISION=common.dot_precision(c.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return out


def _one_pass(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    dropout: Dropout | None,
    tiles: common.Tiles,
) -> tuple[torch.Tensor, torch.Tensor]:
    (m, k), n, r = x.shape, weight.shape[0], down.shape[0]
    y = torch.empty((m, n), device=x.device, dtype=x.dtype)
    p = torch.empty((m, r), device=x.device, dtype=x.dtype)
    dropped, threshold, seed = dropout or (0, 0, None)
    if y.numel():
        common.launch(
            one_pass_kernel,
            (triton.cdiv(m, tiles.rows) * triton.cdiv(n, tiles.cols),),
            x, weight, bias, down, up, y, p, seed,
            m, n, k, r,
            dropped, threshold,
            *x.stride(), *weight.stride(), *_strides(bias, 1), *down.stride(), *up.stride(), *y.stride(),
            BLOCK_M=tiles.rows, BLOCK_N=tiles.cols, BLOCK_K=tiles.inner,
            BLOCK_R=max(triton.next_power_of_2(r), 16),
            GROUP_M=8, EVEN_K=k % tiles.inner == 0, DROPOUT=dropout is not None,
            PRECISION=common.dot_precision(x.dtype),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return y, p


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    variant: str | None = None,
) -> str | None:
    """Why these inputs cannot run here, or None when they can. `weight` is None for `add_forward`."""
    rank = down.shape[0]
    if not 1 <= rank <= MAX_RANK:
        return f"rank = {rank}, the kernel takes 1 to {MAX_RANK}"
    if variant == "one_pass" and weight is not None and rank > ONE_PASS_MAX_RANK:
        return f"rank = {rank}, variant 'one_pass' takes 1 to {ONE_PASS_MAX_RANK}"
    if weight is not None:
        reason = common.unsupported_tensors(common.DTYPES, x=x, weight=weight)
        if reason is not None:
            return reason
    return common.unsupported_mixed(common.DTYPES, x=x, down=down, up=up)


def project(
    x: torch.Tensor,
    down: torch.Tensor,
    out_features: int,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """p = x downᵀ (M, R), in x's dtype; ``out_features`` only tells the shape class."""
    (m, k), r = x.shape, down.shape[0]
    variant, tiles = selection.choose("projection", x, m, k, out_features, r)
    if variant == "matmul" and dropout is None:
        selection.note("projection", variant, None, x)
        return x @ down.mT.to(x.dtype)
    selection.note("projection", "kernel", tiles, x)
    return skinny.matmul(x, down.mT, dropout=dropout, tiles=tiles)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    dropout: Dropout | None = None,
    variant: str | None = None,
    p: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, p): y = x Wᵀ + b + p upᵀ (M, N) and p = x downᵀ (M, R), which the backward needs.

    ``variant`` None leaves the choice to `selection`; a ``p`` that is given is taken as it is, by no one_pass.
    """
    (m, k), (n, r) = x.shape, up.shape
    variant, tiles = selection.choose("forward", x, m, k, n, r, variant)
    if variant == "one_pass" and (p is not None or r > ONE_PASS_MAX_RANK):
        variant, tiles = "epilogue", None
    if variant == "one_pass":
        tiles = tiles or common.tiles(ONE_PASS_TILES, x.device, x.dtype)
        selection.note("forward", variant, tiles, x)
        return _one_pass(x, weight, bias, down, up, dropout, tiles)
    if p is None:
        p = project(x, down, n, dropout)
    selection.note("forward", variant, tiles, x)
    if variant == "epilogue":
        return _matmul_low_rank(x, weight.mT, p, up.mT, bias, tiles=tiles), p
    if variant == "accumulate":
        return _matmul_low_rank(None, None, p, up.mT, bias).addmm_(x, weight.mT), p
    y = torch.nn.functional.linear(x, weight, bias)
    return y.addmm_(p, up.mT.to(y.dtype)), p


def add_forward(
    base: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    dropout: Dropout | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, p): y = base + p upᵀ and p = x downᵀ, where base (M, N) is the output of a layer without a weight.

    y has the dtype of x, and its gradient with respect to base is dy.
    """
    p = project(x, down, up.shape[0], dropout)
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
    dropout: Dropout | None = None,
    variant: str | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """(dx, d_down, d_up) of `forward`, or of `add_forward` if weight is None; None for what is not needed."""
    (m, n), (r, k) = dy.shape, down.shape
    shape = m, k, n, r
    dx = d_down = d_up = q = None
    if needs_dx or needs_down:
        if needs_up:
            q, d_up = output_gradient(dy, up, p, k, variant)
        else:
            q = project(dy, up.mT, k)
    elif needs_up:
        d_up = skinny.matmul(dy.mT, p, dtype=up.dtype)
    if needs_dx and q is not None:
        if weight is None:
            dx = _matmul_low_rank(None, None, q, down, dropout=dropout)
        else:
            dx = input_gradient(dy, weight, q, down, dropout, shape, variant)
    if needs_down and q is not None:
        d_down = down_gradient(x, q, down.dtype, dropout, shape, variant)
    return dx, d_down, d_up


def output_gradient(
    dy: torch.Tensor, up: torch.Tensor, p: torch.Tensor, in_features: int, variant: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, d_up) = (dy up, dyᵀ p)."""
    (m, n), r = dy.shape, up.shape[1]
    chosen, tiles = selection.choose("output_gradient", dy, m, in_features, n, r, variant)
    fitting = tiles or common.tiles(skinny.OUTPUT_GRADIENT_TILES, dy.device, dy.dtype)
    # Each tile of columns writes a float32 partial q: past this rank that costs more than reading dy again.
    worth_it = 8 * r <= fitting.cols * dy.element_size() and r <= skinny.OUTPUT_GRADIENT_MAX_RANK
    if chosen == "fused" and not (worth_it and common.aligned(dy)):
        chosen, tiles = "separate", None
    selection.note("output_gradient", chosen, tiles, dy)
    if chosen == "fused":
        return skinny.output_gradient(dy, up, p, tiles)
    if chosen == "matmul":
        return dy @ up.to(dy.dtype), (p.mT @ dy).mT.to(up.dtype).contiguous()
    return project(dy, up.mT, in_features), skinny.matmul(dy.mT, p, dtype=up.dtype)


def input_gradient(
    dy: torch.Tensor,
    weight: torch.Tensor,
    q: torch.Tensor,
    down: torch.Tensor,
    dropout: Dropout | None,
    shape: tuple[int, int, int, int],
    variant: str | None,
) -> torch.Tensor:
    """dx = dy W + q down; ``shape`` is (M, K, N, R)."""
    chosen, tiles = selection.choose("input_gradient", dy, *shape, variant)
    selection.note("input_gradient", chosen, tiles, dy)
    if chosen == "epilogue":
        return _matmul_low_rank(dy, weight, q, down, tiles=tiles, dropout=dropout)
    if chosen == "accumulate":
        return _matmul_low_rank(None, None, q, down, dropout=dropout).addmm_(dy, weight)
    dx = dy @ weight
    if dropout is not None:
        return _matmul_low_rank(None, None, q, down, base=dx, out=dx, dropout=dropout)
    return dx.addmm_(q, down.to(dx.dtype))


def down_gradient(
    x: torch.Tensor,
    q: torch.Tensor,
    dtype: torch.dtype,
    dropout: Dropout | None,
    shape: tuple[int, int, int, int],
    variant: str | None,
) -> torch.Tensor:
    """d_down = qᵀ x in ``dtype``; ``shape`` is (M, K, N, R)."""
    chosen, tiles = selection.choose("down_gradient", x, *shape, variant)
    if chosen == "matmul" and dropout is None:
        selection.note("down_gradient", chosen, None, x)
        return (q.mT @ x).to(dtype)
    selection.note("down_gradient", "kernel", tiles, x)
    return skinny.matmul(x.mT, q, transposed=True, dtype=dtype, dropout=dropout, tiles=tiles)
