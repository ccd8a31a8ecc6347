// What the CPU and the CUDA kernels of the Cayley transform share.
#pragma once

#include <cstdint>

namespace hybrid_kernels {

// Elimination without pivoting is stable while the entries of A are moderate: its pivots have real part >= 1, but
// intermediate entries can grow to ‖A‖². A matrix with a real or imaginary part above this limit is eliminated with
// row pivoting. Largest mean error, relative to torch.linalg.solve in float32, of unpivoted elimination over dense,
// sparse, graded and rank-two A of sizes 2 to 128: 2.1 up to the limit, 2.7 up to twice, 6.8 up to four times; of
// sizes 256 to 1024: 1.8 up to the limit.
constexpr double cayley_unpivoted_limit(int64_t block_size) { return block_size < 8 ? 2.0 : 4.0; }

#if defined(__CUDACC__)
#define HK_BOTH __host__ __device__
#else
#define HK_BOTH
#endif

// Values in the strict upper triangle of a block, and the position of element (i, j), i < j, in it: row by row.
HK_BOTH constexpr int64_t packed_size(int64_t block_size) { return block_size * (block_size - 1) / 2; }
HK_BOTH constexpr int64_t packed_position(int64_t block_size, int64_t i, int64_t j) {
  return i * (2 * block_size - i - 1) / 2 + j - i - 1;
}

}  // namespace hybrid_kernels
