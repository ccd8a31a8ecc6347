// CPU kernels of the Cayley transform: contiguous arrays in, contiguous arrays out, no torch.
#pragma once

#include <complex>
#include <cstdint>

#include "cayley.h"

namespace hybrid_kernels {

// Blocks up to this size are computed together, kCayleyGroup consecutive matrices at a time; ranges of
// matrices should then begin at a multiple of it.
constexpr int64_t kCayleyGroupedMaxBlock = 16;
constexpr int64_t kCayleyGroup = 16;

// Matrices [begin, end) of a batch: Q = (I − A)(I + A)⁻¹, b × b, for the skew-Hermitian A that `skew`
// describes: either a full matrix whose skew-Hermitian part is taken, or (packed) the strict upper triangle
// row by row, b(b−1)/2 values, with a zero diagonal. T is float, double, std::complex<float> or
// std::complex<double>. A result depends on its own matrix alone, bit for bit.
template <class T>
struct CayleyForward {
  const T* skew;
  bool packed;
  int64_t block_size;
  T* q;
  int64_t begin, end;
};

// The gradient with respect to `skew`, from the gradient with respect to Q and Q itself (both b × b): the
// skew-Hermitian part of dA = −½ (I + Q)ᴴ G (I + Q)ᴴ or, packed, dA[i,j] − conj(dA[j,i]) for i < j.
template <class T>
struct CayleyBackward {
  const T* grad_q;
  const T* q;
  bool packed;
  int64_t block_size;
  T* grad_skew;
  int64_t begin, end;
};

// What larger blocks are made of, whose products are left to the caller (cayley_torch.h).

// Replaces C by (I + C)⁻¹, without pivoting, for any C such that the Hermitian part of I + C is at least I. C is
// n × n, its rows `row_stride` apart and its columns next to each other, the matrices `batch_stride` apart.
template <class T>
struct ShiftedInverse {
  T* c;
  int64_t n, row_stride, batch_stride;
  int64_t begin, end;
};

}  // namespace hybrid_kernels
