// The passes of a block: layer by layer forward, and the input gradient back.
#pragma once
#include "tower_descent/block.h"

namespace semobridge {
namespace SB_ISA {
namespace {

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

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
