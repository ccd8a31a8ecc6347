// Products with small square blocks, for one instruction set: rows times a block, and the gradient of the block.
#pragma once

#include "register_tile.h"
#include "workspace.h"

namespace hybrid_kernels {
namespace {  // internal linkage, see block_algebra.h

// Rows of which a block takes b features, in runs of `run` that are `step` apart: feature i of row r is at
// data[r · row + i / run · step + i % run].
template <class T>
struct BlockRows {
  T* data;
  int64_t row, run, step;

  HK_INLINE T* at(int64_t r, int64_t i) const { return data + r * row + i / run * step + i % run; }
  HK_INLINE operator BlockRows<const T>() const { return {data, row, run, step}; }
};

template <class T, int Bytes>
struct BlockProduct : RegisterTile<T, Bytes> {
  using Tile = RegisterTile<T, Bytes>;
  using Vector = typename Tile::Vector;
  using Tile::kTileRows, Tile::kWidth, Tile::kChain, Tile::load, Tile::store;

  static HK_INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

  // Whether every register of a block's columns lies within a run.
  static HK_INLINE bool whole_registers(int64_t b, int64_t run) { return b % kWidth == 0 && run % kWidth == 0; }

  template <int kRows, int kVectors>
  static void product_tile(BlockRows<const T> left, const T* right, int64_t right_row, int64_t b, BlockRows<T> out,
                           int64_t column, bool add) {
    Vector sum[kRows][kVectors];
    Tile::clear(sum);
    for (int64_t i = 0, chain = 0; i < b;) {
      const int64_t inner = smaller(smaller(left.run - i % left.run, kChain - chain), b - i);
      Tile::template multiply<kRows, kVectors, false>(sum, left.at(0, i), left.row, right + i * right_row, right_row,
                                                      inner);
      i += inner, chain += inner;
      if (chain < kChain && i < b) continue;
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        T* const to = out.at(0, column + j * kWidth);  // a register of a pair may lie in another run than the first
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r)
          store(to + r * out.row, add ? load(to + r * out.row) + sum[r][j] : sum[r][j]);
      }
      Tile::clear(sum);
      add = true, chain = 0;
    }
  }

  template <int kRows>
  static HK_INLINE void product_rows(BlockRows<const T> left, const T* right, int64_t right_row, int64_t b,
                                     BlockRows<T> out, bool add) {
    for (int64_t j = 0; j < b;) {
      if (b - j > kWidth) {
        product_tile<kRows, 2>(left, right + j, right_row, b, out, j, add);
        j += 2 * kWidth;
      } else {
        product_tile<kRows, 1>(left, right + j, right_row, b, out, j, add);
        j += kWidth;
      }
    }
  }

  // out = left · right, or out + left · right, for `rows` rows; right is (b, b), its rows right_row apart and padded to
  // whole registers. So are those of out, unless whole_registers(b, out.run).
  static void product(BlockRows<const T> left, const T* right, int64_t right_row, int64_t b, int64_t rows,
                      BlockRows<T> out, bool add = false) {
    for (int64_t r = 0; r < rows;) {
      const BlockRows<const T> from{left.data + r * left.row, left.row, left.run, left.step};
      const BlockRows<T> to{out.data + r * out.row, out.row, out.run, out.step};
      if (rows - r >= kTileRows) {
        product_rows<kTileRows>(from, right, right_row, b, to, add);
        r += kTileRows;
      } else if (rows - r >= kTileRows / 3) {
        product_rows<kTileRows / 3>(from, right, right_row, b, to, add);
        r += kTileRows / 3;
      } else {
        product_rows<1>(from, right, right_row, b, to, add);
        ++r;
      }
    }
  }

  template <int kRows, int kVectors>
  static void gradient_tile(const T* left, int64_t left_row, const T* right, int64_t right_row, int64_t rows, T* sum,
                            int64_t sum_row) {
    Vector part[kRows][kVectors];
    Tile::clear(part);
    Tile::template multiply<kRows, kVectors, true>(part, left, left_row, right, right_row, rows);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        T* const to = sum + i * sum_row + j * kWidth;
        store(to, load(to) + part[i][j]);
      }
  }

  template <int kRows>
  static HK_INLINE void gradient_rows(BlockRows<const T> left, int64_t i, BlockRows<const T> right, int64_t b,
                                      int64_t rows, T* sum, int64_t sum_row) {
    for (int64_t j = 0; j < b;) {
      if (b - j > kWidth && right.run - j % right.run >= 2 * kWidth) {
        gradient_tile<kRows, 2>(left.at(0, i), left.row, right.at(0, j), right.row, rows, sum + i * sum_row + j, sum_row);
        j += 2 * kWidth;
      } else {
        gradient_tile<kRows, 1>(left.at(0, i), left.row, right.at(0, j), right.row, rows, sum + i * sum_row + j, sum_row);
        j += kWidth;
      }
    }
  }

  // sum += leftᵀ · right over `rows` ≤ kChain rows; sum is (b, b), its rows sum_row apart and padded to whole registers,
  // as those of right are, unless whole_registers(b, right.run).
  static void gradient(BlockRows<const T> left, BlockRows<const T> right, int64_t b, int64_t rows, T* sum,
                       int64_t sum_row) {
    for (int64_t i = 0; i < b;) {
      const int64_t in_run = smaller(left.run - i % left.run, b - i);
      if (in_run >= kTileRows) {
        gradient_rows<kTileRows>(left, i, right, b, rows, sum, sum_row);
        i += kTileRows;
      } else if (in_run >= kTileRows / 3) {
        gradient_rows<kTileRows / 3>(left, i, right, b, rows, sum, sum_row);
        i += kTileRows / 3;
      } else {
        gradient_rows<1>(left, i, right, b, rows, sum, sum_row);
        ++i;
      }
    }
  }
};

}  // namespace
}  // namespace hybrid_kernels
