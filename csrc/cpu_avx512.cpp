// The CPU kernels in AVX-512 instructions.
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif

#include "butterfly_cpu_kernels.h"
#include "cayley_cpu_kernels.h"
#include "cpu_dispatch.h"
#include "householder_cpu_kernels.h"
#include "neumann_cpu_kernels.h"
#include "scaling_cpu_kernels.h"
#include "skinny_cpu_kernels.h"

namespace hybrid_kernels {

template <class Task>
void run_avx512(const Task& task) {
  run<64>(task);
}
HK_INSTANTIATE_BUTTERFLY(run_avx512)
HK_INSTANTIATE_CAYLEY(run_avx512)
HK_INSTANTIATE_HOUSEHOLDER(run_avx512)
HK_INSTANTIATE_NEUMANN(run_avx512)
HK_INSTANTIATE_SCALING(run_avx512)
HK_INSTANTIATE_SKINNY(run_avx512)

}  // namespace hybrid_kernels

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
