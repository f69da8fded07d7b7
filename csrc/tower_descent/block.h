// One block of samples: forward, backward, loss and AdamW, by a team of threads.
//
// Every stage shares out rows, heads or columns over the team and ends at a barrier; a team of one
// has none. Samples of a block meet only in the weights they share.
#pragma once
#include <omp.h>

#include "tower_descent/bf16_product.h"
#include "tower_descent/few_attention.h"
#include "tower_descent/plan.h"
#include "tower_descent/stored_product.h"

namespace semobridge {
namespace SB_ISA {
namespace {

struct Range {
  int64_t begin, end;
};

struct Team {
  int64_t rank, size;
  Range share(int64_t begin, int64_t end) const {
    const int64_t n = end - begin;
    return {begin + n * rank / size, begin + n * (rank + 1) / size};
  }
  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
};

template <class T>
struct Layer {
  const FrozenLayer* w;
  T *x_in, *qkv, *p, *x_mid, *slope;
  RowStats<T>*stats1, *stats2;
  bool first, last;
};

template <class T>
class Block {
 public:
  // Samples [first, first + samples) of the batch; every other index here counts from `first`.
  Block(const FrozenTower& tower, int64_t first, int64_t samples, T* memory, Team team)
      : t_(tower),
        b_(layout_block(tower, samples)),
        first_(first),
        samples_(samples),
        at_(memory),
        team_(team) {
    // The first layer's keys and values of constant rows are kept, unless it is also the last one,
    // whose queries are of slot 0 only.
    keep_ = tower.layers > 1;
    learned_ = {tower.learned_begin * samples, tower.learned_end * samples};
  }

  void begin();                                       // everything that no step changes
  void set_input(const T* tokens);                    // [S, R, T]
  void forward();                                     // input → feats
  void backward();                                    // grad_feats → gradient rows of the input
  void gradient(int64_t s, int64_t r, T* out) const;  // of one vector, [T]

  T* feats() const { return feature_rows(); }
  int64_t feats_stride() const { return has_projection() ? b_.features : b_.width; }
  T* grad_feats() const { return at_ + b_.grad_feats; }
  int64_t grad_stride() const { return b_.features; }
  const Team& team() const { return team_; }
  int64_t samples() const { return samples_; }

 private:
  bool has_projection() const { return t_.projection.forward.data != nullptr; }
  T* feature_rows() const { return at_ + (has_projection() ? b_.feats : b_.y); }
  Range all() const { return {0, b_.rows}; }
  Range changing(const Layer<T>& l) const { return l.first && keep_ ? learned_ : all(); }
  int64_t rows_out(const Layer<T>& l) const { return l.last ? b_.last_rows : b_.rows; }
  static const T* typed(const void* p) { return static_cast<const T*>(p); }

  Layer<T> layer(int64_t i) const {
    T* m = at_ + i * b_.layer_size;
    return {&t_.layer[i],
            m + b_.x_in,
            m + b_.qkv_at,
            m + b_.p,
            m + b_.x_mid,
            m + b_.slope,
            reinterpret_cast<RowStats<T>*>(m + b_.stats1),
            reinterpret_cast<RowStats<T>*>(m + b_.stats2),
            i == 0,
            i == t_.layers - 1};
  }
  HeadView<T> head(const Layer<T>& l, int64_t s, int64_t h) const;
  void norm_rows(const FrozenNorm& norm, const T* x, RowStats<T>* stats, Range rows, T* y);
  void norm_rows_backward(const FrozenNorm& norm, const T* x, const RowStats<T>* stats, Range rows,
                          const T* residual, int64_t residual_rows, T* out);
  void product(const PackedMatrix& w, const T* a, int64_t lda, Range rows, T* c, int64_t ldc,
               Range panels, int64_t k0) {
    if (rows.end <= rows.begin || panels.end <= panels.begin) return;
#ifdef SB_HAVE_BF16_PRODUCTS
    if constexpr (sizeof(T) == 4) {
      if (t_.bf16_products) {
        bf16_product(w, a + rows.begin * lda, lda, rows.end - rows.begin, c + rows.begin * ldc, ldc,
                     panels.begin, panels.end, k0, w.rows);
        return;
      }
    }
#endif
    stored_product(w, a + rows.begin * lda, lda, rows.end - rows.begin, c + rows.begin * ldc, ldc,
                   panels.begin, panels.end, k0, w.rows);
  }
  void project_qkv(const Layer<T>& l, Range rows, bool all_queries);
  void forward_layer(const Layer<T>& l, T* x_next);
  void backward_layer(const Layer<T>& l);
  void set_slot(int64_t s, int64_t slot, const T* tokens);

  const FrozenTower& t_;
  BlockLayout b_;
  int64_t first_, samples_;
  T* at_;
  Team team_;
  bool keep_;
  Range learned_;  // rows
};

template <class T>
void Block<T>::norm_rows(const FrozenNorm& norm, const T* x, RowStats<T>* stats, Range rows, T* y) {
  const Range mine = team_.share(rows.begin, rows.end);
  for (int64_t r = mine.begin; r < mine.end; ++r) {
    stats[r] = layer_norm(x + r * b_.width, typed(norm.weight), typed(norm.bias), norm.eps,
                          t_.width, y + r * b_.width);
  }
  team_.barrier();
}

// out = (residual, where the row has one) + gradient through the norm of the rows in `a`.
template <class T>
void Block<T>::norm_rows_backward(const FrozenNorm& norm, const T* x, const RowStats<T>* stats,
                                  Range rows, const T* residual, int64_t residual_rows, T* out) {
  const Range mine = team_.share(rows.begin, rows.end);
  for (int64_t r = mine.begin; r < mine.end; ++r) {
    layer_norm_backward(x + r * b_.width, at_ + b_.a + r * b_.width, typed(norm.weight), stats[r],
                        t_.width, r < residual_rows ? residual + r * b_.width : nullptr,
                        out + r * b_.width);
  }
  team_.barrier();
}

template <class T>
HeadView<T> Block<T>::head(const Layer<T>& l, int64_t s, int64_t h) const {
  const int64_t d = t_.width / t_.heads;
  HeadView<T> v;
  const T* row = l.qkv + s * b_.qkv + h * d;
  T* grad = at_ + b_.dqkv + s * b_.qkv + h * d;
  v.stride = samples_ * b_.qkv;
  v.q = l.w->query != nullptr ? typed(l.w->query) + h * d : row;
  v.q_stride = l.w->query != nullptr ? 0 : v.stride;
  v.k = row + t_.width;
  v.value = t_.width;
  v.grad_k = grad + t_.width;
  v.grad_q = l.w->query != nullptr ? nullptr : grad;
  v.prefix = t_.prefix;
  v.prefix_k = t_.prefix == 0 ? nullptr : typed(l.w->prefix) + h * d;
  v.prefix_v = t_.prefix == 0 ? nullptr : v.prefix_k + t_.prefix * t_.width;
  v.prefix_stride = t_.width;
  v.width = d;
  v.slots = t_.slots;
  v.visible = t_.visible;
  v.visible_begin = t_.visible_begin;
  return v;
}

template <class T>
void Block<T>::project_qkv(const Layer<T>& l, Range rows, bool all_queries) {
  const FrozenLinear& w = l.w->qkv;
  const T* bias = typed(w.bias);
  const int64_t panels = panels_of(3 * t_.width);
  const int64_t split = all_queries ? 0 : t_.width / kPanel;  // panels before it hold queries only
  const Range mine = team_.share(split, panels);
  product(w.forward, at_ + b_.a, b_.width, rows, l.qkv, b_.qkv, mine, 0);
  const Range queries = team_.share(0, split);
  const Range pooled{0, l.w->query != nullptr ? 0 : b_.last_rows};
  product(w.forward, at_ + b_.a, b_.width, pooled, l.qkv, b_.qkv, queries, 0);
  if (bias != nullptr) {
    auto add = [&](Range some, Range cols) {
      const int64_t c0 = cols.begin * kPanel;
      const int64_t c1 = cols.end * kPanel < 3 * t_.width ? cols.end * kPanel : 3 * t_.width;
      for (int64_t r = some.begin; r < some.end; ++r) {
        for (int64_t c = c0; c < c1; ++c) l.qkv[r * b_.qkv + c] += bias[c];
      }
    };
    add(rows, mine);
    add(pooled, queries);
  }
  team_.barrier();
}

template <class T>
void Block<T>::set_slot(int64_t s, int64_t slot, const T* tokens) {
  const bool pre = t_.norm_pre.weight != nullptr;
  const int64_t row = slot * samples_ + s;
  T* x0 = at_ + b_.x_in + row * b_.width;
  T* raw = pre ? at_ + b_.raw + row * b_.width : x0;
  const T* base =
      typed(t_.base) + slot * t_.base_slot_stride + (first_ + s) * t_.base_sample_stride;
  const int32_t source = t_.source[slot];
  const T* v = source < 0 || tokens == nullptr ? nullptr : tokens + source * t_.width;
  for (int64_t i = 0; i < t_.width; ++i) raw[i] = v == nullptr ? base[i] : base[i] + v[i];
  if (!pre) return;
  reinterpret_cast<RowStats<T>*>(at_ + b_.stats_pre)[row] = layer_norm(
      raw, typed(t_.norm_pre.weight), typed(t_.norm_pre.bias), t_.norm_pre.eps, t_.width, x0);
}

template <class T>
void Block<T>::begin() {
  const Range mine = team_.share(0, samples_);
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    for (int64_t slot = 0; slot < t_.slots; ++slot) set_slot(s, slot, nullptr);
  }
  team_.barrier();
  if (!keep_) return;
  const Layer<T> l = layer(0);
  norm_rows(l.w->norm1, l.x_in, l.stats1, all(), at_ + b_.a);
  project_qkv(l, all(), true);
}

template <class T>
void Block<T>::set_input(const T* tokens) {
  const Range mine = team_.share(0, samples_);
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    for (int64_t slot = t_.learned_begin; slot < t_.learned_end; ++slot) {
      set_slot(s, slot, tokens + s * t_.vectors * t_.width);
    }
  }
  team_.barrier();
}

template <class T>
void Block<T>::gradient(int64_t s, int64_t r, T* out) const {
  const T* rows = at_ + (t_.norm_pre.weight != nullptr ? b_.dxm : b_.dx);
  for (int64_t i = 0; i < t_.width; ++i) out[i] = 0;
  for (int64_t slot = t_.learned_begin; slot < t_.learned_end; ++slot) {
    if (t_.source[slot] != r) continue;
    const T* g = rows + (slot * samples_ + s) * b_.width;
    for (int64_t i = 0; i < t_.width; ++i) out[i] += g[i];
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
