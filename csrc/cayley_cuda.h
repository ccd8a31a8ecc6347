// CUDA kernels of the Cayley transform: contiguous device arrays in, contiguous device arrays out, no torch.
//
// T is float, double, std::complex<float> or std::complex<double>. Every function puts its kernels on `stream`, on the
// current device, and returns the error of the launches, cudaSuccess for an empty batch without launching any. A
// result depends on its own matrix alone, bit for bit. The conventions are those of cayley_cpu.h.
#pragma once

#include <cuda_runtime_api.h>

#include <complex>
#include <cstdint>

#include "cayley.h"

namespace hybrid_kernels {

// The largest block_size that cayley_forward_cuda (and shifted_inverse_cuda) and cayley_backward_cuda take: 128, or 64
// for std::complex<double>, what the registers of one block of threads hold. The backward also needs shared memory: where
// the current device grants a block of threads too little, it is 64 or 32. Negative if the device cannot be asked.
template <class T>
int64_t cayley_forward_max_block_cuda();
template <class T>
int64_t cayley_backward_max_block_cuda();

// Q of `batch` matrices. Those with an entry above the limit are eliminated with row pivoting, the others without.
template <class T>
cudaError_t cayley_forward_cuda(const T* skew, bool packed, int64_t batch, int64_t block_size, T* q,
                                cudaStream_t stream);

// The gradient with respect to `skew`.
template <class T>
cudaError_t cayley_backward_cuda(const T* grad_q, const T* q, bool packed, int64_t batch, int64_t block_size,
                                 T* grad_skew, cudaStream_t stream);

// What larger blocks are made of, whose products are left to the caller.

// A (batch, b, b), and for each matrix whether an entry of it is above the limit.
template <class T>
cudaError_t cayley_expand_cuda(const T* skew, bool packed, int64_t batch, int64_t block_size, T* a, bool* beyond,
                               cudaStream_t stream);

// Replaces C by (I + C)⁻¹, without pivoting, for any C such that the Hermitian part of I + C is at least I. C is
// n × n, its rows `row_stride` apart and its columns next to each other, the matrices `batch_stride` apart.
template <class T>
cudaError_t shifted_inverse_cuda(T* c, int64_t batch, int64_t n, int64_t row_stride, int64_t batch_stride,
                                 cudaStream_t stream);

// Q, by row pivoting, of those matrices that are marked `beyond`; the others stay as they are. Any block_size.
template <class T>
cudaError_t cayley_pivoted_cuda(const T* skew, bool packed, int64_t batch, int64_t block_size, const bool* beyond,
                                T* q, cudaStream_t stream);

// The gradient with respect to `skew` from D = (I + Q)ᴴ G (I + Q)ᴴ (batch, b, b): projected, scaled by −½ and packed.
template <class T>
cudaError_t cayley_project_cuda(const T* d, bool packed, int64_t batch, int64_t block_size, T* grad_skew,
                                cudaStream_t stream);

}  // namespace hybrid_kernels
