// Binds the kernels of a block butterfly to torch.
#pragma once

#include <algorithm>
#include <tuple>

#include "butterfly_cpu.h"
#include "torch_common.h"

namespace hybrid_kernels {
namespace {

// Multiplications that are worth a thread of their own.
constexpr int64_t kButterflyGrain = int64_t{1} << 17;

ButterflyShape check_butterfly(const Tensor& x, const Tensor& q) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
                   "x must be float32 or float64, got ", x.scalar_type());
  TORCH_CHECK_TYPE(q.scalar_type() == x.scalar_type(), "q must have the dtype of x, ", x.scalar_type(), ", got ",
                   q.scalar_type());
  TORCH_CHECK_VALUE(q.dim() == 4 && q.size(2) == q.size(3) && q.size(0) >= 1 && q.size(0) < 32 &&
                        q.size(2) >= 1,
                    "q must have shape (m, k, b, b) with m from 1 to 31 and b at least 1, got ", q.sizes());
  const ButterflyShape shape{q.size(0), q.size(1), q.size(2)};
  TORCH_CHECK_VALUE(
      shape.levels == 1 || (shape.block_size % 2 == 0 && shape.blocks % (int64_t{1} << (shape.levels - 1)) == 0),
      "q with m > 1 levels must have an even b and a k divisible by 2^(m - 1), got ", q.sizes());
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) == shape.features(), "x must have shape (rows, ", shape.features(),
                    "), got ", x.sizes());
  return shape;
}

// The blocks as the kernels take them, their rows padded.
Tensor padded_blocks(const Tensor& q) {
  const int64_t b = q.size(3);
  const int64_t row = q.scalar_type() == at::kFloat ? padded_block_row<float>(b) : padded_block_row<double>(b);
  if (row == b) return materialized(q);
  Tensor padded = at::zeros({q.size(0), q.size(1), b, row}, q.options());
  padded.narrow(3, 0, b).copy_(q);
  return padded;
}

// Calls visit(begin, end) for ranges of rows that begin at a tile.
template <class Visit>
void parallel_row_tiles(int64_t rows, int64_t work_of_row, const Visit& visit) {
  const int64_t tiles = (rows + kButterflyRows - 1) / kButterflyRows;
  const int64_t grain = kButterflyGrain / std::max<int64_t>(1, work_of_row * kButterflyRows) + 1;
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    visit(begin * kButterflyRows, std::min(end * kButterflyRows, rows));
  });
}

Tensor butterfly_rotate_cpu(const Tensor& x, const Tensor& q) {
  const ButterflyShape shape = check_butterfly(x, q);
  const Tensor source = materialized(x), blocks = padded_blocks(q);
  Tensor y = at::empty(x.sizes(), source.options());
  if (y.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "butterfly_rotate", [&] {
    parallel_row_tiles(
        x.size(0), shape.levels * shape.features() * shape.block_size, [&](int64_t begin, int64_t end) {
          run(ButterflyRotate<scalar_t>{shape, input<scalar_t>(source), input<scalar_t>(blocks), /*ascending=*/false,
                                        output<scalar_t>(y), begin, end});
        });
  });
  return y;
}

std::tuple<Tensor, Tensor> butterfly_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& q, bool need_x,
                                                  bool need_q) {
  const ButterflyShape shape = check_butterfly(x, q);
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes(), "dy must have the shape of x, ", x.sizes(), ", got ", dy.sizes());
  TORCH_CHECK_TYPE(dy.scalar_type() == x.scalar_type(), "dy must have the dtype of x, got ", dy.scalar_type());
  const int64_t rows = x.size(0), features = shape.features();
  const int64_t work = shape.levels * features * shape.block_size;
  const Tensor upstream = materialized(dy);
  const Tensor transposed = need_x || shape.levels > 1 ? padded_blocks(q.transpose(2, 3)) : Tensor();
  Tensor dx, dq;
  if (need_x) dx = at::empty(x.sizes(), x.options());
  if (!need_q) {
    if (!need_x) return {dx, dq};
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "butterfly_backward", [&] {
      parallel_row_tiles(rows, work, [&](int64_t begin, int64_t end) {
        run(ButterflyRotate<scalar_t>{shape, input<scalar_t>(upstream), input<scalar_t>(transposed),
                                      /*ascending=*/true, output<scalar_t>(dx), begin, end});
      });
    });
    return {dx, dq};
  }
  const Tensor source = materialized(x), blocks = padded_blocks(q);
  // Threads take groups of features each. Where there are few of those, rows are divided too, into sums of their own,
  // as many as the shape says, so that the result does not depend on the number of threads.
  constexpr int64_t kParts = 16;
  const int64_t groups = features == 0 ? 0 : features / shape.group();
  const int64_t tiles = (rows + kButterflyRows - 1) / kButterflyRows;
  const int64_t wanted = std::min({tiles, kParts / std::max<int64_t>(1, groups), rows * work / kButterflyGrain});
  const int64_t row_parts = std::max<int64_t>(1, wanted);
  const int64_t group_parts = std::max<int64_t>(1, std::min({groups, kParts, rows * work / kButterflyGrain}));
  Tensor sums = at::zeros({row_parts, shape.levels, shape.blocks, shape.block_size, blocks.size(3)}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "butterfly_backward", [&] {
    at::parallel_for(0, group_parts * row_parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        const int64_t g = part % group_parts, r = part / group_parts;
        run(ButterflyGradients<scalar_t>{
            shape, input<scalar_t>(source), input<scalar_t>(upstream), input<scalar_t>(blocks),
            transposed.defined() ? input<scalar_t>(transposed) : nullptr, need_x ? output<scalar_t>(dx) : nullptr,
            output<scalar_t>(sums) + r * sums.stride(0), tiles * r / row_parts * kButterflyRows,
            std::min(rows, tiles * (r + 1) / row_parts * kButterflyRows), groups * g / group_parts,
            groups * (g + 1) / group_parts});
      }
    });
  });
  dq = row_parts == 1 ? sums[0] : sums.sum(0);
  return {dx, dq.narrow(3, 0, shape.block_size).contiguous()};
}

}  // namespace
}  // namespace hybrid_kernels
