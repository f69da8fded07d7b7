// Every kernel of the core from several threads at once, each with a team of its own: inputs and
// packed matrices are shared, outputs are not, and each result has the bits of a serial call.
//
//   threads [--race]      --race: two calls write one output, which ThreadSanitizer must see
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "blend_logits/blend_logits.h"
#include "bridge_training/bridge_training.h"
#include "core/huge_pages.h"
#include "core/interrupt.h"
#include "core/isa.h"
#include "core/pack.h"
#include "core/product.h"
#include "count_correct/cache_grid.h"
#include "count_correct/count_correct.h"
#include "project_normalize/project_normalize.h"
#include "quantize_rows/quantize_rows.h"
#include "rank_counts/rank_counts.h"
#include "support_logits/support_logits.h"
#include "symmetric_kl/symmetric_kl.h"
#include "topk/topk.h"
#include "tower_descent/tower_descent.h"
#include "tree_attention/tree_attention.h"

extern "C" unsigned gomp_threads_widest();

namespace {

using namespace semobridge;
using Bytes = std::vector<unsigned char>;

// Zeroed, 64-byte aligned.
template <class T>
struct Array {
  T* data;
  int64_t size;
  explicit Array(int64_t n, uint64_t seed = 0, double scale = 0) : size(n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64 + 64;
    data = static_cast<T*>(std::aligned_alloc(64, bytes));
    std::memset(static_cast<void*>(data), 0, bytes);
    for (int64_t i = 0; i < n && scale != 0; ++i) data[i] = static_cast<T>(scale * draw(seed));
  }
  Array(const Array& other) : Array(other.size) {
    std::memcpy(data, other.data, static_cast<size_t>(size) * sizeof(T));
  }
  Array& operator=(const Array&) = delete;
  ~Array() { std::free(data); }
  T& operator[](int64_t i) { return data[i]; }

  static double draw(uint64_t& state) {  // -1 .. 1
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
  }
};
using Floats = Array<float>;
using Counts = Array<int64_t>;

ConstMatrix input(const Floats& from, int64_t rows, int64_t cols) {
  return {from.data, DType::kFloat32, rows, cols, cols};
}
Matrix output(Floats& to, int64_t rows, int64_t cols) {
  return {to.data, DType::kFloat32, rows, cols, cols};
}

template <class T>
void add(Bytes& all, const Array<T>& part) {
  const auto* first = reinterpret_cast<const unsigned char*>(part.data);
  all.insert(all.end(), first, first + static_cast<size_t>(part.size) * sizeof(T));
}
template <class... Arrays>
Bytes bytes_of(const Arrays&... arrays) {
  Bytes all;
  (add(all, arrays), ...);
  return all;
}

Floats pack(const Floats& values, int64_t rows, int64_t cols) {
  Floats out(packed_elements(rows, cols));
  pack_matrix({input(values, rows, cols), DType::kFloat32, out.data});
  return out;
}
struct Packed {
  int64_t rows, cols;
  Floats values, panels;
  Packed(int64_t k, int64_t m, uint64_t seed)
      : rows(k),
        cols(m),
        values(k * m, seed, 1 / std::sqrt(double(k))),
        panels(pack(values, k, m)) {}
  PackedMatrix view() const { return {panels.data, DType::kFloat32, rows, cols}; }
};

// A call with a team of `threads`; its outputs, which are its own.
using Call = std::function<Bytes(int threads)>;
struct Entry {
  std::string name;
  Call call;
};
std::vector<Entry> g_entries;

// -- operators ----------------------------------------------------------------------------------

void add_products() {
  struct Shared {
    Packed first{900, 1025, 1}, second{1025, 900, 2};
    Floats few{3 * 900, 3, 1}, many{61 * 900, 4, 1}, bias{1025, 5, 1};
  };
  auto s = std::make_shared<Shared>();
  g_entries.push_back(
      {"pack_matrix", [s](int) { return bytes_of(pack(s->first.values, 900, 1025)); }});
  for (bool transposed : {false, true}) {
    g_entries.push_back({transposed ? "matrix_product, transposed" : "matrix_product",
                         [s, transposed](int threads) {
                           // [61, 900]·[900, 1025], or the transpose of [900, 1025] times itself
                           const int64_t n = transposed ? 1025 : 61;
                           Floats out(n * 1025);
                           MatrixProductArgs a;
                           a.b = input(s->first.values, 900, 1025);
                           a.a = transposed ? a.b : input(s->many, 61, 900);
                           a.transposed_a = transposed, a.threads = threads;
                           a.out = output(out, n, 1025);
                           matrix_product(a);
                           return bytes_of(out);
                         }});
  }
  for (bool wide : {false, true}) {
    const int64_t n = wide ? 61 : 3;  // few rows: the threads share out columns
    g_entries.push_back({wide ? "project_normalize, rows" : "project_normalize, columns",
                         [s, n, wide](int threads) {
                           Floats out(n * 900), norms(n);
                           ProjectNormalizeArgs a;
                           a.x = input(wide ? s->many : s->few, n, 900);
                           a.first = {s->first.view(), input(s->bias, 1, 1025), true, 3.0};
                           a.first.bias.row_stride = 0;
                           a.second = {s->second.view(), {}, true, 1.0};
                           a.residual = true;
                           a.out = output(out, n, 900), a.norms = norms.data, a.threads = threads;
                           project_normalize(a);
                           return bytes_of(out, norms);
                         }});
  }
}

void add_rankings() {
  constexpr int64_t kN = 130, kG = 3000, kD = 35, kK = 5, kClasses = 60;
  struct Shared {
    Floats x{kN * kD, 11, 1}, y{kG * kD, 12, 0.2}, weights{kG, 13, 1};
    Counts labels{kG}, order{kG}, offsets{kClasses + 1}, exclude{kN}, rows{kN};
    Counts begin{kN}, end{kN}, sums{kN + 1}, at{2};
  };
  auto s = std::make_shared<Shared>();
  for (int64_t i = 0; i < kG; ++i) s->labels[i] = i * 5 % kClasses;
  sort_labels(s->labels.data, kG, kClasses, s->order.data, s->offsets.data);
  for (int64_t i = 0; i < kN; ++i) {
    s->exclude[i] = i % 3 ? i : -1, s->rows[i] = i;
    s->begin[i] = s->offsets[i % kClasses], s->end[i] = s->offsets[i % kClasses + 1];
    s->sums[i + 1] = s->sums[i] + s->end[i] - s->begin[i];
  }
  s->at[0] = 1, s->at[1] = 10;
  g_entries.push_back({"topk", [s](int threads) {
                         Floats scores(kN * kK);
                         Counts indices(kN * kK);
                         Array<char> work(topk_workspace(kN, kG, kK, DType::kFloat32, threads));
                         TopkArgs a;
                         a.queries = input(s->x, kN, kD), a.gallery = input(s->y, kG, kD), a.k = kK;
                         a.exclude = s->exclude.data, a.scores = scores.data;
                         a.indices = indices.data, a.workspace = work.data, a.threads = threads;
                         topk(a);
                         return bytes_of(scores, indices);
                       }});
  // More rows than one thread takes at a time, and a thread's threshold is read by the others.
  constexpr int64_t kMany = 9000, kPanels = (kMany + kPanel - 1) / kPanel;
  auto rows = std::make_shared<Floats>(kMany * kD, 14, 0.2);
  g_entries.push_back({"topk_filtered, quantize_rows", [s, rows](int threads) {
                         Array<uint8_t> codes(kPanels * code_panel_bytes(kD));
                         Floats bounds(kPanels * kBounds * kPanel);
                         const ConstMatrix gallery = input(*rows, kMany, kD);
                         quantize_rows({gallery, codes.data, bounds.data, threads});
                         Floats scores(2 * kN * kK);
                         Counts indices(2 * kN * kK);
                         Array<char> work(topk_filtered_workspace(kN, kMany, kK, threads));
                         TopkFilteredArgs f;
                         TopkArgs& a = f.plain;
                         a.queries = input(s->x, kN, kD), a.gallery = gallery, a.k = kK;
                         a.exclude = s->exclude.data, a.scores = scores.data;
                         a.indices = indices.data, a.workspace = work.data, a.threads = threads;
                         topk_filtered(f);
                         f.coded = {codes.data, bounds.data};
                         a.scores = scores.data + kN * kK, a.indices = indices.data + kN * kK;
                         topk_filtered(f);
                         return bytes_of(scores, indices);
                       }});
  constexpr int64_t kNodes = 600, kHeads = 4, kLength = 12, kPaths = 50;
  struct Tree {
    Floats q{kNodes * kD * kHeads, 15, 1}, k{kNodes * kD * kHeads, 16, 1};
    Array<int32_t> paths{kPaths * kLength}, path_of{kNodes}, counts{kNodes};
  };
  auto tree = std::make_shared<Tree>();
  for (int64_t i = 0; i < kPaths * kLength; ++i) {
    tree->paths[i] = static_cast<int32_t>(i * 7 % kNodes);
  }
  for (int64_t i = 0; i < kNodes; ++i) {
    tree->path_of[i] = static_cast<int32_t>(i % kPaths);
    tree->counts[i] = static_cast<int32_t>(1 + i % kLength);
  }
  g_entries.push_back({"tree_attention", [tree](int threads) {
                         Floats out(kNodes * kD * kHeads);
                         TreeAttentionArgs a;
                         a.queries = input(tree->q, kNodes, kD * kHeads);
                         a.keys = input(tree->k, kNodes, kD * kHeads), a.values = a.keys;
                         a.heads = kHeads, a.paths = tree->paths.data;
                         a.num_paths = kPaths, a.length = kLength;
                         a.path_of = tree->path_of.data, a.counts = tree->counts.data;
                         a.out = output(out, kNodes, kD * kHeads), a.threads = threads;
                         tree_attention(a);
                         return bytes_of(out);
                       }});
  g_entries.push_back({"tree_attention_bwd", [tree](int threads) {
                         constexpr int64_t kWide = kD * kHeads;
                         Floats grads(3 * kNodes * kWide);
                         TreeAttentionBwdArgs a;
                         a.queries = input(tree->q, kNodes, kWide), a.grad_out = a.queries;
                         a.keys = input(tree->k, kNodes, kWide), a.values = a.keys;
                         a.heads = kHeads, a.paths = tree->paths.data;
                         a.num_paths = kPaths, a.length = kLength;
                         a.path_of = tree->path_of.data, a.counts = tree->counts.data;
                         a.grad_queries = output(grads, kNodes, kWide);
                         a.grad_keys = a.grad_values = a.grad_queries;
                         a.grad_keys.data = grads.data + kNodes * kWide;
                         a.grad_values.data = grads.data + 2 * kNodes * kWide;
                         a.threads = threads;
                         tree_attention_bwd(a);
                         return bytes_of(grads);
                       }});
  g_entries.push_back({"support_logits, sort_labels", [s](int threads) {
                         Counts order(kG), offsets(kClasses + 1);
                         sort_labels(s->labels.data, kG, kClasses, order.data, offsets.data);
                         Floats out(kN * kClasses), work(support_logits_workspace(kN, kG));
                         SupportLogitsArgs a;
                         a.queries = input(s->x, kN, kD), a.keys = input(s->y, kG, kD);
                         a.order = order.data, a.offsets = offsets.data, a.num_classes = kClasses;
                         a.weights = s->weights.data, a.beta = 2, a.out = out.data;
                         a.workspace = work.data, a.threads = threads;
                         support_logits(a);
                         return bytes_of(out, order, offsets);
                       }});
  g_entries.push_back({"rank_counts, rank_metrics", [s](int threads) {
                         const int64_t total = s->sums[kN];
                         Floats scores(total);
                         Counts greater(total), equal(total);
                         Array<char> work(rank_counts_workspace(s->sums.data, kN, threads));
                         RankCountsArgs a;
                         a.queries = input(s->x, kN, kD), a.gallery = input(s->y, kG, kD);
                         a.num_queries = kN, a.query_rows = s->rows.data;
                         a.marked = s->order.data, a.marked_begin = s->begin.data;
                         a.marked_end = s->end.data, a.offsets = s->sums.data;
                         a.scores = scores.data, a.greater = greater.data, a.equal = equal.data;
                         a.workspace = work.data, a.threads = threads;
                         rank_counts(a);
                         Array<double> metrics(kN * 5);
                         rank_metrics(kN, s->sums.data, greater.data, equal.data, s->at.data, 2,
                                      metrics.data);
                         return bytes_of(scores, greater, equal, metrics);
                       }});
  constexpr int64_t kSquare = 1100;  // more than a block of queries
  struct Square {
    Counts rows{kSquare}, begin{kSquare}, end{kSquare}, sums{kSquare + 1};
  };
  auto square = std::make_shared<Square>();  // eleven rows a label, in the order of the labels
  for (int64_t i = 0; i < kSquare; ++i) {
    square->rows[i] = i, square->begin[i] = i / 11 * 11, square->end[i] = i / 11 * 11 + 11;
    square->sums[i + 1] = square->sums[i] + 10;
  }
  g_entries.push_back({"rank_counts_symmetric", [s, square](int threads) {
                         const int64_t total = square->sums[kSquare];
                         Floats scores(total);
                         Counts greater(total), equal(total);
                         const int64_t bytes =
                             rank_counts_workspace(square->sums.data, kSquare, threads);
                         Array<char> work(bytes);
                         RankCountsArgs a;
                         a.queries = a.gallery = input(s->y, kSquare, kD), a.num_queries = kSquare;
                         a.query_rows = a.marked = a.exclude = square->rows.data;
                         a.marked_begin = square->begin.data, a.marked_end = square->end.data;
                         a.offsets = square->sums.data, a.scores = scores.data;
                         a.greater = greater.data, a.equal = equal.data;
                         a.workspace = work.data, a.threads = threads;
                         rank_counts_symmetric(a);
                         return bytes_of(scores, greater, equal);
                       }});
}

void add_losses() {
  constexpr int64_t kN = 480, kK = 70;
  struct Shared {
    Floats a{kN * kK, 21, 3}, b{kN * kK, 22, 3}, grad{kN, 23, 1}, stats{kN * kSymmetricKlStats};
  };
  auto s = std::make_shared<Shared>();
  const auto forward = [s](Floats& rows, Floats& stats, int threads) {
    symmetric_kl({input(s->a, kN, kK), input(s->b, kN, kK), 0.7, rows.data, stats.data, threads});
  };
  Floats rows(kN);
  forward(rows, s->stats, 1);
  g_entries.push_back({"symmetric_kl", [forward](int threads) {
                         Floats rows(kN), stats(kN * kSymmetricKlStats);
                         forward(rows, stats, threads);
                         return bytes_of(rows, stats);
                       }});
  g_entries.push_back({"symmetric_kl_bwd", [s](int threads) {
                         Floats one(kN * kK), two(kN * kK);
                         symmetric_kl_bwd({input(s->a, kN, kK), input(s->b, kN, kK), 0.7,
                                           s->grad.data, s->stats.data, output(one, kN, kK),
                                           output(two, kN, kK), threads});
                         return bytes_of(one, two);
                       }});
}

void add_blends() {
  constexpr int64_t kN = 600, kD = 24, kC = 40, kRank = 9, kTrials = 6;
  struct Shared {
    Packed right{kD, 3 * 2 * kPanel + kRank, 31};
    Floats x{kN * kD, 32, 1},
        z[3]{Floats(kN * kC, 33, 1), Floats(kN * kC, 34, 1), Floats(kN * kC, 35, 1)};
    Floats weights{2 * kPanel, 36, 1};
    Counts labels{kN};
    Array<double> exponents{kC, 37, 1}, params{7 * kTrials, 38, 1};
    Array<int32_t> candidates{kN * kC}, counts{kN};
    PruneArgs prune() {
      PruneArgs a;
      for (int i = 0; i < 3; ++i) a.z[i] = input(z[i], kN, kC);
      a.labels = labels.data, a.exponents = exponents.data, a.margin = 1e-5;
      return a;
    }
  };
  auto s = std::make_shared<Shared>();
  for (int64_t i = 0; i < kN; ++i) s->labels[i] = i * 3 % kC;
  for (int64_t i = 0; i < 7 * kTrials; ++i) s->params[i] = std::fabs(s->params[i]) + 0.1;
  g_entries.push_back({"blend_logits", [s](int threads) {
                         Counts labels(kN);
                         Floats logits(kN * kC), one(kN * kC), two(kN * kC), three(kN * kC);
                         BlendLogitsArgs a;
                         a.x = input(s->x, kN, kD), a.right = s->right.view(), a.classes = kC;
                         a.weights = s->weights.data, a.labels = labels.data;
                         a.logits = logits.data, a.threads = threads;
                         a.blocks[0] = one.data, a.blocks[1] = two.data, a.blocks[2] = three.data;
                         blend_logits(a);
                         return bytes_of(labels, logits, one, two, three);
                       }});
  g_entries.push_back({"prune_candidates, count_correct", [s](int threads) {
                         Array<int32_t> found(kN * kC), counts(kN);
                         PruneArgs prune = s->prune();
                         prune.candidates = found.data, prune.counts = counts.data;
                         prune.threads = threads;
                         prune_candidates(prune);
                         Counts offsets(kN + 1);
                         for (int64_t i = 0; i < kN; ++i) {
                           const int64_t pad = kCandidatePad;
                           offsets[i + 1] = offsets[i] + (counts[i] + pad - 1) / pad * pad;
                         }
                         const int64_t total = offsets[kN];
                         Array<int32_t> candidates(total);
                         Floats own[4]{Floats(kN), Floats(kN), Floats(kN), Floats(kN)};
                         Floats other[4]{Floats(total), Floats(total), Floats(total),
                                         Floats(total)};
                         const auto value = [&](int block, int64_t row, int64_t c) {
                           return block < 3 ? s->z[block].data[row * kC + c]
                                            : static_cast<float>(s->exponents.data[c]);
                         };
                         for (int64_t row = 0; row < kN; ++row) {
                           for (int b = 0; b < 4; ++b) own[b][row] = value(b, row, s->labels[row]);
                           for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) {
                             const int64_t at = (i - offsets[row]) % counts[row];
                             candidates[i] = found[row * kC + at];
                             for (int b = 0; b < 4; ++b) other[b][i] = value(b, row, candidates[i]);
                           }
                         }
                         Counts correct(kTrials);
                         CountCorrectArgs a;
                         a.rows = kN, a.labels = s->labels.data, a.offsets = offsets.data;
                         for (int b = 0; b < 3; ++b) {
                           a.label_z[b] = own[b].data, a.candidate_z[b] = other[b].data;
                         }
                         a.label_d = own[3].data, a.candidate_d = other[3].data;
                         a.candidates = candidates.data, a.exponents = s->exponents.data;
                         a.largest_exponent = 1, a.trials = kTrials, a.params = s->params.data;
                         a.correct = correct.data, a.threads = threads;
                         count_correct(a);
                         return bytes_of(found, counts, correct);
                       }});
}

