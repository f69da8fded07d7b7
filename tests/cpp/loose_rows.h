// Rows at odd addresses, as a mapped file or a slice of bytes has them: every kernel that reads
// rows of a caller gives the bits that it gives for aligned ones, and a sanitizer sees no aligned
// load.
#pragma once
#include <string>
#include <vector>

#include "check.h"
#include "support_logits/support_logits.h"
#include "topk/topk.h"

namespace test {

// A copy whose first byte lies at an odd address.
struct Loose {
  std::vector<unsigned char> bytes;
  semobridge::ConstMatrix view;
  explicit Loose(const Buffer& from) : bytes(from.size() + 2) {
    unsigned char* first = bytes.data() + (reinterpret_cast<uintptr_t>(bytes.data()) % 2 == 0);
    std::memcpy(first, from.bytes.get(), from.size());
    view = from.view();
    view.data = first;
  }
};

inline std::vector<unsigned char> topk_of(const semobridge::ConstMatrix& queries,
                                          const semobridge::ConstMatrix& gallery, int64_t k) {
  const DType compute = semobridge::compute_dtype(queries.dtype, gallery.dtype);
  const int64_t n = queries.rows, size = semobridge::dtype_size(compute) * n * k;
  std::vector<unsigned char> scores(static_cast<size_t>(size));
  std::vector<int64_t> indices(static_cast<size_t>(n * k));
  const int64_t work = semobridge::topk_workspace(n, gallery.rows, k, compute, 1);
  void* workspace = std::aligned_alloc(64, static_cast<size_t>((work + 63) / 64 * 64));
  semobridge::TopkArgs a;
  a.queries = queries, a.gallery = gallery, a.k = k;
  a.scores = scores.data(), a.indices = indices.data(), a.workspace = workspace;
  semobridge::topk(a);
  std::free(workspace);
  const auto* rows = reinterpret_cast<const unsigned char*>(indices.data());
  scores.insert(scores.end(), rows, rows + indices.size() * sizeof(int64_t));
  return scores;
}

inline std::vector<unsigned char> support_of(const semobridge::ConstMatrix& queries,
                                             const semobridge::ConstMatrix& keys,
                                             const void* labels, int64_t classes,
                                             const void* weights) {
  const DType compute = semobridge::compute_dtype(queries.dtype, keys.dtype);
  const int64_t s = keys.rows, width = semobridge::dtype_size(compute);
  std::vector<int64_t> order(static_cast<size_t>(s)), offsets(static_cast<size_t>(classes + 1));
  const int64_t bad = semobridge::sort_labels(static_cast<const int64_t*>(labels), s, classes,
                                              order.data(), offsets.data());
  check(bad == -1, "sort_labels refused label %d", static_cast<int>(bad));
  std::vector<unsigned char> out(static_cast<size_t>(queries.rows * classes * width), 0);
  std::vector<double> workspace(
      static_cast<size_t>(semobridge::support_logits_workspace(queries.rows, s)));
  semobridge::SupportLogitsArgs a;
  a.queries = queries, a.keys = keys, a.order = order.data(), a.offsets = offsets.data();
  a.num_classes = classes, a.weights = weights, a.beta = 2.0;
  a.out = out.data(), a.workspace = workspace.data();
  semobridge::support_logits(a);
  return out;
}

inline void test_loose_rows() {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};
  constexpr int64_t kClasses = 5;
  Random random{77};
  for (DType t : kTypes) {
    for (int64_t width : {1, 7, 16, 37}) {
      Buffer queries(t, 9, width), keys(t, 67, width);
      queries.fill(random, 0.3);
      keys.fill(random, 0.3);
      const DType compute = semobridge::compute_dtype(t);
      Buffer weights(compute, 1, keys.rows);
      weights.fill(random);
      std::vector<unsigned char> labels(static_cast<size_t>(keys.rows) * 8 + 9);
      unsigned char* tight =
          labels.data() + (8 - reinterpret_cast<uintptr_t>(labels.data()) % 8) % 8;
      for (int64_t i = 0; i < keys.rows; ++i) {
        const int64_t label = (i * 3) % kClasses;
        std::memcpy(tight + 8 * i, &label, 8);
      }
      const auto want_top = topk_of(queries.view(), keys.view(), 4);
      const auto want =
          support_of(queries.view(), keys.view(), tight, kClasses, weights.bytes.get());
      std::memmove(tight + 1, tight, static_cast<size_t>(keys.rows) * 8);
      const Loose q(queries), k(keys), w(weights);
      check(topk_of(q.view, k.view, 4) == want_top, "topk of loose rows, dtype %d, width %d",
            static_cast<int>(t), static_cast<int>(width));
      check(support_of(q.view, k.view, tight + 1, kClasses, w.view.data) == want,
            "support_logits of loose rows, dtype %d, width %d", static_cast<int>(t),
            static_cast<int>(width));
    }
  }
}

// What is read as an index is looked at before.
inline void test_indices() {
  Buffer queries(DType::kFloat32, 2, 3), keys(DType::kFloat32, 4, 3);
  Random random{78};
  queries.fill(random);
  keys.fill(random);
  std::vector<float> out(4), workspace(1 << 13);
  const int64_t orders[][4] = {{0, 1, 2, 4}, {-1, 1, 2, 3}}, whole[] = {0, 1, 2, 3};
  const int64_t cuts[] = {0, 2, 4}, falling[] = {0, 9, 4};
  const auto refused = [&](const int64_t* order, const int64_t* offsets) {
    semobridge::SupportLogitsArgs a;
    a.queries = queries.view(), a.keys = keys.view(), a.order = order, a.offsets = offsets;
    a.num_classes = 2, a.out = out.data(), a.workspace = workspace.data();
    try {
      semobridge::support_logits(a);
    } catch (const std::exception&) {
      return true;
    }
    return false;
  };
  check(!refused(whole, cuts), "support_logits refused a good order");
  check(refused(orders[0], cuts), "support_logits took a row past the keys");
  check(refused(orders[1], cuts), "support_logits took a negative row");
  check(refused(whole, falling), "support_logits took falling offsets");
}

}  // namespace test
