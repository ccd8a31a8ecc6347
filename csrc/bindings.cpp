// Binds the kernels to torch: the operators of the library `hybrid_kernels_cpp`. This file and the *_torch.h it
// includes are the only ones here that know torch. No autograd and no fake implementations: hybrid_kernels/ops registers
// those around these calls.

#include <Python.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "butterfly_torch.h"
#include "cayley_torch.h"
#include "dropout_cpu.h"
#include "householder_cpu.h"
#include "hybrid_cpu.h"
#include "neumann_torch.h"
#include "scaling_torch.h"
#include "skinny_cpu.h"
#include "torch_common.h"

namespace hybrid_kernels {
namespace {

void check_matrix(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must have the dtype of u, ", dtype, ", got ",
                   tensor.scalar_type());
}

void check_reflections(const Tensor& u) {
  TORCH_CHECK_VALUE(u.dim() == 2, "u must have shape (in_features, reflections), got ", u.sizes());
  TORCH_CHECK_TYPE(u.scalar_type() == at::kFloat || u.scalar_type() == at::kDouble,
                   "u must be float32 or float64, got ", u.scalar_type());
}

std::tuple<Tensor, Tensor> householder_forward_cpu(const Tensor& u) {
  check_reflections(u);
  const Tensor source = materialized(u);
  const int64_t features = u.size(0), reflections = u.size(1);
  Tensor v = at::empty(u.sizes(), source.options());
  Tensor t = at::empty({reflections, reflections}, source.options());
  if (reflections == 0) return {v, t};
  AT_DISPATCH_FLOATING_TYPES(source.scalar_type(), "householder_forward", [&] {
    run(HouseholderForward<scalar_t>{input<scalar_t>(source), features, reflections, output<scalar_t>(v),
                                     output<scalar_t>(t)});
  });
  return {v, t};
}

Tensor householder_backward_cpu(const Tensor& u, const Tensor& v, const Tensor& t,
                                const std::optional<Tensor>& grad_v, const std::optional<Tensor>& grad_t) {
  check_reflections(u);
  const int64_t features = u.size(0), reflections = u.size(1);
  const auto dtype = u.scalar_type();
  check_matrix(v, "v", u.sizes(), dtype);
  check_matrix(t, "t", {reflections, reflections}, dtype);
  if (grad_v) check_matrix(*grad_v, "grad_v", u.sizes(), dtype);
  if (grad_t) check_matrix(*grad_t, "grad_t", t.sizes(), dtype);
  const Tensor source = materialized(u), unit = materialized(v), triangle = materialized(t);
  const Tensor upstream_v = grad_v ? materialized(*grad_v) : Tensor();
  const Tensor upstream_t = grad_t ? materialized(*grad_t) : Tensor();
  Tensor grad_u = at::empty(u.sizes(), source.options());
  if (grad_u.numel() == 0) return grad_u;
  AT_DISPATCH_FLOATING_TYPES(dtype, "householder_backward", [&] {
    run(HouseholderBackward<scalar_t>{input<scalar_t>(source), input<scalar_t>(unit),
                                      input<scalar_t>(triangle),
                                      grad_v ? input<scalar_t>(upstream_v) : nullptr,
                                      grad_t ? input<scalar_t>(upstream_t) : nullptr, features, reflections,
                                      output<scalar_t>(grad_u)});
  });
  return grad_u;
}

// Multiplications that are worth a thread of their own.
constexpr int64_t kSkinnyGrain = int64_t{1} << 18;

void check_factor(const Tensor& tensor, const char* name, at::IntArrayRef shape, const Tensor& like) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type(), name, " must have dtype ", like.scalar_type(),
                   ", got ", tensor.scalar_type());
}

void check_rows(const Tensor& tensor, const char* name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, name,
                   " must be float32 or float64, got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 2, name, " must have two dimensions, got shape ", tensor.sizes());
}

template <class T>
Strided<const T> strided(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1)};
}

