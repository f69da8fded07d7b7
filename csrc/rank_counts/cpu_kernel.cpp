// rank_counts for one instruction set; see rank_counts/rank_counts.h for what it computes.
#include <omp.h>

#include "core/interrupt.h"
#include "core/table.h"
#include "rank_counts/marked.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kRankChunk = 2048;  // gallery rows handed to a thread at a time

template <class T>
struct CountEpilogue {
  const RankRow<T>* table;
  uint32_t* counters;  // of this thread

  void begin_group(int64_t, int64_t) {}

  void tile(int64_t, int64_t row, int rows, int64_t, int64_t count, const T* scores, int64_t ld) {
    for (int r = 0; r < rows; ++r) {
      const RankRow<T>& state = table[row + r];
      if (state.size == 0) continue;
      count_scores(state, scores + r * ld, count, counters + state.counts);
    }
  }
};

template <class T>
void rank_counts_typed(const RankCountsArgs& a) {
  const int64_t n = a.num_queries, g = a.gallery.rows, d = a.queries.cols;
  const int team = team_size(n, g, d, a.threads);
  const int64_t counters_size = counters_of(a);
  const int64_t chunks = (g + kRankChunk - 1) / kRankChunk;
  const Rows queries{a.queries, a.query_rows}, gallery{a.gallery};

  QueryBlock<T> block(thread_scratch<T>().reserve(n * d), n, d);
  RankRow<T>* table;
  uint32_t* counters = lay_out_rows(a, &table);
  MarkedTask* tasks = thread_scratch<MarkedTask>().reserve(n + block.tiles);
  const int64_t task_count = plan_tasks(a, block, 0, tasks);
  int64_t came = 1;
  Watch watch;

#pragma omp parallel num_threads(team) if (team > 1)
  {
    const int64_t me = omp_get_thread_num();
#pragma omp single
    came = omp_get_num_threads();
    T* scratch = thread_row_scratch<T>().reserve(stream_scratch<T>(d));
    uint32_t* mine = counters + me * counters_size;
    for (int64_t i = 0; i < counters_size; ++i) mine[i] = 0;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < block.tiles; ++t) block.pack(queries, 0, t);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < task_count; ++i) {
      if (watch.stop()) continue;
      score_marked(a, block, 0, table, tasks[i], scratch);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      if (table[i].size == 0 || watch.stopped()) continue;
      if (a.in_order != nullptr) {
        T* out = static_cast<T*>(a.in_order) + a.offsets[i];
        for (int64_t j = 0; j < table[i].size; ++j) out[j] = table[i].sorted[j];
      }
      prepare_row(table[i]);
    }
    CountEpilogue<T> epilogue{table, mine};
#pragma omp for schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      if (watch.stop()) continue;
      const int64_t begin = chunk * kRankChunk;
      const int64_t end = begin + kRankChunk < g ? begin + kRankChunk : g;
      stream_keys(block, 0, block.tiles, gallery, begin, end, scratch, epilogue);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      if (table[i].size == 0 || watch.stopped()) continue;
      write_counts(a, table[i], counters, counters_size, came, a.offsets[i]);
    }
  }
  watch.finish();
}

}  // namespace

void rank_counts_entry(const RankCountsArgs& a) {
  if (a.num_queries == 0 || a.gallery.rows == 0) return;
  require(a.num_queries <= kRankBlock, "rank_counts: too many queries for one call");
  require(a.queries.cols == a.gallery.cols && a.gallery.cols > 0,
          "rank_counts: queries and gallery must have the same width");
  require(a.query_rows != nullptr && a.marked_begin != nullptr && a.marked_end != nullptr &&
              a.offsets != nullptr && a.workspace != nullptr,
          "rank_counts: query_rows, ranges, offsets and workspace needed");
  if (compute_dtype(a.queries.dtype, a.gallery.dtype) == DType::kFloat64) {
    rank_counts_typed<double>(a);
  } else {
    rank_counts_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge
