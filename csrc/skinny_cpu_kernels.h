// Matrix products with a small side, for one instruction set.
//
// One register tile does all the work, over a block of kInner steps of the inner dimension at a time; the sums of
// the blocks are added up apart.
#pragma once

#include <type_traits>

#include "register_tile.h"
#include "skinny_cpu.h"
#include "workspace.h"

namespace hybrid_kernels {
namespace {

template <class T, int Bytes>
struct Skinny : RegisterTile<T, Bytes> {
  using Tile = RegisterTile<T, Bytes>;
  using Vector = typename Tile::Vector;
  using Tile::kTileRows, Tile::kWidth, Tile::load, Tile::store;
  static constexpr int kGroup = 2;
  static constexpr int64_t kInner = Tile::kChain;
  // Rows whose sums are held while a block of the inner dimension passes, if that is the slow one in memory.
  static constexpr int64_t kTransposedRows = 16 * kTileRows;

  static HK_INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

  // One tile of sums, (kRows, kVectors registers) of a panel, over one block of the inner dimension. `held`
  // has the sums of the blocks before; the last block writes to out, if its rows are contiguous and as wide.
  template <int kRows, int kVectors, bool kTransposed>
  static void tile(const T* left, int64_t stride, const T* right, int64_t inner, bool first, T* held,
                   int64_t held_row, const T* source, int64_t source_row, T* out, int64_t out_row) {
    Vector sum[kRows][kVectors];
    Tile::clear(sum);
    Tile::template multiply<kRows, kVectors, kTransposed>(sum, left, stride, right, kSkinnyPanel, inner);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        T* const kept = held + i * held_row + j * kWidth;
        Vector total = first ? sum[i][j] : load(kept) + sum[i][j];
        if (out == nullptr) {
          store(kept, total);
          continue;
        }
        if (source != nullptr) total += load(source + i * source_row + j * kWidth);
        store(out + i * out_row + j * kWidth, total);
      }
  }

  template <bool kTransposed>
  static void product(const SkinnyProduct<T>& task) {
    const int64_t panels = (task.columns + kSkinnyPanel - 1) / kSkinnyPanel;
    const bool one_block = task.inner <= kInner;
    const int64_t block_rows = kTransposed ? kTransposedRows : kTileRows;
    const int64_t block_panels = one_block ? 1 : panels;
    const int64_t held_row = block_panels * kSkinnyPanel;
    const Workspace<T> held(block_rows * held_row);
    const int64_t stride = kTransposed ? task.left.column : task.left.row;
    for (int64_t row = task.begin; row < task.end; row += block_rows) {
      const int64_t rows = smaller(block_rows, task.end - row);
      for (int64_t panel = 0; panel < panels; panel += block_panels)
        block<kTransposed>(task, row, rows, panel, smaller(block_panels, panels - panel), stride, held.at(0),
                           held_row);
    }
  }

