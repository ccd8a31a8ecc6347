// The Cayley kernels in the instructions that every machine of the target architecture has.
#include "cayley_cpu_kernels.h"

namespace hybrid_kernels {

template <class Task>
void cayley_baseline(const Task& task) {
  run<16>(task);
}
HK_INSTANTIATE_CAYLEY(cayley_baseline)

}  // namespace hybrid_kernels
