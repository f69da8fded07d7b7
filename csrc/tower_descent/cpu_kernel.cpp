// tower_descent for one instruction set; see tower_descent/tower_descent.h for what it computes.
#include "core/adamw.h"
#include "core/isa.h"
#include "core/table.h"
#include "tower_descent/passes.h"

namespace semobridge {
namespace SB_ISA {
namespace {

// The samples of one block, in the caller's arrays.
template <class T>
struct Samples {
  const FrozenTower& t;
  const TowerDescentArgs& a;
  int64_t first;
  T* rows(void* p, int64_t width) const {
    return p == nullptr ? nullptr : static_cast<T*>(p) + first * width;
  }
  const T* rows(const void* p, int64_t width) const {
    return static_cast<const T*>(p) + first * width;
  }
};

// unit = t/‖t‖, and 1/‖t‖ (0 for a zero row).
template <class T>
SB_INLINE T unit_row(const T* t, int64_t n, T* unit) {
  const T squares = dot(t, t, n);
  const T inverse = squares == 0 ? T(0) : T(1) / static_cast<T>(__builtin_sqrt(squares));
  for (int64_t i = 0; i < n; ++i) unit[i] = t[i] * inverse;
  return inverse;
}

template <class T>
void write_features(const Block<T>& block, const Samples<T>& io, bool unit, T* out) {
  if (out == nullptr) return;
  const int64_t d = io.t.features;
  const Range mine = block.team().share(0, block.samples());
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    const T* t = block.feats() + s * block.feats_stride();
    if (unit) {
      unit_row(t, d, out + s * d);
    } else {
      for (int64_t i = 0; i < d; ++i) out[s * d + i] = t[i];
    }
  }
}

// loss = 1 − cos(t, f); its gradient is −grad_scale·(f − cos·t̂)/‖t‖. Keeps t̂ where it is recorded.
template <class T>
void loss_and_gradient(const Block<T>& block, const Samples<T>& io, int64_t step) {
  const TowerDescentArgs& a = io.a;
  const int64_t d = io.t.features;
  T* recorded = nullptr;
  for (int64_t i = 0; i < a.records; ++i) {
    if (a.record_steps[i] == step) {
      recorded = static_cast<T*>(a.recorded) + i * a.samples * d + io.first * d;
    }
  }
  T* losses = static_cast<T*>(a.losses) + (step - a.step_begin) * a.samples + io.first;
  const Range mine = block.team().share(0, block.samples());
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    T* g = block.grad_feats() + s * block.grad_stride();
    const T* f = io.rows(a.targets, d) + s * d;
    const T inverse = unit_row(block.feats() + s * block.feats_stride(), d, g);
    if (recorded != nullptr) {
      for (int64_t i = 0; i < d; ++i) recorded[s * d + i] = g[i];
    }
    const T cosine = dot(g, f, d);
    losses[s] = T(1) - cosine;
    const T factor = static_cast<T>(a.grad_scale) * inverse;
    const bool zero = dot(f, f, d) == 0;
    for (int64_t i = 0; i < d; ++i) g[i] = zero ? T(0) : (cosine * g[i] - f[i]) * factor;
  }
  block.team().barrier();
}

template <class T>
void adamw(const Block<T>& block, const Samples<T>& io, int64_t step) {
  const TowerDescentArgs& a = io.a;
  const int64_t width = io.t.width, vectors = io.t.vectors;
  const double count = static_cast<double>(step + 1);
  AdamwFactors<T> f = adamw_factors<T>(1 - a.lr * a.weight_decay, a.beta1, a.beta2, a.eps);
  f.rate = static_cast<T>(a.lr / (1 - __builtin_pow(a.beta1, count)));
  f.correction = static_cast<T>(__builtin_sqrt(1 - __builtin_pow(a.beta2, count)));
  T* g = thread_row_scratch<T>().reserve(width);
  const Range mine = block.team().share(0, block.samples());
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    for (int64_t r = 0; r < vectors; ++r) {
      block.gradient(s, r, g);
      const int64_t at = (s * vectors + r) * width;
      T* __restrict v = io.rows(a.tokens, vectors * width) + at;
      T* __restrict m1 = io.rows(a.exp_avg, vectors * width) + at;
      T* __restrict m2 = io.rows(a.exp_avg_sq, vectors * width) + at;
      for (int64_t i = 0; i < width; ++i) v[i] = adamw_value<T>(f, g[i], v[i], m1[i], m2[i]);
    }
  }
}

