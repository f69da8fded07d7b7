#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "bindings.h"
#include "tower_descent/cuda_activation.h"
#include "tower_descent/cuda_attention.h"
#include "tower_descent/cuda_descend.h"
#include "tower_descent/cuda_few_rows.h"
#include "tower_descent/cuda_layer_norm.h"
#include "tower_descent/tower_descent.h"

namespace {

// (packed forward, packed backward, bias or 0, rows, cols)
using Linear = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t>;
// (weight or 0, bias, eps)
using Norm = std::tuple<uintptr_t, uintptr_t, double>;

sb::Activation activation_of(int kind) {
  if (kind < 0 || kind > 2) throw std::invalid_argument("_C: activation must be 0..2");
  return static_cast<sb::Activation>(kind);
}

// The tower's addresses, gathered once; the op file keeps the tensors alive.
class FrozenTower {
 public:
  FrozenTower(int compute, int stored, int64_t width, int64_t heads, int64_t features,
              int64_t vectors, int activation, const Norm& pre, const Norm& final,
              const Linear& projection, bool bf16_products)
      : stored_(dtype_of(stored)) {
    if (bf16_products && (stored_ != sb::DType::kBFloat16 || compute != 0))
      throw std::invalid_argument("_C: bf16_products need bfloat16 weights and float32 sums");
    tower_.bf16_products = bf16_products;
    tower_.compute = dtype_of(compute);
    tower_.width = width;
    tower_.heads = heads;
    tower_.features = features;
    tower_.vectors = vectors;
    tower_.activation = activation_of(activation);
    tower_.norm_pre = norm(pre);
    tower_.norm_final = norm(final);
    if (std::get<0>(projection) != 0) tower_.projection = linear(projection);
  }

  void add_layer(const Norm& norm1, const Norm& norm2, const Linear& qkv, const Linear& out,
                 const Linear& fc, const Linear& proj, uintptr_t prefix, uintptr_t query) {
    layers_.push_back({norm(norm1), norm(norm2), linear(qkv), linear(out), linear(fc), linear(proj),
                       at<const void>(prefix), at<const void>(query)});
    tower_.layer = layers_.data();
    tower_.layers = static_cast<int64_t>(layers_.size());
  }

  void set_slots(const std::vector<int32_t>& source,
                 const std::vector<std::vector<int32_t>>& visible, int64_t prefix, uintptr_t base,
                 int64_t slot_stride, int64_t sample_stride) {
    source_ = source;
    visible_.clear();
    begin_.assign(1, 0);
    for (const auto& list : visible) {
      visible_.insert(visible_.end(), list.begin(), list.end());
      begin_.push_back(static_cast<int32_t>(visible_.size()));
    }
    tower_.slots = static_cast<int64_t>(source.size());
    if (visible.size() != source.size()) throw std::invalid_argument("_C: one list per slot");
    tower_.prefix = prefix;
    tower_.source = source_.data();
    tower_.visible = visible_.data();
    tower_.visible_begin = begin_.data();
    tower_.base = at<const void>(base);
    tower_.base_slot_stride = slot_stride;
    tower_.base_sample_stride = sample_stride;
    tower_.learned_begin = tower_.slots;
    tower_.learned_end = 0;
    for (int64_t s = 0; s < tower_.slots; ++s) {
      if (source[s] < 0) continue;
      if (s < tower_.learned_begin) tower_.learned_begin = s;
      tower_.learned_end = s + 1;
    }
  }

  int64_t workspace(int64_t samples, int threads) const {
    return sb::tower_descent_workspace(tower_, samples, threads);
  }

