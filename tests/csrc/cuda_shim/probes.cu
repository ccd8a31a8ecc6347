// Kernels that are wrong in one way each, and right ones beside them, for the tests of the shim.
#include "cuda_common.cuh"

namespace hybrid_kernels {
namespace {

enum Probe {
  kReverse,            // right: x reversed in shared memory
  kNoBarrier,          // the same without the barrier between writing and reading
  kWarpSums,           // right: prefix sums in a warp, by __syncwarp
  kNoWarpBarrier,      // the same without the barrier before writing
  kAheadOfOthers,      // a warp goes through its own barriers while another has yet to read
  kEndedThread,        // a thread ends while the others wait
  kDifferentBarriers,  // threads meet at different barriers
  kDifferentKinds,     // half a warp waits for its warp, the other half for the block
  kOutsideMask,        // a lane shuffles with a mask that lacks it
  kReadsOutsideMask,   // a lane reads one that takes no part
  kLanesApart,         // lanes of one mask meet at different shuffles
  kWritesPastEnd,      // one byte past the shared memory
  kReadsPastEnd,       // one value past the shared memory
  kReadsUnwritten,
  kReadsLastBlock,     // what an earlier block left in shared memory
  kMisaligned,         // a float4 at an address of a float
  kPastLocalArray,
  kShuffles,           // right: every shuffle and vote
};

__global__ void probe(int what, float* x, int index) {
  float* shared = reinterpret_cast<float*>(shared_memory);
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x), warp = t / 32, lane = t % 32;
  x += static_cast<int64_t>(blockIdx.x) * n;
  if (what == kReverse || what == kNoBarrier) {
    shared[t] = x[t];
    if (what == kReverse) __syncthreads();
    x[t] = shared[n - 1 - t];
  } else if (what == kWarpSums || what == kNoWarpBarrier) {
    shared[t] = x[t];
    for (int distance = 1; distance < 32; distance *= 2) {
      __syncwarp();
      const float other = lane >= distance ? shared[t - distance] : 0;
      if (what == kWarpSums) __syncwarp();
      shared[t] += other;
    }
    x[t] = shared[t];
  } else if (what == kAheadOfOthers) {
    if (warp == 0) shared[lane] = x[t];
    __syncthreads();
    const float read = shared[lane];
    __syncwarp();
    if (warp == 0) shared[lane] = -read;
    x[t] = read;
  } else if (what == kEndedThread) {
    if (t != 3) __syncthreads();
  } else if (what == kDifferentBarriers) {
    if (t == 0)
      __syncthreads();
    else
      __syncthreads();
  } else if (what == kDifferentKinds) {
    if (lane < 16)
      __syncwarp();
    else
      __syncthreads();
  } else if (what == kOutsideMask) {
    x[t] = __shfl_sync(0xfffffffe, x[t], 1);
  } else if (what == kReadsOutsideMask) {
    if (lane < 16) x[t] = __shfl_xor_sync(0x0000ffff, x[t], 16);
  } else if (what == kLanesApart) {
    if (lane < 16)
      x[t] = __shfl_sync(kWholeWarp, x[t], 0);
    else
      x[t] = shuffle_xor(x[t], 1);
  } else if (what == kWritesPastEnd) {
    if (t == 0) shared_memory[n * sizeof(float)] = 0;
  } else if (what == kReadsPastEnd) {
    shared[t] = x[t];
    __syncthreads();
    x[t] = shared[t + 1];
  } else if (what == kReadsUnwritten) {
    x[t] = shared[t];
  } else if (what == kReadsLastBlock) {
    if (blockIdx.x == 0) shared[t] = x[t];
    __syncthreads();
    x[t] = shared[t];
  } else if (what == kMisaligned) {
    x[t] = reinterpret_cast<float4*>(shared + 1)->w;
  } else if (what == kPastLocalArray) {
    float local[4] = {x[t], x[t], x[t], x[t]};
    x[t] = local[index];
  } else if (what == kShuffles) {
    const Complex<double> z = {x[t], t + 0.5};
    const Complex<double> y = shuffle_xor(z, 1);
    const double mirrored = __shfl_sync(kWholeWarp, z.re, 31 - lane);
    const bool octet = __any_sync(0xff << lane / 8 * 8, t == 5 || t == 40);
    x[t] = static_cast<float>(mirrored + y.re + 100 * y.im) + (octet ? 0.25f : 0) +
           (__syncthreads_or(t == 40) ? 0.125f : 0);
  }
}

}  // namespace
}  // namespace hybrid_kernels

extern "C" int run_probe(int what, float* x, int64_t blocks, int threads, int64_t shared_bytes, int index,
                         cudaStream_t stream) {
  return hybrid_kernels::launch(hybrid_kernels::probe, blocks, threads, shared_bytes, stream, what, x, index);
}
