// count_cache_grid for one instruction set; see count_correct/cache_grid.h for what it computes.
#include <omp.h>

#include "core/interrupt.h"
#include "core/scratch.h"
#include "core/table.h"
#include "core/vexp.h"
#include "count_correct/cache_grid.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kMostLanes = kCacheGridPad;

constexpr int64_t padded(int64_t n) { return (n + kMostLanes - 1) / kMostLanes * kMostLanes; }

// The least α that is beyond `bound`, as a place in the ascending list; `with` takes equality too.
int64_t first_beyond(const double* alphas, int64_t count, double bound, bool with) {
  int64_t begin = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const double value = alphas[begin + half];
    const bool beyond = with ? value >= bound : value > bound;
    begin = beyond ? begin : begin + half + 1;
    count = beyond ? half : count - half - 1;
  }
  return begin;
}

template <class T>
struct Row {
  const CacheGridArgs& a;
  int64_t classes, keys;
  T *cosines, *terms, *sums;  // [S], [S], [C], padded: terms by a vector more
  double* lead;               // [C] of the label over the class
  double* rise;               // [C]
  int64_t own;

  void begin(int64_t at) {
    own = a.labels[at];
    const T* from = static_cast<const T*>(a.cosines.data) + at * a.cosines.row_stride;
    const T* text = static_cast<const T*>(a.text.data) + at * a.text.row_stride;
    for (int64_t i = 0; i < keys; ++i) cosines[i] = from[i] - 1;
    for (int64_t i = keys; i < padded(keys); ++i) cosines[i] = 0;
    for (int64_t c = 0; c < classes; ++c) {
      lead[c] = static_cast<double>(text[own]) - static_cast<double>(text[c]);
    }
  }

  void exponentials(T beta) {
    constexpr int kLanes = Simd<T>::kLanes;
    for (int64_t i = 0; i < padded(keys); i += kLanes) {
      store(terms + i, vexp<T>(load(cosines + i) * beta));
    }
  }

  void add_classes(const T* weights) {
    using V = typename Simd<T>::Vec;
    constexpr int kLanes = Simd<T>::kLanes;
    T lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<T>(i);
    const V place = load(lane);
    for (int64_t c = 0; c < padded(classes); c += kLanes) store(sums + c, V{});
    for (int64_t layer = 0; layer < a.layer_count; ++layer) {
      const int64_t first = a.layers[layer], count = a.layers[layer + 1] - first;
      for (int64_t c = 0; c < count; c += kLanes) {
        V term = load(terms + first + c);
        if (weights != nullptr) term *= load(weights + first + c);
        // Lanes past the layer's end belong to the next one.
        term = place < V{} + static_cast<T>(count - c) ? term : V{};
        store(sums + c, load(sums + c) + term);
      }
    }
  }

  // Marks where the row becomes right and where it ceases to be.
  void decide(int32_t* mark) {
    using V = Simd<double>::Vec;
    constexpr int kLanes = Simd<double>::kLanes;
    const double base = static_cast<double>(sums[own]);
    for (int64_t c = 0; c < classes; ++c) rise[c] = static_cast<double>(sums[c]) - base;
    // Past the classes stands the label itself, which beats nobody.
    for (int64_t c = classes; c < padded(classes); ++c) rise[c] = 0, lead[c] = 1;
    const V none = V{} + __builtin_inf();
    V low = -none, high = none, sick = V{}, level = V{};
    for (int64_t c = 0; c < padded(classes); c += kLanes) {
      const V l = load(lead + c), r = load(rise + c), ratio = l / r;
      const V falls = r < V{} ? ratio : -none, grows = r > V{} ? ratio : none;
      low = falls > low ? falls : low;
      high = grows < high ? grows : high;
      sick = l == l && r == r ? sick : V{} + 1.0;
      // The cache does not tell the two apart, nor does the text speak for the label; one of these
      // is the label itself.
      level += r == V{} && l <= V{} ? V{} + 1.0 : V{};
    }
    if (sum_lanes<double>(sick) > 0 || (sum_lanes<double>(level) > 1 && loses_level())) return;
    double lows[kLanes], highs[kLanes];
    store(lows, low), store(highs, high);
    for (int i = 1; i < kLanes; ++i) {
      lows[0] = lows[i] > lows[0] ? lows[i] : lows[0];
      highs[0] = highs[i] < highs[0] ? highs[i] : highs[0];
    }
    // Open on both sides: at a bound two logits are equal, and rounding would decide.
    const int64_t begin = first_beyond(a.alphas, a.alpha_count, lows[0], false);
    const int64_t end = first_beyond(a.alphas, a.alpha_count, highs[0], true);
    if (begin < end) ++mark[begin], --mark[end];
  }