// out = left · right, or source + left · right; right is packed, so it is the factor to be small.
void skinny_product(const Tensor& left_like, const Tensor& right_like, const Tensor& source_like, Tensor& out) {
  Tensor left = left_like.resolve_neg();
  const Tensor right = right_like.resolve_neg();
  const int64_t rows = left.size(0), inner = left.size(1), columns = right.size(1);
  const bool along_inner = inner <= 1 || left.stride(1) == 1;
  if (!along_inner && rows > 1 && left.stride(0) != 1) left = left.contiguous();
  const bool transposed = left.stride(1) != 1 && inner > 1;
  Tensor source;
  if (source_like.defined()) {
    source = source_like.resolve_neg();
    if (columns > 1 && source.stride(1) != 1) source = source.contiguous();
  }
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "skinny_product", [&] {
    Tensor packed = right;
    if (columns != kSkinnyPanel || !right.is_contiguous()) {
      const int64_t packed_rows = (columns + kSkinnyPanel - 1) / kSkinnyPanel * inner;
      packed = at::empty({packed_rows, kSkinnyPanel}, right.options());
      at::parallel_for(0, packed_rows, at::internal::GRAIN_SIZE / kSkinnyPanel, [&](int64_t begin, int64_t end) {
        run(SkinnyPack<scalar_t>{strided<scalar_t>(right), inner, columns, output<scalar_t>(packed), begin, end});
      });
    }
    const Strided<scalar_t> to{out.mutable_data_ptr<scalar_t>(), out.stride(0), out.stride(1)};
    const int64_t grain = kSkinnyGrain / std::max<int64_t>(1, inner * columns) + 1;
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      run(SkinnyProduct<scalar_t>{
          strided<scalar_t>(left), transposed, packed.const_data_ptr<scalar_t>(), inner, columns,
          source.defined() ? strided<scalar_t>(source) : Strided<const scalar_t>{nullptr, 0, 0}, to, begin, end});
    });
  });
}

Tensor skinny_product(const Tensor& left, const Tensor& right) {
  Tensor out = at::empty({left.size(0), right.size(1)}, left.options());
  skinny_product(left, right, Tensor(), out);
  return out;
}

Tensor project_cpu(const Tensor& weight, const Tensor& z) {
  check_rows(weight, "weight");
  check_rows(z, "z");
  check_factor(z, "z", {weight.size(1), z.size(1)}, weight);
  return skinny_product(weight, z);
}

void check_low_rank(const Tensor& x, const Tensor& down, const Tensor& up) {
  check_rows(x, "x");
  check_rows(up, "up");
  check_factor(down, "down", {up.size(1), x.size(1)}, x);
  check_factor(up, "up", up.sizes(), x);
}

std::tuple<Tensor, Tensor> low_rank_linear_cpu(const Tensor& x, const Tensor& weight,
                                               const std::optional<Tensor>& bias, const Tensor& down,
                                               const Tensor& up) {
  check_low_rank(x, down, up);
  check_factor(weight, "weight", {up.size(0), x.size(1)}, x);
  const Tensor p = skinny_product(x, down.t());
  Tensor y = bias ? at::addmm(*bias, x, weight.t()) : at::mm(x, weight.t());
  skinny_product(p, up.t(), y, y);
  return {y, p};
}

std::tuple<Tensor, Tensor> low_rank_add_cpu(const Tensor& base, const Tensor& x, const Tensor& down,
                                            const Tensor& up) {
  check_low_rank(x, down, up);
  check_factor(base, "base", {x.size(0), up.size(0)}, x);
  const Tensor p = skinny_product(x, down.t());
  Tensor y = at::empty(base.sizes(), x.options());
  skinny_product(p, up.t(), base, y);
  return {y, p};
}

std::tuple<Tensor, Tensor, Tensor> low_rank_backward_cpu(const Tensor& dy, const Tensor& x,
                                                         const std::optional<Tensor>& weight,
                                                         const Tensor& down, const Tensor& up, const Tensor& p,
                                                         bool need_x, bool need_down, bool need_up) {
  check_low_rank(x, down, up);
  check_factor(dy, "dy", {x.size(0), up.size(0)}, x);
  check_factor(p, "p", {x.size(0), up.size(1)}, x);
  if (weight) check_factor(*weight, "weight", {up.size(0), x.size(1)}, x);
  Tensor dx, d_down, d_up;
  if (need_up) d_up = skinny_product(dy.t(), p);
  if (need_x || need_down) {
    const Tensor q = skinny_product(dy, up);
    if (need_down) {
      d_down = at::empty(down.sizes(), x.options());
      Tensor transposed = d_down.t();
      skinny_product(x.t(), q, Tensor(), transposed);
    }
    if (need_x) {
      dx = weight ? at::mm(dy, *weight) : at::empty(x.sizes(), x.options());
      skinny_product(q, down, weight ? dx : Tensor(), dx);
    }
  }
  return {dx, d_down, d_up};
}

