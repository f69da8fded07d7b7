// rank_counts for one instruction set; see rank_counts/rank_counts.h for what it computes.
//
// A score finds its gap between the sorted marked scores through a table of equal-width buckets:
// the bucket number is monotone in the score, so only the marked scores of its own bucket, one or
// two, need comparing. Scores below the lowest marked one, often most, are dropped by a vector
// compare.
#include <omp.h>

#include "core/compare.h"
#include "core/interrupt.h"
#include "core/select.h"
#include "core/stream.h"
#include "core/table.h"
#include "rank_counts/rank_counts.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kRankChunk = 2048;  // gallery rows handed to a thread at a time
constexpr int64_t kTilesPerTask = 8;  // packing the marked rows pays from a few tiles on
constexpr uint32_t kScanAtMost = 8;   // marked scores of a bucket looked at one by one

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kMax = 3.40282347e+38f;
};
template <>
struct Limits<double> {
  static constexpr double kMax = 1.7976931348623157e+308;
};

// NaN and −infinity to the lowest number, +infinity to the highest.
template <class T>
SB_INLINE T ordered(T s) {
  if (!(s > -Limits<T>::kMax)) return -Limits<T>::kMax;
  return s < Limits<T>::kMax ? s : Limits<T>::kMax;
}

template <class T>
struct RankRow {
  T* sorted;  // marked scores, ascending
  int64_t size, filled;
  T low, scale, top;  // bucket = min((score - low) * scale, top)
  uint32_t* start;    // [buckets + 1] first marked score of each bucket
  int64_t counts;     // where its counters begin in a thread's: [size + 1][gap, tie]
  bool has_excluded;
  T excluded;
};

template <class T>
SB_INLINE T bucket_of(const RankRow<T>& row, T score) {
  const T b = (score - row.low) * row.scale;
  return b < row.top ? b : row.top;
}

// The first of the marked scores of one bucket that is not below `score`.
template <class T>
SB_INLINE uint32_t find_gap(const RankRow<T>& row, int bucket, T score) {
  uint32_t begin = row.start[bucket], end = row.start[bucket + 1];
  while (end - begin > kScanAtMost) {
    const uint32_t middle = begin + (end - begin) / 2;
    if (row.sorted[middle] < score) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  while (begin < end && row.sorted[begin] < score) ++begin;
  return begin;
}

// Rows [row_begin, row_end) share their marked rows; tiles [tile_begin, tile_end) hold some of
// them.
struct MarkedTask {
  int64_t row_begin, row_end, tile_begin, tile_end;
};

template <class T>
struct MarkedEpilogue {
  const RankCountsArgs& args;
  RankRow<T>* table;
  int64_t row_begin, row_end;

  void begin_group(int64_t, int64_t) {}

  void tile(int64_t, int64_t row, int rows, int64_t key, int64_t count, const T* scores,
            int64_t ld) {
    for (int r = 0; r < rows; ++r) {
      if (row + r < row_begin || row + r >= row_end) continue;
      RankRow<T>& state = table[row + r];
      const int64_t excluded = args.exclude != nullptr ? args.exclude[row + r] : -1;
      for (int64_t i = 0; i < count; ++i) {
        const T s = ordered(scores[r * ld + i]);
        if (args.marked[key + i] == excluded) {
          state.has_excluded = true;
          state.excluded = s;
        } else if (state.filled < state.size) {  // full: the excluded row is not a marked one
          state.sorted[state.filled++] = s;
        }
      }
    }
  }
};

template <class T>
struct CountEpilogue {
  using V = typename Simd<T>::Vec;
  static constexpr int kLanes = Simd<T>::kLanes;
  const RankRow<T>* table;
  uint32_t* counters;  // of this thread

  void begin_group(int64_t, int64_t) {}

  void tile(int64_t, int64_t row, int rows, int64_t, int64_t count, const T* scores, int64_t ld) {
    for (int r = 0; r < rows; ++r) {
      const RankRow<T>& state = table[row + r];
      if (state.size == 0) continue;
      const bool every = state.low <= -Limits<T>::kMax;  // NaN scores take part as well
      uint32_t* mine = counters + state.counts;
      for (int64_t col = 0; col < count; col += kPanel) {
        const T* at = scores + r * ld + col;
        uint32_t mask = first_columns(count - col);
        if (!every) mask &= pass_mask<true>(at, state.low);
        if (mask == 0) continue;
        T bucket[kPanel];
        for (int i = 0; i < kPanel; i += kLanes) {
          const V s = load(at + i), most = V{} + Limits<T>::kMax, top = V{} + state.top;
          const V b = ((s < most ? s : most) - state.low) * state.scale;
          store(bucket + i, b < top ? b : top);
        }
        for (; mask != 0; mask &= mask - 1) {
          const int j = __builtin_ctz(mask);
          const T s = ordered(at[j]);
          const T b = every ? bucket_of(state, s) : bucket[j];
          const uint32_t gap = find_gap(state, static_cast<int>(b), s);
          const bool tie = gap < state.size && state.sorted[gap] == s;
          ++mine[2 * gap + (tie ? 1 : 0)];
        }
      }
    }
  }
};

template <class T>
void build_buckets(RankRow<T>& row) {
  sort_ascending(row.sorted, row.size);
  const int64_t buckets = rank_buckets(row.size);
  row.low = row.sorted[0];
  row.top = static_cast<T>(buckets - 1);
  const T width = row.sorted[row.size - 1] - row.low;
  row.scale = width > T(0) ? static_cast<T>(buckets) / width : T(0);
  if (!(row.scale < Limits<T>::kMax)) row.scale = T(0);  // a denormal width: one bucket holds all
  int64_t at = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    while (at < row.size && bucket_of(row, row.sorted[at]) < static_cast<T>(b)) ++at;
    row.start[b] = static_cast<uint32_t>(at);
  }
  row.start[buckets] = static_cast<uint32_t>(row.size);
}

