// The Cayley transform of matrices above 32 × 32 in the registers of a block of threads, and inverses without
// pivoting.
//
// Q = 2 (I + A)⁻¹ − I by Gauss–Jordan elimination in place, whose steps are those of cayley_cuda_warp.cu.
// Pivot rows and columns go through shared memory. Without pivoting a few steps are taken at once, what they
// subtract being summed first: that is fewer roundings of the entries. When kSide columns are done, each
// thread moves its columns, and without pivoting its rows, one place down, so that the pivot's are always at
// 0 and the loop over them stays a loop; after kTile moves all are back.
#include "cayley_cuda_block.cuh"

namespace hybrid_kernels {
namespace {

template <class S, int N>
struct BlockElimination : BlockTile<S, N> {
  using Tile = BlockTile<S, N>;
  using R = typename RealOf<S>::type;
  using Tile::across;
  using Tile::down;
  using Tile::kSide;
  using Tile::kTile;
  using Tile::row;

  // Steps taken at once. For double there are no registers for more.
  static constexpr int kPanel = sizeof(R) == 8 && !kIsComplex<S> ? 2 : 4;
  static constexpr int kLines = 2 * kPanel * N;  // the pivot rows of a panel and its columns
  static constexpr int kWork = 2 * (kLines > Tile::kSlab ? kLines : Tile::kSlab);
  static constexpr int kSharedBytes = (kWork + N) * sizeof(S) + 2 * N * sizeof(int);

  S x[kTile][kTile];
  // Shared memory. The slabs and the lines, of which there are two each, so that one can be written while the
  // other is read, take the same place.
  S* slabs = reinterpret_cast<S*>(shared_memory);
  S* lines = slabs;
  S* scale = slabs + kWork;                        // what each row has to be multiplied by in the end
  int* place = reinterpret_cast<int*>(scale + N);  // with pivoting: the step that each row was the pivot of,
  int* pivot_row = place + N;                      // and the pivot row of each step

  // One panel: steps k₀ to k₀ + kPanel − 1, whose rows and columns the threads at `step` and the next ones
  // have.
  template <bool kLessIdentity>
  __device__ __forceinline__ void eliminate_panel(int k0, int step) {
    S* rows = lines + step / kPanel % 2 * kLines;
    S* columns = rows + kPanel * N;
    const int own_row = down - step, own_column = across - step;  // in the panel, if from 0 to kPanel − 1
    const bool owns_column = own_column >= 0 && own_column < kPanel;
    if (own_row >= 0 && own_row < kPanel) {
#pragma unroll
      for (int c = 0; c < kTile; ++c) rows[own_row * N + this->column(c)] = x[0][c];
    }
    if (owns_column) {
#pragma unroll
      for (int r = 0; r < kTile; ++r) columns[own_column * N + row(r)] = x[r][0];
    }
    __syncthreads();

    // The panel's own block: above the diagonal it becomes the pivot rows as they are used, below the
    // multiples of these that are subtracted from the next ones.
    S block[kPanel][kPanel], pivot[kPanel];
#pragma unroll
    for (int s = 0; s < kPanel; ++s)
#pragma unroll
      for (int t = 0; t < kPanel; ++t) block[s][t] = rows[s * N + step + t];
#pragma unroll
    for (int t = 0; t < kPanel; ++t) {
      pivot[t] = reciprocal(constant<S>(1) + block[t][t]);
#pragma unroll
      for (int s = t + 1; s < kPanel; ++s) {
        block[s][t] = block[s][t] * pivot[t];
#pragma unroll
        for (int u = t + 1; u < kPanel; ++u) subtract_product(block[s][u], block[s][t], block[t][u]);
      }
    }

    // Column k of step k is replaced: it starts from 0, in the pivot row from what becomes of the diagonal,
    // and the pivot row has a 1 in it.
    if (owns_column) {
#pragma unroll
      for (int r = 0; r < kTile; ++r) x[r][0] = constant<S>(0);
#pragma unroll
      for (int t = 0; t < kPanel; ++t)
        if (own_row == t && own_column == t) {
          x[0][0] = kLessIdentity ? -block[t][t] : constant<S>(1);
          scale[k0 + t] = pivot[t];
        }
    }

    S g[kPanel][kTile];  // the multiples that are subtracted from this thread's rows
#pragma unroll
    for (int r = 0; r < kTile; ++r)
#pragma unroll
      for (int t = 0; t < kPanel; ++t) {
        S f = columns[t * N + row(r)];
#pragma unroll
        for (int s = 0; s < t; ++s) subtract_product(f, g[s][r], block[s][t]);
        g[t][r] = r == 0 && own_row == t ? constant<S>(0) : f * pivot[t];
      }

#pragma unroll
    for (int c = 0; c < kTile; ++c) {
      S p[kPanel];
#pragma unroll
      for (int t = 0; t < kPanel; ++t) {
        p[t] = rows[t * N + this->column(c)];
        if (c == 0 && owns_column) p[t] = constant<S>(own_column == t);
#pragma unroll
        for (int s = 0; s < t; ++s) subtract_product(p[t], block[t][s], p[s]);
      }
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        S sum = constant<S>(0);
#pragma unroll
        for (int t = 0; t < kPanel; ++t) add_product(sum, g[t][r], p[t]);
        x[r][c] = x[r][c] - sum;
      }
    }
  }

