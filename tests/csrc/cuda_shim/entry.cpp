// The functions of cayley_cuda.h for ctypes: `dtype` is 0 float, 1 double, 2 std::complex<float>, 3 std::complex<double>.
#include "cayley_cuda.h"

namespace hk = hybrid_kernels;

namespace {

template <class Function>
auto dispatch(int dtype, const Function& function) {
  if (dtype == 0) return function(float{});
  if (dtype == 1) return function(double{});
  if (dtype == 2) return function(std::complex<float>{});
  return function(std::complex<double>{});
}

}  // namespace

extern "C" {

int64_t forward_max_block(int dtype) {
  return dispatch(dtype, [&]<class T>(T) { return hk::cayley_forward_max_block_cuda<T>(); });
}

int64_t backward_max_block(int dtype) {
  return dispatch(dtype, [&]<class T>(T) { return hk::cayley_backward_max_block_cuda<T>(); });
}

int forward(int dtype, const void* skew, int packed, int64_t batch, int64_t block_size, void* q, cudaStream_t stream) {
  return dispatch(dtype, [&]<class T>(T) {
    return hk::cayley_forward_cuda(static_cast<const T*>(skew), packed != 0, batch, block_size, static_cast<T*>(q),
                                   stream);
  });
}

int backward(int dtype, const void* grad_q, const void* q, int packed, int64_t batch, int64_t block_size,
             void* grad_skew, cudaStream_t stream) {
  return dispatch(dtype, [&]<class T>(T) {
    return hk::cayley_backward_cuda(static_cast<const T*>(grad_q), static_cast<const T*>(q), packed != 0, batch,
                                    block_size, static_cast<T*>(grad_skew), stream);
  });
}

int expand(int dtype, const void* skew, int packed, int64_t batch, int64_t block_size, void* a, bool* beyond,
           cudaStream_t stream) {
  return dispatch(dtype, [&]<class T>(T) {
    return hk::cayley_expand_cuda(static_cast<const T*>(skew), packed != 0, batch, block_size, static_cast<T*>(a),
                                  beyond, stream);
  });
}

int shifted_inverse(int dtype, void* c, int64_t batch, int64_t n, int64_t row_stride, int64_t batch_stride,
                    cudaStream_t stream) {
  return dispatch(dtype, [&]<class T>(T) {
    return hk::shifted_inverse_cuda(static_cast<T*>(c), batch, n, row_stride, batch_stride, stream);
  });
}

int pivoted(int dtype, const void* skew, int packed, int64_t batch, int64_t block_size, const bool* beyond, void* q,
            cudaStream_t stream) {
  return dispatch(dtype, [&]<class T>(T) {
    return hk::cayley_pivoted_cuda(static_cast<const T*>(skew), packed != 0, batch, block_size, beyond,
                                   static_cast<T*>(q), stream);
  });
}

int project(int dtype, const void* d, int packed, int64_t batch, int64_t block_size, void* grad_skew,
            cudaStream_t stream) {
  return dispatch(dtype, [&]<class T>(T) {
    return hk::cayley_project_cuda(static_cast<const T*>(d), packed != 0, batch, block_size,
                                   static_cast<T*>(grad_skew), stream);
  });
}

}  // extern "C"
