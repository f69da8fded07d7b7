// Codes and their bounds against arithmetic in double, and the search by way of them against the
// plain one, bit by bit. Rows here are made to defeat a bound that is a little too small.
#pragma once
#include <string>
#include <vector>

#include "check.h"
#include "core/codes.h"
#include "loose_rows.h"
#include "quantize_rows/quantize_rows.h"
#include "topk/topk.h"

namespace test {

using semobridge::kPanel;

struct Coded {
  std::vector<uint8_t> codes;
  std::vector<float> bounds;
  int64_t width;
  explicit Coded(const semobridge::ConstMatrix& rows, int threads = 1) : width(rows.cols) {
    const int64_t panels = semobridge::panels_of(rows.rows);
    codes.resize(static_cast<size_t>(panels * semobridge::code_panel_bytes(rows.cols)));
    bounds.resize(static_cast<size_t>(panels * semobridge::kBounds * kPanel));
    semobridge::quantize_rows({rows, codes.data(), bounds.data(), threads});
  }
  int code(int64_t row, int64_t col) const {
    const int64_t panel = row / kPanel * semobridge::code_panel_bytes(width);
    return codes[static_cast<size_t>(panel + col / 4 * kPanel * 4 + row % kPanel * 4 + col % 4)] -
           128;
  }
  double bound(int64_t row, int which) const {
    const int64_t panel = row / kPanel * semobridge::kBounds;
    return bounds[static_cast<size_t>((panel + which) * kPanel + row % kPanel)];
  }
};

// Row `r` of a kind of its own: 0 random, 1 every entry half a code too large, 2 all equal,
// 3 alternating signs, 4 one entry dominates, 5 zero, 6 subnormal, 7 huge, 8 NaN, 9 infinite,
// 10 of random magnitude.
constexpr int kKinds = 11;

inline void fill_kind(Buffer& x, int64_t r, int kind, Random& random) {
  const double size = std::ldexp(1.0, static_cast<int>(random.bits() % 20) - 10);
  for (int64_t c = 0; c < x.cols; ++c) {
    double v = random.value();
    if (kind == 1) v = (static_cast<double>(random.bits() % 120) + 0.499) / 127;
    if (kind == 2) v = 0.37;
    if (kind == 3) v = c % 2 == 0 ? 0.37 : -0.37;
    if (kind == 4) v *= c == x.cols / 2 ? 1e4 : 1e-2;
    if (kind == 5) v = 0;
    if (kind == 6) v *= 1e-40;
    if (kind == 7) v *= 1e19;
    if (kind == 10) v *= size;
    x.set(r, c, v);
  }
  if (kind == 1) x.set(r, 0, 1.0);
  if (kind == 8) x.set(r, x.cols / 2, std::nan(""));
  if (kind == 9) x.set(r, x.cols - 1, std::numeric_limits<double>::infinity());
}

inline void test_code_bounds() {
  Random random{5};
  for (DType t : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (int64_t width : {1, 3, 4, 15, 16, 63, 64, 65, 130}) {
      Buffer x(t, 75, width, 3);
      for (int64_t r = 0; r < x.rows; ++r) fill_kind(x, r, static_cast<int>(r) % kKinds, random);
      const Coded coded(x.view()), twice(x.view(), 2);
      check(coded.codes == twice.codes &&
                std::memcmp(coded.bounds.data(), twice.bounds.data(), 4 * coded.bounds.size()) == 0,
            "two threads code differently");
      for (int64_t r = 0; r < x.rows; ++r) {
        const double scale = coded.bound(r, 0), norm = coded.bound(r, 1), error = coded.bound(r, 2);
        double left = 0, length = 0, most = 0, whole = 0;
        bool finite = true;
        for (int64_t c = 0; c < width; ++c) {
          const double v = x.get(r, c), rest = v - scale * coded.code(r, c);
          finite = finite && std::isfinite(v) && std::fabs(v) <= 1e18;
          left += rest * rest;
          length += v * v;
          most = std::fmax(most, std::fabs(v));
          whole += scale * coded.code(r, c) * scale * coded.code(r, c);
        }
        if (!finite) {
          check(std::isinf(error), "row %d: something is said of a row that cannot be coded",
                static_cast<int>(r));
          continue;
        }
        const double rounding = (static_cast<double>(width) + 16) * 0x1p-24 * std::sqrt(length);
        check(std::sqrt(left) + rounding <= error, "row %d of %d: error %g > bound %g",
              static_cast<int>(r), static_cast<int>(width), std::sqrt(left) + rounding, error);
        check(std::sqrt(whole) <= norm, "row %d: norm %g > bound %g", static_cast<int>(r),
              std::sqrt(whole), norm);
        const double roots = std::sqrt(static_cast<double>(width));
        check(error <= std::sqrt(left) * 1.001 + rounding * 2.2 + most * roots * 1e-6 + 2e-35 ||
                  most < 1e-30,
              "row %d of %d: bound %g of error %g is wide", static_cast<int>(r),
              static_cast<int>(width), error, std::sqrt(left));
        check(error <= most * roots * 1.1 + 2e-35, "row %d: bound %g for entries of %g",
              static_cast<int>(r), error, most);
      }
      for (int64_t r = x.rows; r < semobridge::panels_of(x.rows) * kPanel; ++r) {
        bool empty = true;
        for (int64_t c = 0; c < width; ++c) empty = empty && coded.code(r, c) == 0;
        check(empty, "a place past the last row holds a code");
      }
    }
  }
}

struct Search {
  const Buffer& queries;
  const Buffer& gallery;
  int64_t k;
  std::vector<int64_t> exclude;
  std::vector<char> allow;
  int64_t begin = 0, end = -1;
  int threads = 1;
  semobridge::TopkFilterCounts counts;

