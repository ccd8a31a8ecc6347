// The gradient of the Cayley transform of matrices up to 32 × 32, a few of them in a warp.
//
// D = H G H with H = (I + Q)ᴴ; the gradient is −½ (D − Dᴴ), half of that for full input. Both products are
// sums over k of column k of the left factor times row k of the right one: first H G, from the rows of Hᵀ and
// G, then (H G) H.
#include "cayley_cuda_kernels.cuh"

namespace hybrid_kernels {
namespace {

// A lane has a kRows × kColumns tile of a matrix padded to N × N, spread over it in pieces of one Chunk, so
// that together the lanes read whole rows. The sums take 64 registers at most, for complex numbers in double
// precision 128.
template <class S, int N>
struct ProductTile {
  static constexpr int kChunk = Chunk<S>::kSize;
  static constexpr int kLargestRows = 8, kLargestColumns = sizeof(S) == 4 ? 8 : 4;
  static constexpr int kRows = N < kLargestRows ? N : kLargestRows;
  static constexpr int kColumns = N < kLargestColumns ? N : kLargestColumns;
  static constexpr int kLanesDown = N / kRows, kLanesAcross = N / kColumns;
  static constexpr int kLanes = kLanesDown * kLanesAcross;
  static constexpr int kMatrices = kWarpSize / kLanes;
  // Padding keeps lanes that read a column, and different matrices, in different banks.
  static constexpr int kStride = N + kChunk;
  static constexpr int kMatrixStride = N * kStride + kLanesAcross * kChunk;
  static constexpr int kResultStride = N + 1;
  static constexpr int kSharedBytes = 2 * kMatrices * kMatrixStride * sizeof(S);
  // Of a block: what every GPU grants one holds them.
  static constexpr int kWarps = kCayleyWarps * kSharedBytes <= kSharedBytesWithoutAsking ? kCayleyWarps : 1;
  static_assert(kWarps * kSharedBytes <= kSharedBytesWithoutAsking);

  static __device__ __forceinline__ int row(int down, int r) {
    return (down + r / kChunk * kLanesDown) * kChunk + r % kChunk;
  }
  static __device__ __forceinline__ int column(int across, int c) {
    return (across + c / kChunk * kLanesAcross) * kChunk + c % kChunk;
  }
};

template <class S, int kSize>
__device__ __forceinline__ void load_pieces(S (&x)[kSize], const S* row, int lane, int lanes) {
#pragma unroll
  for (int piece = 0; piece < kSize / Chunk<S>::kSize; ++piece) {
    const auto chunk = reinterpret_cast<const Chunk<S>*>(row)[lane + piece * lanes];
#pragma unroll
    for (int e = 0; e < Chunk<S>::kSize; ++e) x[piece * Chunk<S>::kSize + e] = chunk.x[e];
  }
}

template <class S, int N>
__global__ void __launch_bounds__(ProductTile<S, N>::kWarps* kWarpSize, 1)
    backward_kernel(const S* __restrict__ grad_q, const S* __restrict__ q, bool packed, int64_t batch, int b,
                    S* __restrict__ grad_skew) {
  using Tile = ProductTile<S, N>;
  using R = typename RealOf<S>::type;
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns, kChunk = Tile::kChunk,
                kStride = Tile::kStride;
  const int warp = threadIdx.x / kWarpSize, warp_lane = threadIdx.x % kWarpSize;
  const int matrix = warp_lane / Tile::kLanes, lane = warp_lane % Tile::kLanes;
  const int down = lane / Tile::kLanesAcross, across = lane % Tile::kLanesAcross;
  const int64_t first = (int64_t(blockIdx.x) * Tile::kWarps + warp) * Tile::kMatrices;
  if (first >= batch) return;
  const int matrices = batch - first < Tile::kMatrices ? int(batch - first) : Tile::kMatrices;
  S* transposed = reinterpret_cast<S*>(shared_memory + warp * Tile::kSharedBytes);  // Hᵀ = conj(I + Q)
  S* other = transposed + Tile::kMatrices * Tile::kMatrixStride;                    // G, then (H G)ᵀ, then D

  const int stored = stored_size(packed, b), area = b * b;
  grad_q += first * area;
  q += first * area;
  grad_skew += first * stored;
  for_each_entry<N>(warp_lane, matrices, b, [&](int m, int i, int j) {
    transposed[m * Tile::kMatrixStride + i * kStride + j] = adjoint_factor(q[m * area + i * b + j], i == j);
  });
  for_each_entry<N>(warp_lane, matrices, b, [&](int m, int i, int j) {
    other[m * Tile::kMatrixStride + i * kStride + j] = grad_q[m * area + i * b + j];
  });
  __syncwarp();

  const S* own_transposed = transposed + matrix * Tile::kMatrixStride;
  S* own_other = other + matrix * Tile::kMatrixStride;
  S sum[kRows][kColumns];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum[r][c] = constant<S>(0);
  for (int k = 0; k < b; ++k) {
    S left[kRows], right[kColumns];
    load_pieces(left, own_transposed + k * kStride, down, Tile::kLanesDown);
    load_pieces(right, own_other + k * kStride, across, Tile::kLanesAcross);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) add_product(sum[r][c], left[r], right[c]);
  }
  __syncwarp();

#pragma unroll
  for (int c = 0; c < kColumns; ++c)
#pragma unroll
    for (int r = 0; r < kRows; r += kChunk) {
      Chunk<S> chunk;
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        chunk.x[e] = sum[r + e][c];
        sum[r + e][c] = constant<S>(0);
      }
      *reinterpret_cast<Chunk<S>*>(own_other + Tile::column(across, c) * kStride + Tile::row(down, r)) =
          chunk;
    }
  __syncwarp();

