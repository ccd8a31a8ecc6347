// The Cayley transform of many small skew-Hermitian matrices and its gradient, for one instruction set.
//
// Forward: Q = (I − A)(I + A)⁻¹ = 2 (I + A)⁻¹ − I by Gauss–Jordan elimination in place.
// Backward: dA = −½ (I + Q)ᴴ G (I + Q)ᴴ, projected on the skew-Hermitian matrices; no solve.
// Small blocks are computed one matrix per lane, larger ones one matrix at a time.
#pragma once

#include "block_algebra.h"
#include "cayley_cpu.h"
#include "workspace.h"

namespace hybrid_kernels {
namespace {


// One matrix per lane.
template <class T, int Bytes>
struct BatchedCayley : BlockAlgebra<T, Bytes, true> {
  using Algebra = BlockAlgebra<T, Bytes, true>;
  using typename Algebra::L;
  using typename Algebra::Real;
  using Vector = typename L::Base::Vector;
  using Algebra::constant;
  using Algebra::kPlanes;
  using Algebra::smaller;

  // Lanes past `count` repeat the last matrix.
  static void gather(const Real* source, int64_t scalars, int64_t count, Real* tile) {
    for (int lane = 0; lane < L::width; ++lane) {
      const Real* matrix = source + smaller(lane, count - 1) * scalars * kPlanes;
      for (int64_t e = 0; e < scalars; ++e) {
        tile[e * L::size + lane] = matrix[e * kPlanes];
        if constexpr (kPlanes == 2) tile[e * L::size + L::width + lane] = matrix[e * 2 + 1];
      }
    }
  }

  static void scatter(const Real* tile, int64_t scalars, int64_t count, Real* target) {
    for (int lane = 0; lane < count; ++lane) {
      Real* matrix = target + lane * scalars * kPlanes;
      for (int64_t e = 0; e < scalars; ++e) {
        matrix[e * kPlanes] = tile[e * L::size + lane];
        if constexpr (kPlanes == 2) matrix[e * 2 + 1] = tile[e * L::size + L::width + lane];
      }
    }
  }

  // Reads A from the gathered input; returns the largest real or imaginary part of each lane's matrix.
  static Vector expand(const Real* input, bool packed, int64_t b, Real* c) {
    Vector largest = {};
    const Real* next = input;
    for (int64_t i = 0; i < b; ++i) {
      L diagonal = constant(0);
      if (!packed) {
        const L x = L::load(input + (i * b + i) * L::size);
        diagonal = (x - x.conj()).scaled(Real(0.5));
        largest = L::Base::max(largest, diagonal.largest_part());
      }
      diagonal.store(c + (i * b + i) * L::size);
      for (int64_t j = i + 1; j < b; ++j) {
        L x;
        if (packed) {
          x = L::load(next);
          next += L::size;
        } else {
          x = (L::load(input + (i * b + j) * L::size) - L::load(input + (j * b + i) * L::size).conj())
                  .scaled(Real(0.5));
        }
        largest = L::Base::max(largest, x.largest_part());
        x.store(c + (i * b + j) * L::size);
        x.conj().scaled(-1).store(c + (j * b + i) * L::size);
      }
    }
    return largest;
  }

  // `input` and `c` hold b² Lanes each. Returns the largest entries as `expand` does.
  static Vector forward(const Real* skew, bool packed, int64_t b, int64_t count, Real* q, Real* input,
                        Real* c) {
    gather(skew, packed ? packed_size(b) : b * b, count, input);
    const Vector largest = expand(input, packed, b, c);
    Algebra::template invert<true>(c, b);
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = 0; j < b; ++j) {
        Real* p = c + (i * b + j) * L::size;
        (L::load(p).scaled(2) + constant(i == j)).store(p);
      }
    scatter(c, b * b, count, q);
    return largest;
  }

  // `g`, `h` and `t` hold b² Lanes each.
  static void backward(const Real* grad_q, const Real* q, bool packed, int64_t b, int64_t count, Real* grad,
                       Real* g, Real* h, Real* t) {
    const int64_t stride = b * L::size;
    gather(grad_q, b * b, count, g);
    gather(q, b * b, count, t);
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = 0; j < b; ++j)
        (L::load(t + j * stride + i * L::size).conj() + constant(i == j)).store(h + i * stride + j * L::size);
    Algebra::multiply(t, g, stride, h, b);
    Algebra::multiply(g, h, stride, t, b);
    Real* next = t;
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = packed ? i + 1 : i; j < b; ++j) {
        const L x = L::load(g + i * stride + j * L::size) - L::load(g + j * stride + i * L::size).conj();
        if (packed) {
          x.scaled(Real(-0.5)).store(next);
          next += L::size;
        } else {
          x.scaled(Real(-0.25)).store(t + i * stride + j * L::size);
          x.conj().scaled(Real(0.25)).store(t + j * stride + i * L::size);
        }
      }
    scatter(t, packed ? packed_size(b) : b * b, count, grad);
  }
};

