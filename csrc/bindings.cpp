// Binds the kernels to torch: the operators of the library `hybrid_kernels_cpp`. The only file here that
// knows torch. No autograd and no fake implementations: hybrid_kernels/ops registers those around these
// calls.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <Python.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <type_traits>

#include "cayley_cpu.h"

namespace hybrid_kernels {
namespace {

using at::Tensor;

// The instruction set that ATen's own kernels use, so that ATEN_CPU_CAPABILITY governs ours too.
template <class Task>
void run(const Task& task) {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return cayley_avx512(task);
  if (capability == "AVX2") return cayley_avx2(task);
#endif
  cayley_baseline(task);
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

void check_dtype(const Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kComplexFloat ||
                       dtype == at::kComplexDouble,
                   name, " must be float32, float64, complex64 or complex128, got ", dtype);
}

void check_square(const Tensor& tensor, const char* name) {
  check_dtype(tensor, name);
  TORCH_CHECK_VALUE(tensor.dim() >= 2 && tensor.size(-1) == tensor.size(-2) && tensor.size(-1) >= 1, name,
                    " must have shape (..., block_size, block_size) with block_size >= 1, got ",
                    tensor.sizes());
}

Tensor materialized(const Tensor& tensor) { return tensor.resolve_conj().resolve_neg().contiguous(); }

// Calls compute(begin, end) for ranges of the `batch` matrices, in parallel.
template <class Compute>
void for_matrices(int64_t batch, int64_t block_size, const Compute& compute) {
  const int64_t group = block_size <= kCayleyGroupedMaxBlock ? kCayleyGroup : 1;
  const int64_t work =
      group * block_size * block_size * (block_size + 16);  // multiplications and moves per group
  const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE * 8 / work);
  at::parallel_for(0, (batch + group - 1) / group, grain,
                   [&](int64_t begin, int64_t end) { compute(begin * group, std::min(end * group, batch)); });
}

Tensor forward(const Tensor& skew, bool packed, int64_t block_size) {
  const Tensor source = materialized(skew);
  auto shape = skew.sizes().slice(0, skew.dim() - (packed ? 1 : 2)).vec();
  shape.insert(shape.end(), {block_size, block_size});
  Tensor q = at::empty(shape, source.options());
  const int64_t batch = q.numel() / (block_size * block_size);
  AT_DISPATCH_FLOATING_AND_COMPLEX_TYPES(source.scalar_type(), "cayley_forward", [&] {
    const auto* from = input<scalar_t>(source);
    auto* to = output<scalar_t>(q);
    for_matrices(batch, block_size, [&](int64_t begin, int64_t end) {
      run(CayleyForward<std::remove_pointer_t<decltype(to)>>{from, packed, block_size, to, begin, end});
    });
  });
  return q;
}

Tensor backward(const Tensor& grad_q, const Tensor& q, bool packed) {
  check_square(q, "q");
  TORCH_CHECK_VALUE(grad_q.sizes() == q.sizes(), "grad_q must have the shape of q, ", q.sizes(), ", got ",
                    grad_q.sizes());
  TORCH_CHECK_TYPE(grad_q.scalar_type() == q.scalar_type(), "grad_q must have the dtype of q, ",
                   q.scalar_type(), ", got ", grad_q.scalar_type());
  const int64_t block_size = q.size(-1);
  const Tensor upstream = materialized(grad_q), rotation = materialized(q);
  auto shape = q.sizes().vec();
  if (packed) {
    shape.pop_back();
    shape.back() = block_size * (block_size - 1) / 2;
  }
  Tensor grad = at::empty(shape, rotation.options());
  const int64_t batch = q.numel() / (block_size * block_size);
  AT_DISPATCH_FLOATING_AND_COMPLEX_TYPES(rotation.scalar_type(), "cayley_backward", [&] {
    const auto *from = input<scalar_t>(upstream), *result = input<scalar_t>(rotation);
    auto* to = output<scalar_t>(grad);
    for_matrices(batch, block_size, [&](int64_t begin, int64_t end) {
      run(CayleyBackward<std::remove_pointer_t<decltype(to)>>{from, result, packed, block_size, to, begin,
                                                              end});
    });
  });
  return grad;
}

Tensor cayley_forward_cpu(const Tensor& skew) {
  check_square(skew, "skew");
  return forward(skew, /*packed=*/false, skew.size(-1));
}

Tensor cayley_packed_forward_cpu(const Tensor& packed, int64_t block_size) {
  check_dtype(packed, "packed");
  TORCH_CHECK_VALUE(block_size >= 1, "block_size must be at least 1, got ", block_size);
  const int64_t stored = block_size * (block_size - 1) / 2;
  TORCH_CHECK_VALUE(packed.dim() >= 1 && packed.size(-1) == stored, "packed must have shape (..., ", stored,
                    ") for block_size ", block_size, ", got ", packed.sizes());
  return forward(packed, /*packed=*/true, block_size);
}

Tensor cayley_backward_cpu(const Tensor& grad_q, const Tensor& q) {
  return backward(grad_q, q, /*packed=*/false);
}

Tensor cayley_packed_backward_cpu(const Tensor& grad_q, const Tensor& q) {
  return backward(grad_q, q, /*packed=*/true);
}

}  // namespace

TORCH_LIBRARY(hybrid_kernels_cpp, m) {
  m.def("cayley_forward(Tensor skew) -> Tensor");
  m.def("cayley_packed_forward(Tensor packed, int block_size) -> Tensor");
  m.def("cayley_backward(Tensor grad_q, Tensor q) -> Tensor");
  m.def("cayley_packed_backward(Tensor grad_q, Tensor q) -> Tensor");
}

TORCH_LIBRARY_IMPL(hybrid_kernels_cpp, CPU, m) {
  m.impl("cayley_forward", &cayley_forward_cpu);
  m.impl("cayley_packed_forward", &cayley_packed_forward_cpu);
  m.impl("cayley_backward", &cayley_backward_cpu);
  m.impl("cayley_packed_backward", &cayley_packed_backward_cpu);
}

}  // namespace hybrid_kernels

// Importing hybrid_kernels._C loads this library, and its static initialisers register the operators; the
// module is empty.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
