// CPU kernels of the truncated Cayley–Neumann series (hybrid_kernels/ops/cayley_neumann.py has the formulas): no torch.
#pragma once

#include <cstdint>

namespace hybrid_kernels {

// Matrices [begin, end) of a batch: R = Σ_k coefficients[k] Aᵏ, b × b, k ≤ degree, of the skew-symmetric A whose strict
// upper triangle `packed` is, row by row. A result depends on its own matrix alone, bit for bit.
template <class T>
struct NeumannForward {
  const T* packed;
  int64_t block_size;
  const double* coefficients;
  int64_t degree;
  T* r;
  int64_t begin, end;
};

// The gradient with respect to `packed`, from that with respect to R.
template <class T>
struct NeumannBackward {
  const T* grad_r;
  const T* packed;
  int64_t block_size;
  const double* coefficients;
  int64_t degree;
  T* grad_packed;
  int64_t begin, end;
};

}  // namespace hybrid_kernels