  bool loses_level() const {
    for (int64_t c = 0; c < classes; ++c) {
      if (c == own || rise[c] != 0) continue;
      if (lead[c] < 0 || (lead[c] == 0 && a.lower[c] < a.lower[own])) return true;
    }
    return false;
  }
};

template <class T>
void count_typed(const CacheGridArgs& a) {
  const int64_t classes = a.text.cols, keys = a.cosines.cols;
  const int64_t sets = a.weights.data == nullptr ? 1 : a.weights.rows;
  const int64_t cells = a.beta_count * sets, width = a.alpha_count + 1;
  for (int64_t i = 0; i < cells * a.alpha_count; ++i) a.correct[i] = 0;
  Watch watch;
#pragma omp parallel num_threads(a.threads) if (a.threads > 1 && a.cosines.rows > 1)
  {
    T* const values = thread_scratch<T>().reserve(2 * padded(keys) + kMostLanes + padded(classes));
    double* const wide = thread_row_scratch<double>().reserve(2 * padded(classes));
    // Where along α a count changes.
    int32_t* const marks = thread_scratch<int32_t>().reserve(cells * width);
    for (int64_t i = 0; i < cells * width; ++i) marks[i] = 0;
    T* const terms = values + padded(keys);
    T* const sums = terms + padded(keys) + kMostLanes;
    for (int i = 0; i < kMostLanes; ++i) terms[padded(keys) + i] = 0;
    Row<T> row{a, classes, keys, values, terms, sums, wide, wide + padded(classes), 0};
#pragma omp for schedule(dynamic, 4)
    for (int64_t n = 0; n < a.cosines.rows; ++n) {
      if (watch.stop()) continue;
      if (a.labels[n] < 0 || a.labels[n] >= classes) continue;  // no class of these: never right
      row.begin(n);
      for (int64_t b = 0; b < a.beta_count; ++b) {
        row.exponentials(static_cast<T>(a.betas[b]));
        for (int64_t g = 0; g < sets; ++g) {
          const T* weights = nullptr;
          if (a.weights.data != nullptr) {
            weights = static_cast<const T*>(a.weights.data) + g * a.weights.row_stride;
          }
          row.add_classes(weights);
          row.decide(marks + (b * sets + g) * width);
        }
      }
    }
    for (int64_t cell = 0; cell < cells; ++cell) {
      int64_t right = 0;
      for (int64_t i = 0; i < a.alpha_count; ++i) {
        right += marks[cell * width + i];
        if (right == 0) continue;
#pragma omp atomic
        a.correct[cell * a.alpha_count + i] += right;
      }
    }
  }
  watch.finish();
}

}  // namespace

void count_cache_grid_entry(const CacheGridArgs& a) {
  require(is_compute_dtype(a.cosines.dtype), "count_cache_grid: must be float32 or float64");
  require(a.text.dtype == a.cosines.dtype && a.text.rows == a.cosines.rows,
          "count_cache_grid: text and cosines must have one type and one number of rows");
  require(a.layers[a.layer_count] == a.cosines.cols, "count_cache_grid: layers must hold all keys");
  require(a.weights.data == nullptr || (a.weights.dtype == a.cosines.dtype &&
                                        a.weights.cols >= padded(a.cosines.cols) + kMostLanes),
          "count_cache_grid: weights must be padded");
  if (a.cosines.dtype == DType::kFloat64) {
    count_typed<double>(a);
  } else {
    count_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge
