// The Cayley transform of torch tensors: the checks, which kernels take a batch, and the recursion for large blocks.
#pragma once

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "cayley_cpu.h"
#include "cayley_elements_cpu.h"
#include "torch_common.h"
#if defined(HYBRID_KERNELS_CUDA)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cayley_cuda.h"
#endif

#define HK_DISPATCH(dtype, name, ...) AT_DISPATCH_FLOATING_AND_COMPLEX_TYPES(dtype, name, [&] { __VA_ARGS__; })

namespace hybrid_kernels {
namespace {

void check_dtype(const Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kComplexFloat ||
                       dtype == at::kComplexDouble,
                   name, " must be float32, float64, complex64 or complex128, got ", dtype);
}

void check_square(const Tensor& tensor, const char* name) {
  check_dtype(tensor, name);
  TORCH_CHECK_VALUE(tensor.dim() >= 2 && tensor.size(-1) == tensor.size(-2) && tensor.size(-1) >= 1, name,
                    " must have shape (..., block_size, block_size) with block_size >= 1, got ", tensor.sizes());
}

// A device has the functions of `Cpu`, each for a contiguous batch: whole transforms of the blocks it takes, and the
// parts of the recursion for the others.
struct Cpu {
  // From this size on several threads may share a matrix in the recursion: where each has two of them or, below
  // kLargeBlock, four. A single one eliminating a matrix alone is hard to beat: forward, a matrix alone on one thread
  // took 0.5, 0.5, 0.7, 0.8 and 1.1 times as long as two threads needed for the recursion, at sizes 256, 384, 512, 1024
  // and 1536 in float32, and backward 0.9, 0.9, 1.0, 1.1 and 1.3 times (AMD Zen 5, MKL). More than two were not to be had.
  static constexpr int64_t kSharedMinBlock = 256;
  static constexpr int64_t kLargeBlock = 1024;
  static constexpr int64_t kLeaf = 64;

  explicit Cpu(const Tensor&) {}

  static bool takes(const Tensor&, int64_t batch, int64_t block_size) {
    return block_size < kSharedMinBlock || at::get_num_threads() < (block_size < kLargeBlock ? 4 : 2) * batch;
  }
  static bool takes_backward(const Tensor& q, int64_t batch, int64_t block_size) { return takes(q, batch, block_size); }
  static int64_t leaf(const Tensor&) { return kLeaf; }

  // Calls compute(begin, end) for ranges of the `batch` matrices, in parallel.
  template <class Compute>
  static void for_matrices(int64_t batch, int64_t block_size, const Compute& compute) {
    const int64_t group = block_size <= kCayleyGroupedMaxBlock ? kCayleyGroup : 1;
    const int64_t work = group * block_size * block_size * (block_size + 16);  // multiplications and moves per group
    const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE * 8 / work);
    at::parallel_for(0, (batch + group - 1) / group, grain, [&](int64_t begin, int64_t end) {
      compute(begin * group, std::min(end * group, batch));
    });
  }

  template <class T>
  static void forward(const T* skew, bool packed, int64_t batch, int64_t block_size, T* q) {
    for_matrices(batch, block_size, [&](int64_t begin, int64_t end) {
      run(CayleyForward<T>{skew, packed, block_size, q, begin, end});
    });
  }
  template <class T>
  static void backward(const T* grad_q, const T* q, bool packed, int64_t batch, int64_t block_size, T* grad_skew) {
    for_matrices(batch, block_size, [&](int64_t begin, int64_t end) {
      run(CayleyBackward<T>{grad_q, q, packed, block_size, grad_skew, begin, end});
    });
  }
  template <class T>
  static void expand(const T* skew, bool packed, int64_t batch, int64_t block_size, T* a, bool* beyond) {
    const int64_t area = block_size * block_size, stored = packed ? packed_size(block_size) : area;
    for (int64_t m = 0; m < batch; ++m)
      beyond[m] = cayley_expand(skew + m * stored, packed, block_size, a + m * area);
  }
  template <class T>
  static void shifted_inverse(T* c, int64_t batch, int64_t n, int64_t row_stride, int64_t batch_stride) {
    for_matrices(batch, n, [&](int64_t begin, int64_t end) {
      run(ShiftedInverse<T>{c, n, row_stride, batch_stride, begin, end});
    });
  }
  template <class T>
  static void pivoted(const T* skew, bool packed, int64_t batch, int64_t block_size, const bool* beyond, T* q) {
    for_matrices(batch, block_size, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m)
        if (beyond[m]) run(CayleyForward<T>{skew, packed, block_size, q, m, m + 1});
    });
  }
  template <class T>
  static void project(const T* d, bool packed, int64_t batch, int64_t block_size, T* grad_skew) {
    const int64_t area = block_size * block_size, stored = packed ? packed_size(block_size) : area;
    for (int64_t m = 0; m < batch; ++m)
      cayley_project(d + m * area, packed, block_size, grad_skew + m * stored);
  }
};