// The factor pairs of layers that read the same x, and their p side by side: the columns of each are views of it.
void check_low_rank_many(const Tensor& x, at::TensorList weights, at::TensorList downs, at::TensorList ups) {
  const size_t layers = weights.size();
  TORCH_CHECK_VALUE(layers > 0 && downs.size() == layers && ups.size() == layers,
                    "weights, downs and ups must be as many, and at least one; got ", layers, ", ", downs.size(),
                    " and ", ups.size());
  for (size_t i = 0; i < layers; ++i) {
    check_low_rank(x, downs[i], ups[i]);
    check_factor(weights[i], "weight", {ups[i].size(0), x.size(1)}, x);
  }
}

std::vector<Tensor> own_columns(const Tensor& p, at::TensorList ups) {
  std::vector<Tensor> own;
  int64_t column = 0;
  for (const Tensor& up : ups) {
    own.push_back(p.narrow(1, column, up.size(1)));
    column += up.size(1);
  }
  return own;
}

std::vector<Tensor> low_rank_linear_many_cpu(const Tensor& x, at::TensorList weights, at::TensorList biases,
                                             at::TensorList downs, at::TensorList ups) {
  check_low_rank_many(x, weights, downs, ups);
  TORCH_CHECK_VALUE(biases.empty() || biases.size() == weights.size(), "biases must be of all layers or of none, got ",
                    biases.size(), " of ", weights.size());
  const Tensor p = skinny_product(x, at::cat(downs).t());
  const std::vector<Tensor> own = own_columns(p, ups);
  std::vector<Tensor> results;
  for (size_t i = 0; i < weights.size(); ++i) {
    Tensor y = biases.empty() ? at::mm(x, weights[i].t()) : at::addmm(biases[i], x, weights[i].t());
    skinny_product(own[i], ups[i].t(), y, y);
    results.push_back(y);
  }
  results.push_back(p);
  return results;
}

// Those of dx, d_down (of all layers, one below the other) and the d_up that are needed, in that order.
std::vector<Tensor> low_rank_linear_many_backward_cpu(at::TensorList dys, const Tensor& x, at::TensorList weights,
                                                      at::TensorList downs, at::TensorList ups, const Tensor& p,
                                                      bool need_x, bool need_down, bool need_up) {
  check_low_rank_many(x, weights, downs, ups);
  TORCH_CHECK_VALUE(dys.size() == weights.size(), "dys must be as many as weights, ", weights.size(), ", got ",
                    dys.size());
  const Tensor down = need_x || need_down ? at::cat(downs) : Tensor();
  int64_t total = 0;
  for (size_t i = 0; i < dys.size(); ++i) {
    check_factor(dys[i], "dy", {x.size(0), ups[i].size(0)}, x);
    total += ups[i].size(1);
  }
  check_factor(p, "p", {x.size(0), total}, x);
  std::vector<Tensor> gradients;
  if (need_x || need_down) {
    const Tensor q = at::empty(p.sizes(), x.options());
    std::vector<Tensor> own = own_columns(q, ups);
    for (size_t i = 0; i < dys.size(); ++i) skinny_product(dys[i], ups[i], Tensor(), own[i]);
    if (need_x) {
      Tensor dx = at::mm(dys[0], weights[0]);
      for (size_t i = 1; i < dys.size(); ++i) dx.addmm_(dys[i], weights[i]);
      skinny_product(q, down, dx, dx);
      gradients.push_back(dx);
    }
    if (need_down) {
      Tensor d_down = at::empty(down.sizes(), x.options()), transposed = d_down.t();
      skinny_product(x.t(), q, Tensor(), transposed);
      gradients.push_back(d_down);
    }
  }
  if (need_up) {
    const std::vector<Tensor> own = own_columns(p, ups);
    for (size_t i = 0; i < dys.size(); ++i) gradients.push_back(skinny_product(dys[i].t(), own[i]));
  }
  return gradients;
}

Tensor dropout_kept_cpu(const Tensor& seed, int64_t rows, int64_t features, int64_t threshold) {
  TORCH_CHECK_TYPE(seed.scalar_type() == at::kLong, "seed must be int64, got ", seed.scalar_type());
  TORCH_CHECK_VALUE(seed.numel() == 1, "seed must have one element, got shape ", seed.sizes());
  Tensor kept = at::empty({rows, features}, seed.options().dtype(at::kBool));
  const auto number = static_cast<uint64_t>(seed.item<int64_t>());
  bool* out = kept.mutable_data_ptr<bool>();
  at::parallel_for(0, rows, at::internal::GRAIN_SIZE / std::max<int64_t>(1, features) + 1,
                   [&](int64_t begin, int64_t end) {
                     dropout_kept(out, features, static_cast<uint32_t>(threshold), number, begin, end);
                   });
  return kept;
}

