// What the CUDA kernels share: scalars, shuffles, shared memory and launches.
#pragma once

#include <cuda_runtime.h>

#include <complex>
#include <cstdint>

namespace hybrid_kernels {

// ---- scalars ----

// A complex number with the layout of std::complex<R>, loaded and stored as a whole.
template <class R>
struct alignas(2 * sizeof(R)) Complex {
  R re, im;
};

// The device's type for a T of the interface.
template <class T>
struct DeviceScalar {
  using type = T;
};
template <class R>
struct DeviceScalar<std::complex<R>> {
  using type = Complex<R>;
};

template <class S>
struct RealOf {
  using type = S;
};
template <class R>
struct RealOf<Complex<R>> {
  using type = R;
};

template <class S>
constexpr bool kIsComplex = false;
template <class R>
constexpr bool kIsComplex<Complex<R>> = true;

#define HK_DEVICE __host__ __device__ __forceinline__

template <class S>
HK_DEVICE S constant(typename RealOf<S>::type x) {
  if constexpr (kIsComplex<S>) {
    return S{x, 0};
  } else {
    return x;
  }
}

template <class R>
HK_DEVICE Complex<R> operator+(Complex<R> x, Complex<R> y) {
  return {x.re + y.re, x.im + y.im};
}
template <class R>
HK_DEVICE Complex<R> operator-(Complex<R> x, Complex<R> y) {
  return {x.re - y.re, x.im - y.im};
}
template <class R>
HK_DEVICE Complex<R> operator-(Complex<R> x) {
  return {-x.re, -x.im};
}
// acc += x · y and acc −= x · y, by fused multiply-adds: the compiler is left no choice, so that the same
// formula gives the same bits wherever it is compiled.
template <class S>
HK_DEVICE void add_product(S& acc, S x, S y) {
  if constexpr (kIsComplex<S>) {
    add_product(acc.re, x.re, y.re);
    add_product(acc.im, x.re, y.im);
    add_product(acc.re, -x.im, y.im);
    add_product(acc.im, x.im, y.re);
  } else if constexpr (sizeof(S) == sizeof(float)) {
    acc = fmaf(x, y, acc);
  } else {
    acc = fma(x, y, acc);
  }
}
template <class S>
HK_DEVICE void subtract_product(S& acc, S x, S y) {
  add_product(acc, -x, y);
}

template <class R>
HK_DEVICE Complex<R> operator*(Complex<R> x, Complex<R> y) {
  Complex<R> product = {0, 0};
  add_product(product, x, y);
  return product;
}

template <class S>
HK_DEVICE S conj(S x) {
  if constexpr (kIsComplex<S>) {
    return {x.re, -x.im};
  } else {
    return x;
  }
}

template <class S>
HK_DEVICE S scaled(S x, typename RealOf<S>::type factor) {
  if constexpr (kIsComplex<S>) {
    return {x.re * factor, x.im * factor};
  } else {
    return x * factor;
  }
}

template <class S>
HK_DEVICE S reciprocal(S x) {
  using R = typename RealOf<S>::type;
  if constexpr (kIsComplex<S>) {
    R norm = x.re * x.re;
    add_product(norm, x.im, x.im);
    const R inverse_norm = R(1) / norm;
    return {x.re * inverse_norm, -x.im * inverse_norm};
  } else {
    return R(1) / x;
  }
}

template <class R>
HK_DEVICE R absolute(R x) {
  return x < 0 ? -x : x;
}
// The larger one; NaN if one of them is NaN.
template <class R>
HK_DEVICE R larger(R x, R y) {
  return x > y || x != x ? x : y;
}

template <class S>
HK_DEVICE typename RealOf<S>::type largest_part(S x) {
  if constexpr (kIsComplex<S>) {
    return larger(absolute(x.re), absolute(x.im));
  } else {
    return absolute(x);
  }
}
// |re| + |im|, to choose a pivot by.
template <class S>
HK_DEVICE typename RealOf<S>::type magnitude(S x) {
  if constexpr (kIsComplex<S>) {
    return absolute(x.re) + absolute(x.im);
  } else {
    return absolute(x);
  }
}

// ---- shuffles: every lane of the warp takes part ----

constexpr unsigned kWholeWarp = 0xffffffff;

template <class S>
__device__ __forceinline__ S shuffle_xor(S x, int mask) {
  if constexpr (kIsComplex<S>) {
    return {shuffle_xor(x.re, mask), shuffle_xor(x.im, mask)};
  } else {
    return __shfl_xor_sync(kWholeWarp, x, mask);
  }
}

// ---- launches ----

// All shared memory is dynamic: its size depends on the block size of the matrices.
extern __shared__ __align__(16) unsigned char shared_memory[];

constexpr int64_t kMaxBlocks = 0x7fffffff;
constexpr int64_t kSharedBytesWithoutAsking = 48 * 1024;

// Runs `kernel` in `blocks` blocks of `threads` threads, not at all for blocks == 0. Returns the first error.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks < 0 || blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  if (shared_bytes > kSharedBytesWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  const cudaError_t pending = cudaGetLastError();
  return error != cudaSuccess ? error : pending;
}

}  // namespace hybrid_kernels