  template <bool kTransposed>
  static HK_INLINE void block(const SkinnyProduct<T>& task, int64_t row, int64_t rows, int64_t panel,
                              int64_t panels, int64_t stride, T* held, int64_t held_row) {
    const int64_t column = panel * kSkinnyPanel;
    const int64_t columns = smaller(panels * kSkinnyPanel, task.columns - column);
    // Registers that out has no room for stay in `held`, as does what is to be written with other strides.
    const int64_t direct = task.out.column == 1 ? columns / kWidth * kWidth : 0;
    int64_t k = 0;
    do {
      const int64_t inner = smaller(kInner, task.inner - k);
      const bool last = k + inner >= task.inner;
      for (int64_t i = 0; i < rows;) {
        const int64_t left_rows = rows - i;
        const int64_t count = left_rows >= kTileRows ? kTileRows : left_rows >= kTileRows / 3 ? kTileRows / 3 : 1;
        const T* left = task.left.data + (row + i) * task.left.row + k * task.left.column;
        for (int64_t j = 0; j < columns;) {
          const int64_t right_column = column + j;
          const T* right = task.packed + (right_column / kSkinnyPanel * task.inner + k) * kSkinnyPanel +
                           right_column % kSkinnyPanel;
          const bool pair = columns - j > kWidth;
          const int64_t width = pair ? kGroup * kWidth : kWidth;
          const bool to_out = last && j + width <= direct;
          T* out = to_out ? task.out.data + (row + i) * task.out.row + right_column : nullptr;
          const T* source = to_out && task.source.data != nullptr
                                ? task.source.data + (row + i) * task.source.row + right_column
                                : nullptr;
          const auto compute = [&](auto rows_of_tile) {
            constexpr int kRows = decltype(rows_of_tile)::value;
            T* kept = held + i * held_row + j;
            if (pair)
              tile<kRows, 2, kTransposed>(left, stride, right, inner, k == 0, kept, held_row, source,
                                          task.source.row, out, task.out.row);
            else
              tile<kRows, 1, kTransposed>(left, stride, right, inner, k == 0, kept, held_row, source,
                                          task.source.row, out, task.out.row);
          };
          if (count == kTileRows)
            compute(std::integral_constant<int, kTileRows>());
          else if (count > 1)
            compute(std::integral_constant<int, kTileRows / 3>());
          else
            compute(std::integral_constant<int, 1>());
          j += width;
        }
        i += count;
      }
      k += inner;
    } while (k < task.inner);
    copy_held(task, row, rows, column, columns, direct, held, held_row);
  }

  // What the tiles left in `held`
  static void copy_held(const SkinnyProduct<T>& task, int64_t row, int64_t rows, int64_t column, int64_t columns,
                        int64_t direct, const T* held, int64_t held_row) {
    int64_t first = 0;  // column that no tile has written to out
    while (first < columns) {
      const int64_t width = columns - first > kWidth ? kGroup * kWidth : kWidth;
      if (first + width > direct) break;
      first += width;
    }
    for (int64_t j = first; j < columns; ++j) {
      T* out = task.out.data + row * task.out.row + (column + j) * task.out.column;
      const T* source = task.source.data + row * task.source.row + column + j;
      for (int64_t i = 0; i < rows; ++i) {
        const T total = held[i * held_row + j];
        out[i * task.out.row] = task.source.data ? source[i * task.source.row] + total : total;
      }
    }
  }

  static void pack(const SkinnyPack<T>& task) {
    constexpr int64_t kRows = 16;  // read a cache line of a transposed factor at a time
    for (int64_t row = task.begin; row < task.end;) {
      const int64_t panel = row / task.inner, k = row % task.inner, column = panel * kSkinnyPanel;
      const int64_t rows = smaller(smaller(kRows - k % kRows, task.inner - k), task.end - row);
      const int64_t columns = smaller(kSkinnyPanel, task.columns - column);
      const T* from = task.right.data + k * task.right.row + column * task.right.column;
      T* to = task.packed + row * kSkinnyPanel;
      if (task.right.column == 1) {
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < columns; ++j) to[i * kSkinnyPanel + j] = from[i * task.right.row + j];
      } else {
        for (int64_t j = 0; j < columns; ++j)
          for (int64_t i = 0; i < rows; ++i)
            to[i * kSkinnyPanel + j] = from[i * task.right.row + j * task.right.column];
      }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = columns; j < kSkinnyPanel; ++j) to[i * kSkinnyPanel + j] = 0;
      row += rows;
    }
  }
};

template <int Bytes, class T>
void run(const SkinnyPack<T>& task) {
  Skinny<T, Bytes>::pack(task);
}
template <int Bytes, class T>
void run(const SkinnyProduct<T>& task) {
  if (task.left_transposed)
    Skinny<T, Bytes>::template product<true>(task);
  else
    Skinny<T, Bytes>::template product<false>(task);
}

}  // namespace

#define HK_INSTANTIATE_SKINNY(run)                 \
  template void run(const SkinnyPack<float>&);     \
  template void run(const SkinnyPack<double>&);    \
  template void run(const SkinnyProduct<float>&);  \
  template void run(const SkinnyProduct<double>&);

}  // namespace hybrid_kernels
