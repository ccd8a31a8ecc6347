// The gradient of the Cayley transform of matrices above 32 × 32, one of them in the registers of a block of
// threads.
//
// D = H G H with H = (I + Q)ᴴ; the gradient is −½ (D − Dᴴ), half of that for full input. Both products are
// sums over k of column k of the left factor times row k of the right one: first H G, from slabs of rows of Q
// and G, then (H G) H, whose left factor is kept in shared memory, from slabs of columns of Q.
#include "cayley_cuda_block.cuh"

namespace hybrid_kernels {
namespace {

template <class S, int N>
struct BlockProduct : BlockTile<S, N> {
  using Tile = BlockTile<S, N>;
  using Tile::kSide;
  using Tile::kStride;
  using Tile::kTile;
  // (H G)ᵀ, and two slabs, so that one can be written while the other is read. Before there is H G, two slabs
  // of each factor are in its place.
  static constexpr int kSharedBytes = (N * kStride + 2 * Tile::kSlab) * sizeof(S);
  static_assert(4 * Tile::kSlab <= N * kStride);

  S sum[kTile][kTile];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kTile; ++r)
#pragma unroll
      for (int c = 0; c < kTile; ++c) sum[r][c] = constant<S>(0);
  }

  // Adds the products of kSide columns of the left factor, stored as rows, and rows of the right one. A few
  // of them are summed first: that is fewer roundings of the long sum.
  __device__ __forceinline__ void add(const S* left, const S* right) {
    constexpr int kTogether = 4;
#pragma unroll 1
    for (int first = 0; first < kSide; first += kTogether) {
      S x[kTogether][kTile];
#pragma unroll
      for (int k = 0; k < kTogether; ++k)
#pragma unroll
        for (int r = 0; r < kTile; ++r) x[k][r] = left[(first + k) * kStride + this->row(r)];
#pragma unroll
      for (int c = 0; c < kTile; ++c) {
        S y[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k) y[k] = right[(first + k) * kStride + this->column(c)];
#pragma unroll
        for (int r = 0; r < kTile; ++r) {
          S partial = constant<S>(0);
#pragma unroll
          for (int k = 0; k < kTogether; ++k) add_product(partial, x[k][r], y[k]);
          sum[r][c] = sum[r][c] + partial;
        }
      }
    }
  }
};

template <class S, int N>
__global__ void __launch_bounds__(BlockTile<S, N>::kThreads, 1)
    backward_kernel(const S* __restrict__ grad_q, const S* __restrict__ q, bool packed, int b,
                    S* __restrict__ grad_skew) {
  using R = typename RealOf<S>::type;
  using Product = BlockProduct<S, N>;
  constexpr int kTile = Product::kTile, kSide = Product::kSide, kStride = Product::kStride,
                kSlab = Product::kSlab;
  Product product;
  const int down = product.down, across = product.across;
  grad_q += int64_t(blockIdx.x) * (b * b);
  q += int64_t(blockIdx.x) * (b * b);
  grad_skew += int64_t(blockIdx.x) * stored_size(packed, b);
  S* whole = reinterpret_cast<S*>(shared_memory);
  S* slabs = whole + N * kStride;

  product.clear();
  for (int first = 0; first < b; first += kSide) {
    S* left = whole + first / kSide % 2 * 2 * kSlab;  // rows of Hᵀ = conj(I + Q)
    S* right = left + kSlab;                          // rows of G
    const int k = first + down;
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
      const int j = product.column(c);
      const bool inside = k < b && j < b;
      left[down * kStride + j] = inside ? adjoint_factor(q[k * b + j], k == j) : constant<S>(0);
      right[down * kStride + j] = inside ? grad_q[k * b + j] : constant<S>(0);
    }
    __syncthreads();
    product.add(left, right);
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kTile; ++r)
#pragma unroll
    for (int c = 0; c < kTile; ++c) whole[product.column(c) * kStride + product.row(r)] = product.sum[r][c];

  product.clear();
  for (int first = 0; first < b; first += kSide) {
    S* right = slabs + first / kSide % 2 * kSlab;  // rows of H, from columns of Q
    const int k = first + across;
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const int j = product.row(r);
      right[across * kStride + j] = k < b && j < b ? adjoint_factor(q[j * b + k], k == j) : constant<S>(0);
    }
    __syncthreads();
    product.add(whole + first * kStride, right);
  }

  __syncthreads();
  product.subtract_adjoint(product.sum, slabs);
  const R scale = packed ? R(-0.5) : R(-0.25);
#pragma unroll
  for (int r = 0; r < kTile; ++r)
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
      const int i = product.row(r), j = product.column(c);
      if (i >= b || j >= b || (packed && j <= i)) continue;
      grad_skew[(packed ? packed_row(i, b) : i * b) + j] = scaled(product.sum[r][c], scale);
    }
}

template <class S, int N>
cudaError_t launch_backward(const S* grad_q, const S* q, bool packed, int64_t batch, int b, S* grad_skew,
                            cudaStream_t stream) {
  return launch(backward_kernel<S, N>, batch, BlockTile<S, N>::kThreads, BlockProduct<S, N>::kSharedBytes,
                stream, grad_q, q, packed, b, grad_skew);
}

}  // namespace

template <class T>
int64_t cayley_backward_max_block_cuda() {
  using S = typename DeviceScalar<T>::type;
  int device = 0, shared_bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return -1;
  if (cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return -1;
  if (shared_bytes >= BlockProduct<S, kBlockMax<S>>::kSharedBytes) return kBlockMax<S>;
  return shared_bytes >= BlockProduct<S, 64>::kSharedBytes ? 64 : kCayleyWarpMaxBlock;
}

template <class T>
cudaError_t cayley_backward_cuda(const T* grad_q, const T* q, bool packed, int64_t batch, int64_t block_size,
                                 T* grad_skew, cudaStream_t stream) {
  using S = typename DeviceScalar<T>::type;
  if (block_size > kBlockMax<S>) return cudaErrorInvalidValue;
  if (block_size <= kCayleyWarpMaxBlock)
    return cayley_backward_warp(grad_q, q, packed, batch, block_size, grad_skew, stream);
  const auto launcher = block_size <= 64 ? launch_backward<S, 64> : launch_backward<S, kBlockMax<S>>;
  return launcher(device_scalars(grad_q), device_scalars(q), packed, batch, int(block_size),
                  device_scalars(grad_skew), stream);
}

#define HK_INSTANTIATE(T)                               \
  template int64_t cayley_backward_max_block_cuda<T>(); \
  template cudaError_t cayley_backward_cuda(const T*, const T*, bool, int64_t, int64_t, T*, cudaStream_t);
HK_INSTANTIATE(float)
HK_INSTANTIATE(double)
HK_INSTANTIATE(std::complex<float>)
HK_INSTANTIATE(std::complex<double>)
#undef HK_INSTANTIATE

}  // namespace hybrid_kernels
