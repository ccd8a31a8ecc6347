"""Dropout whose mask is computed from a seed, never stored: forward and backward regenerate the same bits.

    y = x ⊙ kept · 2¹⁶ / (2¹⁶ − threshold)        kept[i, j] = bits[i, j] ≥ threshold
    bits[i, j]: 16-bit half j mod 2 of word (j div 2) mod 4 of Philox4x32-7(counter = (i, j div 8, 0), key = seed)

Shapes: x, y (M, K), the row number i taking two of the four counter words; seed a 0-dim int64 tensor on x's device;
0 ≤ threshold < 2¹⁶, the probability to drop in units of 2⁻¹⁶. Eight elements share a Philox call, and seven rounds are
the fewest that pass BigCrush: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

import torch
import triton
import triton.language as tl

from triton_ops import common


@triton.jit
def kept_tile(rows, first_col, seed, threshold, BLOCK_COLS: tl.constexpr):
    """kept (rows, BLOCK_COLS) from column `first_col` on, which is a multiple of 8 as BLOCK_COLS is."""
    octets = first_col // 8 + tl.arange(0, BLOCK_COLS // 8)
    zero = tl.zeros((rows.shape[0], BLOCK_COLS // 8), tl.uint32)
    row = rows.to(tl.int64)[:, None]
    low = (row & 0xFFFFFFFF).to(tl.uint32) + zero
    high = (row >> 32).to(tl.uint32) + zero
    word0, word1, word2, word3 = tl.philox(seed, low, high, octets.to(tl.uint32)[None, :] + zero, zero, 7)
    # join puts its second argument at odd places: the words in order 0, 1, 2, 3, then the halves of each.
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3)).reshape(rows.shape[0], BLOCK_COLS // 2)
    bits = tl.join(words & 0xFFFF, words >> 16).reshape(rows.shape[0], BLOCK_COLS)
    return bits.to(tl.int32) >= threshold


@triton.jit
def dropout_scale(threshold):
    """What kept elements are multiplied by: 1 / (1 − probability)."""
    return 65536.0 / (tl.full((), 65536.0, tl.float32) - threshold)


@triton.jit
def dropout_kernel(
    x_ptr, y_ptr, seed_ptr,
    M, K, threshold,
    stride_xm, stride_xk,
    stride_ym, stride_yk,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = x ⊙ kept · scale; one program a tile, tiles of a row next to each other."""
    tiles_k = tl.cdiv(K, BLOCK_K)
    rows = tl.program_id(0).to(tl.int64) // tiles_k * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(0) % tiles_k * BLOCK_K
    cols = first + tl.arange(0, BLOCK_K)
    x = common.load_tile(x_ptr, rows, cols, M, K, stride_xm, stride_xk).to(tl.float32)
    kept = kept_tile(rows, first, tl.load(seed_ptr), threshold, BLOCK_K)
    y = tl.where(kept, x * dropout_scale(threshold), 0.0)
    common.store_tile(y_ptr, y, rows, cols, M, K, stride_ym, stride_yk)


def unsupported(x: torch.Tensor) -> str | None:
    """Why `dropout(x, …)` cannot run here, or None when it can."""
    return common.unsupported_tensors(common.DTYPES, x=x)


def dropout(x: torch.Tensor, threshold: int, seed: torch.Tensor) -> torch.Tensor:
    """y (M, K), contiguous, from x (M, K) of any strides; applied to dy it is its own gradient."""
    m, k = x.shape
    y = torch.empty((m, k), device=x.device, dtype=x.dtype)
    block_m, block_k = (16, 16) if common.INTERPRETED.value else (4, 512)
    if y.numel():
        common.launch(
            dropout_kernel,
            (triton.cdiv(m, block_m) * triton.cdiv(k, block_k),),
            x, y, seed,
            m, k, threshold,
            *x.stride(), *y.stride(),
            BLOCK_M=block_m, BLOCK_K=block_k,
            num_warps=4, num_stages=1,
        )  # fmt: skip
    return y
