// The CPU kernels in the instructions that every machine of the target architecture has.
#include "butterfly_cpu_kernels.h"
#include "cayley_cpu_kernels.h"
#include "cpu_dispatch.h"
#include "householder_cpu_kernels.h"
#include "neumann_cpu_kernels.h"
#include "scaling_cpu_kernels.h"
#include "skinny_cpu_kernels.h"

namespace hybrid_kernels {

template <class Task>
void run_baseline(const Task& task) {
  run<16>(task);
}
HK_INSTANTIATE_BUTTERFLY(run_baseline)
HK_INSTANTIATE_CAYLEY(run_baseline)
HK_INSTANTIATE_HOUSEHOLDER(run_baseline)
HK_INSTANTIATE_NEUMANN(run_baseline)
HK_INSTANTIATE_SCALING(run_baseline)
HK_INSTANTIATE_SKINNY(run_baseline)

}  // namespace hybrid_kernels
