// The Cayley kernels in AVX2 instructions.
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include "cayley_cpu_kernels.h"

namespace hybrid_kernels {

template <class Task>
void cayley_avx2(const Task& task) {
  run<32>(task);
}
HK_INSTANTIATE_CAYLEY(cayley_avx2)

}  // namespace hybrid_kernels

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