HybridShape check_hybrid(const Tensor& weight, const Tensor& lora_B, const Tensor& u) {
  check_rows(weight, "weight");
  check_reflections(u);
  const HybridShape shape{weight.size(1), weight.size(0), lora_B.size(-1), u.size(1)};
  check_factor(lora_B, "lora_B", {shape.out_features, shape.rank}, weight);
  check_factor(u, "u", {shape.in_features, shape.reflections}, weight);
  return shape;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> hybrid_factors_cpu(const Tensor& weight, const Tensor& lora_A,
                                                                      const Tensor& lora_B, const Tensor& u,
                                                                      const Tensor& mixing, double scaling) {
  const HybridShape shape = check_hybrid(weight, lora_B, u);
  check_factor(lora_A, "lora_A", {shape.rank, shape.in_features}, weight);
  const auto [v, t] = householder_forward_cpu(u);
  const Tensor c = project_cpu(weight, at::mm(v, t));
  const int64_t total = shape.rank + shape.reflections;
  Tensor down = at::empty({total, shape.in_features}, u.options());
  Tensor up = at::empty({shape.out_features, total}, u.options());
  const Tensor a = materialized(lora_A), b = materialized(lora_B);
  const double lambda = mixing.item<double>();
  AT_DISPATCH_FLOATING_TYPES(u.scalar_type(), "hybrid_factors", [&] {
    join_factors<scalar_t>(shape, input<scalar_t>(a), input<scalar_t>(v), input<scalar_t>(b),
                           input<scalar_t>(c), lambda, scaling, output<scalar_t>(down), output<scalar_t>(up));
  });
  return {down, up, v, t, c};
}

std::tuple<Tensor, Tensor, Tensor> hybrid_factors_backward_cpu(
    const Tensor& d_down, const Tensor& d_up, const Tensor& weight, const Tensor& lora_B, const Tensor& u,
    const Tensor& v, const Tensor& t, const Tensor& c, const Tensor& mixing, double scaling, bool need_B,
    bool need_u, bool need_mixing) {
  const HybridShape shape = check_hybrid(weight, lora_B, u);
  const int64_t total = shape.rank + shape.reflections;
  check_factor(d_down, "d_down", {total, shape.in_features}, weight);
  check_factor(d_up, "d_up", {shape.out_features, total}, weight);
  check_factor(c, "c", {shape.out_features, shape.reflections}, weight);
  const Tensor upstream = materialized(d_up), b = materialized(lora_B), rotated = materialized(c);
  Tensor d_b, d_c = at::empty(c.sizes(), c.options()), d_u, d_mixing;
  if (need_B) d_b = at::empty(b.sizes(), b.options());
  const double lambda = mixing.item<double>();
  AT_DISPATCH_FLOATING_TYPES(u.scalar_type(), "hybrid_factors_backward", [&] {
    const double gradient = split_up_gradient<scalar_t>(
        shape, input<scalar_t>(upstream), input<scalar_t>(b), input<scalar_t>(rotated), lambda, scaling,
        need_B ? output<scalar_t>(d_b) : nullptr, output<scalar_t>(d_c));
    if (need_mixing) d_mixing = at::full_like(mixing, gradient);
  });
  if (need_u) {
    const Tensor d_z = project_cpu(weight.t(), d_c);
    const Tensor d_v = at::addmm(d_down.narrow(0, shape.rank, shape.reflections).t(), d_z, t.t());
    d_u = householder_backward_cpu(u, v, t, d_v, at::mm(v.t(), d_z));
  }
  return {d_b, d_u, d_mixing};
}

}  // namespace

