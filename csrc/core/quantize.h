// Rows to codes with their bounds (core/codes.h says what is promised).
//
// Every sum here is float32 and is widened by what its rounding can have taken away, so that the
// bounds hold whatever the instruction set rounds.
#pragma once
#include "core/code_products.h"
#include "core/codes.h"
#include "core/transpose.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr float kUnit = 0x1p-24f;           // rounding of one float32 operation
constexpr float kRounds = 1.0f + 0x1p-20f;  // covers the few operations that join the parts
constexpr float kFlushed = 1e-35f;          // more than the norm of entries that count as zero
constexpr float kPlane = 254.0f;  // a query's second plane has codes of 1/254 of the first

// Bound of |fl⟨q, x⟩ − ⟨q, x⟩| / (‖q‖‖x‖), and of the rounding where the interval is computed.
SB_INLINE float score_rounding(int64_t d) {
  return (static_cast<float>(d) + 16.0f) * kUnit * 1.05f;
}

// A computed sum of d squares, its root times this, is at least the root of the true one.
SB_INLINE float sum_rounding(int64_t d) { return 1.0f + static_cast<float>(d + 64) * kUnit; }

// Entries in units of the scale are off by this at most: the scale and its inverse are rounded.
SB_INLINE float unit_rounding(int64_t d) {
  return __builtin_sqrtf(static_cast<float>(d)) * kLargestCode * 4.0f * kUnit;
}

// Elements of a row's scratch: whole vectors of floats, and whole lanes of codes when they are
// transposed.
SB_INLINE int64_t padded_width(int64_t d) { return (d + 63) / 64 * 64; }

struct QuantizedRow {
  float scale, norm, error;  // error: ‖ε‖ alone
  float length;              // at least ‖x‖
  int32_t sum;               // of the codes
  bool coded;                // false: a NaN, an infinity, an entry above kLargestCoded
};

SB_INLINE QuantizedRow without_codes(int8_t* codes, int64_t padded) {
  for (int64_t i = 0; i < padded; ++i) codes[i] = 0;
  return {0.0f, 0.0f, __builtin_inff(), __builtin_inff(), 0, false};
}

// x [padded], zeros past d; codes [padded].
SB_INLINE QuantizedRow quantize_row(const float* __restrict x, int64_t d,
                                    int8_t* __restrict codes) {
  using V = typename Simd<float>::Vec;
  constexpr int kLanes = Simd<float>::kLanes;
  typedef int32_t Whole __attribute__((vector_size(SB_VEC_BYTES)));
  typedef int8_t Bytes __attribute__((vector_size(SB_VEC_BYTES / 4)));
  const int64_t padded = padded_width(d);
  V most{}, zero{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const V v = load(x + i);
    const V a = v < 0 ? -v : v;
    most = a > most ? a : most;
    zero += v * 0.0f;  // NaN for what is not finite
  }
  const float largest = max_lanes<float>(most);
  if (!(sum_lanes<float>(zero) == 0.0f) || !(largest <= kLargestCoded)) {
    return without_codes(codes, padded);
  }
  if (largest < kSmallestCoded) {
    QuantizedRow row = without_codes(codes, padded);
    row.error = largest * __builtin_sqrtf(static_cast<float>(d)) * kRounds;
    row.length = row.error;
    row.coded = true;
    return row;
  }
  const float scale = largest / kLargestCode, inverse = kLargestCode / largest;
  const V magic = V{} + 0x1.8p23f;  // adding it rounds to a whole number
  V norm{}, error{}, length{};
  Whole sum{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const V v = load(x + i) * inverse;
    const V code = (v + magic) - magic;
    const V rest = v - code;
    norm += code * code;
    error += rest * rest;
    length += v * v;
    const Whole whole = __builtin_convertvector(code, Whole);
    sum += whole;
    const Bytes bytes = __builtin_convertvector(whole, Bytes);
    __builtin_memcpy(codes + i, &bytes, sizeof(bytes));
  }
  const float widen = sum_rounding(d), slack = unit_rounding(d);
  QuantizedRow row;
  row.scale = scale;
  row.norm = scale * __builtin_sqrtf(sum_lanes<float>(norm)) * widen * kRounds;
  row.error = scale * (__builtin_sqrtf(sum_lanes<float>(error)) * widen + slack) * kRounds;
  row.length = scale * (__builtin_sqrtf(sum_lanes<float>(length)) * widen + slack) * kRounds;
  int32_t lane[kCodeGroup * 16];
  __builtin_memcpy(lane, &sum, sizeof(sum));
  row.sum = 0;
  for (int i = 0; i < kLanes; ++i) row.sum += lane[i];
  row.coded = true;
  return row;
}

// The rest of a row that its codes leave, as codes of 1/kPlane of the scale. Returns the norm of
// what these leave in turn.
SB_INLINE float quantize_rest(const float* __restrict x, int64_t d, const QuantizedRow& row,
                              const int8_t* __restrict codes, int8_t* __restrict rest_codes,
                              int32_t* rest_sum) {
  const float inverse = row.scale > 0 ? 1.0f / row.scale : 0.0f;
  float squares = 0.0f;
  int32_t sum = 0;
  for (int64_t i = 0; i < d; ++i) {
    const float rest = (x[i] * inverse - static_cast<float>(codes[i])) * kPlane;
    float code = __builtin_rintf(rest);
    code = code > kLargestCode ? kLargestCode : code < -kLargestCode ? -kLargestCode : code;
    squares += (rest - code) * (rest - code);
    rest_codes[i] = static_cast<int8_t>(code);
    sum += static_cast<int32_t>(code);
  }
  for (int64_t i = d; i < padded_width(d); ++i) rest_codes[i] = 0;
  *rest_sum = sum;
  const float left = __builtin_sqrtf(squares) * sum_rounding(d) + kPlane * unit_rounding(d);
  return row.scale > 0 ? row.scale / kPlane * left * kRounds : row.error;
}

// Scratch of quantize_panel, in bytes.
SB_INLINE int64_t quantize_scratch(int64_t d) { return padded_width(d) * (kPanel + 4); }

// Rows [row0, row0 + count) of x, count <= kPanel, as one panel of codes with its bounds.
template <class = void>
void quantize_panel(const ConstMatrix& x, int64_t row0, int64_t count, uint8_t* codes,
                    float* bounds, char* scratch) {
  using V = typename Simd<float>::Vec;
  constexpr int kLanes = Simd<float>::kLanes;
  const int64_t d = x.cols, padded = padded_width(d), groups = code_groups(d);
  float* line = reinterpret_cast<float*>(scratch);
  int8_t* rows = reinterpret_cast<int8_t*>(line + padded);
  const float gamma = score_rounding(d);
  for (int64_t i = d; i < padded; ++i) line[i] = 0.0f;
  for (int64_t r = 0; r < kPanel; ++r) {
    int8_t* at = rows + r * padded;
    QuantizedRow row{};
    if (r < count) {
      const char* src =
          static_cast<const char*>(x.data) + (row0 + r) * x.row_stride * dtype_size(x.dtype);
      widen(src, x.dtype, d, line);
      row = quantize_row(line, d, at);
      row.error = (row.error + gamma * (row.norm + row.error)) * kRounds + kFlushed;
    } else {
      for (int64_t i = 0; i < padded; ++i) at[i] = 0;
    }
    bounds[r] = row.scale;
    bounds[kPanel + r] = row.norm;
    bounds[2 * kPanel + r] = row.error;
  }
  // Groups of four codes are turned like floats, which no operation looks into.
  for (int64_t col = 0; col < kPanel; col += kLanes) {
    for (int64_t g = 0; g < groups; g += kLanes) {
      V v[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        v[j] = load(reinterpret_cast<const float*>(rows + (col + j) * padded) + g);
      }
      transpose<float>(v);
      const int64_t n = groups - g < kLanes ? groups - g : kLanes;
      for (int64_t i = 0; i < n; ++i) {
        CodeVec turned;
        __builtin_memcpy(&turned, &v[i], sizeof(turned));
        turned ^= static_cast<int32_t>(0x80808080);
        __builtin_memcpy(codes + ((g + i) * kPanel + col) * kCodeGroup, &turned, sizeof(turned));
      }
    }
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
