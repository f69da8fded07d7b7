// Entries of the blend of logits and of the counts over a grid of its parameters.
#include "blend_logits/blend_logits.h"
#include "count_correct/cache_grid.h"
#include "count_correct/count_correct.h"
#include "entries.h"

namespace entries {

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

}  // namespace entries