TORCH_LIBRARY(hybrid_kernels_cpp, m) {
  m.def("butterfly_rotate(Tensor x, Tensor q) -> Tensor");
  m.def(
      "butterfly_backward(Tensor dy, Tensor x, Tensor q, bool need_x, bool need_q) -> (Tensor dx, Tensor dq)");
  m.def("cayley_forward(Tensor skew) -> Tensor");
  m.def("cayley_packed_forward(Tensor packed, int block_size) -> Tensor");
  m.def("cayley_backward(Tensor grad_q, Tensor q) -> Tensor");
  m.def("cayley_packed_backward(Tensor grad_q, Tensor q) -> Tensor");
  m.def("householder_forward(Tensor u) -> (Tensor v, Tensor t)");
  m.def("householder_backward(Tensor u, Tensor v, Tensor t, Tensor? grad_v, Tensor? grad_t) -> Tensor");
  m.def("neumann_forward(Tensor packed, int block_size, float[] coefficients) -> Tensor");
  m.def("neumann_backward(Tensor grad_r, Tensor packed, float[] coefficients) -> Tensor");
  m.def("project(Tensor weight, Tensor z) -> Tensor");
  m.def("scale_backward(Tensor dz, Tensor y, Tensor scale, bool need_y) -> (Tensor dy, Tensor d_scale)");
  m.def("dropout_kept(Tensor seed, int rows, int features, int threshold) -> Tensor");
  m.def("low_rank_linear(Tensor x, Tensor weight, Tensor? bias, Tensor down, Tensor up) -> (Tensor y, Tensor p)");
  m.def("low_rank_add(Tensor base, Tensor x, Tensor down, Tensor up) -> (Tensor y, Tensor p)");
  m.def(
      "low_rank_backward(Tensor dy, Tensor x, Tensor? weight, Tensor down, Tensor up, Tensor p, bool need_x, "
      "bool need_down, bool need_up) -> (Tensor dx, Tensor d_down, Tensor d_up)");
  m.def(
      "low_rank_linear_many(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] downs, Tensor[] ups) -> "
      "Tensor[]");
  m.def(
      "low_rank_linear_many_backward(Tensor[] dys, Tensor x, Tensor[] weights, Tensor[] downs, Tensor[] ups, "
      "Tensor p, bool need_x, bool need_down, bool need_up) -> Tensor[]");
  m.def(
      "hybrid_factors(Tensor weight, Tensor lora_A, Tensor lora_B, Tensor u, Tensor mixing, float scaling) -> "
      "(Tensor down, Tensor up, Tensor v, Tensor t, Tensor c)");
  m.def(
      "hybrid_factors_backward(Tensor d_down, Tensor d_up, Tensor weight, Tensor lora_B, Tensor u, Tensor v, "
      "Tensor t, Tensor c, Tensor mixing, float scaling, bool need_B, bool need_u, bool need_mixing) -> "
      "(Tensor d_B, Tensor d_u, Tensor d_mixing)");
}

TORCH_LIBRARY_IMPL(hybrid_kernels_cpp, CPU, m) {
  m.impl("butterfly_rotate", &butterfly_rotate_cpu);
  m.impl("butterfly_backward", &butterfly_backward_cpu);
  m.impl("cayley_forward", &cayley_forward<Cpu>);
  m.impl("cayley_packed_forward", &cayley_packed_forward<Cpu>);
  m.impl("cayley_backward", &cayley_backward<Cpu>);
  m.impl("cayley_packed_backward", &cayley_packed_backward<Cpu>);
  m.impl("householder_forward", &householder_forward_cpu);
  m.impl("householder_backward", &householder_backward_cpu);
  m.impl("neumann_forward", &neumann_forward_cpu);
  m.impl("neumann_backward", &neumann_backward_cpu);
  m.impl("project", &project_cpu);
  m.impl("scale_backward", &scale_backward_cpu);
  m.impl("dropout_kept", &dropout_kept_cpu);
  m.impl("low_rank_linear", &low_rank_linear_cpu);
  m.impl("low_rank_add", &low_rank_add_cpu);
  m.impl("low_rank_backward", &low_rank_backward_cpu);
  m.impl("low_rank_linear_many", &low_rank_linear_many_cpu);
  m.impl("low_rank_linear_many_backward", &low_rank_linear_many_backward_cpu);
  m.impl("hybrid_factors", &hybrid_factors_cpu);
  m.impl("hybrid_factors_backward", &hybrid_factors_backward_cpu);
}

#if defined(HYBRID_KERNELS_CUDA)
TORCH_LIBRARY_IMPL(hybrid_kernels_cpp, CUDA, m) {
  m.impl("cayley_forward", &cayley_forward<Cuda>);
  m.impl("cayley_packed_forward", &cayley_packed_forward<Cuda>);
  m.impl("cayley_backward", &cayley_backward<Cuda>);
  m.impl("cayley_packed_backward", &cayley_packed_backward<Cuda>);
}
#endif

}  // namespace hybrid_kernels

// Importing hybrid_kernels._C loads this library, and its static initialisers register the operators; the
// module is empty.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
