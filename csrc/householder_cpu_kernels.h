// The compact WY factors of a chain of Householder reflections and their gradient, for one instruction set.
//
// Everything is computed in double, also for float input: it costs little beside reading the memory, no
// column that float can hold over- or underflows, and sums need no splitting. The features are worked on
// kChunk rows at a time. Work matrices have rows padded with zeros to whole registers, `stride` numbers apart.
#pragma once

#include "householder_cpu.h"
#include "lanes.h"
#include "workspace.h"

namespace hybrid_kernels {
namespace {

template <class T, int Bytes>
struct Householder {
  using L = Lanes<double, Bytes>;
  using Vector = typename L::Base::Vector;
  static constexpr int kWidth = L::width;
  static constexpr int kColumns = kWidth == 2 ? 4 : 2;  // register tile: kWidth rows of kColumns registers
  static constexpr int64_t kChunk = 32;
  typedef T Narrow __attribute__((vector_size(kWidth * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(kWidth * sizeof(T)), aligned(alignof(T)), may_alias));

  static HK_INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
  static HK_INLINE int64_t padded(int64_t x) { return (x + kWidth - 1) / kWidth * kWidth; }
  static HK_INLINE L zero() { return L::broadcast(0, 0); }
  static HK_INLINE void clear(double* p, int64_t count) {
    for (int64_t i = 0; i < count; i += kWidth) zero().store(p + i);
  }

  // kWidth numbers, or the first `count` of them; zeros beyond.
  static HK_INLINE L read(const T* p) {
    return {__builtin_convertvector(*reinterpret_cast<const Unaligned*>(p), Vector)};
  }
  static HK_INLINE L read(const T* p, int64_t count) {
    if (count >= kWidth) return read(p);
    L x = zero();
    for (int64_t i = 0; i < count; ++i) x.re[i] = p[i];
    return x;
  }
  static HK_INLINE void write(T* p, const L& x) {
    *reinterpret_cast<Unaligned*>(p) = __builtin_convertvector(x.re, Narrow);
  }
  static HK_INLINE void write(T* p, int64_t count, const L& x) {
    if (count >= kWidth) return write(p, x);
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(x.re[i]);
  }

  // Rows of n numbers into and out of a work matrix; reading adds rows of zeros up to a multiple of kWidth.
  static void read_rows(const T* source, int64_t rows, int64_t n, int64_t stride, double* x) {
    for (int64_t k = 0; k < rows; ++k, source += n, x += stride) {
      int64_t j = 0;
      for (; j + kWidth <= n; j += kWidth) read(source + j).store(x + j);
      if (j < n) zero().store(x + j);
      for (; j < n; ++j) x[j] = source[j];
    }
    clear(x, (padded(rows) - rows) * stride);
  }
  static void write_rows(const double* x, int64_t rows, int64_t n, int64_t stride, T* target) {
    for (int64_t k = 0; k < rows; ++k, target += n, x += stride) {
      int64_t j = 0;
      for (; j + kWidth <= n; j += kWidth) write(target + j, L::load(x + j));
      for (; j < n; ++j) target[j] = static_cast<T>(x[j]);
    }
  }

  // A value for each of n columns, to be met again and again along a (features, n) array.
  struct Cycle {
    const double* values;  // n + kWidth numbers, the last kWidth of which repeat the first
    int64_t n, position = 0;
    static HK_INLINE int64_t size(int64_t n) { return padded(n) + kWidth; }
    static HK_INLINE void close(double* values, int64_t n) {
      for (int64_t j = 0; j < kWidth; ++j) values[n + j] = values[j];  // if n < kWidth, several times
    }
    HK_INLINE L next() {
      typedef double Loose __attribute__((vector_size(Bytes), aligned(alignof(double)), may_alias));
      const L x{*reinterpret_cast<const Loose*>(values + position)};
      for (position += kWidth; position >= n;) position -= n;
      return x;
    }
  };

  // A left factor: its entry (i, k) is p[i * row + k * inner].
  struct Left {
    const double* p;
    int64_t row, inner;
  };

  // c += left · right for one register tile; c and right are `stride` numbers apart.
  template <int kRows, int kTile>
  static HK_INLINE void add_product(double* c, const Left& left, const double* right, int64_t stride,
                                    int64_t inner) {
    L sum[kRows][kTile];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kTile; ++j) sum[i][j] = L::load(c + i * stride + j * kWidth);
    for (int64_t k = 0; k < inner; ++k) {
      L x[kTile];
#pragma GCC unroll 4
      for (int j = 0; j < kTile; ++j) x[j] = L::load(right + k * stride + j * kWidth);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const L f = L::broadcast(left.p[i * left.row + k * left.inner], 0);
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j) sum[i][j].add_product(f, x[j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kTile; ++j) sum[i][j].store(c + i * stride + j * kWidth);
  }

  // The same for the columns [first, stride) of kRows rows.
  template <int kRows>
  static HK_INLINE void add_product_row(double* c, const Left& left, const double* right, int64_t first,
                                        int64_t stride, int64_t inner) {
    int64_t j = first;
    for (; j + kColumns * kWidth <= stride; j += kColumns * kWidth)
      add_product<kRows, kColumns>(c + j, left, right + j, stride, inner);
    for (; j < stride; j += kWidth) add_product<kRows, 1>(c + j, left, right + j, stride, inner);
  }

  // The same for `rows` rows, a multiple of kWidth; of a square c only the blocks from the
  // diagonal on if `upper`.
  static HK_INLINE void multiply_add(double* c, const Left& left, const double* right, int64_t rows,
                                     int64_t stride, int64_t inner, bool upper) {
    for (int64_t i = 0; i < rows; i += kWidth)
      add_product_row<kWidth>(c + i * stride, {left.p + i * left.row, left.row, left.inner}, right,
                              upper ? i : 0, stride, inner);
  }

  // dots_j += x_j · y_j over `rows` rows, a multiple of kWidth.
  static void add_dots(const double* x, const double* y, int64_t rows, int64_t stride, double* dots) {
    for (int64_t j = 0; j < stride; j += kWidth) {
      L sum[kWidth];  // as many as hide the latency of an addition
#pragma GCC unroll 8
      for (int i = 0; i < kWidth; ++i) sum[i] = zero();
      for (int64_t k = 0; k < rows; k += kWidth)
#pragma GCC unroll 8
        for (int i = 0; i < kWidth; ++i)
          sum[i].add_product(L::load(x + (k + i) * stride + j), L::load(y + (k + i) * stride + j));
      L total = L::load(dots + j);
#pragma GCC unroll 8
      for (int i = 0; i < kWidth; ++i) total = total + sum[i];
      total.store(dots + j);
    }
  }

  static HK_INLINE double inverse_norm(double squared) {
    return squared == 0 ? 0 : 1 / __builtin_sqrt(squared);
  }

  // From the Gram matrix of u, in place: t, and the inverse norms. With S = ½ I + striu(vᵀv), the rows of
  // t = S⁻¹ follow from the last: t_i = 2 e_i − 2 Σ_{k>i} S_ik t_k. `row` holds `stride` numbers.
  static void invert(double* gram, int64_t n, int64_t stride, double* inverse_norms, double* row) {
    for (int64_t j = 0; j < n; ++j) inverse_norms[j] = inverse_norm(gram[j * stride + j]);
    for (int64_t i = n - 1; i >= 0; --i) {
      double* t = gram + i * stride;
      for (int64_t k = i + 1; k < n; ++k) row[k] = -2 * inverse_norms[i] * inverse_norms[k] * t[k];
      clear(t, stride);
      t[i] = 2;
      const int64_t below = (i + 1) * stride;
      add_product_row<1>(t, {row + i + 1, 0, 1}, gram + below, i / kWidth * kWidth, stride, n - i - 1);
    }
  }

  static void forward(const HouseholderForward<T>& task) {
    const int64_t n = task.reflections, stride = padded(n);
    const Workspace<double, 32 * (32 + kChunk + 2)> space(stride * (stride + kChunk) + Cycle::size(n));
    double *gram = space.at(0), *x = space.at(stride * stride), *inverse_norms = x + kChunk * stride;
    clear(gram, stride * stride);
    for (int64_t first = 0; first < task.features; first += kChunk) {
      const int64_t rows = smaller(kChunk, task.features - first);
      read_rows(task.u + first * n, rows, n, stride, x);
      multiply_add(gram, {x, 1, stride}, x, stride, stride, rows, /*upper=*/true);
    }
    invert(gram, n, stride, inverse_norms, x);
    write_rows(gram, n, n, stride, task.t);
    Cycle::close(inverse_norms, n);
    Cycle scale{inverse_norms, n};
    const int64_t size = task.features * n;
    for (int64_t i = 0; i < size; i += kWidth)
      write(task.v + i, size - i, read(task.u + i, size - i) * scale.next());
  }

  // D + Dᵀ for D = striu(−tᵀ grad_t tᵀ); `transposed` and `product` are square work matrices.
  static void gram_gradient(const T* t, const T* grad_t, int64_t n, int64_t stride, double* transposed,
                            double* product, double* d) {
    clear(transposed, stride * stride);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i; j < n; ++j) transposed[j * stride + i] = t[i * n + j];
    read_rows(grad_t, n, n, stride, d);
    clear(product, stride * stride);
    multiply_add(product, {transposed, stride, 1}, d, stride, stride, n, /*upper=*/false);
    clear(d, stride * stride);
    multiply_add(d, {product, stride, 1}, transposed, stride, stride, n, /*upper=*/true);
    for (int64_t i = 0; i < n; ++i) {
      d[i * stride + i] = 0;
      for (int64_t j = i + 1; j < n; ++j) d[j * stride + i] = d[i * stride + j] = -d[i * stride + j];
    }
  }