#if defined(HYBRID_KERNELS_CUDA)
struct Cuda {
  explicit Cuda(const Tensor& tensor) : guard(tensor.device()) {}
  c10::cuda::CUDAGuard guard;

  static cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream(); }
  static int64_t largest(int64_t block_size) {
    TORCH_CHECK(block_size > 0, "hybrid_kernels cannot ask the CUDA device for its shared memory");
    return block_size;
  }

  static int64_t leaf(const Tensor& like) {
    int64_t largest_block = 0;
    HK_DISPATCH(like.scalar_type(), "cayley",
                largest_block = largest(cayley_forward_max_block_cuda<typename StandardComplex<scalar_t>::type>()));
    return largest_block;
  }
  static bool takes(const Tensor& like, int64_t, int64_t block_size) { return block_size <= leaf(like); }
  static bool takes_backward(const Tensor& like, int64_t, int64_t block_size) {
    int64_t largest_block = 0;
    HK_DISPATCH(like.scalar_type(), "cayley",
                largest_block = largest(cayley_backward_max_block_cuda<typename StandardComplex<scalar_t>::type>()));
    return block_size <= largest_block;
  }

  template <class T>
  static void forward(const T* skew, bool packed, int64_t batch, int64_t block_size, T* q) {
    C10_CUDA_CHECK(cayley_forward_cuda(skew, packed, batch, block_size, q, stream()));
  }
  template <class T>
  static void backward(const T* grad_q, const T* q, bool packed, int64_t batch, int64_t block_size, T* grad_skew) {
    C10_CUDA_CHECK(cayley_backward_cuda(grad_q, q, packed, batch, block_size, grad_skew, stream()));
  }
  template <class T>
  static void expand(const T* skew, bool packed, int64_t batch, int64_t block_size, T* a, bool* beyond) {
    C10_CUDA_CHECK(cayley_expand_cuda(skew, packed, batch, block_size, a, beyond, stream()));
  }
  template <class T>
  static void shifted_inverse(T* c, int64_t batch, int64_t n, int64_t row_stride, int64_t batch_stride) {
    C10_CUDA_CHECK(shifted_inverse_cuda(c, batch, n, row_stride, batch_stride, stream()));
  }
  template <class T>
  static void pivoted(const T* skew, bool packed, int64_t batch, int64_t block_size, const bool* beyond, T* q) {
    C10_CUDA_CHECK(cayley_pivoted_cuda(skew, packed, batch, block_size, beyond, q, stream()));
  }
  template <class T>
  static void project(const T* d, bool packed, int64_t batch, int64_t block_size, T* grad_skew) {
    C10_CUDA_CHECK(cayley_project_cuda(d, packed, batch, block_size, grad_skew, stream()));
  }
};
#endif

// Replaces C (batch, n, n), a view with columns next to each other, by (I + C)⁻¹. With P = I + C₁₁, Z = P⁻¹ C₁₂,
// W = C₂₁ P⁻¹ and the Schur complement S = I + C₂₂ − C₂₁ Z, whose Hermitian part is at least I as well,
//
//   (I + C)⁻¹ = [ P⁻¹ + Z S⁻¹ W   −Z S⁻¹ ]
//               [ −S⁻¹ W           S⁻¹   ]
template <class Device>
void invert_by_blocks(const Tensor& c, int64_t leaf) {
  const int64_t n = c.size(-1);
  if (n <= leaf) {
    HK_DISPATCH(c.scalar_type(), "shifted_inverse",
                Device::shifted_inverse(
                    reinterpret_cast<typename StandardComplex<scalar_t>::type*>(c.mutable_data_ptr<scalar_t>()),
                    c.size(0), n, c.stride(1), c.stride(0)));
    return;
  }
  const int64_t first = std::max<int64_t>(n / 32 * 16, 16), second = n - first;
  const Tensor top = c.narrow(1, 0, first), bottom = c.narrow(1, first, second);
  Tensor c11 = top.narrow(2, 0, first), c12 = top.narrow(2, first, second);
  Tensor c21 = bottom.narrow(2, 0, first), c22 = bottom.narrow(2, first, second);
  invert_by_blocks<Device>(c11, leaf);
  const Tensor z = at::bmm(c11, c12), w = at::bmm(c21, c11);
  c22.baddbmm_(c21, z, 1, -1);
  invert_by_blocks<Device>(c22, leaf);
  at::baddbmm_out(c12, z, z, c22, 0, -1);
  at::baddbmm_out(c21, w, c22, w, 0, -1);
  c11.baddbmm_(c12, w, 1, -1);
}

