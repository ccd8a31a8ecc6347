// A tile of sums in registers: what matrix products are made of here, for one instruction set.
//
// kRows × kVectors registers of sums; each step over the inner dimension loads kVectors registers of the right factor
// and broadcasts kRows numbers of the left one, which is thus read as it lies in memory. After kChain steps the caller
// starts the sums anew and adds them up apart: in one long chain they would be less accurate than BLAS, whose chains
// are short where the result is narrow.
#pragma once

#include "lanes.h"

namespace hybrid_kernels {
namespace {  // internal linkage, see block_algebra.h

template <class T, int Bytes>
struct RegisterTile {
  using Base = RealLanes<T, Bytes>;
  using Vector = typename Base::Vector;
  typedef T Unaligned __attribute__((vector_size(Bytes), aligned(alignof(T)), may_alias));
  static constexpr int kWidth = Base::width;
  static constexpr int kTileRows = Bytes == 64 ? 12 : 6;  // 2 · kTileRows sums in 32 or 16 registers
  static constexpr int64_t kChain = 32;

  static HK_INLINE Vector load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static HK_INLINE void store(T* p, Vector x) { *reinterpret_cast<Unaligned*>(p) = x; }

  template <int kRows, int kVectors>
  static HK_INLINE void clear(Vector (&sum)[kRows][kVectors]) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sum[i][j] = Base::broadcast(0);
  }

  // sum += left · right over `inner` steps. The rows of the left factor are `stride` apart and its columns next to
  // each other or, kTransposed, the other way round; the rows of the right one are `right_row` apart.
  template <int kRows, int kVectors, bool kTransposed>
  static HK_INLINE void multiply(Vector (&sum)[kRows][kVectors], const T* left, int64_t stride, const T* right,
                                 int64_t right_row, int64_t inner) {
    constexpr int kAddresses = (kRows + 3) / 4;  // rows four by four: few enough for the address registers
    const T* at[kAddresses];
#pragma GCC unroll 16
    for (int g = 0; g < kAddresses; ++g) at[g] = left + (kTransposed ? 0 : 4 * g * stride);
    for (int64_t k = 0; k < inner; ++k) {
      Vector x[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) x[j] = load(right + j * kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Vector f = Base::broadcast(kTransposed ? at[0][i] : at[i / 4][i % 4 * stride]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[i][j] += f * x[j];
      }
      right += right_row;
#pragma GCC unroll 16
      for (int g = 0; g < kAddresses; ++g) at[g] += kTransposed ? (g == 0 ? stride : 0) : 1;
    }
  }
};

}  // namespace
}  // namespace hybrid_kernels
