// One scalar per SIMD lane: the arithmetic type of the CPU kernels.
//
// `Lanes<T, Bytes>` holds Bytes / sizeof(real part) scalars of type T, complex ones as two registers (real
// and imaginary parts), so that complex arithmetic needs no shuffles. Written with the vector extensions of
// GCC and Clang.
#pragma once

#include <complex>
#include <cstdint>
#include <utility>

#if !defined(__GNUC__)
#error "csrc needs the vector extensions of GCC or Clang"
#endif

#define HK_INLINE inline __attribute__((always_inline))

namespace hybrid_kernels {
namespace {  // internal linkage, see block_algebra.h

template <class T>
struct ScalarTraits {
  using Real = T;
  static constexpr int planes = 1;  // real numbers per scalar
};
template <class R>
struct ScalarTraits<std::complex<R>> {
  using Real = R;
  static constexpr int planes = 2;
};

template <class T, int Bytes>
struct Lanes;

template <class R, int Bytes>
struct RealLanes {
  typedef R Vector __attribute__((vector_size(Bytes), may_alias));
  static constexpr int width = Bytes / static_cast<int>(sizeof(R));

  static HK_INLINE Vector load(const R* p) { return *reinterpret_cast<const Vector*>(p); }
  static HK_INLINE void store(R* p, Vector x) { *reinterpret_cast<Vector*>(p) = x; }
  static HK_INLINE Vector broadcast(R x) { return repeat(x, std::make_integer_sequence<int, width>()); }
  static HK_INLINE Vector abs(Vector x) { return x < 0 ? -x : x; }
  static HK_INLINE Vector max(Vector x, Vector y) { return x > y ? x : y; }
  // y in the lanes first..last, x in the others
  static HK_INLINE Vector blend(Vector x, int64_t first, int64_t last, Vector y) {
    const Vector lane = count(std::make_integer_sequence<int, width>());
    return (lane >= broadcast(R(first))) & (lane <= broadcast(R(last))) ? y : x;
  }

 private:
  template <int... kLane>
  static HK_INLINE Vector count(std::integer_sequence<int, kLane...>) {
    return Vector{R(kLane)...};
  }
  template <int... kLane>
  static HK_INLINE Vector repeat(R x, std::integer_sequence<int, kLane...>) {
    return Vector{(static_cast<void>(kLane), x)...};
  }
};

// In memory a Lanes value is `size` consecutive real numbers: `width` real parts, then (complex) `width`
// imaginary parts.
template <class T, int Bytes>
struct Lanes {
  using Base = RealLanes<T, Bytes>;
  using Real = T;
  static constexpr int width = Base::width, size = Base::width;
  typename Base::Vector re;

  static HK_INLINE Lanes load(const Real* p) { return {Base::load(p)}; }
  static HK_INLINE Lanes broadcast(Real real, Real) { return {Base::broadcast(real)}; }
  HK_INLINE void store(Real* p) const { Base::store(p, re); }
  HK_INLINE Lanes operator+(const Lanes& y) const { return {re + y.re}; }
  HK_INLINE Lanes operator-(const Lanes& y) const { return {re - y.re}; }
  HK_INLINE Lanes operator*(const Lanes& y) const { return {re * y.re}; }
  HK_INLINE Lanes scaled(Real s) const { return {re * s}; }
  HK_INLINE Lanes blend(int64_t first, int64_t last, const Lanes& y) const {
    return {Base::blend(re, first, last, y.re)};
  }
  HK_INLINE Lanes conj() const { return *this; }
  HK_INLINE Lanes reciprocal() const { return {Real(1) / re}; }
  HK_INLINE typename Base::Vector largest_part() const { return Base::abs(re); }
  HK_INLINE void add_product(const Lanes& x, const Lanes& y) { re += x.re * y.re; }
  HK_INLINE void subtract_product(const Lanes& x, const Lanes& y) { re -= x.re * y.re; }
};

template <class R, int Bytes>
struct Lanes<std::complex<R>, Bytes> {
  using Base = RealLanes<R, Bytes>;
  using Real = R;
  static constexpr int width = Base::width, size = 2 * Base::width;
  typename Base::Vector re, im;

  static HK_INLINE Lanes load(const Real* p) { return {Base::load(p), Base::load(p + width)}; }
  static HK_INLINE Lanes broadcast(Real real, Real imag) {
    return {Base::broadcast(real), Base::broadcast(imag)};
  }
  HK_INLINE void store(Real* p) const { Base::store(p, re), Base::store(p + width, im); }
  HK_INLINE Lanes operator+(const Lanes& y) const { return {re + y.re, im + y.im}; }
  HK_INLINE Lanes operator-(const Lanes& y) const { return {re - y.re, im - y.im}; }
  HK_INLINE Lanes operator*(const Lanes& y) const { return {re * y.re - im * y.im, re * y.im + im * y.re}; }
  HK_INLINE Lanes scaled(Real s) const { return {re * s, im * s}; }
  HK_INLINE Lanes blend(int64_t first, int64_t last, const Lanes& y) const {
    return {Base::blend(re, first, last, y.re), Base::blend(im, first, last, y.im)};
  }
  HK_INLINE Lanes conj() const { return {re, -im}; }
  HK_INLINE Lanes reciprocal() const {
    const auto inverse_norm = Real(1) / (re * re + im * im);
    return {re * inverse_norm, -im * inverse_norm};
  }
  HK_INLINE typename Base::Vector largest_part() const { return Base::max(Base::abs(re), Base::abs(im)); }
  HK_INLINE void add_product(const Lanes& x, const Lanes& y) {
    re += x.re * y.re;
    im += x.re * y.im;
    re -= x.im * y.im;
    im += x.im * y.re;
  }
  HK_INLINE void subtract_product(const Lanes& x, const Lanes& y) {
    re -= x.re * y.re;
    im -= x.re * y.im;
    re += x.im * y.im;
    im -= x.im * y.re;
  }
};

}  // namespace
}  // namespace hybrid_kernels
