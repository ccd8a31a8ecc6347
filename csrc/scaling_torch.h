// Binds the gradients of scaled features to torch.
#pragma once

#include <algorithm>
#include <tuple>

#include "scaling_cpu.h"
#include "torch_common.h"

namespace hybrid_kernels {
namespace {

std::tuple<Tensor, Tensor> scale_backward_cpu(const Tensor& dz, const Tensor& y, const Tensor& scale, bool need_y) {
  // Elements that are worth a thread of their own. The number of partial sums does not depend on that of threads.
  constexpr int64_t kGrain = int64_t{1} << 16, kParts = 16;
  TORCH_CHECK_TYPE(y.scalar_type() == at::kFloat || y.scalar_type() == at::kDouble,
                   "y must be float32 or float64, got ", y.scalar_type());
  TORCH_CHECK_TYPE(dz.scalar_type() == y.scalar_type() && scale.scalar_type() == y.scalar_type(),
                   "dz and scale must have the dtype of y, ", y.scalar_type(), ", got ", dz.scalar_type(), " and ",
                   scale.scalar_type());
  TORCH_CHECK_VALUE(y.dim() == 2 && dz.sizes() == y.sizes(), "dz and y must have one shape (rows, features), got ",
                    dz.sizes(), " and ", y.sizes());
  TORCH_CHECK_VALUE(scale.dim() == 1 && scale.size(0) == y.size(1), "scale must have shape (", y.size(1), ",), got ",
                    scale.sizes());
  const int64_t rows = y.size(0), features = y.size(1);
  const Tensor upstream = materialized(dz), source = materialized(y), factor = materialized(scale);
  Tensor dy;
  if (need_y) dy = at::empty(y.sizes(), source.options());
  const int64_t parts = std::max<int64_t>(1, std::min(kParts, y.numel() / kGrain));
  Tensor sums = at::zeros({parts, features}, source.options());
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "scale_backward", [&] {
    at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part)
        run(ScalingGradients<scalar_t>{input<scalar_t>(upstream), input<scalar_t>(source), input<scalar_t>(factor),
                                       features, need_y ? output<scalar_t>(dy) : nullptr,
                                       output<scalar_t>(sums) + part * features, rows * part / parts,
                                       rows * (part + 1) / parts});
    });
  });
  return {dy, parts == 1 ? sums[0] : sums.sum(0)};
}

}  // namespace
}  // namespace hybrid_kernels
