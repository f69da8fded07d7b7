// libFuzzer on what of the core indexes by values that come from outside: labels, orders, offsets,
// marked and excluded rows, candidates, strides. The first byte picks the kernel. Every buffer has
// exactly its size, so that AddressSanitizer sees a stray access; what the core refuses is fine.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "blend_logits/blend_logits.h"
#include "core/isa.h"
#include "core/pack.h"
#include "core/product.h"
#include "count_correct/count_correct.h"
#include "project_normalize/project_normalize.h"
#include "quantize_rows/quantize_rows.h"
#include "rank_counts/rank_counts.h"
#include "support_logits/support_logits.h"
#include "symmetric_kl/symmetric_kl.h"
#include "topk/topk.h"

namespace {

using namespace semobridge;
using Bytes = std::vector<unsigned char>;

void expect(bool ok) {
  if (!ok) __builtin_trap();
}

// 64-byte aligned, the end of the memory at the end of the array.
struct Memory {
  unsigned char* data;
  explicit Memory(int64_t bytes)
      : data(static_cast<unsigned char*>(
            std::aligned_alloc(64, static_cast<size_t>(bytes + 63) / 64 * 64 + 64))) {
    std::memset(data, 0, static_cast<size_t>(bytes));
  }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
};

struct Source {
  FuzzedDataProvider from;
  Source(const uint8_t* data, size_t size) : from(data, size) {}

  int64_t size(int64_t most, int64_t least = 0) { return from.ConsumeIntegralInRange(least, most); }
  DType dtype(bool wide = false) {
    return static_cast<DType>(from.ConsumeIntegralInRange(0, wide ? 1 : 3));
  }
  // Any bits: NaN and infinities too. Few of them, over and over.
  Bytes values(int64_t count, DType dtype) {
    Bytes out(static_cast<size_t>(count * dtype_size(dtype)));
    const Bytes some = from.ConsumeBytes<unsigned char>(static_cast<size_t>(size(64)));
    for (size_t i = 0; i < out.size(); ++i) out[i] = some.empty() ? 0x3c : some[i % some.size()];
    return out;
  }
  // Mostly inside of 0 .. bound - 1.
  std::vector<int64_t> indices(int64_t count, int64_t bound) {
    std::vector<int64_t> out(static_cast<size_t>(count));
    for (int64_t& v : out) {
      const bool odd = from.ConsumeIntegral<uint8_t>() == 0xff || bound <= 0;
      v = odd ? from.ConsumeIntegral<int64_t>() : size(bound - 1);
    }
    return out;
  }
};

struct Rows {
  Bytes bytes;
  ConstMatrix view;
  Rows(Source& s, int64_t rows, int64_t cols, DType dtype) {
    const int64_t stride = cols + s.size(3), count = rows == 0 ? 0 : (rows - 1) * stride + cols;
    bytes = s.values(count, dtype);
    bytes.shrink_to_fit();
    view = {bytes.data(), dtype, rows, cols, stride};
  }
};

void fuzz_support(Source& s) {
  const int64_t n = s.size(20), keys = s.size(1300), d = s.size(9, 1), classes = s.size(9, 1);
  const DType qt = s.dtype(), kt = s.dtype(), compute = compute_dtype(qt, kt);
  const Rows queries(s, n, d, qt), all(s, keys, d, kt);
  std::vector<int64_t> order(static_cast<size_t>(keys)), offsets(static_cast<size_t>(classes + 1));
  if (s.from.ConsumeBool()) {
    const auto labels = s.indices(keys, classes);
    const int64_t bad = sort_labels(labels.data(), keys, classes, order.data(), offsets.data());
    for (int64_t i = 0; i < keys && bad < 0; ++i) expect(0 <= order[i] && order[i] < keys);
    expect(bad < 0 || labels[bad] < 0 || labels[bad] >= classes);
    if (bad >= 0) return;
  } else {
    order = s.indices(keys, keys);
    offsets.back() = keys;
    for (int64_t c = classes - 1; c > 0; --c) offsets[c] = s.size(offsets[c + 1]);
    if (s.size(7) == 0) offsets[s.size(classes)] = s.from.ConsumeIntegral<int64_t>();
  }
  const Bytes weights = s.values(keys, compute);
  Memory out(n * classes * dtype_size(compute));
  Memory work(support_logits_workspace(n, keys) * dtype_size(compute));
  SupportLogitsArgs a;
  a.queries = queries.view, a.keys = all.view, a.order = order.data(), a.offsets = offsets.data();
  a.num_classes = classes, a.weights = weights.data(), a.out = out.data, a.workspace = work.data;
  support_logits(a);
}

void fuzz_codes(Source& s) {
  const int64_t n = s.size(20), g = s.size(1300, 1), d = s.size(9), k = s.size(40);
  const DType qt = s.dtype(), gt = s.dtype();
  const Rows queries(s, n, d, qt), gallery(s, g, d, gt);
  const auto exclude = s.indices(n, g);
  const bool excluding = s.from.ConsumeBool(), prepared = s.from.ConsumeBool();
  if (k > g) return;
  const int64_t panels = panels_of(g);
  Memory codes(panels * code_panel_bytes(d)), bounds(panels * kBounds * kPanel * 4);
  quantize_rows({gallery.view, codes.data, reinterpret_cast<float*>(bounds.data), 1});
  Memory scores(n * k * 4), work(topk_filtered_workspace(n, g, k, 1));
  std::vector<int64_t> indices(static_cast<size_t>(n * k));
  TopkFilteredArgs f;
  f.plain.queries = queries.view, f.plain.gallery = gallery.view, f.plain.k = k;
  f.plain.exclude = excluding ? exclude.data() : nullptr;
  f.plain.scores = scores.data, f.plain.indices = indices.data(), f.plain.workspace = work.data;
  if (prepared) f.coded = {codes.data, reinterpret_cast<float*>(bounds.data)};
  topk_filtered(f);
  for (const int64_t found : indices) {
    expect(found >= 0 && found < g);
  }
}

void fuzz_topk(Source& s) {
  const int64_t n = s.size(20), g = s.size(1300, 1), d = s.size(9), k = s.size(40);
  const DType qt = s.dtype(), gt = s.dtype(), compute = compute_dtype(qt, gt);
  const Rows queries(s, n, d, qt), gallery(s, g, d, gt);
  const auto exclude = s.indices(n, g);
  const bool excluding = s.from.ConsumeBool();
  if (k > g) return;
  Memory scores(n * k * dtype_size(compute)), work(topk_workspace(n, g, k, compute, 1));
  std::vector<int64_t> indices(static_cast<size_t>(n * k));
  TopkArgs a;
  a.queries = queries.view, a.gallery = gallery.view, a.k = k;
  a.exclude = excluding ? exclude.data() : nullptr;
  a.scores = scores.data, a.indices = indices.data(), a.workspace = work.data;
  topk(a);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t found = indices[i * k + j];
      expect(0 <= found && found < g && !(excluding && found == exclude[i]));
      for (int64_t h = 0; h < j; ++h) expect(indices[i * k + h] != found);
    }
  }
}

