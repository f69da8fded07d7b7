// How a batch is cut into blocks of samples, and what a block keeps. Included by the dispatch and
// by every instruction set, hence everything static.
#pragma once
#include "tower_descent/tower_descent.h"

namespace semobridge {
namespace {

constexpr int64_t kBlockRows = 112;  // rows that pass a weight together: eight tiles of 14
constexpr int64_t kOwnRows = 28;  // per thread; with fewer, the threads share one block's columns
constexpr int64_t kTeamBytes = 96 * 1024;  // of the widest weight per thread, to be worth a barrier

struct DescentPlan {
  int team = 1;  // threads on one block
  int blocks_at_once = 1;
  int64_t block = 1;  // samples, at most
  int64_t blocks = 0;
};

[[maybe_unused]] static DescentPlan plan_descent(const FrozenTower& t, int64_t samples,
                                                 int threads) {
  DescentPlan plan;
  if (samples == 0) return plan;
  const int64_t most = kBlockRows / t.slots < 1 ? 1 : kBlockRows / t.slots;
  const int64_t widest = 3 * t.width * t.width * 4;
  const bool small = widest / threads < kTeamBytes;
  const bool own =
      threads > 1 && samples >= threads && (small || samples * t.slots >= kOwnRows * threads);
  if (own) {
    plan.blocks = (samples + most - 1) / most;
    plan.blocks = (plan.blocks + threads - 1) / threads * threads;
    plan.blocks_at_once = threads;
  } else {
    plan.blocks = (samples + most - 1) / most;
    const int64_t team = widest / kTeamBytes < 1 ? 1 : widest / kTeamBytes;
    plan.team = static_cast<int>(team < threads ? team : threads);
  }
  plan.block = (samples + plan.blocks - 1) / plan.blocks;
  return plan;
}

constexpr int64_t padded(int64_t cols) { return panels_of(cols) * kPanel; }

// Where everything of one block lies, in elements from its start; the same arithmetic gives its
// size.
struct BlockLayout {
  int64_t rows = 0, last_rows = 0;                       // n·S, S
  int64_t width = 0, qkv = 0, hidden = 0, features = 0;  // leading dimensions
  int64_t keys = 0;                                      // of one row of probabilities
  int64_t layer_size = 0;
  int64_t x_in = 0, qkv_at = 0, p = 0, x_mid = 0, slope = 0, stats1 = 0, stats2 = 0;  // in a layer
  int64_t a = 0, h = 0, dx = 0, dxm = 0, dqkv = 0, x_out = 0, raw = 0, stats_pre = 0,
          stats_final = 0, y = 0, feats = 0, grad_feats = 0;
  int64_t size = 0;
};

[[maybe_unused]] static BlockLayout layout_block(const FrozenTower& t, int64_t samples) {
  BlockLayout b;
  b.rows = t.slots * samples;
  b.last_rows = samples;
  b.width = padded(t.width);
  b.qkv = padded(3 * t.width);
  for (int64_t l = 0; l < t.layers; ++l) {
    const int64_t m = padded(t.layer[l].fc.forward.cols);
    if (m > b.hidden) b.hidden = m;
  }
  b.features = padded(t.features);
  b.keys = padded(t.prefix + t.slots);
  int64_t at = 0;
  auto take = [&at](int64_t elements) {
    const int64_t here = at;
    at += (elements + 15) / 16 * 16;
    return here;
  };
  b.x_in = take(b.rows * b.width);
  b.qkv_at = take(b.rows * b.qkv);
  b.p = take(b.rows * t.heads * b.keys);
  b.x_mid = take(b.rows * b.width);
  b.slope = take(b.rows * b.hidden);
  b.stats1 = take(2 * b.rows);
  b.stats2 = take(2 * b.rows);
  b.layer_size = at;
  at *= t.layers;
  b.a = take(b.rows * b.width);
  b.h = take(b.rows * b.hidden);
  b.dx = take(b.rows * b.width);
  b.dxm = take(b.rows * b.width);
  b.dqkv = take(b.rows * b.qkv);
  b.x_out = take(samples * b.width);
  b.raw = take(t.norm_pre.weight != nullptr ? b.rows * b.width : 0);
  b.stats_pre = take(2 * b.rows);
  b.stats_final = take(2 * samples);
  b.y = take(samples * b.width);
  b.feats = take(samples * b.features);
  b.grad_feats = take(samples * b.features);
  b.size = (at + 1023) / 1024 * 1024;
  return b;
}

}  // namespace
}  // namespace semobridge
