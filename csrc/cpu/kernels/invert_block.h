// One block of samples: forward, backward, loss and AdamW, by a team of threads.
//
// Every stage shares out rows, heads or columns over the team and ends at a barrier; a team of one
// has none. Samples of a block meet only in the weights they share.
#pragma once
#include <omp.h>

#include "../invert_plan.h"
#include "few_attention.h"
#include "stored_product.h"

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
  Block(const FrozenTower& tower, int64_t samples, T* memory, Team team)
      : t_(tower), b_(layout_block(tower, samples)), samples_(samples), at_(memory), team_(team) {
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
    stored_product(w, a + rows.begin * lda, lda, rows.end - rows.begin, c + rows.begin * ldc, ldc,
                   panels.begin, panels.end, k0, w.rows);
  }
  void project_qkv(const Layer<T>& l, Range rows, bool all_queries);
  void forward_layer(const Layer<T>& l, T* x_next);
  void backward_layer(const Layer<T>& l);
  void set_slot(int64_t s, int64_t slot, const T* tokens);

  const FrozenTower& t_;
  BlockLayout b_;
  int64_t samples_;
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
  const T* base = typed(t_.base) + slot * t_.base_slot_stride + s * t_.base_sample_stride;
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
void Block<T>::forward_layer(const Layer<T>& l, T* x_next) {
  T* a = at_ + b_.a;
  T* h = at_ + b_.h;
  const int64_t width = t_.width, hidden = l.w->fc.forward.cols;
  norm_rows(l.w->norm1, l.x_in, l.stats1, changing(l), a);
  project_qkv(l, changing(l), !l.last);

  const int64_t queries = l.last ? 1 : t_.slots;
  const Range heads = team_.share(0, samples_ * t_.heads);
  for (int64_t i = heads.begin; i < heads.end; ++i) {
    const int64_t s = i / t_.heads, hd = i % t_.heads;
    head_forward(head(l, s, hd), queries, l.p + i * t_.slots * b_.keys, b_.keys,
                 a + s * b_.width + hd * (width / t_.heads), samples_ * b_.width);
  }
  team_.barrier();

  const Range rows{0, rows_out(l)};
  const Range narrow_panels = team_.share(0, panels_of(width));
  const int64_t c0 = narrow_panels.begin * kPanel;
  const int64_t c1 = narrow_panels.end * kPanel < width ? narrow_panels.end * kPanel : width;
  auto add_residual = [&](const FrozenLinear& w, const T* residual, T* x) {
    const T* bias = typed(w.bias);
    for (int64_t r = 0; r < rows.end; ++r) {
      T* row = x + r * b_.width;
      if (bias != nullptr) {
        for (int64_t c = c0; c < c1; ++c) row[c] += bias[c];
      }
      if (residual != nullptr) {
        for (int64_t c = c0; c < c1; ++c) row[c] += residual[r * b_.width + c];
      }
    }
    team_.barrier();
  };
  product(l.w->out.forward, a, b_.width, rows, l.x_mid, b_.width, narrow_panels, 0);
  add_residual(l.w->out, l.w->query != nullptr ? nullptr : l.x_in, l.x_mid);

  norm_rows(l.w->norm2, l.x_mid, l.stats2, rows, a);
  const Range wide_panels = team_.share(0, panels_of(hidden));
  product(l.w->fc.forward, a, b_.width, rows, h, b_.hidden, wide_panels, 0);
  const T* bias = typed(l.w->fc.bias);
  const int64_t w0 = wide_panels.begin * kPanel, w1 = wide_panels.end * kPanel;
  for (int64_t r = 0; r < rows.end; ++r) {
    T* row = h + r * b_.hidden;
    for (int64_t c = w0; c < w1 && c < hidden && bias != nullptr; ++c) row[c] += bias[c];
    activate(t_.activation, w1 - w0, row + w0, l.slope + r * b_.hidden + w0);
  }
  team_.barrier();
  product(l.w->proj.forward, h, b_.hidden, rows, x_next, b_.width, narrow_panels, 0);
  add_residual(l.w->proj, l.x_mid, x_next);
}

template <class T>
void Block<T>::forward() {
  for (int64_t i = 0; i < t_.layers; ++i) {
    const Layer<T> l = layer(i);
    forward_layer(l, l.last ? at_ + b_.x_out : layer(i + 1).x_in);
  }
  const Range rows{0, b_.last_rows};
  T* y = at_ + b_.y;
  if (t_.norm_final.weight != nullptr) {
    norm_rows(t_.norm_final, at_ + b_.x_out, reinterpret_cast<RowStats<T>*>(at_ + b_.stats_final),
              rows, y);
  } else {
    const Range mine = team_.share(rows.begin, rows.end);
    for (int64_t i = mine.begin * b_.width; i < mine.end * b_.width; ++i) y[i] = at_[b_.x_out + i];
    team_.barrier();
  }
  if (!has_projection()) return;
  const Range panels = team_.share(0, panels_of(t_.features));
  product(t_.projection.forward, y, b_.width, rows, at_ + b_.feats, b_.features, panels, 0);
  const T* bias = typed(t_.projection.bias);
  for (int64_t r = 0; r < rows.end && bias != nullptr; ++r) {
    for (int64_t c = panels.begin * kPanel; c < panels.end * kPanel && c < t_.features; ++c) {
      at_[b_.feats + r * b_.features + c] += bias[c];
    }
  }
  team_.barrier();
}

