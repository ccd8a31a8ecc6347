// What the Cayley transform of large blocks needs besides matrix products and inverses of small blocks.
//
// Skew part:  Y[i,j] = factor · (X[i,j] − conj X[j,i]), which makes A of the input and the gradient of D.
// Pivoted:    Q = 2 (I + A)⁻¹ − I by Gauss–Jordan elimination with row pivoting, in place in Q; for the few matrices
//             whose entries are too large to go without.
#include "cayley_cuda_kernels.cuh"

namespace hybrid_kernels {
namespace {

constexpr int kTile = 32;
constexpr int kTileRows = 4;  // of a tile, for each thread
constexpr int kTileThreads = kTile * kTile / kTileRows;
constexpr int kPivotedThreads = 512;
constexpr int kPivotedWarps = kPivotedThreads / kWarpSize;

// A block of any size has offsets of 64 bits.
// A block has a tile of the upper triangle, with the tile opposite: (tiles (tiles + 1) / 2) · batch blocks. Rows of both
// are read and written along the row; the opposite tile is transposed in shared memory. X and Y are full or packed; of
// packed X, Y is a copy. `beyond`, unless null, is set for a matrix with an entry of Y above `limit`.
template <class S>
__global__ void __launch_bounds__(kTileThreads)
    skew_part(const S* x, bool packed_x, S* y, bool packed_y, int64_t b, typename RealOf<S>::type factor,
              typename RealOf<S>::type limit, bool* beyond) {
  S(*opposite)[kTile + 1] = reinterpret_cast<S(*)[kTile + 1]>(shared_memory);
  const int64_t tiles = (b + kTile - 1) / kTile, pairs = tiles * (tiles + 1) / 2, matrix = blockIdx.x / pairs;
  int64_t tile_row = 0, tile_column = blockIdx.x % pairs;
  for (; tile_column >= tiles - tile_row; ++tile_row) tile_column -= tiles - tile_row;
  tile_column += tile_row;
  x += matrix * (packed_x ? packed_size(b) : b * b);
  y += matrix * (packed_y ? packed_size(b) : b * b);
  const int across = threadIdx.x % kTile, down = threadIdx.x / kTile * kTileRows;

  if (!packed_x) {
    for (int r = down; r < down + kTileRows; ++r) {
      const int64_t i = tile_column * kTile + r, j = tile_row * kTile + across;
      if (i < b && j < b) opposite[r][across] = x[i * b + j];
    }
    __syncthreads();
  }
  S value[kTileRows];
  bool above = false;
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t i = tile_row * kTile + down + r, j = tile_column * kTile + across;
    value[r] = constant<S>(0);
    if (j >= b || i > j) continue;
    if (!packed_x) {
      value[r] = scaled(x[i * b + j] - conj(opposite[across][down + r]), factor);
    } else if (i < j) {
      value[r] = x[packed_position(b, i, j)];
    }
    above |= !(largest_part(value[r]) <= limit);
    if (packed_y && i < j) y[packed_position(b, i, j)] = value[r];
    if (!packed_y) y[i * b + j] = value[r];
  }
  if (beyond != nullptr && __syncthreads_or(above) && threadIdx.x == 0) beyond[matrix] = true;
  if (packed_y) return;

