#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "bindings.h"
#include "tower_descent/bind_cuda.h"
#include "tower_descent/tower_descent.h"

namespace {

// (packed forward, packed backward, bias or 0, rows, cols)
using Linear = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t>;
// (weight or 0, bias, eps)
using Norm = std::tuple<uintptr_t, uintptr_t, double>;

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

SB_BIND_CUDA(m) { bind_tower_kernels(m); }
