// The Cayley transform of matrices up to 32 × 32, a few of them in the registers of a warp.
//
// Q = 2 (I + A)⁻¹ − I by Gauss–Jordan elimination in place. Step k, with p the pivot row:
//   row −= g p and row[k] = −g, with g = row[k] / p[k], for the other rows;
//   p itself stays as it is and is divided by p[k] at the very end, but p[k] = 1.
// Without pivoting, what is stored is the deviation from the identity (see block_algebra.h): then it is
// 1 + p[k] that divides, and p[k] becomes −p[k]. Every step also moves the columns, and without pivoting the
// rows of a lane, one place down, so that the pivot is at [0][0] and the loop over the steps stays a loop.
#include "cayley_cuda_kernels.cuh"

namespace hybrid_kernels {
namespace {

// How a warp divides matrices padded to N × N: a lane holds kRows rows, in 128 registers at most, and kLanes
// lanes a matrix. The more rows a lane holds, the fewer numbers have to be read for the same work.
template <class S, int N>
struct RowTile {
  static constexpr int kRows = 16 / sizeof(S);
  static constexpr int kLanes = N / kRows;
  static constexpr int kMatrices = kWarpSize / kLanes;
  // Staged matrices: padding keeps lanes that read a column, and different matrices, in different banks.
  static constexpr int kStride = N + 1;
  static constexpr int kMatrixStride = N * kStride + 1;
  // Two pivot rows of each matrix, so that one can be written while the other is read.
  static constexpr int kPivotStride = N + Chunk<S>::kSize;
  static constexpr int kStagedBytes = (kMatrices * kMatrixStride * sizeof(S) + 15) / 16 * 16;
  static constexpr int kSharedBytes = kStagedBytes + kMatrices * N;
  static_assert(2 * kMatrices * kPivotStride * sizeof(S) <= kStagedBytes);
};

template <class S, int N>
struct Elimination {
  using Tile = RowTile<S, N>;
  using R = typename RealOf<S>::type;
  static constexpr int kRows = Tile::kRows;

  S c[kRows][N];     // the rows
  S scale[kRows];    // what each has to be multiplied by in the end
  int place[kRows];  // the row of the inverse that each has become, b or more: none

  // Subtracts the multiple g[r] of the pivot row from row r, whose new last column is last[r], and moves the
  // columns down; the rows too if kRotate.
  template <bool kRotate>
  __device__ __forceinline__ void subtract(const S* pivot_row, const S (&g)[kRows], const S (&last)[kRows]) {
#pragma unroll
    for (int j = 0; j < N; j += Chunk<S>::kSize) {
      Chunk<S> p;
      if constexpr (Tile::kLanes == 1 && kRotate) {
#pragma unroll
        for (int e = 0; e < Chunk<S>::kSize; ++e) p.x[e] = c[0][j + e];
      } else {
        p = *reinterpret_cast<const Chunk<S>*>(pivot_row + j);
      }
#pragma unroll
      for (int e = j == 0; e < Chunk<S>::kSize; ++e) {
        S moved[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          moved[r] = c[r][j + e];
          if constexpr (kIsComplex<S>) {  // one rounding of the entry, not two; there are many steps
            S product = constant<S>(0);
            add_product(product, g[r], p.x[e]);
            moved[r] = moved[r] - product;
          } else {
            subtract_product(moved[r], g[r], p.x[e]);
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) c[kRotate ? (r + kRows - 1) % kRows : r][j + e - 1] = moved[r];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) c[kRotate ? (r + kRows - 1) % kRows : r][N - 1] = last[r];
  }

  static __device__ __forceinline__ void publish(S* pivot_row, const S (&row)[N]) {
#pragma unroll
    for (int j = 0; j < N; j += Chunk<S>::kSize) {
      Chunk<S> p;
#pragma unroll
      for (int e = 0; e < Chunk<S>::kSize; ++e) p.x[e] = row[j + e];
      *reinterpret_cast<Chunk<S>*>(pivot_row + j) = p;
    }
  }

  // (I + C)⁻¹ − I; row k is the pivot of step k.
  __device__ __forceinline__ void invert(int b, int matrix, int lane, S* pivot_rows) {
    for (int k = 0; k < b; ++k) {
      const bool owner = lane == k / kRows;
      S* pivot_row = pivot_rows + (k % 2 * Tile::kMatrices + matrix) * Tile::kPivotStride;
      S excess = c[0][0];
      if constexpr (Tile::kLanes > 1) {
        if (owner) publish(pivot_row, c[0]);
        __syncwarp();
        excess = pivot_row[0];
      }
      const S pivot = reciprocal(constant<S>(1) + excess);
      S g[kRows], last[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        g[r] = c[r][0] * pivot;
        last[r] = -g[r];
      }
      if (owner) {
        g[0] = constant<S>(0);
        last[0] = -c[0][0];
      }
      const S first_scale = owner ? pivot : scale[0];
#pragma unroll
      for (int r = 1; r < kRows; ++r) scale[r - 1] = scale[r];
      scale[kRows - 1] = first_scale;
      subtract<true>(pivot_row, g, last);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) place[r] = lane * kRows + (r + b) % kRows;
  }

  // Row and magnitude of the largest entry of the current column among the rows that have not been pivots
  // yet. NaN counts as infinite, so that the lanes of a matrix always agree on a row.
  __device__ __forceinline__ int largest_row(int b, int lane) const {
    R best = -1;
    int row = b;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      R x = magnitude(c[r][0]);
      if (x != x) x = R(INFINITY);
      if (place[r] >= b && lane * kRows + r < b && x > best) {
        best = x;
        row = lane * kRows + r;
      }
    }
#pragma unroll
    for (int mask = 1; mask < Tile::kLanes; mask *= 2) {
      const R other = shuffle_xor(best, mask);
      const int other_row = shuffle_xor(row, mask);
      if (other > best || (other == best && other_row < row)) {
        best = other;
        row = other_row;
      }
    }
    return row;
  }

  // The same for a warp some of whose matrices are `beyond` the limit: for these it is (I + A)⁻¹ with row
  // pivoting, while the others undergo the very operations of `invert`.
  __device__ __forceinline__ void invert_pivoted(bool beyond, int b, int matrix, int lane, S* pivot_rows) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      place[r] = b;
#pragma unroll
      for (int j = 0; j < N; ++j) add_real(c[r][j], beyond && j == lane * kRows + r ? R(1) : -R(0));
    }
    for (int k = 0; k < b; ++k) {
      const int largest = largest_row(b, lane);
      const int row = (beyond ? largest : k) - lane * kRows;
      S* pivot_row = pivot_rows + (k % 2 * Tile::kMatrices + matrix) * Tile::kPivotStride;
      S candidate[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        candidate[j] = c[0][j];
#pragma unroll
        for (int r = 1; r < kRows; ++r) candidate[j] = r == row ? c[r][j] : candidate[j];
      }
      if (row >= 0 && row < kRows) publish(pivot_row, candidate);
      __syncwarp();
      const S first = pivot_row[0];
      const S pivot = reciprocal(beyond ? first : constant<S>(1) + first);
      S g[kRows], last[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        g[r] = c[r][0] * pivot;
        last[r] = -g[r];
        if (r == row) {
          g[r] = constant<S>(0);
          last[r] = beyond ? constant<S>(1) : -c[r][0];
          scale[r] = pivot;
          place[r] = k;
        }
      }
      subtract<false>(pivot_row, g, last);
    }
  }
};

template <class S, int N>
__global__ void __launch_bounds__(kCayleyWarps* kWarpSize, 1)
    forward_kernel(const S* __restrict__ skew, bool packed, int64_t batch, int b,
                   typename RealOf<S>::type limit, S* __restrict__ q) {
  using Tile = RowTile<S, N>;
  constexpr int kRows = Tile::kRows;
  const int warp = threadIdx.x / kWarpSize, warp_lane = threadIdx.x % kWarpSize;
  const int matrix = warp_lane / Tile::kLanes, lane = warp_lane % Tile::kLanes;
  const int64_t first = (int64_t(blockIdx.x) * kCayleyWarps + warp) * Tile::kMatrices;
  if (first >= batch) return;
  const int matrices = batch - first < Tile::kMatrices ? int(batch - first) : Tile::kMatrices;
  S* staged = reinterpret_cast<S*>(shared_memory + warp * Tile::kSharedBytes);
  unsigned char* places = shared_memory + warp * Tile::kSharedBytes + Tile::kStagedBytes;

  const int stored = stored_size(packed, b), area = b * b;
  skew += first * stored;
  q += first * area;
  if (packed) {
    for_each_entry<N>(warp_lane, Tile::kMatrices, N, [&](int m, int i, int j) {
      const bool inside = m < matrices && i < j && j < b;
      staged[m * Tile::kMatrixStride + i * Tile::kStride + j] =
          inside ? skew[m * stored + packed_row(i, b) + j] : constant<S>(0);
    });
  } else {
    for_each_entry<N>(warp_lane, Tile::kMatrices, N, [&](int m, int i, int j) {
      const bool inside = m < matrices && i < b && j < b;
      staged[m * Tile::kMatrixStride + i * Tile::kStride + j] =
          inside ? scaled(skew[m * stored + i * b + j], typename RealOf<S>::type(0.5)) : constant<S>(0);
    });
  }
  __syncwarp();

  Elimination<S, N> elimination;
  typename RealOf<S>::type largest = 0;
  const S* own = staged + matrix * Tile::kMatrixStride;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = lane * kRows + r;
    elimination.scale[r] = constant<S>(1);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      elimination.c[r][j] = own[i * Tile::kStride + j] - conj(own[j * Tile::kStride + i]);
      largest = larger(largest, largest_part(elimination.c[r][j]));
    }
  }
#pragma unroll
  for (int mask = 1; mask < Tile::kLanes; mask *= 2) largest = larger(largest, shuffle_xor(largest, mask));
  const bool beyond = largest > limit;
  __syncwarp();  // shuffles and votes alone do not order accesses of shared memory

  const bool pivoted = __any_sync(kWholeWarp, beyond);
  if (pivoted) {
    elimination.invert_pivoted(beyond, b, matrix, lane, staged);
  } else {
    elimination.invert(b, matrix, lane, staged);
  }
  __syncwarp();

  // Column j of a row is where b steps have moved it to; with pivoting, what belongs to the row that was the
  // pivot of step k is in column k.
  S* result = staged + N - b;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int place = elimination.place[r];
    if (place >= b) continue;
    const S factor = scaled(elimination.scale[r], typename RealOf<S>::type(2));
    S* row = staged + matrix * Tile::kMatrixStride + place * Tile::kStride;
#pragma unroll
    for (int j = 0; j < N; ++j) row[j] = elimination.c[r][j] * factor;
    if (pivoted) places[matrix * N + lane * kRows + r] = place;
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = lane * kRows + r;
    if (i >= b) continue;
    S& diagonal =
        result[matrix * Tile::kMatrixStride + i * Tile::kStride + (pivoted ? places[matrix * N + i] : i)];
    add_real(diagonal, beyond ? -1 : 1);
  }
  __syncwarp();
  if (pivoted) {
    for_each_entry<N>(warp_lane, matrices, b, [&](int m, int i, int j) {
      q[m * area + i * b + j] = result[m * Tile::kMatrixStride + i * Tile::kStride + places[m * N + j]];
    });
  } else {
    for_each_entry<N>(warp_lane, matrices, b, [&](int m, int i, int j) {
      q[m * area + i * b + j] = result[m * Tile::kMatrixStride + i * Tile::kStride + j];
    });
  }
}

template <class S, int N>
cudaError_t launch_forward(const S* skew, bool packed, int64_t batch, int b, S* q, cudaStream_t stream) {
  using Tile = RowTile<S, N>;
  constexpr int64_t kMatrices = kCayleyWarps * Tile::kMatrices;
  return launch(forward_kernel<S, N>, (batch + kMatrices - 1) / kMatrices, kCayleyWarps * kWarpSize,
                kCayleyWarps * Tile::kSharedBytes, stream, skew, packed, batch, b, cayley_unpivoted_limit(b),
                q);
}

}  // namespace

template <class T>
cudaError_t cayley_forward_warp(const T* skew, bool packed, int64_t batch, int64_t block_size, T* q,
                                cudaStream_t stream) {
  using S = typename DeviceScalar<T>::type;
  const int b = int(block_size);
  const auto launcher = b <= 4    ? launch_forward<S, 4>
                        : b <= 8  ? launch_forward<S, 8>
                        : b <= 16 ? launch_forward<S, 16>
                                  : launch_forward<S, 32>;
  return launcher(device_scalars(skew), packed, batch, b, device_scalars(q), stream);
}

#define HK_INSTANTIATE(T) \
  template cudaError_t cayley_forward_warp(const T*, bool, int64_t, int64_t, T*, cudaStream_t);
HK_INSTANTIATE(float)
HK_INSTANTIATE(double)
HK_INSTANTIATE(std::complex<float>)
HK_INSTANTIATE(std::complex<double>)

}  // namespace hybrid_kernels
