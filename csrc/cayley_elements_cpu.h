// The element-wise ends of the Cayley transform of a large block, whose products are left to torch: from the packed or
// full input to A, and from D = (I + Q)ᴴ G (I + Q)ᴴ to the gradient. In tiles, since one of a pair of elements lies
// down a column.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>

#include "cayley.h"

namespace hybrid_kernels {

template <class R>
R conjugate(R x) {
  return x;
}
template <class R>
std::complex<R> conjugate(std::complex<R> x) {
  return std::conj(x);
}

// visit(i, j) for all i <= j < b.
template <class Visit>
void for_upper_triangle(int64_t b, const Visit& visit) {
  constexpr int64_t kTile = 16;
  for (int64_t row = 0; row < b; row += kTile)
    for (int64_t column = row; column < b; column += kTile)
      for (int64_t i = row; i < std::min(row + kTile, b); ++i)
        for (int64_t j = std::max(column, i); j < std::min(column + kTile, b); ++j) visit(i, j);
}

// A of one matrix; returns whether an entry is above the limit of unpivoted elimination, or NaN.
template <class T>
bool cayley_expand(const T* skew, bool packed, int64_t b, T* a) {
  using Real = decltype(std::real(T()));
  bool moderate = true;
  for_upper_triangle(b, [&](int64_t i, int64_t j) {
    T x{};
    if (!packed) {
      x = Real(0.5) * (skew[i * b + j] - conjugate(skew[j * b + i]));
    } else if (i < j) {
      x = skew[packed_position(b, i, j)];
    }
    a[j * b + i] = -conjugate(x);
    a[i * b + j] = x;
    moderate &= std::abs(std::real(x)) <= cayley_unpivoted_limit(b) && std::abs(std::imag(x)) <= cayley_unpivoted_limit(b);
  });
  return !moderate;
}

// The skew-Hermitian part of −½ D or, packed, twice its strict upper triangle; of one matrix.
template <class T>
void cayley_project(const T* d, bool packed, int64_t b, T* grad_skew) {
  using Real = decltype(std::real(T()));
  for_upper_triangle(b, [&](int64_t i, int64_t j) {
    const T x = d[i * b + j] - conjugate(d[j * b + i]);
    if (!packed) {
      grad_skew[j * b + i] = Real(0.25) * conjugate(x);
      grad_skew[i * b + j] = Real(-0.25) * x;
    } else if (i < j) {
      grad_skew[packed_position(b, i, j)] = Real(-0.5) * x;
    }
  });
}

}  // namespace hybrid_kernels