// One matrix, by rows.
template <class T, int Bytes>
struct RowCayley : BlockAlgebra<T, Bytes, false> {
  using Algebra = BlockAlgebra<T, Bytes, false>;
  using Algebra::columns;
  using Algebra::constant;
  using Algebra::kPlanes;
  using Algebra::larger;
  using Algebra::magnitude;
  using Algebra::position;
  using Algebra::row_stride;
  using typename Algebra::L;
  using typename Algebra::Real;

  // Work matrices keep real and imaginary parts `width` apart, arrays outside next to each other.
  static HK_INLINE void put(Real* p, int64_t imaginary, Real re, Real im) {
    p[0] = re;
    if constexpr (kPlanes == 2) p[imaginary] = im;
  }

  // Reads A into padded rows; returns its largest real or imaginary part.
  static Real expand(const Real* skew, bool packed, int64_t b, Real* c) {
    const int64_t stride = row_stride(b);
    Real largest = 0;
    for (int64_t i = 0; i < b; ++i) constant(0).store(c + i * stride + (columns(b) - 1) * L::size);  // the padding
    for (int64_t i = 0; i < b; ++i) {
      Real* row = c + i * stride;
      const Real phase = kPlanes == 2 && !packed ? skew[(i * b + i) * 2 + 1] : Real(0);
      put(row + position(i), L::width, 0, phase);
      largest = larger(largest, magnitude(phase));
      for (int64_t j = i + 1; j < b; ++j) {
        const Real* x = skew + (packed ? j - i - 1 : i * b + j) * kPlanes;
        const Real* y = skew + (j * b + i) * kPlanes;
        const Real re = packed ? x[0] : Real(0.5) * (x[0] - y[0]);
        const Real im = kPlanes == 1 ? Real(0) : packed ? x[1] : Real(0.5) * (x[1] + y[1]);
        put(row + position(j), L::width, re, im);
        put(c + j * stride + position(i), L::width, -re, im);
        largest = larger(largest, larger(magnitude(re), magnitude(im)));
      }
      if (packed) skew += (b - i - 1) * kPlanes;
    }
    return largest;
  }

  // q = 2 C + diagonal · I
  static void store(const Real* c, int64_t b, Real diagonal, Real* q) {
    for (int64_t i = 0; i < b; ++i) {
      const Real* row = c + i * row_stride(b);
      for (int64_t j = 0; j < b; ++j) {
        const Real* p = row + position(j);
        put(q + (i * b + j) * kPlanes, 1, 2 * p[0], kPlanes == 1 ? Real(0) : 2 * p[L::width]);
      }
      q[(i * b + i) * kPlanes] += diagonal;
    }
  }

  // (I + C)⁻¹ in place of C, whose rows are `row_stride` scalars apart; `c` holds n padded rows.
  static void shifted_inverse(Real* matrix, int64_t row_stride, int64_t n, Real* c) {
    for (int64_t i = 0; i < n; ++i) {
      Real* row = c + i * Algebra::row_stride(n);
      constant(0).store(row + (columns(n) - 1) * L::size);  // the padding
      for (int64_t j = 0; j < n; ++j) {
        const Real* p = matrix + (i * row_stride + j) * kPlanes;
        put(row + position(j), L::width, p[0], p[kPlanes - 1]);
      }
    }
    Algebra::template invert<false>(c, n);
    for (int64_t i = 0; i < n; ++i) {
      const Real* row = c + i * Algebra::row_stride(n);
      for (int64_t j = 0; j < n; ++j) {
        const Real* p = row + position(j);
        put(matrix + (i * row_stride + j) * kPlanes, 1, p[0], kPlanes == 1 ? Real(0) : p[L::width]);
      }
    }
  }

  // `c` holds b padded rows and `pivots` b indices.
  static void forward(const Real* skew, bool packed, int64_t b, Real* q, Real* c, int64_t* pivots) {
    if (expand(skew, packed, b, c) <= cayley_unpivoted_limit(b)) {
      Algebra::template invert<true>(c, b);
      store(c, b, 1, q);
    } else {
      Algebra::invert_pivoted(c, b, pivots);
      store(c, b, -1, q);
    }
  }

  // `h`, `t` and `d` hold b padded rows each, `left` b² scalars.
  static void backward(const Real* grad_q, const Real* q, bool packed, int64_t b, Real* grad, Real* h,
                       Real* t, Real* d, Real* left) {
    const int64_t stride = row_stride(b), width = columns(b);
    for (int64_t i = 0; i < b; ++i) {
      Real* row = h + i * stride;
      constant(0).store(row + (width - 1) * L::size);  // the padding
      for (int64_t j = 0; j < b; ++j) {
        const Real* p = q + (j * b + i) * kPlanes;
        const Real re = p[0] + (i == j), im = kPlanes == 1 ? Real(0) : -p[1];
        put(row + position(j), L::width, re, im);
        put(left + (i * b + j) * kPlanes, 1, re, im);
      }
    }
    Algebra::multiply(t, grad_q, b * kPlanes, h, b);
    Algebra::multiply(d, left, b * kPlanes, t, b);
    const Real scale = packed ? Real(-0.5) : Real(-0.25);
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = packed ? i + 1 : i; j < b; ++j) {
        const Real* upper = d + i * stride + position(j);
        const Real* lower = d + j * stride + position(i);
        const Real re = scale * (upper[0] - lower[0]);
        const Real im = kPlanes == 1 ? Real(0) : scale * (upper[L::width] + lower[L::width]);
        if (packed) {
          put(grad, 1, re, im);
          grad += kPlanes;
        } else {
          put(grad + (i * b + j) * kPlanes, 1, re, im);
          put(grad + (j * b + i) * kPlanes, 1, -re, im);
        }
      }
  }
};

