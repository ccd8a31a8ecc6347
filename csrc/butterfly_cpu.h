// CPU kernels of a block butterfly (hybrid_kernels/ops/butterfly_rotation.py has the formulas): no torch.
//
// x and y are (rows, k·b), contiguous; q is (levels, k, b, block_row): blocks whose rows are padded with zeros. All
// levels together mix the features of a group, b · 2^(levels − 1); a tile of rows of one group passes through all of
// them in the cache. One level is a block-diagonal matrix.
#pragma once

#include <cstdint>

namespace hybrid_kernels {

// Rows of a tile; ranges of rows should begin at a multiple of it.
constexpr int64_t kButterflyRows = 24;

// Numbers from one row of a padded block to the next: whole registers, of the width that such blocks are computed in.
template <class T>
constexpr int64_t padded_block_row(int64_t b) {
  const int64_t bytes = b * static_cast<int64_t>(sizeof(T)), unit = bytes > 32 ? 64 : bytes > 16 ? 32 : 16;
  return (bytes + unit - 1) / unit * unit / static_cast<int64_t>(sizeof(T));
}

struct ButterflyShape {
  int64_t levels, blocks, block_size;

  int64_t features() const { return blocks * block_size; }
  int64_t group() const { return block_size << (levels - 1); }
};

// Rows [begin, end) of y = x M_{m−1} ⋯ M₀ or, `ascending`, x M₀ ⋯ M_{m−1}: with the blocks transposed, the gradient. A
// row depends neither on begin nor on end, bit for bit.
template <class T>
struct ButterflyRotate {
  ButterflyShape shape;
  const T* x;
  const T* q;
  bool ascending;
  T* y;
  int64_t begin, end;
};

// Of rows [begin, end) and groups [first_group, last_group): dq, which is padded like q, is added to, dx written if it
// is not null. q_transposed has the blocks transposed; it is not read if there is but one level and no dx.
template <class T>
struct ButterflyGradients {
  ButterflyShape shape;
  const T* x;
  const T* dy;
  const T* q;
  const T* q_transposed;
  T* dx;
  T* dq;
  int64_t begin, end, first_group, last_group;
};

}  // namespace hybrid_kernels
