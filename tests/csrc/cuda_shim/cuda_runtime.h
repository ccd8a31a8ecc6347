// Stands in for CUDA's header of this name: kernels are functions of the host, whose threads are run by scheduler.cpp.
//
// What threads wait for is told apart by the line of the call, so threads that meet at different barriers are found.
#pragma once

#include <math.h>

#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>

#include "cuda_runtime_api.h"

struct alignas(16) float4 {
  float x, y, z, w;
};

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

namespace shim {

using Location = std::source_location;

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread);
cudaError_t set_shared_limit(const void* kernel, int bytes);
// Waits for all threads of the block; whether `value` is nonzero in any of them.
bool wait_for_block(const char* what, bool value, Location where);
// Waits for the lanes of `mask`; what the lane `source` has given, or, for source < 0, whether `value` is nonzero in
// any of them.
uint64_t wait_for_warp(const char* what, unsigned mask, uint64_t value, int source, Location where);
int lane();

template <class V>
V shuffle(const char* what, unsigned mask, V value, int source, Location where) {
  static_assert(sizeof(V) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(V));
  bits = wait_for_warp(what, mask, bits, source & 31, where);
  std::memcpy(&value, &bits, sizeof(V));
  return value;
}

}  // namespace shim

inline void __syncthreads(shim::Location where = shim::Location::current()) {
  shim::wait_for_block("__syncthreads", false, where);
}
inline int __syncthreads_or(int value, shim::Location where = shim::Location::current()) {
  return shim::wait_for_block("__syncthreads_or", value != 0, where);
}
inline void __syncwarp(unsigned mask = 0xffffffff, shim::Location where = shim::Location::current()) {
  shim::wait_for_warp("__syncwarp", mask, 0, -1, where);
}
inline int __any_sync(unsigned mask, int value, shim::Location where = shim::Location::current()) {
  return static_cast<int>(shim::wait_for_warp("__any_sync", mask, value != 0, -1, where));
}
template <class V>
V __shfl_sync(unsigned mask, V value, int source, shim::Location where = shim::Location::current()) {
  return shim::shuffle("__shfl_sync", mask, value, source, where);
}
template <class V>
V __shfl_xor_sync(unsigned mask, V value, int with, shim::Location where = shim::Location::current()) {
  return shim::shuffle("__shfl_xor_sync", mask, value, shim::lane() ^ with, where);
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  return shim::set_shared_limit(reinterpret_cast<const void*>(kernel), value);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> bound(arguments...);
  return shim::launch(*config, reinterpret_cast<const void*>(kernel), [&] { std::apply(kernel, bound); });
}