  // Replaces C by (I + C)⁻¹ or, kLessIdentity, by (I + C)⁻¹ − I, but for `scale`: see BlockAlgebra::invert. Steps
  // past b are those of the identity.
  template <bool kLessIdentity>
  __device__ __forceinline__ void invert(int b) {
#pragma unroll 1
    for (int first = 0; first < N; first += kSide) {
#pragma unroll 1
      for (int step = 0; step < kSide && first + step < b; step += kPanel)
        eliminate_panel<kLessIdentity>(first + step, step);
      S moved[kTile][kTile];
#pragma unroll
      for (int r = 0; r < kTile; ++r)
#pragma unroll
        for (int c = 0; c < kTile; ++c) moved[r][c] = x[(r + 1) % kTile][(c + 1) % kTile];
#pragma unroll
      for (int r = 0; r < kTile; ++r)
#pragma unroll
        for (int c = 0; c < kTile; ++c) x[r][c] = moved[r][c];
    }
    __syncthreads();
  }

  // Replaces A by (I + A)⁻¹ but for `scale`, `place` and `pivot_row`.
  __device__ __forceinline__ void invert_pivoted(int b) {
    constexpr int kRowsOfLane = N / kWarpSize;
    const int lane = threadIdx.x % kWarpSize;
    unsigned used = 0;  // bit i: row lane + 32 i
#pragma unroll
    for (int r = 0; r < kTile; ++r)
      if (down == across) x[r][r] = x[r][r] + constant<S>(1);
#pragma unroll 1
    for (int first = 0; first < N; first += kSide) {
      for (int step = 0; step < kSide && first + step < b; ++step) {
        S* line = lines + step % 2 * kLines;
        S* column = line + N;
        if (across == step) {
#pragma unroll
          for (int r = 0; r < kTile; ++r) column[row(r)] = x[r][0];
        }
        __syncthreads();
        // Every warp looks for the largest entry; NaN counts as infinite, so that they all find the same.
        R best = -1;
        int best_row = 0;
#pragma unroll
        for (int i = 0; i < kRowsOfLane; ++i) {
          const int candidate = lane + i * kWarpSize;
          if (candidate >= b || (used >> i & 1)) continue;
          R size = magnitude(column[candidate]);
          if (size != size) size = R(INFINITY);
          if (size > best) best = size, best_row = candidate;
        }
#pragma unroll
        for (int mask = 1; mask < kWarpSize; mask *= 2) {
          const R other = shuffle_xor(best, mask);
          const int other_row = shuffle_xor(best_row, mask);
          if (other > best || (other == best && other_row < best_row)) best = other, best_row = other_row;
        }
        if (best_row % kWarpSize == lane) used |= 1u << best_row / kWarpSize;

        const int holder = best_row / kSide;
        if (down == best_row % kSide) {
#pragma unroll
          for (int c = 0; c < kTile; ++c) {
            S p = x[0][c];
#pragma unroll
            for (int r = 1; r < kTile; ++r) p = r == holder ? x[r][c] : p;
            line[this->column(c)] = p;
          }
        }
        __syncthreads();
        const S pivot = reciprocal(line[step]);
        S g[kTile];
#pragma unroll
        for (int r = 0; r < kTile; ++r) g[r] = row(r) == best_row ? constant<S>(0) : column[row(r)] * pivot;
        if (across == step) {
#pragma unroll
          for (int r = 0; r < kTile; ++r) x[r][0] = constant<S>(row(r) == best_row);
        }
#pragma unroll
        for (int c = 0; c < kTile; ++c) {
          const S p = c == 0 && across == step ? constant<S>(1) : line[this->column(c)];
#pragma unroll
          for (int r = 0; r < kTile; ++r) subtract_product(x[r][c], g[r], p);
        }
        if (down == best_row % kSide && across == step) {
          scale[best_row] = pivot;
          place[best_row] = first + step;
          pivot_row[first + step] = best_row;
        }
      }
      S moved[kTile];
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
#pragma unroll
        for (int c = 0; c < kTile; ++c) moved[c] = x[r][(c + 1) % kTile];
#pragma unroll
        for (int c = 0; c < kTile; ++c) x[r][c] = moved[c];
      }
    }
    __syncthreads();
  }
};

template <class S, int N>
__global__ void __launch_bounds__(BlockTile<S, N>::kThreads, 1)
    forward_kernel(const S* __restrict__ skew, bool packed, int b, typename RealOf<S>::type limit,
                   S* __restrict__ q) {
  using R = typename RealOf<S>::type;
  using Elimination = BlockElimination<S, N>;
  constexpr int kTile = Elimination::kTile;
  Elimination e;
  skew += int64_t(blockIdx.x) * stored_size(packed, b);
  q += int64_t(blockIdx.x) * (b * b);
#pragma unroll
  for (int r = 0; r < kTile; ++r)
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
      const int i = e.row(r), j = e.column(c);
      e.x[r][c] = i < b && j < b ? skew_entry(skew, packed, b, i, j) : constant<S>(0);
    }
  e.subtract_adjoint(e.x, e.slabs);
  R largest = 0;