  void descend(int64_t samples, uintptr_t tokens, uintptr_t exp_avg, uintptr_t exp_avg_sq,
               uintptr_t targets, uintptr_t losses, int64_t step_begin, int64_t step_end,
               double grad_scale, double lr, double beta1, double beta2, double eps,
               double weight_decay, const std::vector<int64_t>& record_steps, uintptr_t recorded,
               uintptr_t workspace, int threads) const {
    sb::TowerDescentArgs a;
    a.tower = &tower_;
    a.workspace = at<void>(workspace);
    a.samples = samples;
    a.tokens = at<void>(tokens);
    a.exp_avg = at<void>(exp_avg);
    a.exp_avg_sq = at<void>(exp_avg_sq);
    a.targets = at<const void>(targets);
    a.losses = at<void>(losses);
    a.step_begin = step_begin;
    a.step_end = step_end;
    a.grad_scale = grad_scale;
    a.lr = lr;
    a.beta1 = beta1;
    a.beta2 = beta2;
    a.eps = eps;
    a.weight_decay = weight_decay;
    a.record_steps = record_steps.data();
    a.records = static_cast<int64_t>(record_steps.size());
    a.recorded = at<void>(recorded);
    a.threads = at_least_one(threads);
    py::gil_scoped_release release;
    sb::tower_descent(a);
  }

  void evaluate(int64_t samples, uintptr_t tokens, uintptr_t features, bool unit,
                uintptr_t grad_features, uintptr_t grad_tokens, uintptr_t workspace,
                int threads) const {
    sb::TowerDescentArgs a;
    a.tower = &tower_;
    a.workspace = at<void>(workspace);
    a.samples = samples;
    a.tokens = at<void>(tokens);
    a.features = at<void>(features);
    a.unit_features = unit;
    a.grad_features = at<const void>(grad_features);
    a.grad_tokens = at<void>(grad_tokens);
    a.threads = at_least_one(threads);
    py::gil_scoped_release release;
    sb::tower_descent(a);
  }

 private:
  sb::FrozenNorm norm(const Norm& n) const {
    return {at<const void>(std::get<0>(n)), at<const void>(std::get<1>(n)), std::get<2>(n)};
  }
  sb::FrozenLinear linear(const Linear& l) const {
    const int64_t rows = std::get<3>(l), cols = std::get<4>(l);
    return {{at<const void>(std::get<0>(l)), stored_, rows, cols},
            {at<const void>(std::get<1>(l)), stored_, cols, rows},
            at<const void>(std::get<2>(l))};
  }

  sb::DType stored_;
  sb::FrozenTower tower_;
  std::vector<sb::FrozenLayer> layers_;
  std::vector<int32_t> source_, visible_, begin_;
};

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
                                  const sb::Matrix& y) {
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
  return a;
}

sb::AttentionCudaArgs attention_args(const sb::ConstMatrix& qkv, int64_t samples, int64_t heads,
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

}  // namespace

SB_BIND_CPU(m) {
  py::class_<FrozenTower>(m, "FrozenTower")
      .def(py::init<int, int, int64_t, int64_t, int64_t, int64_t, int, const Norm&, const Norm&,
                    const Linear&, bool>(),
           py::arg("compute"), py::arg("stored"), py::arg("width"), py::arg("heads"),
           py::arg("features"), py::arg("vectors"), py::arg("activation"), py::arg("norm_pre"),
           py::arg("norm_final"), py::arg("projection"), py::arg("bf16_products"))
      .def("add_layer", &FrozenTower::add_layer, py::arg("norm1"), py::arg("norm2"), py::arg("qkv"),
           py::arg("out"), py::arg("fc"), py::arg("proj"), py::arg("prefix"), py::arg("query"))
      .def("set_slots", &FrozenTower::set_slots, py::arg("source"), py::arg("visible"),
           py::arg("prefix"), py::arg("base"), py::arg("slot_stride"), py::arg("sample_stride"))
      .def("workspace", &FrozenTower::workspace, py::arg("samples"), py::arg("threads"))
      .def("descend", &FrozenTower::descend, py::arg("samples"), py::arg("tokens"),
           py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("targets"), py::arg("losses"),
           py::arg("step_begin"), py::arg("step_end"), py::arg("grad_scale"), py::arg("lr"),
           py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
           py::arg("record_steps"), py::arg("recorded"), py::arg("workspace"), py::arg("threads"))
      .def("evaluate", &FrozenTower::evaluate, py::arg("samples"), py::arg("tokens"),
           py::arg("features"), py::arg("unit"), py::arg("grad_features"), py::arg("grad_tokens"),
           py::arg("workspace"), py::arg("threads"));
}

