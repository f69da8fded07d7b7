// count_cache_grid: the validation accuracy of a cache model for every value of a grid.
//
//   logit_c = text_c + α·k_c        k_c = Σ_{s of class c} w_s·exp(−β(1 − cos_s))
//
// α enters linearly. A row is right while text_y − text_c > α·(k_c − k_y) for every other class c
// (≥ for c after y: of equal logits the lower class wins), that is for α between two bounds, which
// one look at the row's classes finds for any number of α. One exponential of a pair serves every
// set of weights, and the cosines of a row are read for all β while they are in cache.
//
// Keys lie in layers: layer i holds the i-th key of every class that has one. Classes stand in the
// order of their number of keys, the most first, so that a layer's classes are the first of them
// and a sum over a class's keys is a sum of vectors.
#pragma once
#include "core/view.h"

namespace semobridge {

// A row of weights goes on for so many numbers past the next multiple of it.
constexpr int64_t kCacheGridPad = 16;

struct CacheGridArgs {
  ConstMatrix cosines;              // [N, S], float32 or float64; columns in layers
  ConstMatrix text;                 // [N, C], the same type; columns in the order of the classes
  const int64_t* labels = nullptr;  // [N] places in that order
  const int64_t* lower = nullptr;   // [C] what the ties go by: the classes' own numbers
  const int64_t* layers = nullptr;  // [number of layers + 1], where each begins
  int64_t layer_count = 0;
  ConstMatrix weights;            // [G, S and the pad], the same type; no data: one set of ones
  const double* betas = nullptr;  // [B]
  int64_t beta_count = 0;
  const double* alphas = nullptr;  // [A] ascending
  int64_t alpha_count = 0;
  int64_t* correct = nullptr;  // [B, G, A] written
  int threads = 1;
};

void count_cache_grid(const CacheGridArgs& args);

}  // namespace semobridge
