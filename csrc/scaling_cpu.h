// CPU kernel of the gradients of features scaled one by one (hybrid_kernels/ops/feature_scaling.py): no torch.
#pragma once

#include <cstdint>

namespace hybrid_kernels {

// Of rows [begin, end) of dz and y (rows, features), contiguous: the sums of dz ⊙ y over the rows are added to d_scale,
// dz ⊙ scale is written to dy if it is not null.
template <class T>
struct ScalingGradients {
  const T* dz;
  const T* y;
  const T* scale;
  int64_t features;
  T* dy;
  T* d_scale;
  int64_t begin, end;
};

}  // namespace hybrid_kernels