void add_cache_grid() {
  constexpr int64_t kN = 90, kClasses = 37, kKeys = 3 * kClasses + 5, kSets = 2;
  constexpr int64_t kBetas = 3, kAlphas = 4;
  constexpr int64_t kWidth =
      (kKeys + kCacheGridPad - 1) / kCacheGridPad * kCacheGridPad + kCacheGridPad;
  struct Shared {
    Floats cosines{kN * kKeys, 31, 1}, text{kN * kClasses, 32, 3}, weights{kSets * kWidth, 33, 0.2};
    Counts labels{kN}, lower{kClasses}, layers{5};
    Array<double> betas{kBetas}, alphas{kAlphas};
  };
  auto s = std::make_shared<Shared>();
  for (int64_t i = 0; i < kN; ++i) s->labels[i] = i * 7 % kClasses;
  for (int64_t c = 0; c < kClasses; ++c) s->lower[c] = (c * 5 + 3) % kClasses;
  for (int64_t i = 0; i < kSets * kWidth; ++i) s->weights[i] += 1;
  for (int64_t i = 0; i < 4; ++i) s->layers[i] = i * kClasses;
  s->layers[4] = kKeys;
  for (int64_t i = 0; i < kBetas; ++i) s->betas[i] = 0.5 + 2.0 * double(i);
  for (int64_t i = 0; i < kAlphas; ++i) s->alphas[i] = 0.1 + double(i);
  g_entries.push_back({"count_cache_grid", [s](int threads) {
                         Counts correct(kBetas * kSets * kAlphas);
                         CacheGridArgs a;
                         a.cosines = input(s->cosines, kN, kKeys);
                         a.text = input(s->text, kN, kClasses);
                         a.weights = input(s->weights, kSets, kWidth);
                         a.labels = s->labels.data, a.lower = s->lower.data;
                         a.layers = s->layers.data, a.layer_count = 4;
                         a.betas = s->betas.data, a.beta_count = kBetas;
                         a.alphas = s->alphas.data, a.alpha_count = kAlphas;
                         a.correct = correct.data, a.threads = threads;
                         count_cache_grid(a);
                         return bytes_of(correct);
                       }});
}

