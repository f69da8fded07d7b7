// Entries of the operators that project, rank and compare rows.
#include "core/product.h"
#include "entries.h"
#include "project_normalize/project_normalize.h"
#include "quantize_rows/quantize_rows.h"
#include "rank_counts/rank_counts.h"
#include "support_logits/support_logits.h"
#include "symmetric_kl/symmetric_kl.h"
#include "topk/topk.h"
#include "tree_attention/tree_attention.h"

namespace entries {

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

}  // namespace entries
