// The gradients of features scaled one by one, for one instruction set.
#pragma once

#include <algorithm>

#include "lanes.h"
#include "scaling_cpu.h"

namespace hybrid_kernels {
namespace {

template <class T, int Bytes>
struct Scaling {
  using Base = RealLanes<T, Bytes>;
  typedef T Unaligned __attribute__((vector_size(Bytes), aligned(alignof(T)), may_alias));
  static constexpr int kWidth = Base::width;
  static constexpr int kVectors = 8;  // a run of columns whose sums stay in registers

  static HK_INLINE typename Base::Vector load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static HK_INLINE void store(T* p, typename Base::Vector x) { *reinterpret_cast<Unaligned*>(p) = x; }

  template <bool kWrite>
  static void columns(const ScalingGradients<T>& task, int64_t row, int64_t rows, int64_t column) {
    typename Base::Vector sum[kVectors], scale[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      sum[j] = Base::broadcast(0);
      scale[j] = load(task.scale + column + j * kWidth);
    }
    for (int64_t i = row; i < row + rows; ++i) {
      const int64_t offset = i * task.features + column;
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        const auto gradient = load(task.dz + offset + j * kWidth);
        sum[j] += gradient * load(task.y + offset + j * kWidth);
        if (kWrite) store(task.dy + offset + j * kWidth, gradient * scale[j]);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      T* const to = task.d_scale + column + j * kWidth;
      store(to, load(to) + sum[j]);
    }
  }

  template <bool kWrite>
  static void gradients(const ScalingGradients<T>& task) {
    constexpr int64_t kRows = 32;  // of one sum in registers: short chains, and rows that stay in the cache
    for (int64_t row = task.begin; row < task.end; row += kRows) {
      const int64_t rows = std::min(kRows, task.end - row);
      int64_t column = 0;
      for (; column + kVectors * kWidth <= task.features; column += kVectors * kWidth)
        columns<kWrite>(task, row, rows, column);
      for (; column < task.features; ++column) {
        T sum = 0;
        for (int64_t i = row; i < row + rows; ++i) {
          const int64_t offset = i * task.features + column;
          sum += task.dz[offset] * task.y[offset];
          if (kWrite) task.dy[offset] = task.dz[offset] * task.scale[column];
        }
        task.d_scale[column] += sum;
      }
    }
  }
};

template <int Bytes, class T>
void run(const ScalingGradients<T>& task) {
  if (task.dy != nullptr)
    Scaling<T, Bytes>::template gradients<true>(task);
  else
    Scaling<T, Bytes>::template gradients<false>(task);
}

}  // namespace

#define HK_INSTANTIATE_SCALING(run)                  \
  template void run(const ScalingGradients<float>&); \
  template void run(const ScalingGradients<double>&);

}  // namespace hybrid_kernels