  // way: 0 plain, 1 prepared codes, 2 codes on the way
  std::vector<unsigned char> run(int way, const Coded* coded) {
    const int64_t n = queries.rows, g = gallery.rows;
    std::vector<float> scores(static_cast<size_t>(n * k));
    std::vector<int64_t> indices(static_cast<size_t>(n * k));
    const int64_t work = way == 0 ? semobridge::topk_workspace(n, g, k, DType::kFloat32, threads)
                                  : semobridge::topk_filtered_workspace(n, g, k, threads);
    void* workspace = std::aligned_alloc(64, static_cast<size_t>((work + 63) / 64 * 64));
    semobridge::TopkFilteredArgs f;
    semobridge::TopkArgs& a = f.plain;
    a.queries = queries.view(), a.gallery = gallery.view(), a.k = k;
    a.exclude = exclude.empty() ? nullptr : exclude.data();
    a.allow = allow.empty() ? nullptr : reinterpret_cast<const bool*>(allow.data());
    a.begin = begin, a.end = end, a.threads = threads;
    a.scores = scores.data(), a.indices = indices.data(), a.workspace = workspace;
    f.counts = &counts;
    if (way == 1) f.coded = {coded->codes.data(), coded->bounds.data()};
    if (way == 0) {
      semobridge::topk(a);
    } else {
      semobridge::topk_filtered(f);
    }
    std::free(workspace);
    std::vector<unsigned char> all(scores.size() * 4 + indices.size() * 8);
    std::memcpy(all.data(), scores.data(), scores.size() * 4);
    std::memcpy(all.data() + scores.size() * 4, indices.data(), indices.size() * 8);
    return all;
  }

