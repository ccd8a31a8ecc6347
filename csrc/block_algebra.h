// Products and inverses of small matrices in registers, for one instruction set.
//
// A work matrix is b rows of Lanes in one of two layouts, which share all code:
// * batched — one matrix per lane, an element is one Lanes value: `width` matrices are worked on at a time;
// * by rows — one matrix, its rows padded to whole Lanes values.
// They differ in what a scalar that multiplies a row is: a register (batched) or a broadcast (by rows).
//
// This file and the *_cpu_kernels.h are compiled once for each instruction set. So that the linker never
// replaces a function by its twin for wider registers, everything has internal linkage and no inline function
// of the standard library is called.
#pragma once

#include "lanes.h"

namespace hybrid_kernels {
namespace {

template <class T, int Bytes, bool kBatched>
struct BlockAlgebra {
  using L = Lanes<T, Bytes>;
  using Real = typename L::Real;
  using Vector = typename L::Base::Vector;
  static constexpr int kPlanes = ScalarTraits<T>::planes;
  static constexpr int kFactor = kBatched ? L::size : kPlanes;  // real numbers per scalar of a left factor
  // Pivots eliminated among themselves before the other rows are updated; their columns share a register.
  static constexpr int kPanel = kBatched ? 4 : L::width < 8 ? L::width : 8;
  static constexpr int kTileRows = kPlanes == 1 ? 4 : 2;  // register tile of the products
  static constexpr int kTileColumns = 2;
  static constexpr int kPartialSum = 32;

  // ---- layout ----

  static HK_INLINE int64_t columns(int64_t b) { return kBatched ? b : (b + L::width - 1) / L::width; }
  // A register apart where rows would lie a multiple of 1 KiB apart: columns of such rows share few cache sets.
  static HK_INLINE int64_t row_stride(int64_t b) {
    const int64_t stride = columns(b) * L::size;
    return kBatched || stride * sizeof(Real) % 1024 ? stride : stride + L::size;
  }
  static HK_INLINE int64_t position(int64_t j) {
    if constexpr (kBatched) return j * L::size;
    if constexpr (kPlanes == 1) return j;
    return j / L::width * L::size + j % L::width;
  }
  static HK_INLINE L factor(const Real* p) {
    if constexpr (kBatched) return L::load(p);
    return L::broadcast(p[0], p[kPlanes - 1]);
  }
  static HK_INLINE L get(const Real* row, int64_t j) {
    const Real* p = row + position(j);
    if constexpr (kBatched) return L::load(p);
    return L::broadcast(p[0], p[kPlanes == 2 ? L::width : 0]);
  }
  static HK_INLINE void set(Real* row, int64_t j, const L& x) {
    Real* p = row + position(j);
    if constexpr (kBatched) {
      x.store(p);
    } else {
      p[0] = x.re[0];
      if constexpr (kPlanes == 2) p[L::width] = x.im[0];
    }
  }
  // The Lanes value of a row that scalar column j is in, and one with some of its scalar columns replaced.
  static HK_INLINE int64_t register_of(int64_t j) { return kBatched ? j : j / L::width; }
  static HK_INLINE L replaced(const L& x, int64_t first, int64_t last, const L& value) {
    if constexpr (kBatched) return value;
    return x.blend(first % L::width, (last - 1) % L::width, value);
  }
  static HK_INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
  static HK_INLINE Real larger(Real x, Real y) { return x > y ? x : y; }
  static HK_INLINE Real magnitude(Real x) { return x < 0 ? -x : x; }
  static HK_INLINE L constant(Real x) { return L::broadcast(x, Real(0)); }

  // ---- products ----

  // left · right for one register tile, from zero; `inner` is the length of left's rows.
  template <int kRows, int kColumns>
  static HK_INLINE void product(L (&sum)[kRows][kColumns], const Real* left, int64_t left_stride,
                                const Real* right, int64_t right_stride, int64_t inner) {
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < kColumns; ++j) sum[i][j] = constant(0);
    for (int64_t k = 0; k < inner; ++k) {
      L x[kColumns];
#pragma GCC unroll 2
      for (int j = 0; j < kColumns; ++j) x[j] = L::load(right + k * right_stride + j * L::size);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const L f = factor(left + i * left_stride + k * kFactor);
#pragma GCC unroll 2
        for (int j = 0; j < kColumns; ++j) sum[i][j].add_product(f, x[j]);
      }
    }
  }

