// The core alone, every instruction set that runs here, against a plain loop in double.
#include <stdexcept>
#include <string>

#include "check.h"
#include "codes.h"
#include "core/isa.h"
#include "core/pack.h"
#include "loose_rows.h"
#include "products.h"
#include "project_normalize/project_normalize.h"
#include "ranks.h"

namespace {

using namespace semobridge;
using test::Buffer;
using test::check;
using test::Random;

constexpr DType kAll[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};
const char* name_of(DType t) {
  const char* names[] = {"float32", "float64", "float16", "bfloat16"};
  return names[static_cast<int>(t)];
}
DType compute_of(DType t) { return t == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

struct Packed {
  void* data;
  PackedMatrix view;
  Packed(const Buffer& m, DType compute) {
    const int64_t bytes = packed_elements(m.rows, m.cols) * dtype_size(compute);
    data = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    pack_matrix({m.view(), compute, data});
    view = {data, compute, m.rows, m.cols};
  }
  ~Packed() { std::free(data); }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
};

struct Case {
  int64_t n, k, m, o;  // o == 0: one stage
  int bias = 0;        // 0 none, 1 one row, 2 a row each
  bool normalize1 = false, normalize2 = true, residual = false;
  double scale1 = 1.0, scale2 = 1.0;
  int64_t gap = 0;
  int threads = 1;
};

struct Problem {
  Case c;
  Buffer x, first, second, bias;
  Problem(const Case& want, DType t, uint64_t seed)
      : c(want),
        x(t, c.n, c.k, c.gap),
        first(t, c.k, c.m, c.gap),
        second(t, c.m, c.o == 0 ? 1 : c.o),
        bias(compute_of(t), c.bias == 2 ? c.n : 1, c.m, c.bias == 2 ? c.gap : 0) {
    Random random{seed};
    x.fill(random);
    first.fill(random, 1.0 / std::sqrt(static_cast<double>(c.k)));
    second.fill(random, 1.0 / std::sqrt(static_cast<double>(c.m)));
    bias.fill(random);
  }
  void run(Buffer& out, void* norms, int threads, int64_t row0 = 0, int64_t rows = -1) const {
    const DType compute = compute_of(x.dtype);
    const Packed one(first, compute), two(second, compute);
    ProjectNormalizeArgs a;
    a.x = x.view();
    a.x.rows = rows < 0 ? c.n : rows;
    a.x.data = x.at(row0, 0);
    a.first.matrix = one.view;
    a.first.normalize = c.o == 0 ? c.normalize2 : c.normalize1;
    a.first.scale = c.o == 0 ? c.scale2 : c.scale1;
    if (c.bias != 0) {
      a.first.bias = bias.view();
      if (c.bias == 1) a.first.bias.row_stride = 0;
      if (c.bias == 2) a.first.bias.data = bias.at(row0, 0), a.first.bias.rows = a.x.rows;
    }
    if (c.o != 0) {
      a.second.matrix = two.view;
      a.second.normalize = c.normalize2;
      a.second.scale = c.scale2;
    }
    a.residual = c.residual;
    a.out = out.out();
    a.norms = norms;
    a.threads = threads;
    project_normalize(a);
  }
};

double length(const std::vector<double>& v) {
  double s = 0;
  for (double e : v) s += e * e;
  return std::sqrt(s);
}

std::vector<double> times(const std::vector<double>& row, const Buffer& m) {
  std::vector<double> y(static_cast<size_t>(m.cols), 0.0);
  for (int64_t k = 0; k < m.rows; ++k) {
    for (int64_t j = 0; j < m.cols; ++j) y[j] += row[k] * m.get(k, j);
  }
  return y;
}

// One row of the definition in project_normalize/project_normalize.h; returns ‖y‖ before the last
// normalisation.
double define(const Problem& p, int64_t r, std::vector<double>& y) {
  const Case& c = p.c;
  std::vector<double> x(static_cast<size_t>(c.k));
  for (int64_t k = 0; k < c.k; ++k) x[k] = p.x.get(r, k);
  y = times(x, p.first);
  if (c.bias != 0) {
    for (int64_t j = 0; j < c.m; ++j) y[j] += p.bias.get(c.bias == 2 ? r : 0, j);
  }
  if (c.o != 0) {
    const double factor = c.normalize1 ? c.scale1 / length(y) : c.scale1;
    for (double& e : y) e *= factor;
    y = times(y, p.second);
    for (int64_t j = 0; c.residual && j < c.o; ++j) y[j] = x[j] - y[j];
  }
  const double norm = length(y), factor = c.normalize2 ? c.scale2 / norm : c.scale2;
  for (double& e : y) e *= factor;
  return norm;
}

void check_case(const Case& c, DType t, uint64_t seed) {
  const Problem p(c, t, seed);
  const int64_t cols = c.o == 0 ? c.m : c.o;
  Buffer out(t, c.n, cols, c.gap);
  Buffer norms(compute_of(t), 1, c.n);
  p.run(out, norms.bytes.get(), c.threads);
  const bool wide = t == DType::kFloat64, half = dtype_size(t) == 2;
  const double relative = wide ? 1e-13 : 1e-5;
  std::vector<double> want;
  double lean = 0;
  for (int64_t r = 0; r < c.n; ++r) {
    const double norm = define(p, r, want);
    double largest = 0;
    for (double e : want) largest = std::fmax(largest, std::fabs(e));
    for (int64_t j = 0; j < cols; ++j) {
      const double got = out.get(r, j), error = got - want[j];
      const double bound = relative * largest + (half ? 0.5 * test::ulp(want[j], t) : 0);
      check(
          std::fabs(error) <= bound,  // false for NaN as well
          "%s %s n=%ld k=%ld m=%ld o=%ld bias=%d norm=%d%d residual=%d threads=%d row %ld col %ld: "
          "got %.9g, want %.9g, bound %.2g",
          isa_name(active_isa()), name_of(t), long(c.n), long(c.k), long(c.m), long(c.o), c.bias,
          c.normalize1, c.normalize2, c.residual, c.threads, long(r), long(j), got, want[j], bound);
      lean += error * (want[j] < 0 ? -1 : 1) / bound;
    }
    if (c.normalize2) {
      check(
          std::fabs(norms.get(0, r) - norm) <= (wide ? 1e-12 : 1e-5) * norm + (wide ? 1e-14 : 1e-6),
          "%s %s norms[%ld]: got %.9g, want %.9g", isa_name(active_isa()), name_of(t), long(r),
          norms.get(0, r), norm);
    }
  }
  check(c.n * cols < 256 || std::fabs(lean) <= 0.1 * static_cast<double>(c.n * cols),
        "%s %s: errors lean by %.3g of the bound", isa_name(active_isa()), name_of(t),
        lean / static_cast<double>(c.n * cols));
  check(out.gaps_intact(), "%s %s: wrote between the rows of out", isa_name(active_isa()),
        name_of(t));

  // A row alone, a few rows, and other thread counts give the same bits.
  for (int threads : {1, 2, 3}) {
    for (int64_t rows : {int64_t(1), int64_t(5), c.n}) {
      if (rows > c.n) continue;
      const int64_t row0 = c.n - rows;
      Buffer part(t, rows, cols);
      p.run(part, nullptr, threads, row0, rows);
      for (int64_t r = 0; r < rows; ++r) {
        check(part.row_equals(r, out, row0 + r),
              "%s %s n=%ld k=%ld m=%ld: row %ld differs with %ld rows, %d threads",
              isa_name(active_isa()), name_of(t), long(c.n), long(c.k), long(c.m), long(row0 + r),
              long(rows), threads);
      }
    }
  }
}

void test_project_normalize() {
  std::vector<Case> cases;
  for (int64_t n : {1, 2, 3, 6, 7, 14, 15, 28, 29, 61}) {
    cases.push_back({.n = n, .k = 33, .m = 31, .o = 0});
  }
  for (int64_t size : {1, 31, 32, 33, 64, 127, 129}) {
    cases.push_back({.n = 5, .k = size, .m = 130 - size, .o = 0});
    cases.push_back({.n = 30, .k = 130 - size, .m = size, .o = 0, .gap = 3});
  }
  for (int64_t n : {4, 61}) {
    for (int bias : {0, 1, 2}) {
      cases.push_back({.n = n, .k = 40, .m = 37, .o = 0, .bias = bias, .scale2 = 2.5, .gap = 5});
      cases.push_back(
          {.n = n, .k = 40, .m = 37, .o = 0, .bias = bias, .normalize2 = false, .scale2 = -0.5});
      cases.push_back({.n = n,
                       .k = 40,
                       .m = 37,
                       .o = 50,
                       .bias = bias,
                       .normalize1 = true,
                       .scale1 = 3.0,
                       .gap = 1});
      cases.push_back({.n = n,
                       .k = 40,
                       .m = 70,
                       .o = 33,
                       .bias = bias,
                       .normalize1 = true,
                       .normalize2 = false,
                       .scale1 = 3.0,
                       .scale2 = 0.5});
      cases.push_back({.n = n, .k = 40, .m = 5, .o = 40, .bias = bias, .residual = true, .gap = 2});
      cases.push_back({.n = n,
                       .k = 40,
                       .m = 70,
                       .o = 40,
                       .bias = bias,
                       .normalize2 = false,
                       .residual = true,
                       .scale2 = 2.0});
    }
  }
  // Large enough (over 2.4 million products) for three threads in the path that shares out columns.
  cases.push_back({.n = 3, .k = 900, .m = 1025, .o = 0, .threads = 2});
  cases.push_back(
      {.n = 3, .k = 800, .m = 600, .o = 800, .normalize1 = true, .residual = true, .threads = 3});
  uint64_t seed = 1;
  for (DType t : kAll) {
    for (const Case& c : cases) check_case(c, t, seed++);
  }
}

void test_pack() {
  for (DType t : kAll) {
    for (DType compute : {DType::kFloat32, DType::kFloat64}) {
      Buffer m(t, 5, 39, 4);
      Random random{7};
      m.fill(random);
      const Packed packed(m, compute);
      for (int64_t i = 0; i < packed_elements(5, 39); ++i) {
        const int64_t col = i / (5 * kPanel) * kPanel + i % kPanel, row = i / kPanel % 5;
        const double got = compute == DType::kFloat64 ? static_cast<const double*>(packed.data)[i]
                                                      : static_cast<const float*>(packed.data)[i];
        const double want = col < 39 ? test::round_to(m.get(row, col), compute) : 0.0;
        check(got == want, "pack %s: [%ld, %ld] got %g, want %g", name_of(t), long(row), long(col),
              got, want);
      }
    }
  }
}

// x·[1], one column: the conversions by themselves.
Buffer convert(const Buffer& x, DType to) {
  Buffer one(DType::kFloat32, 1, 1);
  one.set(0, 0, 1.0);
  const Packed packed(one, compute_of(x.dtype));
  Buffer out(to, x.rows, 1);
  ProjectNormalizeArgs a;
  a.x = x.view();
  a.first.matrix = packed.view;
  a.out = out.out();
  project_normalize(a);
  return out;
}

void test_conversions() {
  for (DType t : {DType::kFloat16, DType::kBFloat16}) {
    Buffer every(t, 1 << 16, 1);
    for (int64_t i = 0; i < every.rows; ++i) {
      const uint16_t bits = static_cast<uint16_t>(i);
      std::memcpy(every.at(i, 0), &bits, 2);
    }
    const Buffer wide = convert(every, DType::kFloat32), back = convert(every, t);
    Buffer near(DType::kFloat32, 3 << 16, 1);
    for (int64_t i = 0; i < every.rows; ++i) {
      const double v = every.get(i, 0);
      const bool nan = std::isnan(v);
      check(nan ? std::isnan(wide.get(i, 0)) : wide.get(i, 0) == v,
            "%s %s 0x%04lx widens to %g, not %g", isa_name(active_isa()), name_of(t), long(i),
            wide.get(i, 0), v);
      check(nan ? std::isnan(back.get(i, 0)) : back.get(i, 0) == v,
            "%s %s 0x%04lx comes back as %g", isa_name(active_isa()), name_of(t), long(i),
            back.get(i, 0));
      // The half-way point above it, and the float32 on either side of that.
      const float tie = static_cast<float>(v + (v < 0 ? -0.5 : 0.5) * test::ulp(v, t));
      near.set(3 * i, 0, std::nextafterf(tie, 0.0f));
      near.set(3 * i + 1, 0, tie);
      near.set(3 * i + 2, 0, std::nextafterf(tie, tie * 2));
    }
    const Buffer narrow = convert(near, t);
    for (int64_t i = 0; i < near.rows; ++i) {
      const double v = near.get(i, 0), want = test::round_to(v, t), got = narrow.get(i, 0);
      check(std::isnan(v) ? std::isnan(got) : got == want, "%s %s %.10g narrows to %g, not %g",
            isa_name(active_isa()), name_of(t), v, got, want);
    }
  }
}

// Beyond the half formats' range, and NaNs whose payload a careless rounding carries away.
void test_extreme_conversions() {
  const uint32_t patterns[] = {0x47800000, 0x47fa0000, 0x4f000000, 0x501502f9, 0x7f7fffff,
                               0xff7fffff, 0x7f800000, 0xff800000, 0x7f800001, 0x7fffffff,
                               0xffffffff, 0x7fc00001, 0x00000001, 0x807fffff, 0x33000000,
                               0x33000001, 0x32ffffff};
  const int64_t count = sizeof(patterns) / sizeof(patterns[0]);
  Buffer x(DType::kFloat32, count, 1);
  std::memcpy(x.bytes.get(), patterns, sizeof(patterns));
  for (DType t : {DType::kFloat16, DType::kBFloat16}) {
    const Buffer narrow = convert(x, t);
    for (int64_t i = 0; i < count; ++i) {
      const double v = x.get(i, 0), want = test::round_to(v, t), got = narrow.get(i, 0);
      check(std::isnan(v) ? std::isnan(got) : got == want, "%s %s 0x%08x narrows to %g, not %g",
            isa_name(active_isa()), name_of(t), patterns[i], got, want);
    }
  }
}

void test_special_rows() {
  for (int64_t n : {4, 61}) {
    Problem p({.n = n, .k = 33, .m = 37, .o = 0}, DType::kFloat32, 11);
    Buffer clean(DType::kFloat32, n, 37), got(DType::kFloat32, n, 37);
    p.run(clean, nullptr, 1);
    for (int64_t k = 0; k < 33; ++k) {
      p.x.set(0, k, 0.0);
      p.x.set(2, k, p.x.get(2, k) * 1e25);
      p.x.set(3, k, p.x.get(3, k) * 1e-25);
    }
    p.x.set(1, 32, std::nan(""));
    Buffer norms(DType::kFloat32, 1, n);
    p.run(got, norms.bytes.get(), 2);
    for (int64_t j = 0; j < 37; ++j) {
      check(got.get(0, j) == 0, "zero row: column %ld is %g", long(j), got.get(0, j));
      check(std::isnan(got.get(1, j)), "NaN row: column %ld is %g", long(j), got.get(1, j));
      for (int64_t r : {2, 3}) {
        check(std::fabs(got.get(r, j) - clean.get(r, j)) < 1e-5,
              "row of extreme size: column %ld is %g, not %g", long(j), got.get(r, j),
              clean.get(r, j));
      }
    }
    check(norms.get(0, 0) == 0 && std::isnan(norms.get(0, 1)),
          "norms of the zero and the NaN row: %g, %g", norms.get(0, 0), norms.get(0, 1));
    for (int64_t r = 4; r < n; ++r)
      check(got.row_equals(r, clean, r), "row %ld beside special rows changed", long(r));
  }
  // One NaN, zeros everywhere else, also in the padding of the panel.
  Problem p({.n = 1, .k = 3, .m = 3, .o = 0, .bias = 1}, DType::kFloat32, 12);
  for (int64_t k = 0; k < 3; ++k) p.x.set(0, k, 0.0), p.bias.set(0, k, k == 2 ? std::nan("") : 0.0);
  Buffer out(DType::kFloat32, 1, 3), norm(DType::kFloat32, 1, 1);
  p.run(out, norm.bytes.get(), 1);
  check(std::isnan(norm.get(0, 0)) && std::isnan(out.get(0, 0)),
        "a NaN in the last column went unnoticed");
}

void test_refusals() {
  Buffer m(DType::kFloat32, 4, 4), x(DType::kFloat32, 2, 4), out(DType::kFloat32, 2, 4);
  Random random{5};
  m.fill(random), x.fill(random);
  const Packed packed(m, DType::kFloat32);
  auto refused = [&](auto change, const char* what) {
    ProjectNormalizeArgs a;
    a.x = x.view(), a.first.matrix = packed.view, a.out = out.out();
    change(a);
    bool thrown = false;
    try {
      project_normalize(a);
    } catch (const std::invalid_argument&) {
      thrown = true;
    }
    check(thrown, "accepted %s", what);
  };
  refused([](ProjectNormalizeArgs& a) { a.x.cols = 3; }, "x of another width");
  refused([](ProjectNormalizeArgs& a) { a.out.cols = 3; }, "out of another width");
  refused([](ProjectNormalizeArgs& a) { a.out.rows = 1; }, "out with fewer rows");
  refused([](ProjectNormalizeArgs& a) { a.x.dtype = DType::kFloat64; },
          "float64 rows with a float32 matrix");
  refused([](ProjectNormalizeArgs& a) { a.residual = true; }, "a residual of one stage");
  refused(
      [&](ProjectNormalizeArgs& a) {
        a.first.matrix.data = static_cast<const char*>(packed.data) + 4;
      },
      "unaligned packing");
  refused(
      [&](ProjectNormalizeArgs& a) { a.first.bias = {x.bytes.get(), DType::kFloat32, 2, 3, 4}; },
      "bias of another width");
  refused(
      [&](ProjectNormalizeArgs& a) { a.first.bias = {x.bytes.get(), DType::kFloat32, 1, 4, 4}; },
      "bias with too few rows");
  for (const char* name : {"", "AVX2", "neon"}) {
    bool thrown = false;
    try {
      set_isa(name);
    } catch (const std::invalid_argument&) {
      thrown = true;
    }
    check(thrown, "set_isa accepted '%s'", name);
  }
}

}  // namespace

int main(int argc, char** argv) {
  test::g_stop_at_first = argc > 1 && std::strcmp(argv[1], "--stop-at-first") == 0;
  test_refusals();
  for (Isa isa : kIsas) {
    if (!isa_runnable(isa)) {
      std::printf("%s: %s\n", isa_name(isa),
                  isa_compiled(isa) ? "not on this processor" : "not compiled");
      continue;
    }
    set_isa(isa_name(isa));
    const int before = test::g_checks;
    test::test_code_bounds();
    test::test_filtered();
    if (!active_dot()) {  // these sets have kernels of their own
      test_pack();
      test_project_normalize();
      test_conversions();
      test_extreme_conversions();
      test_special_rows();
      test::test_loose_rows();
      test::test_products();
      test::test_indices();
      test::test_ranks();
    }
    std::printf("%s: %d checks\n", isa_name(isa), test::g_checks - before);
  }
  std::printf("%d failures\n", test::g_failures);
  return test::g_failures == 0 ? 0 : 1;
}