  // Nobody else has read what a thread writes over here.
#pragma unroll
  for (int r = 0; r < kTileRows; ++r) opposite[across][down + r] = -conj(value[r]);
  __syncthreads();
  for (int r = down; r < down + kTileRows; ++r) {
    const int64_t i = tile_column * kTile + r, j = tile_row * kTile + across;
    if (i < b && j < i) y[i * b + j] = opposite[r][across];
  }
}

template <class S>
cudaError_t launch_skew_part(const S* x, bool packed_x, S* y, bool packed_y, int64_t batch, int64_t b, double factor,
                             double limit, bool* beyond, cudaStream_t stream) {
  const int64_t tiles = (b + kTile - 1) / kTile;
  return launch(skew_part<S>, batch * (tiles * (tiles + 1) / 2), kTileThreads, kTile * (kTile + 1) * sizeof(S),
                stream, x, packed_x, y, packed_y, b, factor, limit, beyond);
}

// A block has a matrix. Shared memory: the candidates of the warps for the next pivot, and the b pivots.
template <class S>
__global__ void __launch_bounds__(kPivotedThreads)
    pivoted(const S* skew, bool packed, int64_t b, const bool* beyond, S* q) {
  using R = typename RealOf<S>::type;
  const int64_t matrix = blockIdx.x;
  if (!beyond[matrix]) return;
  skew += matrix * (packed ? packed_size(b) : b * b);
  q += matrix * b * b;
  R* largest = reinterpret_cast<R*>(shared_memory);
  int* at = reinterpret_cast<int*>(largest + kPivotedWarps);
  int* pivots = at + kPivotedWarps;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  for (int64_t i = warp; i < b; i += kPivotedWarps)
    for (int64_t j = lane; j < b; j += kWarpSize) {
      S a = constant<S>(0);
      if (!packed) {
        a = scaled(skew[i * b + j] - conj(skew[j * b + i]), R(0.5));
      } else if (i < j) {
        a = skew[packed_position(b, i, j)];
      } else if (i > j) {
        a = -conj(skew[packed_position(b, j, i)]);
      }
      q[i * b + j] = a + constant<S>(i == j);
    }
  __syncthreads();

  for (int64_t k = 0; k < b; ++k) {
    // The first row with the largest entry in column k, or row k if there are only NaN.
    R most = -1;
    int best = static_cast<int>(k);
    const auto consider = [&](R candidate, int row) {
      if (candidate > most || (candidate == most && row < best)) most = candidate, best = row;
    };
    for (int64_t i = k + threadIdx.x; i < b; i += kPivotedThreads)
      consider(magnitude(q[i * b + k]), static_cast<int>(i));
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2)
      consider(shuffle_xor(most, mask), shuffle_xor(best, mask));
    if (lane == 0) largest[warp] = most, at[warp] = best;
    __syncthreads();
    for (int w = 0; w < kPivotedWarps; ++w) consider(largest[w], at[w]);
    if (threadIdx.x == 0) pivots[k] = best;

    S* pivot_row = q + k * b;
    S* best_row = q + best * b;
    const S pivot = reciprocal(best_row[k]);
    __syncthreads();
    for (int64_t j = threadIdx.x; j < b; j += kPivotedThreads) {
      const S x = pivot_row[j], y = best_row[j];
      best_row[j] = x;
      pivot_row[j] = j == k ? pivot : y * pivot;
    }
    __syncthreads();
    for (int64_t i = warp; i < b; i += kPivotedWarps) {
      if (i == k) continue;
      S* row = q + i * b;
      const S factor = row[k];
      __syncwarp();
      for (int64_t j = lane; j < b; j += kWarpSize) {
        S x = j == k ? constant<S>(0) : row[j];
        subtract_product(x, factor, pivot_row[j]);
        row[j] = x;
      }
    }
    __syncthreads();
  }

  // Row exchanges of a matrix are column exchanges of its inverse.
  for (int64_t i = threadIdx.x; i < b; i += kPivotedThreads)
    for (int64_t k = b - 1; k >= 0; --k)
      if (pivots[k] != k) {
        const S x = q[i * b + k];
        q[i * b + k] = q[i * b + pivots[k]];
        q[i * b + pivots[k]] = x;
      }
  __syncthreads();
  for (int64_t i = warp; i < b; i += kPivotedWarps)
    for (int64_t j = lane; j < b; j += kWarpSize) q[i * b + j] = scaled(q[i * b + j], R(2)) - constant<S>(i == j);
}

}  // namespace

template <class T>
cudaError_t cayley_expand_cuda(const T* skew, bool packed, int64_t batch, int64_t block_size, T* a, bool* beyond,
                               cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  const cudaError_t error = cudaMemsetAsync(beyond, 0, static_cast<size_t>(batch), stream);
  if (error != cudaSuccess) return error;
  return launch_skew_part(device_scalars(skew), packed, device_scalars(a), /*packed_y=*/false, batch, block_size,
                          0.5, cayley_unpivoted_limit(block_size), beyond, stream);
}

template <class T>
cudaError_t cayley_project_cuda(const T* d, bool packed, int64_t batch, int64_t block_size, T* grad_skew,
                                cudaStream_t stream) {
  return launch_skew_part(device_scalars(d), /*packed_x=*/false, device_scalars(grad_skew), packed, batch,
                          block_size, packed ? -0.5 : -0.25, 0.0, nullptr, stream);
}

template <class T>
cudaError_t cayley_pivoted_cuda(const T* skew, bool packed, int64_t batch, int64_t block_size, const bool* beyond,
                                T* q, cudaStream_t stream) {
  using S = typename DeviceScalar<T>::type;
  using R = typename RealOf<S>::type;
  const int64_t shared_bytes = kPivotedWarps * (sizeof(R) + sizeof(int)) + block_size * sizeof(int);
  return launch(pivoted<S>, batch, kPivotedThreads, shared_bytes, stream, device_scalars(skew), packed, block_size,
                beyond, device_scalars(q));
}

#define HK_INSTANTIATE(T)                                                                              \
  template cudaError_t cayley_expand_cuda(const T*, bool, int64_t, int64_t, T*, bool*, cudaStream_t);  \
  template cudaError_t cayley_project_cuda(const T*, bool, int64_t, int64_t, T*, cudaStream_t);        \
  template cudaError_t cayley_pivoted_cuda(const T*, bool, int64_t, int64_t, const bool*, T*, cudaStream_t);
HK_INSTANTIATE(float)
HK_INSTANTIATE(double)
HK_INSTANTIATE(std::complex<float>)
HK_INSTANTIATE(std::complex<double>)
#undef HK_INSTANTIATE

}  // namespace hybrid_kernels