  // Sums over partial sums, so that the rounding error grows with the square root of their number only.
  template <int kRows, int kColumns>
  static HK_INLINE void multiply_tile(Real* c, int64_t stride, const Real* left, int64_t left_stride,
                                      const Real* right, int64_t inner) {
    for (int64_t k = 0; k < inner; k += kPartialSum) {
      L sum[kRows][kColumns];
      product(sum, left + k * kFactor, left_stride, right + k * stride, stride,
              smaller(kPartialSum, inner - k));
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < kColumns; ++j) {
          Real* p = c + i * stride + j * L::size;
          (k == 0 ? sum[i][j] : L::load(p) + sum[i][j]).store(p);
        }
    }
  }

  template <int kColumns>
  static HK_INLINE void multiply_columns(Real* c, int64_t stride, const Real* left, int64_t left_stride,
                                         const Real* right, int64_t b) {
    int64_t i = 0;
    for (; i + kTileRows <= b; i += kTileRows)
      multiply_tile<kTileRows, kColumns>(c + i * stride, stride, left + i * left_stride, left_stride, right,
                                         b);
    for (; i < b; ++i)
      multiply_tile<1, kColumns>(c + i * stride, stride, left + i * left_stride, left_stride, right, b);
  }

  // c = left · right, b × b; c and right are work matrices, left holds its rows as factors, `left_stride`
  // numbers apart.
  static void multiply(Real* c, const Real* left, int64_t left_stride, const Real* right, int64_t b) {
    const int64_t stride = row_stride(b);
    int64_t j = 0;
    for (; j + kTileColumns <= columns(b); j += kTileColumns)
      multiply_columns<kTileColumns>(c + j * L::size, stride, left, left_stride, right + j * L::size, b);
    for (; j < columns(b); ++j)
      multiply_columns<1>(c + j * L::size, stride, left, left_stride, right + j * L::size, b);
  }

  // ---- elimination ----

  // row −= row[k] · pivot_row, except that column k becomes −row[k] · pivot_row[k]; returns the old row[k].
  static HK_INLINE L eliminate(Real* row, const Real* pivot_row, int64_t k, int64_t width) {
    const L f = get(row, k);
    for (int64_t j = 0; j < width; ++j) {
      L x = L::load(row + j * L::size);
      if (j == register_of(k)) x = replaced(x, k, k + 1, constant(0));
      x.subtract_product(f, L::load(pivot_row + j * L::size));
      x.store(row + j * L::size);
    }
    return f;
  }

  // row *= pivot, except that column k becomes pivot.
  static HK_INLINE void scale(Real* row, const L& pivot, int64_t k, int64_t width) {
    for (int64_t j = 0; j < width; ++j) {
      L x = L::load(row + j * L::size);
      if (j == register_of(k)) x = replaced(x, k, k + 1, constant(1));
      (x * pivot).store(row + j * L::size);
    }
  }

  // The same for kRows rows and the pivots [first, last) at once, whose rows are reduced among themselves.
  template <int kRows>
  static HK_INLINE void eliminate_panel(Real* row, int64_t stride, const Real* panel, int64_t first, int64_t last,
                                        int64_t width) {
    alignas(L) Real left[kRows * kPanel * kFactor];
    for (int i = 0; i < kRows; ++i)
      for (int64_t k = first; k < last; ++k) {
        const Real* from = row + i * stride + position(k);
        Real* to = left + (i * kPanel + k - first) * kFactor;
        if constexpr (kBatched) {
          L::load(from).store(to);
        } else {
          to[0] = from[0];
          if constexpr (kPlanes == 2) to[1] = from[L::width];
        }
      }
    int64_t j = 0;
    for (; j + kTileColumns <= width; j += kTileColumns)
      eliminate_tile<kRows, kTileColumns>(row, left, panel, first, last, j, stride);
    for (; j < width; ++j) eliminate_tile<kRows, 1>(row, left, panel, first, last, j, stride);
  }

  template <int kRows, int kColumns>
  static HK_INLINE void eliminate_tile(Real* row, const Real* left, const Real* panel, int64_t first,
                                       int64_t last, int64_t column, int64_t stride) {
    L sum[kRows][kColumns];
    product(sum, left, kPanel * kFactor, panel + column * L::size, stride, last - first);
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) {
      const bool inside = column + j >= register_of(first) && column + j <= register_of(last - 1);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        Real* p = row + i * stride + (column + j) * L::size;
        L x = L::load(p);
        if (inside) x = replaced(x, first, last, constant(0));
        (x - sum[i][j]).store(p);
      }
    }
  }

  // Replaces C by (I + C)⁻¹ or, kLessIdentity, by (I + C)⁻¹ − I. In the latter the identity is kept out of the
  // diagonal throughout, so that a small C costs no digits; the former has all digits of a small inverse.
  template <bool kLessIdentity>
  static void invert(Real* c, int64_t b) {
    const int64_t stride = row_stride(b), width = columns(b);
    for (int64_t first = 0; first < b; first += kPanel) {
      const int64_t last = smaller(first + kPanel, b);
      // What becomes of the panel's diagonal; its place holds the full values until the other rows are done.
      L deviation[kPanel];
      for (int64_t k = first; k < last; ++k) {
        Real* pivot_row = c + k * stride;
        const L excess = get(pivot_row, k);
        const L pivot = (constant(1) + excess).reciprocal();
        deviation[k - first] = (excess * pivot).scaled(-1);
        scale(pivot_row, pivot, k, width);
        for (int64_t i = first; i < last; ++i) {
          if (i == k) continue;
          const L f = eliminate(c + i * stride, pivot_row, k, width);
          if (i < k) deviation[i - first].subtract_product(f, get(pivot_row, i));
        }
      }
      const Real* panel = c + first * stride;
      for (int64_t i = 0; i < b;) {
        if (i == first) {
          i = last;
        } else if (i + kTileRows <= (i < first ? first : b)) {
          eliminate_panel<kTileRows>(c + i * stride, stride, panel, first, last, width);
          i += kTileRows;
        } else {
          eliminate_panel<1>(c + i * stride, stride, panel, first, last, width);
          ++i;
        }
      }
      if constexpr (kLessIdentity)
        for (int64_t k = first; k < last; ++k) set(c + k * stride, k, deviation[k - first]);
    }
  }

  static HK_INLINE Real magnitude(const Real* row, int64_t j) {
    const Real* p = row + position(j);
    return kPlanes == 1 ? magnitude(p[0]) : magnitude(p[0]) + magnitude(p[L::width]);
  }

  // Replaces C = A by (I + A)⁻¹ with row pivoting; `pivots` holds b indices.
  static void invert_pivoted(Real* c, int64_t b, int64_t* pivots) {
    const int64_t stride = row_stride(b), width = columns(b);
    for (int64_t i = 0; i < b; ++i) c[i * stride + position(i)] += 1;
    for (int64_t k = 0; k < b; ++k) {
      Real* pivot_row = c + k * stride;
      int64_t best = k;
      for (int64_t i = k + 1; i < b; ++i)
        if (magnitude(c + i * stride, k) > magnitude(c + best * stride, k)) best = i;
      pivots[k] = best;
      for (int64_t j = 0; best != k && j < width; ++j) {
        Real *x = pivot_row + j * L::size, *y = c + best * stride + j * L::size;
        const L kept = L::load(x);
        L::load(y).store(x);
        kept.store(y);
      }
      scale(pivot_row, get(pivot_row, k).reciprocal(), k, width);
      for (int64_t i = 0; i < b; ++i)
        if (i != k) eliminate(c + i * stride, pivot_row, k, width);
    }
    for (int64_t k = b - 1; k >= 0; --k)  // row exchanges of a matrix are column exchanges of its inverse
      if (pivots[k] != k)
        for (int64_t i = 0; i < b; ++i) {
          const L x = get(c + i * stride, k);
          set(c + i * stride, k, get(c + i * stride, pivots[k]));
          set(c + i * stride, pivots[k], x);
        }
  }
};

}  // namespace
}  // namespace hybrid_kernels
