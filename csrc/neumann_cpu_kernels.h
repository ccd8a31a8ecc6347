// The truncated Cayley–Neumann series, for one instruction set: one matrix at a time, all of it in the cache.
#pragma once

#include <algorithm>

#include "block_product.h"
#include "neumann_cpu.h"

namespace hybrid_kernels {
namespace {

template <class T, int Bytes>
struct Neumann : BlockProduct<T, Bytes> {
  using Product = BlockProduct<T, Bytes>;
  using Product::kWidth, Product::load, Product::store;
  using Base = typename Product::Base;

  // Matrices are (b, row), their rows padded to whole registers. What is in the padding meets no other column.
  int64_t b, row;
  const double* coefficients;
  int64_t degree;

  Neumann(int64_t block_size, const double* c, int64_t d)
      : b(block_size), row((block_size + kWidth - 1) / kWidth * kWidth), coefficients(c), degree(d) {}

  int64_t size() const { return b * row; }
  int64_t packed_size() const { return b * (b - 1) / 2; }
  int64_t top() const { return degree > 0 ? (degree - 1) / 2 : 0; }
  T coefficient(int64_t k) const { return k <= degree ? static_cast<T>(coefficients[k]) : T(0); }

  void unpack(const T* packed, T* a) const {
    std::fill_n(a, size(), T(0));
    for (int64_t i = 0; i < b; packed += b - 1 - i, ++i)
      for (int64_t j = i + 1; j < b; ++j) {
        a[i * row + j] = packed[j - i - 1];
        a[j * row + i] = -packed[j - i - 1];
      }
  }

  // to = left · right, or to + left · right
  void multiply(const T* left, const T* right, T* to, bool add = false) const {
    Product::product({left, row, b, 0}, right, row, b, b, {to, row, row, 0}, add);
  }

  // to += factor · x
  void add_scaled(T factor, const T* x, T* to) const {
    const auto f = Base::broadcast(factor);
    for (int64_t i = 0; i < size(); i += kWidth) store(to + i, load(to + i) + f * load(x + i));
  }

  // h += c_2k I + c_{2k+1} A: the large I last, not into the sums of a product, whose rounding would be lost in it
  void add_pair(int64_t k, const T* a, T* h) const {
    add_scaled(coefficient(2 * k + 1), a, h);
    for (int64_t i = 0; i < b; ++i) h[i * row + i] += coefficient(2 * k);
  }

  // H_top, of which only the last power of an even degree is more than a pair of coefficients
  void start(const T* a, const T* square, T* h) const {
    std::fill_n(h, size(), T(0));
    if (degree > 0 && degree % 2 == 0) add_scaled(coefficient(degree), square, h);
    add_pair(top(), a, h);
  }

  void transpose(const T* from, T* to) const {
    for (int64_t i = 0; i < b; ++i)
      for (int64_t j = 0; j < b; ++j) to[j * row + i] = from[i * row + j];
  }

  void forward(const NeumannForward<T>& task) const {
    const Workspace<T> space(4 * size());
    T *const a = space.at(0), *const square = space.at(size());
    for (int64_t m = task.begin; m < task.end; ++m) {
      T *h = space.at(2 * size()), *next = space.at(3 * size());
      unpack(task.packed + m * packed_size(), a);
      if (degree > 1) multiply(a, a, square);
      start(a, square, h);
      for (int64_t k = top() - 1; k >= 0; --k) {
        multiply(square, h, next);
        add_pair(k, a, next);
        std::swap(h, next);
      }
      for (int64_t i = 0; i < b; ++i) std::copy_n(h + i * row, b, task.r + (m * b + i) * b);
    }
  }

  void backward(const NeumannBackward<T>& task) const {
    const int64_t kept = std::max<int64_t>(top(), 1);  // H₁ … H_top
    const Workspace<T> space((7 + kept) * size());
    T *const a = space.at(0), *const square = space.at(size()), *const e = space.at(2 * size());
    T *const w = space.at(3 * size()), *const other = space.at(4 * size());
    std::fill_n(space.at(0), (7 + kept) * size(), T(0));  // the padding
    const auto series = [&](int64_t k) { return space.at((6 + k) * size()); };
    for (int64_t m = task.begin; m < task.end; ++m) {
      T *g = space.at(5 * size()), *next = space.at(6 * size());
      for (int64_t i = 0; i < b; ++i) std::copy_n(task.grad_r + (m * b + i) * b, b, g + i * row);
      std::fill_n(w, size(), T(0));
      add_scaled(coefficient(1), g, w);
      if (degree > 1) {
        unpack(task.packed + m * packed_size(), a);
        multiply(a, a, square);
        if (top() > 0) start(a, square, series(top()));
        for (int64_t k = top() - 1; k > 0; --k) {
          multiply(square, series(k + 1), series(k));
          add_pair(k, a, series(k));
        }
        std::fill_n(e, size(), T(0));
        for (int64_t k = 0; k < top(); ++k) {
          transpose(series(k + 1), other);
          multiply(g, other, e, /*add=*/true);
          multiply(square, g, next);
          std::swap(g, next);
          add_scaled(coefficient(2 * k + 3), g, w);
        }
        if (degree % 2 == 0) add_scaled(coefficient(degree), g, e);
        transpose(e, other);
        add_scaled(T(1), e, other);
        multiply(a, other, e);
        add_scaled(T(-1), e, w);
      }
      T* out = task.grad_packed + m * packed_size();
      for (int64_t i = 0; i < b; ++i)
        for (int64_t j = i + 1; j < b; ++j) *out++ = w[i * row + j] - w[j * row + i];
    }
  }
};

// Small matrices are computed in shorter registers, which they fill better.
template <int Bytes, class T>
void run(const NeumannForward<T>& task) {
  if constexpr (Bytes > 16)
    if (task.block_size * static_cast<int64_t>(sizeof(T)) <= Bytes / 2) return run<Bytes / 2>(task);
  Neumann<T, Bytes>(task.block_size, task.coefficients, task.degree).forward(task);
}
template <int Bytes, class T>
void run(const NeumannBackward<T>& task) {
  if constexpr (Bytes > 16)
    if (task.block_size * static_cast<int64_t>(sizeof(T)) <= Bytes / 2) return run<Bytes / 2>(task);
  Neumann<T, Bytes>(task.block_size, task.coefficients, task.degree).backward(task);
}

}  // namespace

#define HK_INSTANTIATE_NEUMANN(run)                 \
  template void run(const NeumannForward<float>&);  \
  template void run(const NeumannForward<double>&); \
  template void run(const NeumannBackward<float>&); \
  template void run(const NeumannBackward<double>&);

}  // namespace hybrid_kernels
