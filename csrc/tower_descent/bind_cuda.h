// The tower's CUDA kernels for Python. Each is bound twice: as a launch, and under its name and
// `_phase` as a phase of a step of one launch (cuda_step.h), which is returned as bytes.
#pragma once
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "bindings.h"
#include "tower_descent/cuda_activation.h"
#include "tower_descent/cuda_step.h"

namespace {

sb::Activation activation_of(int kind) {
  if (kind < 0 || kind > 2) throw std::invalid_argument("_C: activation must be 0..2");
  return static_cast<sb::Activation>(kind);
}

// (weight, bias, eps, mean, rstd, stats), addresses or 0
using FewRowsNorm = std::tuple<uintptr_t, uintptr_t, double, uintptr_t, uintptr_t, uintptr_t>;
// (kind, norm, normed, residual, grad)
using Before = std::tuple<int, FewRowsNorm, sb::ConstMatrix, sb::ConstMatrix, sb::Matrix>;
// (kind, norm, bias, other, activation, second)
using Behind = std::tuple<int, FewRowsNorm, uintptr_t, sb::ConstMatrix, int, sb::Matrix>;

sb::FewRowsNorm few_rows_norm(const FewRowsNorm& n) {
  return {at<float>(std::get<0>(n)), at<float>(std::get<1>(n)), std::get<2>(n),
          at<float>(std::get<3>(n)), at<float>(std::get<4>(n)), at<float>(std::get<5>(n))};
}

sb::FewRowsCudaArgs few_rows_args(const sb::ConstMatrix& x, const sb::ConstMatrix& weight,
                                  bool transposed, const Before& before, const Behind& behind,
                                  const sb::Matrix& y, uintptr_t sums, uintptr_t tickets) {
  if (std::get<0>(before) < 0 || std::get<0>(before) > 2 || std::get<0>(behind) < 0 ||
      std::get<0>(behind) > 4)
    throw std::invalid_argument("_C: few_rows has three kinds before a product and five behind");
  sb::FewRowsCudaArgs a;
  a.x = x;
  a.weight = weight;
  a.transposed = transposed;
  a.before = static_cast<sb::Before>(std::get<0>(before));
  a.norm = few_rows_norm(std::get<1>(before));
  a.normed = std::get<2>(before);
  a.residual = std::get<3>(before);
  a.grad = std::get<4>(before);
  a.behind = static_cast<sb::Behind>(std::get<0>(behind));
  a.norm_behind = few_rows_norm(std::get<1>(behind));
  a.bias = at<const void>(std::get<2>(behind));
  a.other = std::get<3>(behind);
  a.kind = activation_of(std::get<4>(behind));
  a.second = std::get<5>(behind);
  a.y = y;
  a.sums = at<float>(sums);
  a.tickets = at<int>(tickets);
  return a;
}

sb::AttentionCudaArgs attention_of(const sb::ConstMatrix& qkv, int64_t samples, int64_t heads,
                                   int64_t slots, int64_t queries, int64_t prefix,
                                   uintptr_t prefix_kv, uintptr_t visible, uintptr_t lse,
                                   int64_t o_stride) {
  sb::AttentionCudaArgs a;
  a.dtype = qkv.dtype;
  a.samples = samples;
  a.heads = heads;
  a.width = qkv.cols / (3 * heads);
  a.slots = slots;
  a.queries = queries;
  a.prefix = prefix;
  a.qkv = qkv.data;
  a.qkv_stride = qkv.row_stride;
  a.prefix_kv = at<void>(prefix_kv);
  a.visible = at<uint64_t>(visible);
  a.lse = at<float>(lse);
  a.o_stride = o_stride;
  return a;
}

sb::AttentionCudaArgs attention_args(const sb::ConstMatrix& qkv, int64_t samples, int64_t heads,
                                     int64_t slots, int64_t queries, int64_t prefix,
                                     uintptr_t prefix_kv, uintptr_t visible, uintptr_t lse,
                                     const sb::Matrix& o) {
  sb::AttentionCudaArgs a = attention_of(qkv, samples, heads, slots, queries, prefix, prefix_kv,
                                         visible, lse, o.row_stride);
  a.o = o.data;
  return a;
}

sb::AttentionGradCudaArgs attention_grad_args(const sb::ConstMatrix& qkv, int64_t samples,
                                              int64_t heads, int64_t slots, int64_t queries,
                                              int64_t prefix, uintptr_t prefix_kv,
                                              uintptr_t visible, uintptr_t lse,
                                              const sb::ConstMatrix& grad_o, uintptr_t grad_qkv) {
  return {attention_of(qkv, samples, heads, slots, queries, prefix, prefix_kv, visible, lse,
                       grad_o.row_stride),
          grad_o.data, at<void>(grad_qkv)};
}

sb::LayerNormCudaArgs layer_norm_args(const sb::ConstMatrix& x, const sb::ConstMatrix& delta,
                                      const sb::Matrix& total, uintptr_t weight, uintptr_t bias,
                                      double eps, const sb::Matrix& y, uintptr_t mean,
                                      uintptr_t rstd) {
  return {x,   delta, total,           at<float>(weight), at<float>(bias),
          eps, y,     at<float>(mean), at<float>(rstd)};
}

sb::LayerNormGradCudaArgs layer_norm_grad_args(const sb::ConstMatrix& x,
                                               const sb::ConstMatrix& grad_y, uintptr_t weight,
                                               uintptr_t mean, uintptr_t rstd,
                                               const sb::ConstMatrix& residual,
                                               const sb::Matrix& grad_x) {
  return {x, grad_y, at<float>(weight), at<float>(mean), at<float>(rstd), residual, grad_x};
}

sb::CosineLossCudaArgs cosine_loss_args(const sb::ConstMatrix& features,
                                        const sb::ConstMatrix& targets, double grad_scale,
                                        uintptr_t step, uintptr_t step_now, uintptr_t losses,
                                        const sb::Matrix& grad, uintptr_t unit) {
  return {features,          targets, grad_scale,     at<int64_t>(step), at<int64_t>(step_now),
          at<float>(losses), grad,    at<float>(unit)};
}

sb::AdamwCudaArgs adamw_args(int64_t samples, int64_t vectors, int64_t width, int64_t slots,
                             uintptr_t source, const sb::ConstMatrix& grad_x, uintptr_t tokens,
                             uintptr_t exp_avg, uintptr_t exp_avg_sq, uintptr_t rates,
                             uintptr_t corrections, uintptr_t step_now, uintptr_t step, double lr,
                             double beta1, double beta2, double eps, double weight_decay,
                             double grad_factor, uintptr_t base, int64_t base_samples,
                             const sb::Matrix& x) {
  sb::AdamwCudaArgs a;
  a.samples = samples;
  a.vectors = vectors;
  a.width = width;
  a.slots = slots;
  a.source = at<int32_t>(source);
  a.grad_x = grad_x;
  a.tokens = at<float>(tokens);
  a.exp_avg = at<float>(exp_avg);
  a.exp_avg_sq = at<float>(exp_avg_sq);
  a.rates = at<float>(rates);
  a.corrections = at<float>(corrections);
  a.step_now = at<int64_t>(step_now);
  a.step = at<int64_t>(step);
  a.lr = lr;
  a.beta1 = beta1;
  a.beta2 = beta2;
  a.eps = eps;
  a.weight_decay = weight_decay;
  a.grad_factor = grad_factor;
  a.base = at<float>(base);
  a.base_samples = base_samples;
  a.x = x;
  return a;
}

// (features, targets, grad_scale, step, step_now, losses, grad, unit)
using Loss = std::tuple<sb::ConstMatrix, sb::ConstMatrix, double, uintptr_t, uintptr_t, uintptr_t,
                        sb::Matrix, uintptr_t>;
// The arguments of adamw_cuda, in its order
using Update = std::tuple<int64_t, int64_t, int64_t, int64_t, uintptr_t, sb::ConstMatrix, uintptr_t,
                          uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, double,
                          double, double, double, double, double, uintptr_t, int64_t, sb::Matrix>;

py::bytes phase_of(const sb::StepPhase& phase) {
  std::string record(static_cast<size_t>(sb::step_phase_bytes()), '\0');
  sb::write_step_phase(phase, record.data());
  return record;
}

template <class Args, class... P, class... Names>
void def_launch(py::module_& m, const char* name, Args (*make)(P...),
                void (*launch)(const Args&, int, void*), const Names&... names) {
  m.def(
      name,
      [make, launch](P... values, int device, uintptr_t stream) {
        const Args a = make(values...);
        py::gil_scoped_release release;
        launch(a, device, at<void>(stream));
      },
      names..., py::arg("device"), py::arg("stream"));
}

template <class Args, class... P, class... Names>
void def_phase(py::module_& m, const char* name, Args (*make)(P...),
               void (*launch)(const Args&, int, void*), const Names&... names) {
  def_launch(m, name, make, launch, names...);
  m.def((std::string(name) + "_phase").c_str(),
        [make](P... values) { return phase_of(make(values...)); }, names...);
}

void bind_step(py::module_& m) {
  m.def("tower_step_cuda_loss", [] { return phase_of(sb::StepLoss{}); });
  m.def("tower_step_cuda_update", [] { return phase_of(sb::StepUpdate{}); });
  m.def(
      "tower_step_cuda_tiles",
      [](const py::bytes& phases) {
        const std::string records = phases;
        return sb::step_tiles(records.data(), static_cast<int64_t>(records.size()));
      },
      py::arg("phases"));
  m.def(
      "tower_step_cuda_heads",
      [](const py::bytes& phases, uintptr_t done) {
        std::string records = phases;
        const int64_t joined = sb::join_step_heads(
            records.data(), static_cast<int64_t>(records.size()), at<int>(done));
        return py::make_tuple(py::bytes(records), joined);
      },
      py::arg("phases"), py::arg("done"));
  m.def("tower_step_cuda_bytes", &sb::step_phase_bytes);
  m.def(
      "tower_step_cuda_blocks",
      [](int dtype, int device) { return sb::tower_step_blocks(dtype_of(dtype), device); },
      py::arg("dtype"), py::arg("device"));
  m.def(
      "tower_step_cuda",
      [](int dtype, uintptr_t phases, int64_t first, int64_t last, const py::tuple& loss,
         const py::tuple& update, int64_t blocks, uintptr_t arrived, int device, uintptr_t stream) {
        const sb::TowerStepCudaArgs a{dtype_of(dtype),
                                      at<const void>(phases),
                                      first,
                                      last,
                                      std::apply(cosine_loss_args, loss.cast<Loss>()),
                                      std::apply(adamw_args, update.cast<Update>()),
                                      blocks,
                                      at<uint64_t>(arrived)};
        py::gil_scoped_release release;
        sb::tower_step_cuda(a, device, at<void>(stream));
      },
      py::arg("dtype"), py::arg("phases"), py::arg("first"), py::arg("last"), py::arg("loss"),
      py::arg("update"), py::arg("blocks"), py::arg("arrived"), py::arg("device"),
      py::arg("stream"));
}

[[maybe_unused]] void bind_tower_kernels(py::module_& m) {
  using py::arg;
  def_phase(m, "layer_norm_cuda", layer_norm_args, sb::layer_norm_cuda, arg("x"), arg("delta"),
            arg("total"), arg("weight"), arg("bias"), arg("eps"), arg("y"), arg("mean"),
            arg("rstd"));
  def_phase(m, "layer_norm_grad_cuda", layer_norm_grad_args, sb::layer_norm_grad_cuda, arg("x"),
            arg("grad_y"), arg("weight"), arg("mean"), arg("rstd"), arg("residual"), arg("grad_x"));
  m.def(
      "activate_cuda",
      [](int kind, const sb::ConstMatrix& x, const sb::Matrix& y, int device, uintptr_t stream) {
        const sb::ActivateCudaArgs a{activation_of(kind), x, y};
        py::gil_scoped_release release;
        sb::activate_cuda(a, device, at<void>(stream));
      },
      arg("kind"), arg("x"), arg("y"), arg("device"), arg("stream"));
  m.def(
      "activate_grad_cuda",
      [](int kind, const sb::ConstMatrix& x, const sb::Matrix& grad, int device, uintptr_t stream) {
        const sb::ActivateGradCudaArgs a{activation_of(kind), x, grad};
        py::gil_scoped_release release;
        sb::activate_grad_cuda(a, device, at<void>(stream));
      },
      arg("kind"), arg("x"), arg("grad"), arg("device"), arg("stream"));
  def_phase(m, "attention_cuda", attention_args, sb::attention_cuda, arg("qkv"), arg("samples"),
            arg("heads"), arg("slots"), arg("queries"), arg("prefix"), arg("prefix_kv"),
            arg("visible"), arg("lse"), arg("o"));
  def_phase(m, "attention_grad_cuda", attention_grad_args, sb::attention_grad_cuda, arg("qkv"),
            arg("samples"), arg("heads"), arg("slots"), arg("queries"), arg("prefix"),
            arg("prefix_kv"), arg("visible"), arg("lse"), arg("grad_o"), arg("grad_qkv"));
  def_phase(m, "few_rows_cuda", few_rows_args, sb::few_rows_cuda, arg("x"), arg("weight"),
            arg("transposed"), arg("before"), arg("behind"), arg("y"), arg("sums"), arg("tickets"));
  m.def("few_rows_cuda_sums", &sb::few_rows_sums, arg("rows"), arg("k"), arg("cols"));
  m.def("few_rows_cuda_tickets", &sb::few_rows_tickets, arg("rows"), arg("cols"));
  m.def("few_rows_cuda_tiles", &sb::few_rows_tiles, arg("cols"));
  def_launch(m, "cosine_loss_cuda", cosine_loss_args, sb::cosine_loss_cuda, arg("features"),
             arg("targets"), arg("grad_scale"), arg("step"), arg("step_now"), arg("losses"),
             arg("grad"), arg("unit"));
  def_launch(m, "adamw_cuda", adamw_args, sb::adamw_cuda, arg("samples"), arg("vectors"),
             arg("width"), arg("slots"), arg("source"), arg("grad_x"), arg("tokens"),
             arg("exp_avg"), arg("exp_avg_sq"), arg("rates"), arg("corrections"), arg("step_now"),
             arg("step"), arg("lr"), arg("beta1"), arg("beta2"), arg("eps"), arg("weight_decay"),
             arg("grad_factor"), arg("base"), arg("base_samples"), arg("x"));
  bind_step(m);
}

}  // namespace