  static void backward(const HouseholderBackward<T>& task) {
    const int64_t n = task.reflections, stride = padded(n), square = stride * stride;
    const Workspace<double, 32 * (3 * 32 + 2 * kChunk + 4)> space(stride * (3 * stride + 2 * kChunk) +
                                                                  2 * Cycle::size(n));
    double *d = space.at(0), *x = space.at(3 * square), *v = x + kChunk * stride;
    double *dots = v + kChunk * stride, *inverse_norms = dots + Cycle::size(n);
    if (task.grad_t)
      gram_gradient(task.t, task.grad_t, n, stride, space.at(square), space.at(2 * square), d);
    clear(dots, 2 * Cycle::size(n));
    for (int64_t first = 0; first < task.features; first += kChunk) {
      const int64_t rows = smaller(kChunk, task.features - first), offset = first * n;
      read_rows(task.u + offset, rows, n, stride, x);
      add_dots(x, x, padded(rows), stride, inverse_norms);
      read_rows(task.v + offset, rows, n, stride, v);
      if (task.grad_v)
        read_rows(task.grad_v + offset, rows, n, stride, x);
      else
        clear(x, padded(rows) * stride);
      if (task.grad_t) multiply_add(x, {v, stride, 1}, d, padded(rows), stride, n, /*upper=*/false);
      add_dots(v, x, padded(rows), stride, dots);
      write_rows(x, rows, n, stride, task.grad_u + offset);
    }
    for (int64_t j = 0; j < n; ++j) inverse_norms[j] = inverse_norm(inverse_norms[j]);
    Cycle::close(dots, n);
    Cycle::close(inverse_norms, n);
    Cycle along{dots, n}, scale{inverse_norms, n};
    const int64_t size = task.features * n;
    for (int64_t i = 0; i < size; i += kWidth) {
      const L total = read(task.grad_u + i, size - i), v = read(task.v + i, size - i);
      write(task.grad_u + i, size - i, (total - v * along.next()) * scale.next());
    }
  }
};

// Few reflections are computed in shorter registers, which they fill better.
template <int Bytes, class T>
void run(const HouseholderForward<T>& task) {
  if constexpr (Bytes > 16)
    if (task.reflections * 2 * sizeof(double) <= Bytes) return run<Bytes / 2>(task);
  Householder<T, Bytes>::forward(task);
}
template <int Bytes, class T>
void run(const HouseholderBackward<T>& task) {
  if constexpr (Bytes > 16)
    if (task.reflections * 2 * sizeof(double) <= Bytes) return run<Bytes / 2>(task);
  Householder<T, Bytes>::backward(task);
}

}  // namespace

#define HK_INSTANTIATE_HOUSEHOLDER(run)                 \
  template void run(const HouseholderForward<float>&);  \
  template void run(const HouseholderForward<double>&); \
  template void run(const HouseholderBackward<float>&); \
  template void run(const HouseholderBackward<double>&);

}  // namespace hybrid_kernels