// -- engines --------------------------------------------------------------------------------------

void add_training() {
  constexpr int64_t kClasses = 101, kN = 700, kT = 97;
  struct Shared {
    Counts offsets{kClasses + 1};
    Floats e{kN * kT, 41, 1}, h{kN * kT, 42, 1}, tau{kClasses * kT, 43, 1}, x{kN * kClasses, 44, 1};
    Floats add{kClasses * kClasses, 45, 1}, scale{kN, 46, 1}, r{kN, 47, 1}, q{kN, 48, 1},
        dot{kN, 49, 1};
    Floats flat{100000, 50, 1};
  };
  auto s = std::make_shared<Shared>();
  for (int64_t c = 0; c <= kClasses; ++c) s->offsets[c] = c * kN / kClasses;
  for (int64_t i = 0; i < kN; ++i) s->r[i] += 2, s->q[i] += 2;
  const auto rows = [s](int threads) {
    return ClassRows{DType::kFloat32, s->offsets.data, 0, kClasses, threads};
  };
  g_entries.push_back({"shot_norms", [s, rows](int threads) {
                         Floats e(s->e), r(kN), mean(kClasses * kT);
                         shot_norms({rows(threads), kT, e.data, s->tau.data, r.data, mean.data});
                         return bytes_of(e, r, mean);
                       }});
  g_entries.push_back({"shot_dots", [s, rows](int threads) {
                         Floats q(kN);
                         shot_dots({rows(threads), kT, s->e.data, s->h.data, q.data});
                         return bytes_of(q);
                       }});
  g_entries.push_back({"row_loss", [s, rows](int threads) {
                         Floats x(s->x), loss(kN), dot(kN), sums(kClasses * kClasses);
                         row_loss({rows(threads), 0, output(x, kN, kClasses), 0.5, s->scale.data,
                                   s->add.data, loss.data, dot.data, sums.data});
                         return bytes_of(x, loss, dot, sums);
                       }});
  g_entries.push_back({"shot_grads", [s, rows](int threads) {
                         Floats h(s->h), tau(kClasses * kT);
                         shot_grads({rows(threads), kT, s->e.data, h.data, s->r.data, s->q.data,
                                     s->dot.data, s->tau.data, tau.data});
                         return bytes_of(h, tau);
                       }});
  g_entries.push_back({"adamw", [s](int threads) {
                         Floats p(s->flat), first(p.size), second(p.size);
                         AdamwArgs a;
                         a.size = p.size, a.parameter = p.data, a.gradient = s->flat.data;
                         a.first = first.data, a.second = second.data, a.threads = threads;
                         adamw(a);
                         return bytes_of(p, first, second);
                       }});
}

// Two layers with a shared prefix, three slots, one learned; wide enough for a team on one block.
struct Tower {
  static constexpr int64_t kT = 128, kD = 16, kSlots = 3, kPrefix = 2;
  struct Linear {
    Packed forward, backward;
    Linear(int64_t k, int64_t m, uint64_t seed) : forward(k, m, seed), backward(m, k, seed + 1) {}
    FrozenLinear view() const { return {forward.view(), backward.view(), nullptr}; }
  };
  Floats weight{kT, 61, 1}, bias{kT, 62, 0.1}, prefix{2 * kPrefix * kT, 63, 1},
      base{kSlots * kT, 64, 1};
  Linear qkv{kT, 3 * kT, 65}, out{kT, kT, 67}, fc{kT, kT, 69}, proj{kT, kT, 71}, last{kT, kD, 73};
  FrozenLayer layers[2];
  int32_t source[kSlots] = {-1, 0, -1}, visible[6] = {0, 1, 1, 1, 2, 2};
  int32_t begin[kSlots + 1] = {0, 2, 3, 5};
  FrozenTower view;

  Tower() {
    const FrozenNorm norm{weight.data, bias.data, 1e-5};
    for (FrozenLayer& layer : layers) {
      layer = {norm, norm, qkv.view(), out.view(), fc.view(), proj.view(), prefix.data, nullptr};
    }
    view.width = kT, view.heads = 4, view.features = kD, view.slots = kSlots, view.prefix = kPrefix;
    view.vectors = 1, view.layers = 2, view.layer = layers, view.norm_final = norm;
    view.projection = last.view(), view.source = source, view.visible = visible;
    view.visible_begin = begin, view.base = base.data, view.base_slot_stride = kT;
    view.learned_begin = 1, view.learned_end = 2;
  }
  Bytes descend(int64_t samples, int64_t steps, int threads) const {
    Floats tokens(samples * kT, 81, 1), first(tokens.size), second(tokens.size);
    Floats targets(samples * kD, 82, 0.4), losses(steps * samples), features(samples * kD);
    Array<char> work(tower_descent_workspace(view, samples, threads));
    prefer_huge_pages(work.data, work.size);
    TowerDescentArgs a;
    a.tower = &view, a.workspace = work.data, a.samples = samples, a.tokens = tokens.data;
    a.features = features.data, a.step_end = steps, a.exp_avg = first.data;
    a.exp_avg_sq = second.data, a.targets = targets.data, a.losses = losses.data;
    a.threads = threads;
    tower_descent(a);
    return bytes_of(tokens, losses, features);
  }
};

void add_tower() {
  auto tower = std::make_shared<Tower>();
  g_entries.push_back({"tower_descent, a team on a block",
                       [tower](int threads) { return tower->descend(2, 2, threads); }});
  g_entries.push_back({"tower_descent, a block each",
                       [tower](int threads) { return tower->descend(7, 2, threads); }});
}

// -- the runs -------------------------------------------------------------------------------------

std::atomic<bool> g_end{false};
std::atomic<int> g_polls{0};
bool poll() {
  g_polls.fetch_add(1, std::memory_order_relaxed);
  return g_end.load(std::memory_order_relaxed);
}

int g_failures = 0;
void check(bool ok, const char* what, const char* of) {
  if (ok) return;
  ++g_failures;
  std::printf("FAILED %s: %s\n", of, what);
}

// Each thread makes every call, in an order and with a team size of its own. The first entry, which
// packs, has no team.
void run_at_once() {
  constexpr int kCallers = 4;
  const size_t count = g_entries.size();
  std::vector<std::vector<Bytes>> found(kCallers, std::vector<Bytes>(count));
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (size_t i = 0; i < count; ++i) {
        // Two callers begin alike: they meet in the same kernel.
        const size_t entry = (i + static_cast<size_t>(caller / 2) * count / 2) % count;
        found[caller][entry] = g_entries[entry].call(1 + caller % 3);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (size_t i = 0; i < count; ++i) {
    const char* name = g_entries[i].name.c_str();
    const Bytes alone = g_entries[i].call(1);
    gomp_threads_widest();
    check(g_entries[i].call(3) == alone, "not the bits of a serial call", name);
    check((gomp_threads_widest() > 1) == (i > 0), "no team: the sizes are too small", name);
    bool some = false;
    for (unsigned char byte : alone) some |= byte != 0;
    check(some, "nothing was computed", name);
    for (const auto& of_caller : found) {
      check(of_caller[i] == alone, "not the bits of a serial call", name);
    }
  }
}

// Ctrl-C while two threads compute with teams: both end, and no thread waits for one that has left.
void run_interrupted() {
  constexpr int64_t kN = 64, kG = 20'000, kD = 64, kK = 3;
  const Floats x(kN * kD, 95, 1), y(kG * kD, 96, 1);
  std::atomic<int> ended{0};
  g_end = true;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller) {
    callers.emplace_back([&] {
      Floats scores(kN * kK);
      Counts indices(kN * kK);
      Array<char> work(topk_workspace(kN, kG, kK, DType::kFloat32, 3));
      TopkArgs a;
      a.queries = input(x, kN, kD), a.gallery = input(y, kG, kD), a.k = kK;
      a.scores = scores.data, a.indices = indices.data, a.workspace = work.data, a.threads = 3;
      try {
        for (int i = 0; i < 10'000; ++i) topk(a);  // one call asks only after 50 ms
      } catch (const Interrupted&) {
        ++ended;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  g_end = false;
  check(ended == 2 && g_polls > 0, "a call went on after it was told to end", "interrupt");
}

void race() {
  Floats out(1000), gradient(1000, 91, 1), first(1000), second(1000);
  AdamwArgs a;
  a.size = 1000, a.parameter = out.data, a.gradient = gradient.data;
  a.first = first.data, a.second = second.data;
  std::thread other([&] { adamw(a); });
  adamw(a);
  other.join();
}

}  // namespace

int main(int argc, char** argv) {
  set_interrupt_poll(poll);
  if (argc > 1 && std::strcmp(argv[1], "--race") == 0) {
    race();
    return 0;
  }
  add_products();
  add_rankings();
  add_losses();
  add_blends();
  add_cache_grid();
  add_training();
  add_tower();
  run_at_once();
  run_interrupted();
  std::printf("%s: %zu entries, %d failures\n", isa_name(active_isa()), g_entries.size(),
              g_failures);
  return g_failures == 0 ? 0 : 1;
}
