// The Cayley kernels in AVX-512 instructions.
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

#include "cayley_cpu_kernels.h"

namespace hybrid_kernels {

template <class Task>
void cayley_avx512(const Task& task) {
  run<64>(task);
}
HK_INSTANTIATE_CAYLEY(cayley_avx512)

}  // namespace hybrid_kernels

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