template <int Bytes, class T>
void run(const CayleyForward<T>& task) {
  using Batched = BatchedCayley<T, Bytes>;
  using Rows = RowCayley<T, Bytes>;
  using Real = typename Rows::Real;
  constexpr int64_t kWidth = Rows::L::width, kSize = Rows::L::size, kPlanes = Rows::kPlanes;
  const int64_t b = task.block_size, area = b * b, stored = task.packed ? packed_size(b) : area;
  const Real* skew = reinterpret_cast<const Real*>(task.skew);
  Real* q = reinterpret_cast<Real*>(task.q);
  const int64_t rows = b * Rows::row_stride(b);
  const Workspace<Real> row_space(rows);
  const Workspace<int64_t> pivots(b);
  if (b > kCayleyGroupedMaxBlock) {
    for (int64_t m = task.begin; m < task.end; ++m)
      Rows::forward(skew + m * stored * kPlanes, task.packed, b, q + m * area * kPlanes, row_space.at(0),
                    pivots.at(0));
    return;
  }
  const Workspace<Real> tiles(2 * area * kSize);
  for (int64_t first = task.begin; first < task.end; first += kWidth) {
    const int64_t count = Batched::smaller(kWidth, task.end - first);
    const auto largest = Batched::forward(skew + first * stored * kPlanes, task.packed, b, count,
                                          q + first * area * kPlanes, tiles.at(0), tiles.at(area * kSize));
    for (int64_t lane = 0; lane < count; ++lane)
      if (!(largest[lane] <= cayley_unpivoted_limit(b)))
        Rows::forward(skew + (first + lane) * stored * kPlanes, task.packed, b,
                      q + (first + lane) * area * kPlanes, row_space.at(0), pivots.at(0));
  }
}

template <int Bytes, class T>
void run(const CayleyBackward<T>& task) {
  using Batched = BatchedCayley<T, Bytes>;
  using Rows = RowCayley<T, Bytes>;
  using Real = typename Rows::Real;
  constexpr int64_t kWidth = Rows::L::width, kPlanes = Rows::kPlanes;
  const int64_t b = task.block_size, area = b * b, stored = task.packed ? packed_size(b) : area;
  const Real* grad_q = reinterpret_cast<const Real*>(task.grad_q);
  const Real* q = reinterpret_cast<const Real*>(task.q);
  Real* grad = reinterpret_cast<Real*>(task.grad_skew);
  if (b > kCayleyGroupedMaxBlock) {
    const int64_t rows = b * Rows::row_stride(b);
    const Workspace<Real> space(3 * rows + area * Rows::kFactor);
    for (int64_t m = task.begin; m < task.end; ++m)
      Rows::backward(grad_q + m * area * kPlanes, q + m * area * kPlanes, task.packed, b,
                     grad + m * stored * kPlanes, space.at(0), space.at(rows), space.at(2 * rows),
                     space.at(3 * rows));
    return;
  }
  const int64_t tile = area * Rows::L::size;
  const Workspace<Real> tiles(3 * tile);
  for (int64_t first = task.begin; first < task.end; first += kWidth)
    Batched::backward(grad_q + first * area * kPlanes, q + first * area * kPlanes, task.packed, b,
                      Batched::smaller(kWidth, task.end - first), grad + first * stored * kPlanes,
                      tiles.at(0), tiles.at(tile), tiles.at(2 * tile));
}

template <int Bytes, class T>
void run(const ShiftedInverse<T>& task) {
  using Rows = RowCayley<T, Bytes>;
  using Real = typename Rows::Real;
  const Workspace<Real> space(task.n * Rows::row_stride(task.n));
  for (int64_t m = task.begin; m < task.end; ++m)
    Rows::shifted_inverse(reinterpret_cast<Real*>(task.c + m * task.batch_stride), task.row_stride, task.n,
                          space.at(0));
}

}  // namespace

#define HK_INSTANTIATE_CAYLEY(run)                               \
  template void run(const CayleyForward<float>&);                \
  template void run(const CayleyForward<double>&);               \
  template void run(const CayleyForward<std::complex<float>>&);  \
  template void run(const CayleyForward<std::complex<double>>&); \
  template void run(const CayleyBackward<float>&);               \
  template void run(const CayleyBackward<double>&);              \
  template void run(const CayleyBackward<std::complex<float>>&); \
  template void run(const CayleyBackward<std::complex<double>>&); \
  template void run(const ShiftedInverse<float>&);                \
  template void run(const ShiftedInverse<double>&);               \
  template void run(const ShiftedInverse<std::complex<float>>&);  \
  template void run(const ShiftedInverse<std::complex<double>>&);

}  // namespace hybrid_kernels