#pragma unroll
  for (int r = 0; r < kTile; ++r)
#pragma unroll
    for (int c = 0; c < kTile; ++c) largest = larger(largest, largest_part(e.x[r][c]));

  const bool pivoted = __syncthreads_or(largest > limit);
  if (pivoted) {
    e.invert_pivoted(b);
  } else {
    e.template invert<true>(b);
  }
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    if (e.row(r) >= b) continue;
    const S scale = e.scale[e.row(r)];
    const int i = pivoted ? e.place[e.row(r)] : e.row(r);
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
      if (e.column(c) >= b) continue;
      const int j = pivoted ? e.pivot_row[e.column(c)] : e.column(c);
      S y = scaled(e.x[r][c] * scale, R(2));
      if (i == j) y = y + constant<S>(pivoted ? -1 : 1);
      q[i * b + j] = y;
    }
  }
}

template <class S, int N>
__global__ void __launch_bounds__(BlockTile<S, N>::kThreads, 1)
    shifted_inverse_kernel(S* matrix, int n, int64_t row_stride, int64_t batch_stride) {
  using Elimination = BlockElimination<S, N>;
  constexpr int kTile = Elimination::kTile;
  Elimination e;
  matrix += int64_t(blockIdx.x) * batch_stride;
#pragma unroll
  for (int r = 0; r < kTile; ++r)
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
      const int i = e.row(r), j = e.column(c);
      e.x[r][c] = i < n && j < n ? matrix[i * row_stride + j] : constant<S>(0);
    }
  e.template invert<false>(n);
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    if (e.row(r) >= n) continue;
    const S scale = e.scale[e.row(r)];
#pragma unroll
    for (int c = 0; c < kTile; ++c)
      if (e.column(c) < n) matrix[e.row(r) * row_stride + e.column(c)] = e.x[r][c] * scale;
  }
}

template <class S, int N>
cudaError_t launch_forward(const S* skew, bool packed, int64_t batch, int b, S* q, cudaStream_t stream) {
  return launch(forward_kernel<S, N>, batch, BlockTile<S, N>::kThreads, BlockElimination<S, N>::kSharedBytes,
                stream, skew, packed, b, cayley_unpivoted_limit(b), q);
}

template <class S, int N>
cudaError_t launch_inverse(S* c, int64_t batch, int n, int64_t row_stride, int64_t batch_stride,
                           cudaStream_t stream) {
  return launch(shifted_inverse_kernel<S, N>, batch, BlockTile<S, N>::kThreads,
                BlockElimination<S, N>::kSharedBytes, stream, c, n, row_stride, batch_stride);
}

}  // namespace

template <class T>
int64_t cayley_forward_max_block_cuda() {
  return kBlockMax<typename DeviceScalar<T>::type>;
}

template <class T>
cudaError_t cayley_forward_cuda(const T* skew, bool packed, int64_t batch, int64_t block_size, T* q,
                                cudaStream_t stream) {
  using S = typename DeviceScalar<T>::type;
  if (block_size > kBlockMax<S>) return cudaErrorInvalidValue;
  if (block_size <= kCayleyWarpMaxBlock)
    return cayley_forward_warp(skew, packed, batch, block_size, q, stream);
  const auto launcher = block_size <= 64 ? launch_forward<S, 64> : launch_forward<S, kBlockMax<S>>;
  return launcher(device_scalars(skew), packed, batch, int(block_size), device_scalars(q), stream);
}

template <class T>
cudaError_t shifted_inverse_cuda(T* c, int64_t batch, int64_t n, int64_t row_stride, int64_t batch_stride,
                                 cudaStream_t stream) {
  using S = typename DeviceScalar<T>::type;
  if (n > kBlockMax<S>) return cudaErrorInvalidValue;
  const auto launcher = n <= 64 ? launch_inverse<S, 64> : launch_inverse<S, kBlockMax<S>>;
  return launcher(device_scalars(c), batch, int(n), row_stride, batch_stride, stream);
}

#define HK_INSTANTIATE(T)                                                                       \
  template int64_t cayley_forward_max_block_cuda<T>();                                          \
  template cudaError_t cayley_forward_cuda(const T*, bool, int64_t, int64_t, T*, cudaStream_t); \
  template cudaError_t shifted_inverse_cuda(T*, int64_t, int64_t, int64_t, int64_t, cudaStream_t);
HK_INSTANTIATE(float)
HK_INSTANTIATE(double)
HK_INSTANTIATE(std::complex<float>)
HK_INSTANTIATE(std::complex<double>)
#undef HK_INSTANTIATE

}  // namespace hybrid_kernels