SB_BIND_CUDA(m) {
  m.def(
      "layer_norm_cuda",
      [](const sb::ConstMatrix& x, const sb::ConstMatrix& delta, const sb::Matrix& total,
         uintptr_t weight, uintptr_t bias, double eps, const sb::Matrix& y, uintptr_t mean,
         uintptr_t rstd, int device, uintptr_t stream) {
        const sb::LayerNormCudaArgs a{
            x,   delta, total,           at<float>(weight), at<float>(bias),
            eps, y,     at<float>(mean), at<float>(rstd)};
        py::gil_scoped_release release;
        sb::layer_norm_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("delta"), py::arg("total"), py::arg("weight"), py::arg("bias"),
      py::arg("eps"), py::arg("y"), py::arg("mean"), py::arg("rstd"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "layer_norm_grad_cuda",
      [](const sb::ConstMatrix& x, const sb::ConstMatrix& grad_y, uintptr_t weight, uintptr_t mean,
         uintptr_t rstd, const sb::ConstMatrix& residual, const sb::Matrix& grad_x, int device,
         uintptr_t stream) {
        const sb::LayerNormGradCudaArgs a{
            x, grad_y, at<float>(weight), at<float>(mean), at<float>(rstd), residual, grad_x};
        py::gil_scoped_release release;
        sb::layer_norm_grad_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("grad_y"), py::arg("weight"), py::arg("mean"), py::arg("rstd"),
      py::arg("residual"), py::arg("grad_x"), py::arg("device"), py::arg("stream"));
  m.def(
      "activate_cuda",
      [](int kind, const sb::ConstMatrix& x, const sb::Matrix& y, int device, uintptr_t stream) {
        const sb::ActivateCudaArgs a{activation_of(kind), x, y};
        py::gil_scoped_release release;
        sb::activate_cuda(a, device, at<void>(stream));
      },
      py::arg("kind"), py::arg("x"), py::arg("y"), py::arg("device"), py::arg("stream"));
  m.def(
      "activate_grad_cuda",
      [](int kind, const sb::ConstMatrix& x, const sb::Matrix& grad, int device, uintptr_t stream) {
        const sb::ActivateGradCudaArgs a{activation_of(kind), x, grad};
        py::gil_scoped_release release;
        sb::activate_grad_cuda(a, device, at<void>(stream));
      },
      py::arg("kind"), py::arg("x"), py::arg("grad"), py::arg("device"), py::arg("stream"));
  m.def(
      "attention_cuda",
      [](const sb::ConstMatrix& qkv, int64_t samples, int64_t heads, int64_t slots, int64_t queries,
         int64_t prefix, uintptr_t prefix_kv, uintptr_t visible, uintptr_t lse, const sb::Matrix& o,
         int device, uintptr_t stream) {
        sb::AttentionCudaArgs a = attention_args(qkv, samples, heads, slots, queries, prefix,
                                                 prefix_kv, visible, lse, o.row_stride);
        a.o = o.data;
        py::gil_scoped_release release;
        sb::attention_cuda(a, device, at<void>(stream));
      },
      py::arg("qkv"), py::arg("samples"), py::arg("heads"), py::arg("slots"), py::arg("queries"),
      py::arg("prefix"), py::arg("prefix_kv"), py::arg("visible"), py::arg("lse"), py::arg("o"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "attention_grad_cuda",
      [](const sb::ConstMatrix& qkv, int64_t samples, int64_t heads, int64_t slots, int64_t queries,
         int64_t prefix, uintptr_t prefix_kv, uintptr_t visible, uintptr_t lse,
         const sb::ConstMatrix& grad_o, uintptr_t grad_qkv, int device, uintptr_t stream) {
        const sb::AttentionGradCudaArgs a{
            attention_args(qkv, samples, heads, slots, queries, prefix, prefix_kv, visible, lse,
                           grad_o.row_stride),
            grad_o.data, at<void>(grad_qkv)};
        py::gil_scoped_release release;
        sb::attention_grad_cuda(a, device, at<void>(stream));
      },
      py::arg("qkv"), py::arg("samples"), py::arg("heads"), py::arg("slots"), py::arg("queries"),
      py::arg("prefix"), py::arg("prefix_kv"), py::arg("visible"), py::arg("lse"),
      py::arg("grad_o"), py::arg("grad_qkv"), py::arg("device"), py::arg("stream"));
  m.def(
      "few_rows_cuda",
      [](const sb::ConstMatrix& x, const sb::ConstMatrix& weight, bool transposed,
         const Before& before, const Behind& behind, const sb::Matrix& y, uintptr_t sums,
         uintptr_t tickets, int device, uintptr_t stream) {
        sb::FewRowsCudaArgs a = few_rows_args(x, weight, transposed, before, behind, y);
        a.sums = at<float>(sums);
        a.tickets = at<int>(tickets);
        py::gil_scoped_release release;
        sb::few_rows_cuda(a, device, at<void>(stream));
      },
      py::arg("x"), py::arg("weight"), py::arg("transposed"), py::arg("before"), py::arg("behind"),
      py::arg("y"), py::arg("sums"), py::arg("tickets"), py::arg("device"), py::arg("stream"));
  m.def("few_rows_cuda_sums", &sb::few_rows_sums, py::arg("rows"), py::arg("k"), py::arg("cols"));
  m.def("few_rows_cuda_tickets", &sb::few_rows_tickets, py::arg("rows"), py::arg("cols"));
  m.def("few_rows_cuda_tiles", &sb::few_rows_tiles, py::arg("cols"));
  m.def(
      "cosine_loss_cuda",
      [](const sb::ConstMatrix& features, const sb::ConstMatrix& targets, double grad_scale,
         uintptr_t step, uintptr_t step_now, uintptr_t losses, const sb::Matrix& grad,
         uintptr_t unit, int device, uintptr_t stream) {
        const sb::CosineLossCudaArgs a{
            features,          targets, grad_scale,     at<int64_t>(step), at<int64_t>(step_now),
            at<float>(losses), grad,    at<float>(unit)};
        py::gil_scoped_release release;
        sb::cosine_loss_cuda(a, device, at<void>(stream));
      },
      py::arg("features"), py::arg("targets"), py::arg("grad_scale"), py::arg("step"),
      py::arg("step_now"), py::arg("losses"), py::arg("grad"), py::arg("unit"), py::arg("device"),
      py::arg("stream"));
  m.def(
      "adamw_cuda",
      [](int64_t samples, int64_t vectors, int64_t width, int64_t slots, uintptr_t source,
         const sb::ConstMatrix& grad_x, uintptr_t tokens, uintptr_t exp_avg, uintptr_t exp_avg_sq,
         uintptr_t rates, uintptr_t corrections, uintptr_t step_now, uintptr_t step, double lr,
         double beta1, double beta2, double eps, double weight_decay, double grad_factor,
         uintptr_t base, int64_t base_samples, const sb::Matrix& x, int device, uintptr_t stream) {
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
        py::gil_scoped_release release;
        sb::adamw_cuda(a, device, at<void>(stream));
      },
      py::arg("samples"), py::arg("vectors"), py::arg("width"), py::arg("slots"), py::arg("source"),
      py::arg("grad_x"), py::arg("tokens"), py::arg("exp_avg"), py::arg("exp_avg_sq"),
      py::arg("rates"), py::arg("corrections"), py::arg("step_now"), py::arg("step"), py::arg("lr"),
      py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
      py::arg("grad_factor"), py::arg("base"), py::arg("base_samples"), py::arg("x"),
      py::arg("device"), py::arg("stream"));
}
