// The elementwise work between the matrix products of a SeMoBridge-T step (semobridge_ext/fewshot).
// All rows are in class order: class c owns rows offsets[c] .. offsets[c + 1].
// Everything is float32 or float64 (`dtype`), contiguous unless a stride is given. Sums run in a
// fixed order: threads share out classes, never the rows of one.
#pragma once
#include "core/view.h"

namespace semobridge {

struct ClassRows {
  DType dtype = DType::kFloat32;
  const int64_t* offsets = nullptr;  // [C + 1], of the whole batch
  int64_t first = 0, last = 0;       // the classes to work on
  int threads = 1;
};

// e ← e + τ_y      r = ‖e‖      mean_c = mean over the rows of c of e/r
struct ShotNormsArgs {
  ClassRows rows;
  int64_t width = 0;
  void* e = nullptr;          // [N, T]
  const void* tau = nullptr;  // [C, T] or null
  void* r = nullptr;          // [N] written
  void* mean = nullptr;       // [C, T] written
};
void shot_norms(const ShotNormsArgs& args);

// q = sqrt(max(e·h, 0)), the length of eW when h = e(WWᵀ)
struct ShotDotsArgs {
  ClassRows rows;
  int64_t width = 0;
  const void* e = nullptr;  // [N, T]
  const void* h = nullptr;  // [N, T]
  void* q = nullptr;        // [N] written
};
void shot_dots(const ShotDotsArgs& args);

// logit_nc = (x_nc + add_yc)·scale_n      p = softmax      g = coefficient·(p − onehot(y))
// x ← g·scale      loss_n = coefficient·(logsumexp − logit_ny)      dot_n = Σ_c g_nc·logit_nc
// sums_yc += Σ over the rows of y of g·scale
struct RowLossArgs {
  ClassRows rows;
  int64_t row_begin = 0;  // the row of x[0]: x may be a chunk
  Matrix x;               // [rows of first..last, C] in place
  double coefficient = 1;
  const void* scale = nullptr;  // [N]
  const void* add = nullptr;    // [C, C] or null
  void* loss = nullptr;         // [N] written
  void* dot = nullptr;          // [N] written, or null
  void* sums = nullptr;         // [C, C] added to, or null
};
void row_loss(const RowLossArgs& args);

// With u = e/r: the gradient of e from that of mean_c (through u) and that of q:
//   h ← (m − u(u·m))/(K·r) − (dot/q²)·h,   m = grad_mean_y,  K = shots of y
//   grad_tau_c = Σ over the rows of c of the new h
struct ShotGradsArgs {
  ClassRows rows;
  int64_t width = 0;
  const void* e = nullptr;          // [N, T]
  void* h = nullptr;                // [N, T] in place; without dot only written
  const void* r = nullptr;          // [N]
  const void* q = nullptr;          // [N]
  const void* dot = nullptr;        // [N], or null: no gradient of q
  const void* grad_mean = nullptr;  // [C, T]
  void* grad_tau = nullptr;         // [C, T] written, or null
};
void shot_grads(const ShotGradsArgs& args);

// One AdamW step as torch.optim.AdamW takes it; `step` counts from 1.
struct AdamwArgs {
  DType dtype = DType::kFloat32;
  int64_t size = 0;
  void* parameter = nullptr;
  const void* gradient = nullptr;
  void* first = nullptr;   // exp_avg
  void* second = nullptr;  // exp_avg_sq
  double rate = 1e-3, decay = 0, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  int64_t step = 1;
  int threads = 1;
};
void adamw(const AdamwArgs& args);

}  // namespace semobridge
