// What the bindings of all operators share: tensors to pointers, and the choice of the instruction set.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <complex>
#include <string>

#include "cpu_dispatch.h"

namespace hybrid_kernels {
namespace {

using at::Tensor;

// The instruction set that ATen's own kernels use, so that ATEN_CPU_CAPABILITY governs ours too.
template <class Task>
void run(const Task& task) {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return run_avx512(task);
  if (capability == "AVX2") return run_avx2(task);
#endif
  run_baseline(task);
}

template <class T>
struct StandardComplex {
  using type = T;
};
template <class R>
struct StandardComplex<c10::complex<R>> {
  using type = std::complex<R>;
};

template <class T>
const auto* input(const Tensor& tensor) {
  return reinterpret_cast<const typename StandardComplex<T>::type*>(tensor.const_data_ptr<T>());
}
template <class T>
auto* output(Tensor& tensor) {
  return reinterpret_cast<typename StandardComplex<T>::type*>(tensor.mutable_data_ptr<T>());
}

Tensor materialized(const Tensor& tensor) { return tensor.resolve_conj().resolve_neg().contiguous(); }

}  // namespace
}  // namespace hybrid_kernels
