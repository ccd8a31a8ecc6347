// A block butterfly, for one instruction set.
#pragma once

#include <algorithm>

#include "block_product.h"
#include "butterfly_cpu.h"

namespace hybrid_kernels {
namespace {

template <class T, int Bytes>
struct Butterfly : BlockProduct<T, Bytes> {
  using Product = BlockProduct<T, Bytes>;
  using Product::smaller, Product::whole_registers;

  ButterflyShape shape;
  int64_t block_row, group, blocks_of_group;
  Workspace<T> block;  // of a tile of rows, where its registers do not lie within the runs of a level

  explicit Butterfly(const ButterflyShape& of)
      : shape(of),
        block_row(padded_block_row<T>(of.block_size)),
        group(of.group()),
        blocks_of_group(of.group() / of.block_size),
        block(kButterflyRows * block_row) {}

  int64_t tile() const { return kButterflyRows * group; }
  int64_t run(int64_t level) const { return level == 0 ? shape.block_size : shape.block_size / 2; }

  // Block n of a group at a level, in rows of a group: half-blocks 2^level apart, see `reference.butterfly_rotate`.
  template <class U>
  BlockRows<U> place(U* rows, int64_t row, int64_t level, int64_t n) const {
    const int64_t b = shape.block_size, within = n % (int64_t{1} << level);
    return {rows + (n - within) * b + within * run(level), row, run(level), b / 2 << level};
  }

  template <class U>
  U* matrix(U* q, int64_t level, int64_t group_index, int64_t n) const {
    return q + ((level * shape.blocks + group_index * blocks_of_group + n) * shape.block_size) * block_row;
  }

  BlockRows<T> padded_block() const { return {block.at(0), block_row, block_row, 0}; }

  static void copy(BlockRows<const T> from, BlockRows<T> to, int64_t b, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < b;) {
        const int64_t count = smaller(smaller(from.run - i % from.run, to.run - i % to.run), b - i);
        std::copy_n(from.at(r, i), count, to.at(r, i));
        i += count;
      }
  }

  // to = from · M of one level, within a group
  void apply(const T* from, int64_t from_row, const T* q, int64_t level, int64_t group_index, int64_t rows, T* to,
             int64_t to_row) const {
    const int64_t b = shape.block_size;
    for (int64_t n = 0; n < blocks_of_group; ++n) {
      const BlockRows<const T> left = place(from, from_row, level, n);
      const BlockRows<T> out = place(to, to_row, level, n);
      const T* const right = matrix(q, level, group_index, n);
      if (whole_registers(b, run(level))) {
        Product::product(left, right, block_row, b, rows, out);
      } else {
        Product::product(left, right, block_row, b, rows, padded_block());
        copy(padded_block(), out, b, rows);
      }
    }
  }

  void rotate(const ButterflyRotate<T>& task) const {
    const int64_t features = shape.features();
    const Workspace<T> between(shape.levels > 1 ? 2 * tile() : 0);
    for (int64_t row = task.begin; row < task.end; row += kButterflyRows) {
      const int64_t rows = smaller(kButterflyRows, task.end - row);
      for (int64_t g = 0; g < features / group; ++g) {
        const T* from = task.x + row * features + g * group;
        int64_t from_row = features;
        for (int64_t n = 0; n < shape.levels; ++n) {
          const bool last = n + 1 == shape.levels;
          T* const to = last ? task.y + row * features + g * group : between.at(n % 2 * tile());
          const int64_t to_row = last ? features : group;
          apply(from, from_row, task.q, task.ascending ? n : shape.levels - 1 - n, g, rows, to, to_row);
          from = to, from_row = to_row;
        }
      }
    }
  }

  // dq += xᵀ dy of one level, within a group
  void add_gradient(const T* x, int64_t x_row, const T* dy, int64_t dy_row, int64_t level, int64_t group_index,
                    int64_t rows, T* dq) const {
    const int64_t b = shape.block_size;
    for (int64_t n = 0; n < blocks_of_group; ++n) {
      BlockRows<const T> right = place(dy, dy_row, level, n);
      if (!whole_registers(b, run(level))) {
        copy(right, padded_block(), b, rows);
        right = padded_block();
      }
      Product::gradient(place(x, x_row, level, n), right, b, rows, matrix(dq, level, group_index, n), block_row);
    }
  }

  void gradients(const ButterflyGradients<T>& task) const {
    const int64_t features = shape.features(), top = shape.levels - 1;
    std::fill_n(block.at(0), kButterflyRows * block_row, T(0));  // the padding
    const Workspace<T> inputs(top * tile()), between(2 * tile());
    for (int64_t row = task.begin; row < task.end; row += kButterflyRows) {
      const int64_t rows = smaller(kButterflyRows, task.end - row);
      for (int64_t g = task.first_group; g < task.last_group; ++g) {
        const int64_t offset = row * features + g * group;
        for (int64_t level = top; level > 0; --level)
          apply(level == top ? task.x + offset : inputs.at(level * tile()), level == top ? features : group, task.q,
                level, g, rows, inputs.at((level - 1) * tile()), group);
        const T* dy = task.dy + offset;
        int64_t dy_row = features;
        for (int64_t level = 0; level <= top; ++level) {
          add_gradient(level == top ? task.x + offset : inputs.at(level * tile()), level == top ? features : group, dy,
                       dy_row, level, g, rows, task.dq);
          if (level == top && task.dx == nullptr) break;
          T* const to = level == top ? task.dx + offset : between.at(level % 2 * tile());
          const int64_t to_row = level == top ? features : group;
          apply(dy, dy_row, task.q_transposed, level, g, rows, to, to_row);
          dy = to, dy_row = to_row;
        }
      }
    }
  }
};

// Small blocks are computed in shorter registers, which they fill better.
template <int Bytes, class T>
void run(const ButterflyRotate<T>& task) {
  if constexpr (Bytes > 16)
    if (task.shape.block_size * static_cast<int64_t>(sizeof(T)) <= Bytes / 2) return run<Bytes / 2>(task);
  Butterfly<T, Bytes>(task.shape).rotate(task);
}
template <int Bytes, class T>
void run(const ButterflyGradients<T>& task) {
  if constexpr (Bytes > 16)
    if (task.shape.block_size * static_cast<int64_t>(sizeof(T)) <= Bytes / 2) return run<Bytes / 2>(task);
  Butterfly<T, Bytes>(task.shape).gradients(task);
}

}  // namespace

#define HK_INSTANTIATE_BUTTERFLY(run)                  \
  template void run(const ButterflyRotate<float>&);    \
  template void run(const ButterflyRotate<double>&);   \
  template void run(const ButterflyGradients<float>&); \
  template void run(const ButterflyGradients<double>&);

}  // namespace hybrid_kernels