  // The right factor H is the transposed one read by columns; a lane's columns of D are `across` and every
  // kLanesAcross-th from there, which are in different banks.
  for (int k = 0; k < b; ++k) {
    S left[kRows], right[kColumns];
    load_pieces(left, own_other + k * kStride, down, Tile::kLanesDown);
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      right[c] = own_transposed[(across + c * Tile::kLanesAcross) * kStride + k];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) add_product(sum[r][c], left[r], right[c]);
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      own_other[Tile::row(down, r) * Tile::kResultStride + across + c * Tile::kLanesAcross] = sum[r][c];
  __syncwarp();

  const R scale = packed ? R(-0.5) : R(-0.25);
  for_each_entry<N>(warp_lane, matrices, b, [&](int m, int i, int j) {
    if (packed && j <= i) return;
    const S* d = other + m * Tile::kMatrixStride;
    const S x = d[i * Tile::kResultStride + j] - conj(d[j * Tile::kResultStride + i]);
    grad_skew[m * stored + (packed ? packed_row(i, b) : i * b) + j] = scaled(x, scale);
  });
}

template <class S, int N>
cudaError_t launch_backward(const S* grad_q, const S* q, bool packed, int64_t batch, int b, S* grad_skew,
                            cudaStream_t stream) {
  using Tile = ProductTile<S, N>;
  constexpr int64_t kMatrices = Tile::kWarps * Tile::kMatrices;
  return launch(backward_kernel<S, N>, (batch + kMatrices - 1) / kMatrices, Tile::kWarps * kWarpSize,
                Tile::kWarps * Tile::kSharedBytes, stream, grad_q, q, packed, batch, b, grad_skew);
}

}  // namespace

template <class T>
cudaError_t cayley_backward_warp(const T* grad_q, const T* q, bool packed, int64_t batch, int64_t block_size,
                                 T* grad_skew, cudaStream_t stream) {
  using S = typename DeviceScalar<T>::type;
  const int b = int(block_size);
  const auto launcher = b <= 4    ? launch_backward<S, 4>
                        : b <= 8  ? launch_backward<S, 8>
                        : b <= 16 ? launch_backward<S, 16>
                                  : launch_backward<S, 32>;
  return launcher(device_scalars(grad_q), device_scalars(q), packed, batch, b, device_scalars(grad_skew),
                  stream);
}

#define HK_INSTANTIATE(T) \
  template cudaError_t cayley_backward_warp(const T*, const T*, bool, int64_t, int64_t, T*, cudaStream_t);
HK_INSTANTIATE(float)
HK_INSTANTIATE(double)
HK_INSTANTIATE(std::complex<float>)
HK_INSTANTIATE(std::complex<double>)

}  // namespace hybrid_kernels