template <class T>
void run_block(const FrozenTower& tower, const TowerDescentArgs& a, int64_t first, int64_t samples,
               T* memory, Team team) {
  Block<T> block(tower, first, samples, memory, team);
  const Samples<T> io{tower, a, first};
  const int64_t token_width = tower.vectors * tower.width, d = tower.features;
  T* tokens = io.rows(a.tokens, token_width);
  block.begin();
  for (int64_t step = a.step_begin; step < a.step_end; ++step) {
    block.set_input(tokens);
    block.forward();
    loss_and_gradient(block, io, step);
    block.backward();
    adamw(block, io, step);  // shares samples out as set_input does
  }
  if (a.features != nullptr || a.grad_features != nullptr) {
    block.set_input(tokens);
    block.forward();
    write_features(block, io, a.unit_features, io.rows(a.features, d));
  }
  const Range mine = team.share(0, samples);
  if (a.grad_features == nullptr) {
    team.barrier();  // the next block takes this one's memory
    return;
  }
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    const T* g = io.rows(a.grad_features, d) + s * d;
    for (int64_t i = 0; i < d; ++i) block.grad_feats()[s * block.grad_stride() + i] = g[i];
  }
  team.barrier();
  block.backward();
  T* out = io.rows(a.grad_tokens, token_width);
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    for (int64_t r = 0; r < tower.vectors; ++r) {
      block.gradient(s, r, out + (s * tower.vectors + r) * tower.width);
    }
  }
  team.barrier();  // the next block takes this one's memory
}

template <class T>
void tower_descent_typed(const TowerDescentArgs& a) {
  const FrozenTower& tower = *a.tower;
  T* workspace = static_cast<T*>(a.workspace);
  const DescentPlan plan = plan_descent(tower, a.samples, a.threads);
  const int64_t size = layout_block(tower, plan.block).size;
  const int threads = plan.team > 1 ? plan.team : plan.blocks_at_once;
  auto samples_of = [&](int64_t i) {
    return Range{share_begin(a.samples, plan.blocks, i),
                 share_begin(a.samples, plan.blocks, i + 1)};
  };
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    if (plan.team > 1) {
      // libgomp may give fewer threads than asked for, so shares follow the team that came.
      for (int64_t i = 0; i < plan.blocks; ++i) {
        const Range r = samples_of(i);
        run_block(tower, a, r.begin, r.end - r.begin, workspace, Team{me, all});
      }
    } else {
      for (int64_t i = me; i < plan.blocks; i += all) {
        const Range r = samples_of(i);
        if (r.end > r.begin) {
          run_block(tower, a, r.begin, r.end - r.begin, workspace + me * size, Team{0, 1});
        }
      }
    }
  }
}

void check_linear(const FrozenLinear& linear, int64_t rows, int64_t cols, DType compute) {
  require(linear.forward.rows == rows && linear.forward.cols == cols &&
              linear.backward.rows == cols && linear.backward.cols == rows,
          "tower_descent: a weight and its transpose must fit the layer");
  const PackedMatrix* both[] = {&linear.forward, &linear.backward};
  for (const PackedMatrix* m : both) {
    require(
        m->dtype == compute || (compute == DType::kFloat32 && m->dtype != DType::kFloat64),
        "tower_descent: stored weights must be float64 in a float64 tower, else float32 or 16 bit");
    require(reinterpret_cast<uintptr_t>(m->data) % 64 == 0,
            "tower_descent: packed weights must be 64-byte aligned");
  }
}

void check_tower(const FrozenTower& t) {
  require(is_compute_dtype(t.compute), "tower_descent: compute dtype must be float32 or float64");
  require(t.layers > 0 && t.slots > 0 && t.vectors > 0, "tower_descent: tower must not be empty");
  require(t.heads > 0 && t.width % t.heads == 0,
          "tower_descent: width must be a multiple of heads");
  require(0 <= t.learned_begin && t.learned_begin < t.learned_end && t.learned_end <= t.slots,
          "tower_descent: learned slots must lie in the sequence");
  for (int64_t s = 0; s < t.slots; ++s) {
    require(t.source[s] < t.vectors, "tower_descent: source must name a vector");
    require(t.source[s] < 0 || (t.learned_begin <= s && s < t.learned_end),
            "tower_descent: learned slots must lie in their range");
    require(t.visible_begin[s] < t.visible_begin[s + 1], "tower_descent: a slot must see itself");
  }
  for (int64_t l = 0; l < t.layers; ++l) {
    const FrozenLayer& layer = t.layer[l];
    require(layer.query == nullptr || l == t.layers - 1,
            "tower_descent: a pooling layer must be the last");
    require(t.prefix == 0 || layer.prefix != nullptr, "tower_descent: prefix keys are missing");
    check_linear(layer.qkv, t.width, 3 * t.width, t.compute);
    check_linear(layer.out, t.width, t.width, t.compute);
    check_linear(layer.fc, t.width, layer.fc.forward.cols, t.compute);
    check_linear(layer.proj, layer.fc.forward.cols, t.width, t.compute);
  }
  if (t.projection.forward.data != nullptr) {
    check_linear(t.projection, t.width, t.features, t.compute);
  } else {
    require(t.features == t.width,
            "tower_descent: without a projection features are as wide as the tower");
  }
}

}  // namespace

void tower_descent_entry(const TowerDescentArgs& a) {
  check_tower(*a.tower);
  require(!a.tower->bf16_products || active_bf16(),
          "tower_descent: this instruction set has no products of bfloat16");
  if (a.samples == 0) return;
  require(a.step_begin >= a.step_end || (a.targets != nullptr && a.losses != nullptr),
          "tower_descent: a descent needs targets and losses");
  if (a.tower->compute == DType::kFloat64) {
    tower_descent_typed<double>(a);
  } else {
    tower_descent_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge
