// CPU kernels of the compact WY factors of a chain of Householder reflections: contiguous row-major arrays
// in, contiguous arrays out, no torch. T is float or double. The sums are carried out in double.
#pragma once

#include <cstdint>

namespace hybrid_kernels {

// v_i = u_i / ‖u_i‖ (0 where u_i = 0), t = (½ I + striu(vᵀv))⁻¹; u, v (features, reflections),
// t (reflections, reflections), reflections >= 1.
template <class T>
struct HouseholderForward {
  const T* u;
  int64_t features, reflections;
  T* v;
  T* t;
};

// The gradient with respect to u (0 where u_i = 0) from those with respect to v and t, either of which may be
// null for zero:
//     D = striu(−tᵀ grad_t tᵀ)    d = grad_v + v (D + Dᵀ)    grad_u_i = (d_i − v_i (v_i·d_i)) / ‖u_i‖
template <class T>
struct HouseholderBackward {
  const T* u;
  const T* v;
  const T* t;
  const T* grad_v;
  const T* grad_t;
  int64_t features, reflections;
  T* grad_u;
};

}  // namespace hybrid_kernels
