// count_correct: the validation accuracy of many blends of the same three blocks of cosines.
//
// For one row only the classes that can beat its label under some parameters need looking at. Class
// a dominates class b when no cosine of a is lower, its weight exponent D is no lower, and either
// a < b (it wins ties) or every cosine of a is higher by more than `margin`. With λ >= 0, s >= 0
// and α, β, γ > 0 a dominated class never comes before the class that dominates it, so neither what
// the label dominates nor what another candidate dominates can change whether the label wins.
#pragma once
#include "core/view.h"

namespace semobridge {

constexpr int64_t kCandidatePad = 16;  // candidates of a row are padded to a multiple of this

struct PruneArgs {
  ConstMatrix z[3];                   // [N, C], float32 or float64
  const int64_t* labels = nullptr;    // [N]
  const double* exponents = nullptr;  // [C] D
  double margin = 0;
  int32_t* candidates = nullptr;  // [N, C] written: the classes to look at, likeliest first
  int32_t* counts = nullptr;      // [N] written: how many
  int threads = 1;
};

void prune_candidates(const PruneArgs& args);

// correct[t] = number of rows whose label has the highest logit (blend_logits/blend_logits.h), the
// lower class winning ties, with w = exp(s·D). Decided in the dtype of z where the difference is
// beyond its rounding error, otherwise in float64: the count is that of a float64 evaluation on the
// same cosines.
struct CountCorrectArgs {
  DType dtype = DType::kFloat32;
  int64_t rows = 0;
  const int64_t* labels = nullptr;      // [N]
  const void* label_z[3] = {};          // [N]
  const void* label_d = nullptr;        // [N] D of the label, dtype of z
  const int64_t* offsets = nullptr;     // [N + 1], multiples of kCandidatePad
  const int32_t* candidates = nullptr;  // [offsets[N]]; a row's padding repeats one of its own
  const void* candidate_z[3] = {};      // [offsets[N]]
  const void* candidate_d = nullptr;    // [offsets[N]]
  const double* exponents = nullptr;    // [C]
  double largest_exponent = 0;          // max |D|
  int64_t trials = 0;
  const double* params = nullptr;  // [trials, 7]: s, α, β, γ, λ1, λ2, λ3
  int64_t* correct = nullptr;      // [trials] written
  int threads = 1;
};

void count_correct(const CountCorrectArgs& args);

}  // namespace semobridge
