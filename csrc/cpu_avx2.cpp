// The CPU kernels in AVX2 instructions.
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
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
void run_avx2(const Task& task) {
  run<32>(task);
}
HK_INSTANTIATE_BUTTERFLY(run_avx2)
HK_INSTANTIATE_CAYLEY(run_avx2)
HK_INSTANTIATE_HOUSEHOLDER(run_avx2)
HK_INSTANTIATE_NEUMANN(run_avx2)
HK_INSTANTIATE_SCALING(run_avx2)
HK_INSTANTIATE_SKINNY(run_avx2)

}  // namespace hybrid_kernels

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
