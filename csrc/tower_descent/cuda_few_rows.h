// few_rows (CUDA): a product of few rows with a matrix, with what a tower has before and behind it.
//
//   y = behind(before(x)·W)        x [N, K]        W [K, M]
//
// before:  kPlain      x
//          kNorm       (x − mean)·rstd·weight + bias           statistics from `stats`; mean and
//                                                              rstd are written
//          kNormGrad   g = rstd·(u − mean(u) − x̂·mean(u·x̂)) (+ residual)     u = x·weight,
//                      x̂ of `normed`; means from `stats`; g is written too
// behind:  kStore      y = . + bias
//          kSum        y = . + bias (+ other), and its statistics for a kNorm that follows
//          kActivate   y = . + bias, second = act(y)
//          kActivateGrad   y = . act′(other)
//          kNormGradStats  y = ., and the sums over u = y·weight and u·x̂, x̂ of `other`
//
// Rows are rounded to the storage type where a tower keeps them, and statistics are those of the
// rounded rows. Products of float16 and bfloat16 run on tensor cores; those of float32 too, each
// operand in two parts of TF32, which keeps 21 bits of it.
//
// The sum over K is split among blocks so that a matrix is read by the whole device. Each leaves
// its part in `sums`; the last one of a tile adds them up in their order. So the bits of a row
// depend on K and M alone, neither on the rows beside it nor on the device.
#pragma once
#include "core/activation.h"
#include "core/view.h"

namespace semobridge {

enum class Before : int32_t { kPlain = 0, kNorm = 1, kNormGrad = 2 };
enum class Behind : int32_t {
  kStore = 0,
  kSum = 1,
  kActivate = 2,
  kActivateGrad = 3,
  kNormGradStats = 4
};

// Of a norm, on the side where it stands. `stats` holds two numbers for each of the
// few_rows_tiles(T) tiles of columns and each row: [tiles, N, 2]. Mean and squared deviations of
// the tile before a kNorm, sums of u and u·x̂ before a kNormGrad.
struct FewRowsNorm {
  const float* weight = nullptr;  // [T]
  const float* bias = nullptr;    // [T]
  double eps = 1e-5;
  float* mean = nullptr;   // [N]
  float* rstd = nullptr;   // [N]
  float* stats = nullptr;  // [tiles, N, 2]
};

struct FewRowsCudaArgs {
  ConstMatrix x;       // [N, K], as every matrix here of one dtype, rows aligned to 16 bytes
  ConstMatrix weight;  // [K, M]; with `transposed` [M, K], of which Wᵀ is meant
  bool transposed = false;
  Before before = Before::kPlain;
  FewRowsNorm norm;      // of `before`
  ConstMatrix normed;    // [N, K] kNormGrad
  ConstMatrix residual;  // [N, K] kNormGrad; data == nullptr: none
  Matrix grad;           // [N, K] kNormGrad, written; no other operand
  Behind behind = Behind::kStore;
  const void* bias = nullptr;  // [M], dtype of x, or null
  ConstMatrix other;           // [N, M]
  Activation kind = Activation::kGelu;
  Matrix y;                 // [N, M] written
  Matrix second;            // [N, M] kActivate
  FewRowsNorm norm_behind;  // stats written; of kNormGradStats weight, mean and rstd read
  float* sums = nullptr;    // few_rows_sums(...) floats
  int* tickets = nullptr;   // few_rows_tickets(...) zeros, and zeros again
};
void few_rows_cuda(const FewRowsCudaArgs& args, int device, void* stream);

int64_t few_rows_tiles(int64_t cols);
int64_t few_rows_sums(int64_t rows, int64_t k, int64_t cols);
int64_t few_rows_tickets(int64_t rows, int64_t cols);

}  // namespace semobridge