template <class T>
void write_counts(const RankCountsArgs& a, const RankRow<T>& row, uint32_t* counters,
                  int64_t counters_size, int64_t team, int64_t offset) {
  uint32_t* total = counters + row.counts;
  for (int64_t t = 1; t < team; ++t) {
    const uint32_t* other = counters + t * counters_size + row.counts;
    for (int64_t i = 0; i < 2 * (row.size + 1); ++i) total[i] += other[i];
  }
  if (row.has_excluded && row.excluded >= row.low) {
    const int bucket = static_cast<int>(bucket_of(row, row.excluded));
    const uint32_t gap = find_gap(row, bucket, row.excluded);
    const bool tie = gap < row.size && row.sorted[gap] == row.excluded;
    --total[2 * gap + (tie ? 1 : 0)];
  }
  int64_t above = total[2 * row.size];
  for (int64_t end = row.size; end > 0;) {
    int64_t begin = end - 1;
    while (begin > 0 && row.sorted[begin - 1] == row.sorted[end - 1]) --begin;
    const int64_t tied = total[2 * begin + 1];
    for (int64_t i = begin; i < end; ++i) {
      a.greater[offset + i] = above;
      a.equal[offset + i] = tied;
    }
    above += tied + total[2 * begin];
    end = begin;
  }
}

template <class T>
int64_t plan_tasks(const RankCountsArgs& a, const QueryBlock<T>& block, MarkedTask* tasks) {
  int64_t count = 0, tile = 0;
  for (int64_t begin = 0; begin < a.num_queries;) {
    int64_t end = begin + 1;
    while (end < a.num_queries && a.marked_begin[end] == a.marked_begin[begin] &&
           a.marked_end[end] == a.marked_end[begin]) {
      ++end;
    }
    while (block.begin(tile + 1) <= begin) ++tile;
    int64_t last = tile + 1;
    while (block.begin(last) < end) ++last;
    if (a.marked_begin[begin] < a.marked_end[begin]) {
      for (int64_t t = tile; t < last; t += kTilesPerTask) {
        tasks[count++] = {begin, end, t, t + kTilesPerTask < last ? t + kTilesPerTask : last};
      }
    }
    begin = end;
  }
  return count;
}

template <class T>
void rank_counts_typed(const RankCountsArgs& a) {
  const int64_t n = a.num_queries, g = a.gallery.rows, d = a.queries.cols;
  const int team = team_size(n, g, d, a.threads);
  const int64_t counters_size = 2 * (a.offsets[n] - a.offsets[0] + n);
  const int64_t chunks = a.count ? (g + kRankChunk - 1) / kRankChunk : 0;
  uint32_t* counters = static_cast<uint32_t*>(a.workspace);
  uint32_t* starts = counters + counters_size * a.threads;
  const Rows queries{a.queries, a.query_rows}, gallery{a.gallery}, marked{a.gallery, a.marked};

  QueryBlock<T> block(thread_scratch<T>().reserve(n * d), n, d);
  RankRow<T>* table = thread_scratch<RankRow<T>>().reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t size = a.offsets[i + 1] - a.offsets[i];
    table[i] = {};
    table[i].sorted = static_cast<T*>(a.scores) + a.offsets[i];
    table[i].size = size;
    table[i].start = starts;
    table[i].counts = 2 * (a.offsets[i] - a.offsets[0] + i);
    starts += rank_buckets(size) + 1;
  }
  MarkedTask* tasks = thread_scratch<MarkedTask>().reserve(n + block.tiles);
  const int64_t task_count = plan_tasks(a, block, tasks);
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
      const MarkedTask& task = tasks[i];
      MarkedEpilogue<T> epilogue{a, table, task.row_begin, task.row_end};
      stream_keys(block, task.tile_begin, task.tile_end, marked, a.marked_begin[task.row_begin],
                  a.marked_end[task.row_begin], scratch, epilogue);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      if (table[i].size > 0 && !watch.stopped()) build_buckets(table[i]);
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
      if (table[i].size == 0 || !a.count || watch.stopped()) continue;
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
