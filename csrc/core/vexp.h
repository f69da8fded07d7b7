// The exponential of a vector, float and double, about 1 ulp.
//
// x = n·ln 2 + r with |r| <= ln(2)/2, exp(r) by a polynomial, 2^n by its exponent bits. Below
// ln(2)·(-126.5) (float, -87.68) or ln(2)·(-1022.5) (double, -708.74) the result is 0; from
// ln(2)·127.5 (88.37) or ln(2)·1023.5 (709.43) on it is infinity. NaN stays NaN.
#pragma once
#include "core/simd.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  typedef int32_t Int __attribute__((vector_size(SB_VEC_BYTES)));
  static constexpr float kLow = -88.0f, kHigh = 89.0f;  // n = -127 and 128: scales 0 and infinity
  static constexpr float kMagic = 0x1.8p23f;            // adding it rounds to an integer
  static constexpr float kLn2High = 0x1.62e4p-1f;       // 15 bits: n times it is exact
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr int kMantissaBits = 23, kBias = 127;
  // 1 + r + r²·(...), minimax for the relative error (3e-9) with the first two coefficients fixed.
  static constexpr int kTerms = 7;
  static constexpr float kCoefficients[kTerms] = {
      1.0f, 1.0f, 0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.123a2p-7f, 0x1.6a23cep-10f};
};

template <>
struct ExpConstants<double> {
  typedef int64_t Int __attribute__((vector_size(SB_VEC_BYTES)));
  static constexpr double kLow = -709.0, kHigh = 710.0;
  static constexpr double kMagic = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fefa38p-1;  // 42 bits
  static constexpr double kLn2Low = 0x1.ef35793c7673p-45;
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr int kTerms = 14;  // Taylor: the next term is below 5e-18
  static constexpr double kCoefficients[kTerms] = {1.0,
                                                   1.0,
                                                   1.0 / 2,
                                                   1.0 / 6,
                                                   1.0 / 24,
                                                   1.0 / 120,
                                                   1.0 / 720,
                                                   1.0 / 5040,
                                                   1.0 / 40320,
                                                   1.0 / 362880,
                                                   1.0 / 3628800,
                                                   1.0 / 39916800,
                                                   1.0 / 479001600,
                                                   1.0 / 6227020800};
};

template <class T>
SB_INLINE typename Simd<T>::Vec vexp(typename Simd<T>::Vec x) {
  using V = typename Simd<T>::Vec;
  using C = ExpConstants<T>;
  using I = typename C::Int;
  const V low = V{} + C::kLow, high = V{} + C::kHigh;
  x = x < low ? low : x;  // written so that NaN passes
  x = x > high ? high : x;
  const V magic = V{} + C::kMagic;
  const V shifted = x * T(1.4426950408889634) + magic;
  const V n = shifted - magic;
  const V r = (x - n * C::kLn2High) - n * C::kLn2Low;
  V p = V{} + C::kCoefficients[C::kTerms - 1];
#pragma GCC unroll 16
  for (int i = C::kTerms - 2; i >= 0; --i) p = p * r + C::kCoefficients[i];
  const I exponent = reinterpret_cast<I>(shifted) - reinterpret_cast<I>(magic);
  const I bits = (exponent + C::kBias) << C::kMantissaBits;
  return p * reinterpret_cast<V>(bits);
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
