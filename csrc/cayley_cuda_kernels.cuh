// What the kernels of the Cayley transform share.
#pragma once

#include "cayley_cuda.h"
#include "cuda_common.cuh"

namespace hybrid_kernels {

constexpr int kCayleyWarpMaxBlock = 32;

// cayley_forward_cuda and cayley_backward_cuda for block_size <= kCayleyWarpMaxBlock.
template <class T>
cudaError_t cayley_forward_warp(const T* skew, bool packed, int64_t batch, int64_t block_size, T* q,
                                cudaStream_t stream);
template <class T>
cudaError_t cayley_backward_warp(const T* grad_q, const T* q, bool packed, int64_t batch, int64_t block_size,
                                 T* grad_skew, cudaStream_t stream);

template <class T>
const typename DeviceScalar<T>::type* device_scalars(const T* p) {
  return reinterpret_cast<const typename DeviceScalar<T>::type*>(p);
}
template <class T>
typename DeviceScalar<T>::type* device_scalars(T* p) {
  return reinterpret_cast<typename DeviceScalar<T>::type*>(p);
}

// Numbers that one matrix of `skew` takes.
HK_DEVICE int stored_size(bool packed, int b) { return packed ? b * (b - 1) / 2 : b * b; }

// Where row i of the packed strict upper triangle would have its column 0.
HK_DEVICE int packed_row(int i, int b) { return i * (2 * b - i - 3) / 2 - 1; }

// X[i, j] of the X that A = X − Xᴴ: half of the full matrix, or the strict upper triangle.
template <class S>
__device__ __forceinline__ S skew_entry(const S* skew, bool packed, int b, int i, int j) {
  if (!packed) return scaled(skew[i * b + j], typename RealOf<S>::type(0.5));
  return j > i ? skew[packed_row(i, b) + j] : constant<S>(0);
}

// x += y for a real y that, if −0, leaves x as it is to the bit.
template <class S>
__device__ __forceinline__ void add_real(S& x, typename RealOf<S>::type y) {
  if constexpr (kIsComplex<S>) {
    x.re = x.re + y;
  } else {
    x = x + y;
  }
}

// H[j, i] of H = (I + Q)ᴴ, from Q[i, j].
template <class S>
__device__ __forceinline__ S adjoint_factor(S q, bool diagonal) {
  return diagonal ? conj(q) + constant<S>(1) : conj(q);
}

// As many scalars as one access of shared memory moves.
template <class S>
struct alignas(16) Chunk {
  static constexpr int kSize = 16 / sizeof(S);
  S x[kSize];
};

// ---- for the kernels in which a warp has a few matrices ----

constexpr int kWarpSize = 32;
constexpr int kCayleyWarps = 2;  // of a block; they share nothing

// visit(matrix, row, column) for the entries of the b × b leading blocks of N × N matrices, or of all of
// these for b == N, consecutive ones by consecutive lanes.
template <int N, class Visit>
__device__ __forceinline__ void for_each_entry(int warp_lane, int matrices, int b, Visit visit) {
  constexpr int kRowsAtOnce = kWarpSize / N;
  constexpr int kMatricesAtOnce = kRowsAtOnce < N ? 1 : kRowsAtOnce / N;
  constexpr int kPasses = kRowsAtOnce < N ? N / kRowsAtOnce : 1;
  constexpr int kUnroll = kPasses < 8 ? kPasses : 8;
  const int j = warp_lane % N;
  if (j >= b) return;
#pragma unroll 8 / kUnroll
  for (int m = warp_lane / (N * N); m < matrices; m += kMatricesAtOnce)
#pragma unroll kUnroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int i = pass * kRowsAtOnce + warp_lane / N % N;
      if (i < b) visit(m, i, j);
    }
}

}  // namespace hybrid_kernels