void fuzz_symmetric(const ConstMatrix& gallery, const std::vector<int64_t>& marked,
                    const std::vector<int64_t>& begin, const std::vector<int64_t>& end,
                    const std::vector<int64_t>& exclude, std::vector<int64_t> rows,
                    const std::vector<int64_t>& others) {
  const int64_t n = static_cast<int64_t>(rows.size());
  std::vector<int64_t> first, last, left, sums{0};
  for (const int64_t i : rows) {
    first.push_back(begin[i]), last.push_back(end[i]), left.push_back(exclude[i]);
    int64_t count = end[i] - begin[i];
    for (int64_t j = begin[i]; j < end[i]; ++j) count -= marked[j] == exclude[i];
    sums.push_back(sums.back() + count);
  }
  rows.insert(rows.end(), others.begin(), others.end());
  Memory scores(sums[n] * dtype_size(compute_dtype(gallery.dtype)));
  Memory work(rank_counts_workspace(sums.data(), n, 1));
  std::vector<int64_t> greater(static_cast<size_t>(sums[n])), equal(greater);
  RankCountsArgs a;
  a.queries = a.gallery = gallery, a.num_queries = n, a.query_rows = rows.data();
  a.marked = marked.data(), a.marked_begin = first.data(), a.marked_end = last.data();
  a.exclude = left.data(), a.offsets = sums.data(), a.scores = scores.data;
  a.greater = greater.data(), a.equal = equal.data(), a.workspace = work.data;
  rank_counts_symmetric(a);
  for (int64_t i = 0; i < sums[n]; ++i) {
    expect(0 <= greater[i] && 0 <= equal[i] && greater[i] + equal[i] <= gallery.rows);
  }
}

void fuzz_ranks(Source& s) {
  const int64_t n = s.size(12), g = s.size(1300, 1), d = s.size(9, 1), total = s.size(40);
  const DType qt = s.dtype(), gt = s.dtype(), compute = compute_dtype(qt, gt);
  const Rows queries(s, n, d, qt), gallery(s, g, d, gt);
  // The rows and ranges are the caller's own; only what they hold is drawn.
  std::vector<int64_t> rows(static_cast<size_t>(n)), begin(rows), end(rows), exclude(rows),
      sums(rows);
  std::vector<int64_t> marked(static_cast<size_t>(total));
  for (int64_t& row : marked) row = s.size(g - 1);
  sums.push_back(0);
  for (int64_t i = 0; i < n; ++i) {
    rows[i] = i, begin[i] = s.size(total), end[i] = s.size(total, begin[i]), exclude[i] = -1;
    int64_t count = end[i] - begin[i];
    if (count > 0 && s.from.ConsumeBool()) {
      exclude[i] = marked[s.size(end[i] - 1, begin[i])];
      for (int64_t j = begin[i]; j < end[i]; ++j) count -= marked[j] == exclude[i];
    }
    sums[i + 1] = sums[i] + count;
  }
  Memory scores(sums[n] * dtype_size(compute)), work(rank_counts_workspace(sums.data(), n, 1));
  std::vector<int64_t> greater(static_cast<size_t>(sums[n])), equal(greater),
      at{1, s.size(1 << 20)};
  RankCountsArgs a;
  a.queries = queries.view, a.gallery = gallery.view, a.num_queries = n, a.query_rows = rows.data();
  a.marked = marked.data(), a.marked_begin = begin.data(), a.marked_end = end.data();
  a.exclude = exclude.data(), a.offsets = sums.data(), a.scores = scores.data;
  a.greater = greater.data(), a.equal = equal.data(), a.workspace = work.data;
  rank_counts(a);
  for (int64_t i = 0; i < sums[n]; ++i) {
    expect(0 <= greater[i] && 0 <= equal[i] && greater[i] + equal[i] <= g);
  }
  // Where every query is a gallery row that has a marked one: each product for both of its rows.
  std::vector<int64_t> asked, others;
  for (int64_t i = 0; i < (n < g ? n : g); ++i) {
    (sums[i + 1] > sums[i] ? asked : others).push_back(i);
  }
  for (int64_t i = n; i < g; ++i) others.push_back(i);
  if (!asked.empty()) fuzz_symmetric(gallery.view, marked, begin, end, exclude, asked, others);
  std::vector<double> metrics(static_cast<size_t>(n * 5));
  rank_metrics(n, sums.data(), greater.data(), equal.data(), at.data(), 2, metrics.data());
}

void fuzz_candidates(Source& s) {
  const int64_t n = s.size(30), c = s.size(40, 1);
  const DType dtype = s.dtype(true);
  const Rows z[3] = {{s, n, c, dtype}, {s, n, c, dtype}, {s, n, c, dtype}};
  const auto labels = s.indices(n, c);
  const Bytes exponents = s.values(c, DType::kFloat64);
  std::vector<double> d(static_cast<size_t>(c));
  std::memcpy(d.data(), exponents.data(), exponents.size());
  std::vector<int32_t> candidates(static_cast<size_t>(n * c)), counts(static_cast<size_t>(n));
  PruneArgs a;
  for (int i = 0; i < 3; ++i) a.z[i] = z[i].view;
  a.labels = labels.data(), a.exponents = d.data(), a.margin = s.from.ConsumeProbability<double>();
  a.candidates = candidates.data(), a.counts = counts.data();
  prune_candidates(a);
  for (int64_t i = 0; i < n; ++i) {
    expect(0 <= counts[i] && counts[i] < c + (c == 0));
    for (int64_t j = 0; j < counts[i]; ++j) {
      expect(0 <= candidates[i * c + j] && candidates[i * c + j] < c);
    }
  }
}

void fuzz_products(Source& s) {
  const int64_t n = s.size(40), k = s.size(40, 1), m = s.size(70, 1);
  const DType dtype = s.dtype(), compute = compute_dtype(dtype);
  const Rows x(s, n, k, dtype), right(s, k, m, s.dtype());
  Memory packed(packed_elements(k, m) * dtype_size(compute));
  pack_matrix({right.view, compute, packed.data});
  const Rows bias(s, s.from.ConsumeBool() ? n : 1, m, compute);
  Rows out(s, n, m, s.dtype());
  Memory norms(n * dtype_size(compute));
  ProjectNormalizeArgs a;
  a.x = x.view;
  a.first.matrix = {packed.data, compute, k + (s.size(15) == 0), m};
  a.first.normalize = s.from.ConsumeBool();
  if (s.from.ConsumeBool()) a.first.bias = bias.view;
  if (a.first.bias.rows == 1) a.first.bias.row_stride = 0;
  a.out = {out.bytes.data(), out.view.dtype, n, m + (s.size(15) == 0), out.view.row_stride};
  a.norms = norms.data;
  project_normalize(a);
}

void fuzz_changing_products(Source& s) {
  const int64_t n = s.size(40), k = s.size(40), m = s.size(70);
  const DType dtype = s.dtype();
  MatrixProductArgs p;
  p.transposed_a = s.from.ConsumeBool(), p.transposed_b = s.from.ConsumeBool();
  p.accumulate = s.from.ConsumeBool();
  const Rows a(s, p.transposed_a ? k : n, p.transposed_a ? n : k, dtype);
  const Rows b(s, p.transposed_b ? m : k, p.transposed_b ? k : m, dtype);
  Rows out(s, n, m, dtype);
  p.a = a.view, p.b = b.view;
  if (s.size(15) == 0) p.b.rows += 1;
  p.out = {out.bytes.data(), dtype, n, m, out.view.row_stride};
  matrix_product(p);
}

void fuzz_divergence(Source& s) {
  const int64_t n = s.size(30), k = s.size(40);
  const DType dtype = s.dtype(), compute = compute_dtype(dtype);
  const Rows a(s, n, k, dtype), b(s, n + (s.size(15) == 0), k, dtype);
  Memory rows(n * dtype_size(compute)), stats(n * kSymmetricKlStats * dtype_size(compute));
  symmetric_kl({a.view, b.view, 0.5, rows.data, stats.data, 1});
  Rows grad(s, n, k, dtype);
  symmetric_kl_bwd({a.view,
                    b.view,
                    0.5,
                    rows.data,
                    stats.data,
                    {grad.bytes.data(), dtype, n, k, grad.view.row_stride},
                    {},
                    1});
}

void fuzz_blend(Source& s) {
  const int64_t n = s.size(30), d = s.size(20, 1), c = s.size(40, 1), rank = s.size(9);
  const DType dtype = s.dtype(), compute = compute_dtype(dtype);
  const int64_t cols = 3 * panels_of(c) * kPanel + rank;
  const Rows x(s, n, d, dtype), right(s, d, cols, compute);
  Memory packed(packed_elements(d, cols) * dtype_size(compute));
  pack_matrix({right.view, compute, packed.data});
  const Bytes weights = s.values(panels_of(c) * kPanel, compute);
  std::vector<int64_t> labels(static_cast<size_t>(n));
  Memory logits(n * c * dtype_size(compute));
  BlendLogitsArgs a;
  a.x = x.view, a.right = {packed.data, compute, d, cols}, a.classes = c;
  a.bridged = s.from.ConsumeBool(), a.weights = weights.data(), a.labels = labels.data();
  a.logits = logits.data;
  blend_logits(a);
  for (int64_t label : labels) expect(0 <= label && label < c);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Source s(data, size);
  constexpr void (*kTargets[])(Source&) = {fuzz_support,    fuzz_topk,     fuzz_ranks,
                                           fuzz_candidates, fuzz_products, fuzz_changing_products,
                                           fuzz_divergence, fuzz_blend,    fuzz_codes};
  constexpr int64_t kCount = sizeof(kTargets) / sizeof(kTargets[0]);
  const int64_t which = s.size(kCount);
  try {
    if (which == kCount) {
      set_isa(s.from.ConsumeRemainingBytesAsString().c_str());
    } else {
      kTargets[which](s);
    }
  } catch (const std::invalid_argument&) {
    // refused by name
  }
  return 0;
}
