// The work between the matrix products of a SeMoBridge-T step (CUDA), one launch each; the formulas
// are those of bridge_training/bridge_training.h. All float32 and contiguous unless a stride is
// given, sums in one fixed order. Rows are in class order: row n belongs to class labels[n], class
// c owns rows offsets[c] .. offsets[c + 1].
//
// Steps are counted on the device, so that one captured graph serves every step: total_loss reads
// `step` and hands it on in `step_now`, adamw_flat reads that and writes `step` anew. No kernel
// reads what it writes.
//
// By halves (cuda_halves.cuh) the wide products run on tensor cores. Each operand is two of float16
// that add up to it, times powers of two which their results are multiplied by: `left` [N] those of
// the shots' rows, `right` [C] those of the other operand's. Gradients leave as pairs of halves,
// (high, low) in the four bytes of their float, times left_n and half_scale(bound): `bound` is at
// least the largest of |gradient·left_n|.
#pragma once
#include "core/view.h"

namespace semobridge {

// e ← e + τ_y      r = ‖e‖
struct ShotNormsCudaArgs {
  int64_t rows = 0, width = 0;
  const int64_t* labels = nullptr;  // [N], used with tau
  float* e = nullptr;               // [N, T] in place where there is a tau
  const float* tau = nullptr;       // [C, T] or null
  float* r = nullptr;               // [N] written
};
void shot_norms_cuda(const ShotNormsCudaArgs& args, int device, void* stream);

// out_c = Σ over the rows of c of x_n·f_n + extra_c,   f_n = 1/(norms_n·K_c), or 1 without norms
struct ClassSumsCudaArgs {
  int64_t classes = 0;
  const int64_t* offsets = nullptr;  // [C + 1] of the classes worked on
  int64_t row_begin = 0;             // the row of x[0] and norms[0]: x may be a chunk
  ConstMatrix x;                     // [N, M]
  const float* norms = nullptr;      // [N] or null; rows of norm 0 add nothing
  const float* extra = nullptr;      // [C, M] or null
  float* out = nullptr;              // [C, M] written
  const float* left = nullptr;       // [N] of row x[0] on: x holds pairs of halves; no norms, extra
  const float* bound = nullptr;      // [1], used with left
};
void class_sums_cuda(const ClassSumsCudaArgs& args, int device, void* stream);

// q = sqrt(max(a·b, 0))      inverse = 1/q, 0 where q is 0
struct RowDotsCudaArgs {
  int64_t rows = 0, width = 0;
  const float* a = nullptr;  // [N, M]
  const float* b = nullptr;  // [N, M], may be a
  float* q = nullptr;        // [N] written
  float* inverse = nullptr;  // [N] written, or null
};
void row_dots_cuda(const RowDotsCudaArgs& args, int device, void* stream);

// logit_nc = (x_nc + add_yc)·scale_n      p = softmax      g = coefficient·(p − onehot(y))
// x ← g·scale      loss_n = coefficient·(logsumexp − logit_ny)      dot_n = Σ_c g_nc·logit_nc
struct RowLossCudaArgs {
  Matrix x;                         // [N, C] in place
  const int64_t* labels = nullptr;  // [N]
  double coefficient = 1;
  const float* scale = nullptr;  // [N], or null: 1
  const float* add = nullptr;    // [C, C] or null
  float* loss = nullptr;         // [N] written
  float* dot = nullptr;          // [N] written, or null
  const float* left = nullptr;   // [N]: x is a product by halves, and its gradient leaves in pairs
  const float* right = nullptr;  // [C], used with left
  const float* bound = nullptr;  // [1], used with left
};
void row_loss_cuda(const RowLossCudaArgs& args, int device, void* stream);

// h ← (m − u(u·m))/(K·r) − (dot/q²)·h,   u = e/r,  m = grad_mean_y,  K = shots of y
struct ShotGradsCudaArgs {
  int64_t rows = 0, width = 0;
  const int64_t* labels = nullptr;   // [N]
  const int64_t* offsets = nullptr;  // [C + 1]
  const float* e = nullptr;          // [N, T]
  float* h = nullptr;                // [N, T] in place; without dot only written
  const float* r = nullptr;          // [N]
  const float* inverse_q = nullptr;  // [N], used with dot
  const float* dot = nullptr;        // [N], or null: no gradient of q
  const float* grad_mean = nullptr;  // [C, T]
};
void shot_grads_cuda(const ShotGradsCudaArgs& args, int device, void* stream);

// The gradient of x from that of unit = x/‖x‖:  out = (grad − unit(unit·grad))/norm, 0 where norm
// is 0; with `accumulate` added to what out holds. out may be grad.
struct UnitGradCudaArgs {
  int64_t rows = 0, width = 0;
  const float* grad = nullptr;   // [N, M]
  const float* unit = nullptr;   // [N, M]
  const float* norms = nullptr;  // [N]
  bool accumulate = false;
  float* out = nullptr;  // [N, M]
};
void unit_grad_cuda(const UnitGradCudaArgs& args, int device, void* stream);

// With d_c = ‖τ_c‖ − mean ‖τ‖:  loss_c = weight·d_c²/C      grad_tau_c +=
// (2·weight/C)·d_c·τ_c/‖τ_c‖
struct BiasLossCudaArgs {
  int64_t classes = 0, width = 0;
  double weight = 1;
  const float* tau = nullptr;      // [C, T]
  const float* norms = nullptr;    // [C] ‖τ_c‖
  const float* inverse = nullptr;  // [C] 1/‖τ_c‖, 0 for a zero row
  float* grad_tau = nullptr;       // [C, T] added to
  float* loss = nullptr;           // [C] written
};
void bias_loss_cuda(const BiasLossCudaArgs& args, int device, void* stream);

// loss = losses[step] = Σ parts      step_now = step
struct TotalLossCudaArgs {
  int64_t size = 0;
  const float* parts = nullptr;   // [size]
  const int64_t* step = nullptr;  // [1]
  int64_t* step_now = nullptr;    // [1] written
  float* loss = nullptr;          // [1] written
  float* losses = nullptr;        // [steps], entry `step` is written
};
void total_loss_cuda(const TotalLossCudaArgs& args, int device, void* stream);

// One AdamW step of all parameters as torch.optim.AdamW takes it; `step` becomes step_now + 1.
struct AdamwFlatCudaArgs {
  int64_t size = 0;
  float* parameter = nullptr;         // [size] in place
  const float* gradient = nullptr;    // [size]
  float* first = nullptr;             // [size] exp_avg, in place
  float* second = nullptr;            // [size] exp_avg_sq, in place
  const float* table = nullptr;       // [steps, 3]: 1 − lr·decay, lr/(1 − β1^n), sqrt(1 − β2^n)
  const int64_t* step_now = nullptr;  // [1]
  int64_t* step = nullptr;            // [1] written
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
};
void adamw_flat_cuda(const AdamwFlatCudaArgs& args, int device, void* stream);

// Rows of a product's right operand: x_r = scale_r·(high_r + low_r). The left one stands as [high |
// high] where its low halves are zero, else as [high | low | high].
struct CutRowsCudaArgs {
  ConstMatrix x;           // [R, K] float32
  int copies = 1;          // of the high halves
  void* out = nullptr;     // [R, (copies + 1)·K] float16: high halves, `copies` times, and low
  float* scale = nullptr;  // [R] written
};
void cut_rows_cuda(const CutRowsCudaArgs& args, int device, void* stream);

// out_dc (+)= Σ over the parts p and both halves h of raw[p·D + d, 2c + h] / half_scale(bounds_c)
struct AddHalvesCudaArgs {
  ConstMatrix raw;                // [parts·D, 2C] float32
  int64_t parts = 1;              // of the left operand
  const float* bounds = nullptr;  // [2]: of the columns before `split`, and behind
  int64_t split = 0;
  Matrix out;  // [D, C]
  bool accumulate = false;
};
void add_halves_cuda(const AddHalvesCudaArgs& args, int device, void* stream);

}  // namespace semobridge