template <class T>
void Block<T>::backward_layer(const Layer<T>& l) {
  T* a = at_ + b_.a;
  T* h = at_ + b_.h;
  T* dx = at_ + b_.dx;
  T* dxm = at_ + b_.dxm;
  T* dqkv = at_ + b_.dqkv;
  const int64_t hidden = l.w->fc.forward.cols;
  const Range rows{0, rows_out(l)};
  const Range narrow_panels = team_.share(0, panels_of(t_.width));
  const Range wide_panels = team_.share(0, panels_of(hidden));

  product(l.w->proj.backward, dx, b_.width, rows, h, b_.hidden, wide_panels, 0);
  for (int64_t r = 0; r < rows.end; ++r) {
    for (int64_t c = wide_panels.begin * kPanel; c < wide_panels.end * kPanel; ++c) {
      h[r * b_.hidden + c] *= l.slope[r * b_.hidden + c];
    }
  }
  team_.barrier();
  product(l.w->fc.backward, h, b_.hidden, rows, a, b_.width, narrow_panels, 0);
  team_.barrier();
  norm_rows_backward(l.w->norm2, l.x_mid, l.stats2, rows, dx, rows.end, dxm);
  product(l.w->out.backward, dxm, b_.width, rows, a, b_.width, narrow_panels, 0);
  team_.barrier();

  const int64_t queries = l.last ? 1 : t_.slots;
  const Range heads = team_.share(0, samples_ * t_.heads);
  T* line = thread_row_scratch<T>().reserve(b_.keys);
  for (int64_t i = heads.begin; i < heads.end; ++i) {
    const int64_t s = i / t_.heads, hd = i % t_.heads;
    head_backward(head(l, s, hd), queries, l.p + i * t_.slots * b_.keys, b_.keys,
                  a + s * b_.width + hd * (t_.width / t_.heads), samples_ * b_.width, line);
  }
  team_.barrier();

  const Range in = changing(l);
  const int64_t with_query = l.last ? (l.w->query != nullptr ? 0 : b_.last_rows) : b_.rows;
  const Range pooled{in.begin, in.end < with_query ? in.end : with_query};
  const Range others{in.begin > with_query ? in.begin : with_query, in.end};
  product(l.w->qkv.backward, dqkv, b_.qkv, pooled, a, b_.width, narrow_panels, 0);
  // Rows without a query: the first third of the sum is zero.
  product(l.w->qkv.backward, dqkv, b_.qkv, others, a, b_.width, narrow_panels, t_.width);
  team_.barrier();
  norm_rows_backward(l.w->norm1, l.x_in, l.stats1, in, dxm, l.w->query != nullptr ? 0 : rows.end,
                     dx);
}

template <class T>
void Block<T>::backward() {
  T* dx = at_ + b_.dx;
  const Range rows{0, b_.last_rows};
  const T* dy = grad_feats();
  int64_t dy_stride = b_.features;
  if (has_projection()) {
    product(t_.projection.backward, grad_feats(), b_.features, rows, at_ + b_.a, b_.width,
            team_.share(0, panels_of(t_.width)), 0);
    team_.barrier();
    dy = at_ + b_.a;
    dy_stride = b_.width;
  }
  const Range mine = team_.share(rows.begin, rows.end);
  for (int64_t r = mine.begin; r < mine.end; ++r) {
    T* out = dx + r * b_.width;
    if (t_.norm_final.weight != nullptr) {
      layer_norm_backward(at_ + b_.x_out + r * b_.width, dy + r * dy_stride,
                          typed(t_.norm_final.weight),
                          reinterpret_cast<RowStats<T>*>(at_ + b_.stats_final)[r], t_.width,
                          static_cast<const T*>(nullptr), out);
    } else {
      for (int64_t i = 0; i < t_.width; ++i) out[i] = dy[r * dy_stride + i];
    }
  }
  team_.barrier();
  for (int64_t i = t_.layers - 1; i >= 0; --i) backward_layer(layer(i));
  if (t_.norm_pre.weight == nullptr) return;
  const Range learned = team_.share(learned_.begin, learned_.end);
  for (int64_t r = learned.begin; r < learned.end; ++r) {
    layer_norm_backward(at_ + b_.raw + r * b_.width, dx + r * b_.width, typed(t_.norm_pre.weight),
                        reinterpret_cast<RowStats<T>*>(at_ + b_.stats_pre)[r], t_.width,
                        static_cast<const T*>(nullptr), at_ + b_.dxm + r * b_.width);
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
