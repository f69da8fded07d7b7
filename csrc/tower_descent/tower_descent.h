// tower_descent: learned rows in a frozen transformer tower, driven towards target features.
//
// The tower is fixed; only the learned vectors v [S, R, T] change. Position by position its input
// is base (+ v[source] where source >= 0); every layer is pre-norm:
//
//   a = LN1(x)   q,k,v = a·Wqkv + b   o = softmax(q·Kᵀ/√d)·V   x ← x + o·Wo + b
//   a = LN2(x)   x ← x + act(a·W1 + b)·W2 + b
//
// and the feature is t = LN(x₀)·P (+ b) with x₀ the row of slot 0 after the last layer. Per step
// the loss of a sample is 1 − cos(t, f), its gradient goes back to v alone, and AdamW moves v.
//
// What never changes is not computed: `prefix` holds the keys and values of the positions before
// the first learned one (causal towers), shared by all samples; the last layer runs its query,
// output projection and MLP for slot 0 only; the first layer's keys and values of rows without a
// learned vector are computed once.
//
// Slots are the rows that are computed, slot 0 the pooled one. Rows are stored slot-major ([n, S,
// T]), so that "slot 0 of all samples" and "the learned slots of all samples" are contiguous.
//
// Accumulation is float32 (float64 in a float64 tower) in one fixed order per row: a sample's
// result depends neither on the samples beside it nor on the number of threads. NaN stays in its
// sample.
#pragma once
#include "core/activation.h"
#include "core/view.h"

namespace semobridge {

// data == nullptr: no such norm (the identity).
struct FrozenNorm {
  const void* weight = nullptr;  // [T] of the compute type
  const void* bias = nullptr;    // [T]
  double eps = 1e-5;
};

// A matrix and its transpose in panels (core/view.h); dtype float16 and bfloat16 are widened on the
// fly. data == nullptr: no product.
struct FrozenLinear {
  PackedMatrix forward;        // [K, M]
  PackedMatrix backward;       // [M, K]
  const void* bias = nullptr;  // [M] of the compute type, or null
};

struct FrozenLayer {
  FrozenNorm norm1, norm2;
  FrozenLinear qkv, out, fc, proj;  // [T, 3T] [T, T] [T, M] [M, T]
  const void* prefix = nullptr;     // [2, P, T] keys, then values
  // A pooling layer (the last one only): one constant query [T] in place of slot 0's, and no
  // residual around the attention.
  const void* query = nullptr;
};

struct FrozenTower {
  DType compute = DType::kFloat32;
  bool bf16_products = false;  // of rows rounded to bfloat16; the panels are bfloat16
  int64_t width = 0, heads = 0, features = 0;  // T, heads, D
  int64_t slots = 0, prefix = 0;               // n, P
  int64_t vectors = 0;                         // R
  int64_t layers = 0;
  Activation activation = Activation::kGelu;
  const FrozenLayer* layer = nullptr;
  FrozenNorm norm_pre, norm_final;
  FrozenLinear projection;          // [T, D]; null: the feature is the normed row
  const int32_t* source = nullptr;  // [n] which vector a slot adds, or −1
  const int32_t* visible =
      nullptr;  // the slots that each slot's query sees, one list after another
  const int32_t* visible_begin = nullptr;  // [n + 1]
  const void* base = nullptr;              // [n, S or 1, T] of the compute type
  int64_t base_slot_stride = 0, base_sample_stride = 0;
  int64_t learned_begin = 0, learned_end = 0;  // slots with source >= 0 lie in this range
};

struct TowerDescentArgs {
  const FrozenTower* tower = nullptr;
  void* workspace = nullptr;  // tower_descent_workspace(...) bytes
  int64_t samples = 0;
  void* tokens = nullptr;     // [S, R, T], updated in place
  void* features = nullptr;   // [S, D] of the tokens as they end up; may be null
  bool unit_features = true;  // norm(t), else t
  // Descent: steps [step_begin, step_end), Adam's count being step + 1.
  int64_t step_begin = 0, step_end = 0;
  void* exp_avg = nullptr;        // [S, R, T]
  void* exp_avg_sq = nullptr;     // [S, R, T]
  const void* targets = nullptr;  // [S, D] unit rows (a zero row has no gradient)
  void* losses = nullptr;         // [step_end − step_begin, S]: before each step
  double grad_scale = 1, lr = 0.02, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
  const int64_t* record_steps = nullptr;  // ascending; features of the tokens after that many steps
  int64_t records = 0;
  void* recorded =
      nullptr;  // [records, S, D]; rows of steps outside [step_begin, step_end) untouched
  // One backward pass instead of a descent: gradient of t in, gradient of v out.
  const void* grad_features = nullptr;  // [S, D]
  void* grad_tokens = nullptr;          // [S, R, T]
  int threads = 1;
};

// Bytes of scratch that tower_descent() needs for this many samples and threads. It does not grow
// with the number of samples beyond a few per thread: blocks of samples run to the end one after
// another.
int64_t tower_descent_workspace(const FrozenTower& tower, int64_t samples, int threads);

void tower_descent(const TowerDescentArgs& args);

}  // namespace semobridge