template <class Device>
Tensor forward(const Tensor& skew, bool packed, int64_t block_size) {
  const Device device(skew);
  const Tensor source = materialized(skew);
  auto shape = skew.sizes().slice(0, skew.dim() - (packed ? 1 : 2)).vec();
  const int64_t batch = c10::multiply_integers(shape);
  shape.insert(shape.end(), {block_size, block_size});
  Tensor q = at::empty({batch, block_size, block_size}, source.options());
  if (batch == 0) return q.view(shape);
  if (Device::takes(source, batch, block_size)) {
    HK_DISPATCH(source.scalar_type(), "cayley_forward",
                Device::forward(input<scalar_t>(source), packed, batch, block_size, output<scalar_t>(q)));
    return q.view(shape);
  }
  Tensor a = at::empty_like(q), beyond = at::empty({batch}, source.options().dtype(at::kBool));
  bool* marks = beyond.mutable_data_ptr<bool>();
  HK_DISPATCH(source.scalar_type(), "cayley_expand",
              Device::expand(input<scalar_t>(source), packed, batch, block_size, output<scalar_t>(a), marks));
  q.copy_(a);
  invert_by_blocks<Device>(q, Device::leaf(q));
  // Q = 2 M − I with M = (I + A)⁻¹, and M − I = −M A = M Aᴴ: the diagonal of M itself has lost a small A to rounding.
  const Tensor excess = (q * a.conj_physical()).sum(-1);
  q.mul_(2);
  q.diagonal(0, -2, -1).copy_(1 + 2 * excess);
  HK_DISPATCH(source.scalar_type(), "cayley_pivoted",
              Device::pivoted(input<scalar_t>(source), packed, batch, block_size, marks, output<scalar_t>(q)));
  return q.view(shape);
}

template <class Device>
Tensor backward(const Tensor& grad_q, const Tensor& q, bool packed) {
  check_square(q, "q");
  TORCH_CHECK_VALUE(grad_q.sizes() == q.sizes(), "grad_q must have the shape of q, ", q.sizes(), ", got ",
                    grad_q.sizes());
  TORCH_CHECK_TYPE(grad_q.scalar_type() == q.scalar_type(), "grad_q must have the dtype of q, ", q.scalar_type(),
                   ", got ", grad_q.scalar_type());
  TORCH_CHECK_TYPE(grad_q.device() == q.device(), "grad_q must be on the device of q, ", q.device(), ", got ",
                   grad_q.device());
  const Device device(q);
  const int64_t block_size = q.size(-1), batch = q.numel() / (block_size * block_size);
  const Tensor upstream = materialized(grad_q), rotation = materialized(q);
  auto shape = q.sizes().vec();
  if (packed) {
    shape.pop_back();
    shape.back() = packed_size(block_size);
  }
  Tensor grad = at::empty(shape, rotation.options());
  if (grad.numel() == 0) return grad;
  if (Device::takes_backward(rotation, batch, block_size)) {
    HK_DISPATCH(rotation.scalar_type(), "cayley_backward",
                Device::backward(input<scalar_t>(upstream), input<scalar_t>(rotation), packed, batch, block_size,
                                 output<scalar_t>(grad)));
    return grad;
  }
  const Tensor g = upstream.view({batch, block_size, block_size});
  const Tensor adjoint = rotation.view(g.sizes()).mT().conj_physical();
  const Tensor half = at::baddbmm(g, g, adjoint);  // G (I + Q)ᴴ
  const Tensor d = at::baddbmm(half, adjoint, half);
  HK_DISPATCH(rotation.scalar_type(), "cayley_project",
              Device::project(input<scalar_t>(d), packed, batch, block_size, output<scalar_t>(grad)));
  return grad;
}

template <class Device>
Tensor cayley_forward(const Tensor& skew) {
  check_square(skew, "skew");
  return forward<Device>(skew, /*packed=*/false, skew.size(-1));
}

template <class Device>
Tensor cayley_packed_forward(const Tensor& packed, int64_t block_size) {
  check_dtype(packed, "packed");
  TORCH_CHECK_VALUE(block_size >= 1, "block_size must be at least 1, got ", block_size);
  const int64_t stored = packed_size(block_size);
  TORCH_CHECK_VALUE(packed.dim() >= 1 && packed.size(-1) == stored, "packed must have shape (..., ", stored,
                    ") for block_size ", block_size, ", got ", packed.sizes());
  return forward<Device>(packed, /*packed=*/true, block_size);
}

template <class Device>
Tensor cayley_backward(const Tensor& grad_q, const Tensor& q) {
  return backward<Device>(grad_q, q, /*packed=*/false);
}

template <class Device>
Tensor cayley_packed_backward(const Tensor& grad_q, const Tensor& q) {
  return backward<Device>(grad_q, q, /*packed=*/true);
}

}  // namespace
}  // namespace hybrid_kernels
