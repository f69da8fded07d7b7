// matrix_product in every layout against a plain loop in double.
#pragma once
#include <algorithm>
#include <vector>

#include "check.h"
#include "core/product.h"

namespace test {

struct ProductCase {
  int64_t n, k, m, gap;
};

// Element [row][col] of an operand that may lie transposed.
inline double operand(const Buffer& from, bool transposed, int64_t row, int64_t col) {
  return transposed ? from.get(col, row) : from.get(row, col);
}

inline void check_product(const ProductCase& c, DType t, int layout, bool accumulate) {
  const bool ta = layout & 1, tb = layout & 2;
  Buffer a(t, ta ? c.k : c.n, ta ? c.n : c.k, c.gap), b(t, tb ? c.m : c.k, tb ? c.k : c.m, c.gap);
  Buffer out(t, c.n, c.m, c.gap), before(t, c.n, c.m, c.gap), single(t, c.n, c.m, c.gap);
  Random random{static_cast<uint64_t>(c.n * 1000003 + c.k * 1009 + c.m + layout)};
  a.fill(random), b.fill(random), out.fill(random);
  std::memcpy(before.bytes.get(), out.bytes.get(), out.size());
  std::memcpy(single.bytes.get(), out.bytes.get(), out.size());
  semobridge::MatrixProductArgs p{a.view(), b.view(), ta, tb, accumulate, out.out(), 3};
  semobridge::matrix_product(p);
  const double bound = t == DType::kFloat64 ? 1e-14 : 4e-6;
  for (int64_t r = 0; r < c.n; ++r) {
    for (int64_t col = 0; col < c.m; ++col) {
      double want = 0, size = 1;
      for (int64_t k = 0; k < c.k; ++k) {
        const double term = operand(a, ta, r, k) * operand(b, tb, k, col);
        want += term, size += std::fabs(term);
      }
      if (accumulate) want += before.get(r, col);
      const double got = out.get(r, col);
      check(std::fabs(got - want) <= bound * size, "matrix_product %d: [%d][%d] is %g, not %g",
            layout, static_cast<int>(r), static_cast<int>(col), got, want);
    }
  }
  p.out = single.out(), p.threads = 1;
  semobridge::matrix_product(p);
  check(std::memcmp(single.bytes.get(), out.bytes.get(), out.size()) == 0,
        "matrix_product %d: one thread gives other bits, or the gaps were written", layout);
}

inline void test_products() {
  // Tails of rows, columns and K, more rows than a block, and K past its block.
  constexpr ProductCase kCases[] = {{1, 1, 1, 0},    {3, 2, 33, 1},    {15, 513, 31, 0},
                                    {29, 40, 65, 2}, {43, 1030, 5, 3}, {600, 12, 34, 0}};
  for (const ProductCase& c : kCases) {
    for (DType t : {DType::kFloat32, DType::kFloat64}) {
      for (int layout = 0; layout < 4; ++layout) {
        for (bool accumulate : {false, true}) check_product(c, t, layout, accumulate);
      }
    }
  }
}

}  // namespace test
