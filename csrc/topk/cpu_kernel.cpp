// topk for one instruction set; see topk/topk.h for what it computes.
//
// Every thread scans its share of the gallery in ascending order and keeps, per query, the best k
// it has seen plus room for newcomers. A score enters only if it beats the k-th best of the last
// selection; an equal score comes later in the scan, has the higher row and would lose the tie.
#include <omp.h>

#include "core/compare.h"
#include "core/interrupt.h"
#include "core/select.h"
#include "core/stream.h"
#include "core/table.h"
#include "topk/topk.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kTopkChunk = 2048;  // gallery rows handed to a thread at a time

SB_INLINE int64_t query_of(const TopkArgs& a, int64_t i) {
  return a.select != nullptr ? a.select[i] : i;
}

template <class T>
struct RowState {
  Candidate<T>* candidates;
  int64_t count;
  T threshold;  // k-th best of the last selection
  bool full;    // a selection has taken place: the threshold counts
};

template <class T>
struct TopkEpilogue {
  int64_t k, capacity;
  const TopkArgs& args;
  int64_t query0;       // first of the block
  RowState<T>* states;  // [rows]

  void begin_group(int64_t, int64_t) {}

  void select(RowState<T>& state) const {
    keep_best(state.candidates, state.count, k);
    state.count = k;
    const T worst = state.candidates[k - 1].score;
    state.threshold = worst == worst ? worst : -__builtin_inf();
    state.full = true;
  }

  void add(RowState<T>& state, uint32_t mask, const T* scores, int64_t key, int64_t excluded) {
    for (; mask != 0; mask &= mask - 1) {
      const int j = __builtin_ctz(mask);
      if (key + j == excluded || (args.allow != nullptr && !args.allow[key + j])) continue;
      if (state.count == capacity) select(state);
      if (state.full && !(scores[j] > state.threshold)) continue;
      state.candidates[state.count++] = {scores[j], static_cast<uint32_t>(key + j)};
    }
  }

  void tile(int64_t, int64_t row, int rows, int64_t key, int64_t count, const T* scores,
            int64_t ld) {
    for (int r = 0; r < rows; ++r) {
      RowState<T>& state = states[row + r];
      const int64_t excluded =
          args.exclude != nullptr ? args.exclude[query_of(args, query0 + row + r)] : -1;
      for (int64_t col = 0; col < count; col += kPanel) {
        const T* at = scores + r * ld + col;
        uint32_t mask = first_columns(count - col);
        if (state.full) mask &= pass_mask<false>(at, state.threshold);
        if (mask != 0) add(state, mask, at, key + col, excluded);
      }
    }
  }
};

template <class T>
void topk_typed(const TopkArgs& a) {
  const int64_t n = a.select != nullptr ? a.selected : a.queries.rows;
  const int64_t first = a.begin, last = a.end < 0 ? a.gallery.rows : a.end, g = last - first;
  const int64_t d = a.queries.cols, k = a.k;
  const int team = team_size(n, g, d, a.threads);
  const DType compute = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  const int64_t capacity = topk_capacity(k, g);
  const int64_t block_max = topk_block_rows(n, g, k, compute, a.threads);
  const int64_t blocks = (n + block_max - 1) / block_max;
  const int64_t chunks = (g + kTopkChunk - 1) / kTopkChunk;
  const Rows queries{a.queries, a.select}, gallery{a.gallery};
  T* packed = thread_scratch<T>().reserve(block_max * d);
  Candidate<T>* workspace = static_cast<Candidate<T>*>(a.workspace);
  RowState<T>* states = thread_scratch<RowState<T>>().reserve(team * block_max);
  Watch watch;

#pragma omp parallel num_threads(team) if (team > 1)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    T* scratch = thread_row_scratch<T>().reserve(stream_scratch<T>(d));
    Candidate<T>* joined = thread_row_scratch<Candidate<T>>().reserve(all > 1 ? all * capacity : 1);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t row0 = share_begin(n, blocks, b), rows = share_begin(n, blocks, b + 1) - row0;
      QueryBlock<T> block(packed, rows, d);
      RowState<T>* mine = states + me * block_max;
      for (int64_t r = 0; r < rows; ++r) {
        mine[r] = {workspace + (me * block_max + r) * capacity, 0, T(0), false};
      }
#pragma omp for schedule(static)
      for (int64_t t = 0; t < block.tiles; ++t) block.pack(queries, row0, t);
      TopkEpilogue<T> epilogue{k, capacity, a, row0, mine};
#pragma omp for schedule(monotonic : dynamic, 1)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        if (watch.stop()) continue;
        const int64_t begin = first + chunk * kTopkChunk;
        const int64_t end = begin + kTopkChunk < last ? begin + kTopkChunk : last;
        stream_keys(block, 0, block.tiles, gallery, begin, end, scratch, epilogue);
      }
#pragma omp for schedule(static)
      for (int64_t r = 0; r < rows; ++r) {
        if (watch.stopped()) continue;
        Candidate<T>* best = states[r].candidates;
        int64_t count = states[r].count;
        if (all > 1) {
          count = 0;
          for (int64_t t = 0; t < all; ++t) {
            const RowState<T>& state = states[t * block_max + r];
            for (int64_t i = 0; i < state.count; ++i) joined[count++] = state.candidates[i];
          }
          best = joined;
        }
        keep_best(best, count, k);
        sort_best_first(best, k);
        const int64_t query = query_of(a, row0 + r);
        T* scores = static_cast<T*>(a.scores) + query * k;
        int64_t* indices = a.indices + query * k;
        for (int64_t i = 0; i < k; ++i) {
          scores[i] = best[i].score;
          indices[i] = best[i].row;
        }
      }
    }
  }
  watch.finish();
}

}  // namespace

void topk_entry(const TopkArgs& a) {
  if (a.queries.rows == 0 || a.k == 0) return;
  require(a.queries.cols == a.gallery.cols && a.gallery.cols > 0,
          "topk: queries and gallery must have the same width");
  require(a.gallery.rows < (int64_t{1} << 32), "topk: gallery must have fewer than 2^32 rows");
  const int64_t end = a.end < 0 ? a.gallery.rows : a.end;
  require(a.begin >= 0 && a.begin <= end && end <= a.gallery.rows,
          "topk: the range must lie in the gallery");
  require(a.k <= end - a.begin - (a.exclude != nullptr ? 1 : 0),
          "topk: k must not exceed the gallery");
  if (compute_dtype(a.queries.dtype, a.gallery.dtype) == DType::kFloat64) {
    topk_typed<double>(a);
  } else {
    topk_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge
