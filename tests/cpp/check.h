// What the C++ tests share: counting checks, exact conversions, exactly sized buffers. None of it
// is code of the core.
#pragma once
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "core/view.h"

namespace test {

using semobridge::DType;

inline int g_checks = 0, g_failures = 0;
inline bool g_stop_at_first = false;  // for the mutation tests, which ask only whether one fails
constexpr int kPrinted = 20;

__attribute__((format(printf, 2, 3))) inline void check(bool ok, const char* format, ...) {
  ++g_checks;
  if (ok) return;
  if (++g_failures > kPrinted) return;
  va_list args;
  va_start(args, format);
  std::printf("FAILED ");
  std::vprintf(format, args);
  std::printf("\n");
  va_end(args);
  if (g_stop_at_first) std::exit(1);
}

// splitmix64: a fixed stream, the same on every platform.
struct Random {
  uint64_t state;
  uint64_t bits() {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double value() {  // roughly normal, never tiny in sum
    return uniform() + uniform() + uniform() + uniform() - 1.9;
  }
};

struct Format {
  int mantissa, min_exponent, max_exponent;  // stored bits; exponent of the smallest/largest normal
};

inline Format format_of(DType t) {
  switch (t) {
    case DType::kFloat16:
      return {10, -14, 15};
    case DType::kBFloat16:
      return {7, -126, 127};
    case DType::kFloat32:
      return {23, -126, 127};
    default:
      return {52, -1022, 1023};
  }
}

// One unit in the last place of `t` at v.
inline double ulp(double v, DType t) {
  const Format f = format_of(t);
  int e = f.min_exponent;
  if (v != 0 && std::isfinite(v)) {
    const int own = std::ilogb(v);
    if (own > e) e = own;
  }
  return std::ldexp(1.0, e - f.mantissa);
}

// To nearest, ties to even, by arithmetic alone (the core shifts bits).
inline double round_to(double v, DType t) {
  if (t == DType::kFloat64 || !std::isfinite(v) || v == 0) return v;
  const double unit = ulp(v, t);
  const double rounded = std::nearbyint(v / unit) * unit;
  const Format f = format_of(t);
  const double largest = (2.0 - std::ldexp(1.0, -f.mantissa)) * std::ldexp(1.0, f.max_exponent);
  if (std::fabs(rounded) > largest) {
    return std::copysign(std::numeric_limits<double>::infinity(), v);
  }
  return rounded;
}

// The value of a 16-bit pattern.
inline double decode16(uint16_t bits, DType t) {
  const Format f = format_of(t);
  const int exponent_bits = 15 - f.mantissa;
  const int exponent = (bits >> f.mantissa) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << f.mantissa) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, f.min_exponent - f.mantissa);
  return sign *
         std::ldexp((1 << f.mantissa) + fraction, f.min_exponent + exponent - 1 - f.mantissa);
}

// The 16-bit pattern of a value that the format holds exactly.
inline uint16_t encode16(double v, DType t) {
  const Format f = format_of(t);
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const int all = (1 << (15 - f.mantissa)) - 1;
  if (std::isnan(v)) return static_cast<uint16_t>(all << f.mantissa | 1 << (f.mantissa - 1));
  if (std::isinf(v)) return static_cast<uint16_t>(sign | all << f.mantissa);
  const double a = std::fabs(v);
  if (a < std::ldexp(1.0, f.min_exponent)) {
    return static_cast<uint16_t>(sign |
                                 static_cast<int>(std::ldexp(a, f.mantissa - f.min_exponent)));
  }
  const int e = std::ilogb(a);
  const int fraction = static_cast<int>(std::ldexp(a, f.mantissa - e)) - (1 << f.mantissa);
  return static_cast<uint16_t>(sign | (e - f.min_exponent + 1) << f.mantissa | fraction);
}

// A matrix in exactly as many bytes as it needs (the last row ends at its last column), so that a
// sanitizer sees every stray access. Gaps between rows hold a pattern that must survive.
struct Buffer {
  DType dtype;
  int64_t rows, cols, stride;
  std::unique_ptr<unsigned char[]> bytes;
  static constexpr unsigned char kGap = 0x5a;

  Buffer(DType t, int64_t r, int64_t c, int64_t gap = 0)
      : dtype(t), rows(r), cols(c), stride(c + gap), bytes(new unsigned char[size()]) {
    std::memset(bytes.get(), kGap, size());
  }
  size_t size() const {
    if (rows <= 0 || cols <= 0) return 0;
    return static_cast<size_t>(((rows - 1) * stride + cols) * semobridge::dtype_size(dtype));
  }
  unsigned char* at(int64_t r, int64_t c) const {
    return bytes.get() + (r * stride + c) * semobridge::dtype_size(dtype);
  }
  double get(int64_t r, int64_t c) const {
    if (dtype == DType::kFloat64) {
      double v;
      std::memcpy(&v, at(r, c), 8);
      return v;
    }
    if (dtype == DType::kFloat32) {
      float v;
      std::memcpy(&v, at(r, c), 4);
      return v;
    }
    uint16_t v;
    std::memcpy(&v, at(r, c), 2);
    return decode16(v, dtype);
  }
  void set(int64_t r, int64_t c, double v) {
    v = round_to(v, dtype);
    if (dtype == DType::kFloat64) {
      std::memcpy(at(r, c), &v, 8);
    } else if (dtype == DType::kFloat32) {
      const float f = static_cast<float>(v);
      std::memcpy(at(r, c), &f, 4);
    } else {
      const uint16_t h = encode16(v, dtype);
      std::memcpy(at(r, c), &h, 2);
    }
  }
  void fill(Random& random, double scale = 1.0) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) set(r, c, random.value() * scale);
    }
  }
  bool gaps_intact() const {
    for (int64_t r = 0; r + 1 < rows; ++r) {
      for (const unsigned char* p = at(r, cols); p < at(r + 1, 0); ++p) {
        if (*p != kGap) return false;
      }
    }
    return true;
  }
  bool row_equals(int64_t r, const Buffer& other, int64_t other_row) const {
    return std::memcmp(at(r, 0), other.at(other_row, 0), cols * semobridge::dtype_size(dtype)) == 0;
  }
  semobridge::ConstMatrix view() const { return {bytes.get(), dtype, rows, cols, stride}; }
  semobridge::Matrix out() { return {bytes.get(), dtype, rows, cols, stride}; }
};

}  // namespace test
