// Binds the kernels of the truncated Cayley–Neumann series to torch.
#pragma once

#include <algorithm>
#include <vector>

#include "neumann_cpu.h"
#include "torch_common.h"

namespace hybrid_kernels {
namespace {

void check_neumann(const Tensor& packed, int64_t b, at::ArrayRef<double> coefficients) {
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kFloat || packed.scalar_type() == at::kDouble,
                   "packed must be float32 or float64, got ", packed.scalar_type());
  TORCH_CHECK_VALUE(b >= 1, "block_size must be at least 1, got ", b);
  TORCH_CHECK_VALUE(packed.dim() >= 1 && packed.size(-1) == b * (b - 1) / 2, "packed must have shape (..., ",
                    b * (b - 1) / 2, "), b(b - 1)/2 of the block size ", b, ", got ", packed.sizes());
  TORCH_CHECK_VALUE(!coefficients.empty(), "coefficients must not be empty");
}

// Calls visit(begin, end) for ranges of `matrices`, each of `products` products of b × b matrices.
template <class Visit>
void parallel_matrices(int64_t matrices, int64_t products, int64_t b, const Visit& visit) {
  constexpr int64_t kGrain = int64_t{1} << 17;  // multiplications that are worth a thread of their own
  at::parallel_for(0, matrices, kGrain / std::max<int64_t>(1, (products + 1) * b * b * b) + 1, visit);
}

Tensor neumann_forward_cpu(const Tensor& packed, int64_t b, at::ArrayRef<double> coefficients) {
  check_neumann(packed, b, coefficients);
  const Tensor source = materialized(packed);
  std::vector<int64_t> shape(packed.sizes().begin(), packed.sizes().end() - 1);
  const int64_t matrices = c10::multiply_integers(shape);
  shape.insert(shape.end(), {b, b});
  Tensor r = at::empty(shape, source.options());
  const int64_t degree = static_cast<int64_t>(coefficients.size()) - 1;
  AT_DISPATCH_FLOATING_TYPES(packed.scalar_type(), "neumann_forward", [&] {
    parallel_matrices(matrices, degree / 2, b, [&](int64_t begin, int64_t end) {
      run(NeumannForward<scalar_t>{input<scalar_t>(source), b, coefficients.data(), degree, output<scalar_t>(r), begin,
                                   end});
    });
  });
  return r;
}

Tensor neumann_backward_cpu(const Tensor& grad_r, const Tensor& packed, at::ArrayRef<double> coefficients) {
  TORCH_CHECK_VALUE(grad_r.dim() == packed.dim() + 1 && grad_r.size(-1) == grad_r.size(-2) &&
                        grad_r.sizes().slice(0, grad_r.dim() - 2) == packed.sizes().slice(0, packed.dim() - 1),
                    "grad_r must have shape (..., b, b) for packed (..., b(b - 1)/2), got ", grad_r.sizes());
  const int64_t b = grad_r.size(-1);
  check_neumann(packed, b, coefficients);
  TORCH_CHECK_TYPE(grad_r.scalar_type() == packed.scalar_type(), "grad_r must have the dtype of packed, ",
                   packed.scalar_type(), ", got ", grad_r.scalar_type());
  const Tensor upstream = materialized(grad_r), source = materialized(packed);
  const int64_t matrices = c10::multiply_integers(packed.sizes().slice(0, packed.dim() - 1));
  Tensor gradient = at::empty(packed.sizes(), source.options());
  const int64_t degree = static_cast<int64_t>(coefficients.size()) - 1;
  AT_DISPATCH_FLOATING_TYPES(packed.scalar_type(), "neumann_backward", [&] {
    parallel_matrices(matrices, degree, b, [&](int64_t begin, int64_t end) {
      run(NeumannBackward<scalar_t>{input<scalar_t>(upstream), input<scalar_t>(source), b, coefficients.data(), degree,
                                    output<scalar_t>(gradient), begin, end});
    });
  });
  return gradient;
}

}  // namespace
}  // namespace hybrid_kernels