  void compare(const char* what) {
    const Coded coded(gallery.view());
    for (int t : {1, 2}) {
      threads = t;
      const auto want = run(0, nullptr);
      for (int way : {1, 2}) {
        check(run(way, &coded) == want, "%s: %s codes, %d threads: another result", what,
              way == 1 ? "prepared" : "new", t);
      }
    }
  }
};

// One row beats all others by less than its bound, and by its codes alone is behind them.
inline void test_decided_by_a_bound() {
  constexpr int64_t kWidth = 64, kRows = 700;
  for (int side : {0, 1}) {  // whose codes miss: the row's, the query's
    for (int64_t place : {int64_t{0}, int64_t{333}, kRows - 1}) {
      Buffer query(DType::kFloat32, 1, kWidth), gallery(DType::kFloat32, kRows, kWidth);
      Buffer& missing = side == 0 ? gallery : query;
      const int64_t row = side == 0 ? place : 0;
      double score = 0;
      for (int64_t c = 0; c < kWidth; ++c) {
        missing.set(row, c, c == 0 ? 1.0 : (static_cast<double>(c % 100) + 0.498) / 127);
        (side == 0 ? query : gallery).set(side == 0 ? 0 : place, c, 1.0);
        score += missing.get(row, c);
      }
      const double others = score * 0.9999;
      for (int64_t r = 0; r < kRows; ++r) {
        if (r == place) continue;
        // Coded without error, and blind for what the query's codes miss.
        for (int64_t c = 0; c < kWidth; ++c) gallery.set(r, c, c == 0 ? others : 0.0);
      }
      Search search{query, gallery, 1, {}, {}, 0, -1, 1, {}};
      search.compare(side == 0 ? "a row's error" : "a query's error");
    }
  }
}

// The same where the data have made the search take a query's second plane: many rows come near the
// best one by the first plane's interval, few by the second's.
inline void test_decided_by_the_second_plane() {
  constexpr int64_t kWidth = 64, kRows = 40000;
  Random random{3};
  Buffer query(DType::kFloat32, 1, kWidth), gallery(DType::kFloat32, kRows, kWidth);
  double score = 0;
  for (int64_t c = 0; c < kWidth; ++c) {
    query.set(0, c, c == 0 ? 1.0 : (static_cast<double>(c % 100) + 0.498) / 127);
    score += query.get(0, c);
  }
  for (int64_t r = 0; r < kRows; ++r) {
    const double near = r == 5 ? score - 2e-4 : score * (0.9 + 0.0999 * random.uniform());
    for (int64_t c = 0; c < kWidth; ++c) gallery.set(r, c, c == 0 ? near : 0.0);
  }
  for (int64_t c = 0; c < kWidth; ++c) gallery.set(kRows - 9, c, 1.0);
  Search search{query, gallery, 1, {}, {}, 0, -1, 1, {}};
  search.compare("a query's second plane");
  check(search.counts.chunks[1] > 0 && search.counts.chunks[2] == 0,
        "a query's second plane: the ways were %d, %d, %d",
        static_cast<int>(search.counts.chunks[0]), static_cast<int>(search.counts.chunks[1]),
        static_cast<int>(search.counts.chunks[2]));
}

inline void test_filtered() {
  test_decided_by_a_bound();
  test_decided_by_the_second_plane();
  Random random{9};
  for (DType t : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (int64_t width : {5, 32, 77}) {
      Buffer queries(t, 23, width), gallery(t, 3000, width);
      for (int64_t r = 0; r < queries.rows; ++r) {
        fill_kind(queries, r, static_cast<int>(r) % kKinds, random);
      }
      for (int64_t r = 0; r < gallery.rows; ++r) {
        fill_kind(gallery, r, static_cast<int>(random.bits() % kKinds), random);
      }
      for (int64_t k : {1, 10, 700}) {
        Search search{queries, gallery, k, {}, {}, 0, -1, 1, {}};
        search.compare("every kind of row");
        for (int64_t r = 0; r < queries.rows; ++r) search.exclude.push_back(r % 3 - 1 + 7 * r);
        search.compare("with rows excluded");
        search.begin = 37, search.end = 2901;
        search.compare("in a range");
        for (int64_t r = 0; r < gallery.rows; ++r) search.allow.push_back(r % 2 == 0 || r < 700);
        search.compare("of allowed rows");
      }
    }
  }
  Buffer few(DType::kFloat32, 3, 8), same(DType::kFloat32, 60000, 8);
  for (int64_t r = 0; r < few.rows; ++r) fill_kind(few, r, 0, random);
  for (int64_t r = 0; r < same.rows; ++r) fill_kind(same, r, 2, random);
  Search ties{few, same, 50, {}, {}, 0, -1, 1, {}};
  ties.compare("ties by the thousand");
  check(ties.counts.chunks[1] > 0 && ties.counts.chunks[2] > 0,
        "ties by the thousand: the ways were %d, %d, %d", static_cast<int>(ties.counts.chunks[0]),
        static_cast<int>(ties.counts.chunks[1]), static_cast<int>(ties.counts.chunks[2]));
}

}  // namespace test
