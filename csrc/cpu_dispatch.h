// The CPU kernels compiled for each instruction set.
#pragma once

namespace hybrid_kernels {

// Task is one of the structures of the *_cpu.h whose kernels are in *_cpu_kernels.h.
template <class Task>
void run_baseline(const Task& task);
template <class Task>
void run_avx2(const Task& task);
template <class Task>
void run_avx512(const Task& task);

}  // namespace hybrid_kernels
