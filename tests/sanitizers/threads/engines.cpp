// Entries of the engines: steps of the bridge's training, and descents of a small tower.
#include "bridge_training/bridge_training.h"
#include "core/huge_pages.h"
#include "entries.h"
#include "tower_descent/tower_descent.h"

namespace entries {

void add_training() {
  constexpr int64_t kClasses = 101, kN = 700, kT = 97;
  struct Shared {
    Counts offsets{kClasses + 1};
    Floats e{kN * kT, 41, 1}, h{kN * kT, 42, 1}, tau{kClasses * kT, 43, 1}, x{kN * kClasses, 44, 1};
    Floats add{kClasses * kClasses, 45, 1}, scale{kN, 46, 1}, r{kN, 47, 1}, q{kN, 48, 1},
        dot{kN, 49, 1};
    Floats flat{100000, 50, 1};
  };
  auto s = std::make_shared<Shared>();
  for (int64_t c = 0; c <= kClasses; ++c) s->offsets[c] = c * kN / kClasses;
  for (int64_t i = 0; i < kN; ++i) s->r[i] += 2, s->q[i] += 2;
  const auto rows = [s](int threads) {
    return ClassRows{DType::kFloat32, s->offsets.data, 0, kClasses, threads};
  };
  g_entries.push_back({"shot_norms", [s, rows](int threads) {
                         Floats e(s->e), r(kN), mean(kClasses * kT);
                         shot_norms({rows(threads), kT, e.data, s->tau.data, r.data, mean.data});
                         return bytes_of(e, r, mean);
                       }});
  g_entries.push_back({"shot_dots", [s, rows](int threads) {
                         Floats q(kN);
                         shot_dots({rows(threads), kT, s->e.data, s->h.data, q.data});
                         return bytes_of(q);
                       }});
  g_entries.push_back({"row_loss", [s, rows](int threads) {
                         Floats x(s->x), loss(kN), dot(kN), sums(kClasses * kClasses);
                         row_loss({rows(threads), 0, output(x, kN, kClasses), 0.5, s->scale.data,
                                   s->add.data, loss.data, dot.data, sums.data});
                         return bytes_of(x, loss, dot, sums);
                       }});
  g_entries.push_back({"shot_grads", [s, rows](int threads) {
                         Floats h(s->h), tau(kClasses * kT);
                         shot_grads({rows(threads), kT, s->e.data, h.data, s->r.data, s->q.data,
                                     s->dot.data, s->tau.data, tau.data});
                         return bytes_of(h, tau);
                       }});
  g_entries.push_back({"adamw", [s](int threads) {
                         Floats p(s->flat), first(p.size), second(p.size);
                         AdamwArgs a;
                         a.size = p.size, a.parameter = p.data, a.gradient = s->flat.data;
                         a.first = first.data, a.second = second.data, a.threads = threads;
                         adamw(a);
                         return bytes_of(p, first, second);
                       }});
}

namespace {

// Two layers with a shared prefix, three slots, one learned; wide enough for a team on one block.
struct Tower {
  static constexpr int64_t kT = 128, kD = 16, kSlots = 3, kPrefix = 2;
  struct Linear {
    Packed forward, backward;
    Linear(int64_t k, int64_t m, uint64_t seed) : forward(k, m, seed), backward(m, k, seed + 1) {}
    FrozenLinear view() const { return {forward.view(), backward.view(), nullptr}; }
  };
  Floats weight{kT, 61, 1}, bias{kT, 62, 0.1}, prefix{2 * kPrefix * kT, 63, 1},
      base{kSlots * kT, 64, 1};
  Linear qkv{kT, 3 * kT, 65}, out{kT, kT, 67}, fc{kT, kT, 69}, proj{kT, kT, 71}, last{kT, kD, 73};
  FrozenLayer layers[2];
  int32_t source[kSlots] = {-1, 0, -1}, visible[6] = {0, 1, 1, 1, 2, 2};
  int32_t begin[kSlots + 1] = {0, 2, 3, 5};
  FrozenTower view;

  Tower() {
    const FrozenNorm norm{weight.data, bias.data, 1e-5};
    for (FrozenLayer& layer : layers) {
      layer = {norm, norm, qkv.view(), out.view(), fc.view(), proj.view(), prefix.data, nullptr};
    }
    view.width = kT, view.heads = 4, view.features = kD, view.slots = kSlots, view.prefix = kPrefix;
    view.vectors = 1, view.layers = 2, view.layer = layers, view.norm_final = norm;
    view.projection = last.view(), view.source = source, view.visible = visible;
    view.visible_begin = begin, view.base = base.data, view.base_slot_stride = kT;
    view.learned_begin = 1, view.learned_end = 2;
  }
  Bytes descend(int64_t samples, int64_t steps, int threads) const {
    Floats tokens(samples * kT, 81, 1), first(tokens.size), second(tokens.size);
    Floats targets(samples * kD, 82, 0.4), losses(steps * samples), features(samples * kD);
    Array<char> work(tower_descent_workspace(view, samples, threads));
    prefer_huge_pages(work.data, work.size);
    TowerDescentArgs a;
    a.tower = &view, a.workspace = work.data, a.samples = samples, a.tokens = tokens.data;
    a.features = features.data, a.step_end = steps, a.exp_avg = first.data;
    a.exp_avg_sq = second.data, a.targets = targets.data, a.losses = losses.data;
    a.threads = threads;
    tower_descent(a);
    return bytes_of(tokens, losses, features);
  }
};

}  // namespace

void add_tower() {
  auto tower = std::make_shared<Tower>();
  g_entries.push_back({"tower_descent, a team on a block",
                       [tower](int threads) { return tower->descend(2, 2, threads); }});
  g_entries.push_back({"tower_descent, a block each",
                       [tower](int threads) { return tower->descend(7, 2, threads); }});
}

}  // namespace entries
