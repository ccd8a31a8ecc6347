// How the kernels for matrices above 32 × 32 divide one of them among the threads of a block: into their
// registers.
#pragma once

#include "cayley_cuda_kernels.cuh"

namespace hybrid_kernels {

// A matrix padded to N × N has kSide² threads, each with kTile × kTile entries: 64 registers, 128 in double
// precision or of complex<float>. Thread (down, across) has rows down + r kSide and columns across + c kSide.
template <class S, int N>
struct BlockTile {
  static constexpr int kTile = sizeof(S) == 16 ? 4 : 8;
  static constexpr int kSide = N / kTile;
  static constexpr int kThreads = kSide * kSide;
  // A slab is kSide rows; the padding keeps threads that read a column in different banks.
  static constexpr int kStride = N + 1;
  static constexpr int kSlab = kSide * kStride;
  static_assert(N * sizeof(S) <= 1024, "the registers of a multiprocessor");

  int down = threadIdx.x / kSide, across = threadIdx.x % kSide;

  __device__ __forceinline__ int row(int r) const { return down + r * kSide; }
  __device__ __forceinline__ int column(int c) const { return across + c * kSide; }

  // X − Xᴴ. `slabs` holds two slabs, which nobody may be reading; they may still be read on return.
  __device__ __forceinline__ void subtract_adjoint(S (&x)[kTile][kTile], S* slabs) const {
#pragma unroll
    for (int s = 0; s < kTile; ++s) {
      S* slab = slabs + s % 2 * kSlab;
#pragma unroll
      for (int c = 0; c < kTile; ++c) slab[down * kStride + column(c)] = x[s][c];
      __syncthreads();
      // Of the slab's columns, those before s have been replaced already.
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        const S opposite = -conj(slab[across * kStride + row(r)]);
        x[r][s] = r < s ? opposite : x[r][s] + opposite;
      }
    }
  }
};

// The largest N of a BlockTile.
template <class S>
constexpr int kBlockMax = sizeof(S) == 16 ? 64 : 128;

}  // namespace hybrid_kernels
