// Putting the hybrid's factor pair together, and its gradient apart: the element-wise ends of the factorisation.
//
//   down = [A; vᵀ]    up = [λ s B, (λ − 1) c]
//
// A (r, K), v (K, n), B (N, r), c (N, n), down (r + n, K), up (N, r + n), all row-major and without gaps. In the
// backward d_up comes apart into dB = λ s d_up[:, :r] and dc = (λ − 1) d_up[:, r:], and
// dλ = s ⟨d_up[:, :r], B⟩ + ⟨d_up[:, r:], c⟩. Written out because each is a few microseconds of work.

#pragma once

#include <algorithm>
#include <cstdint>

namespace hybrid_kernels {

struct HybridShape {
  int64_t in_features, out_features, rank, reflections;
};

template <class T>
void join_factors(const HybridShape& shape, const T* a, const T* v, const T* b, const T* c, double mixing,
                  double scaling, T* down, T* up) {
  const auto [k, n, r, h] = shape;
  std::copy(a, a + r * k, down);
  T* transposed = down + r * k;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < h; ++j) transposed[j * k + i] = v[i * h + j];
  const T low_rank = static_cast<T>(mixing * scaling), orthogonal = static_cast<T>(mixing - 1.0);
  for (int64_t i = 0; i < n; ++i, up += r + h) {
    for (int64_t j = 0; j < r; ++j) up[j] = low_rank * b[i * r + j];
    for (int64_t j = 0; j < h; ++j) up[r + j] = orthogonal * c[i * h + j];
  }
}

// Returns dλ; d_b may be null.
template <class T>
double split_up_gradient(const HybridShape& shape, const T* d_up, const T* b, const T* c, double mixing,
                         double scaling, T* d_b, T* d_c) {
  const auto [k, n, r, h] = shape;
  const T low_rank = static_cast<T>(mixing * scaling), orthogonal = static_cast<T>(mixing - 1.0);
  double with_b = 0.0, with_c = 0.0;
  for (int64_t i = 0; i < n; ++i, d_up += r + h) {
    T row_b = 0, row_c = 0;
    for (int64_t j = 0; j < r; ++j) row_b += d_up[j] * b[i * r + j];
    if (d_b != nullptr)
      for (int64_t j = 0; j < r; ++j) d_b[i * r + j] = low_rank * d_up[j];
    for (int64_t j = 0; j < h; ++j) {
      row_c += d_up[r + j] * c[i * h + j];
      d_c[i * h + j] = orthogonal * d_up[r + j];
    }
    with_b += row_b;
    with_c += row_c;
  }
  return scaling * with_b + with_c;
}

}  // namespace hybrid_kernels
