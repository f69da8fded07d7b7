// topk_filtered for one instruction set; see topk/topk.h for what it computes.
//
// Every thread scans its share of the codes and keeps, per query, the intervals of the scores that
// may still be among the k best. The k-th best lower end is a threshold; a row whose upper end is
// below it is dropped unseen. At the end what is left is scored in float32 by the chain of
// multiply-adds of the plain path, so that the result is the plain path's to the bit.
//
// Where the data defeat the bound, too many rows must be scored on the way. That is counted: a
// thread then takes the queries' second plane, which halves the interval, and if that is not enough
// leaves its share to float32. The choice costs time and never changes a result.
#include <omp.h>

#include "core/code_stream.h"
#include "core/compare.h"
#include "core/interrupt.h"
#include "core/isa.h"
#include "core/select.h"
#include "core/stream.h"
#include "core/table.h"
#include "topk/topk.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kFilterChunk = 2048;  // gallery rows handed to a thread at a time
// What a kept interval and a row scored on its own cost, in units of what codes save on one score;
// D = 512.
constexpr int64_t kKeptCost = 4, kScoredCost = 64;
constexpr int64_t kSettled = 8;  // chunks of a thread after which its thresholds are worth judging

struct FilterRow {
  Interval* kept;
  int64_t count;
  float threshold;
};

// A threshold that all threads share; only ever raised. Orders like the float.
SB_INLINE float shared_threshold(const uint32_t* shared) {
  return bits_to_float(__atomic_load_n(shared, __ATOMIC_RELAXED));
}

SB_INLINE void share_threshold(uint32_t* shared, float value) {
  uint32_t seen = __atomic_load_n(shared, __ATOMIC_RELAXED);
  while (value > bits_to_float(seen) &&
         !__atomic_compare_exchange_n(shared, &seen, float_to_bits(value), true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
}

SB_INLINE int64_t exact_scratch(int64_t d) { return d + d * kPanel + kPanel; }  // floats

// Scores in float32 what is not known yet. A score that is NaN ranks with −infinity.
SB_INLINE int64_t score_unknown(const Rows& queries, int64_t query, const ConstMatrix& gallery,
                                Interval* list, int64_t n, float* scratch) {
  const int64_t d = gallery.cols;
  float* line = scratch;
  float* panel = line + d;
  float* scores = panel + d * kPanel;
  int64_t rows[kPanel], places[kPanel], filled = 0, scored = 0;
  pack_rows(queries.matrix, query, 1, line, queries.index);
  for (int64_t i = 0; i <= n; ++i) {
    if (i < n && !(list[i].lower == list[i].upper)) {
      places[filled] = i;
      rows[filled++] = list[i].row;
    }
    if (filled == 0 || (i < n && filled < kPanel)) continue;
    pack_panel(gallery, rows, 0, filled, panel);
    tile_rows_call<float, 1>(line, panel, d, scores, kPanel);
    for (int64_t j = 0; j < filled; ++j) {
      const float score = scores[j] == scores[j] ? scores[j] : -__builtin_inff();
      list[places[j]].lower = list[places[j]].upper = score;
    }
    scored += filled;
    filled = 0;
  }
  return scored;
}

struct FilterState {
  const TopkArgs& args;
  const Rows& queries;
  int64_t query0, k, capacity;
  FilterRow* rows;               // this thread's, of the block
  uint32_t* shared;              // thresholds of the block
  float* scratch;                // exact_scratch
  int64_t kept = 0, scored = 0;  // of this chunk
  int64_t scored_in_all = 0;

  void make_room(int64_t query) {
    FilterRow& row = rows[query];
    row.threshold = max_of(row.threshold, shared_threshold(shared + query));
    row.count = drop_hopeless(row.kept, row.count, k, &row.threshold);
    if (row.count > capacity / 2) {
      const int64_t n =
          score_unknown(queries, query0 + query, args.gallery, row.kept, row.count, scratch);
      scored += n;
      scored_in_all += n;
      row.count = keep_best_known(row.kept, row.count, k, &row.threshold);
    }
    share_threshold(shared + query, row.threshold);
  }

  bool takes(int64_t row, int64_t excluded) const {
    return row != excluded && (args.allow == nullptr || args.allow[row]);
  }

  void keep(int64_t query, const Interval& interval) {
    FilterRow& row = rows[query];
    if (row.count == capacity) make_room(query);
    if (interval.upper < row.threshold) return;
    row.kept[row.count++] = interval;
    ++kept;
  }

  int64_t excluded(int64_t query) const {
    return args.exclude != nullptr ? args.exclude[queries.index[query0 + query]] : -1;
  }

  // Columns of a panel that take part.
  uint32_t columns(int64_t row, int64_t count) const {
    uint32_t mask = first_columns(count);
    if (row < args.begin) mask &= ~first_columns(args.begin - row);
    return mask;
  }

  static float max_of(float a, float b) { return a > b ? a : b; }
};

template <class D>
struct CodeEpilogue {
  using V = typename Simd<float>::Vec;
  FilterState& state;
  const CodeBlock<D>& block;
  int planes;

  bool skip(int64_t row, int64_t count) const {
    if (state.args.allow == nullptr) return false;
    for (int64_t i = 0; i < count; ++i) {
      if (state.args.allow[row + i]) return false;
    }
    return true;
  }

  void panel(int64_t query, int queries, int64_t row, int64_t count, const int32_t* sums,
             int64_t plane, const float* bounds) {
    constexpr float kShare = 1.0f / kPlane;
    const uint32_t columns = state.columns(row, count);
    for (int r = 0; r < queries; ++r) {
      const QueryBound& bound = block.bounds[query + r];
      const float rest = bound.rest[planes - 1];
      const int32_t* at = sums + r * kPanel;
      float values[kPanel], errors[kPanel], uppers[kPanel];
#pragma GCC unroll 8
      for (int i = 0; i < kPanel; i += kCodeLanes) {
        V product = __builtin_convertvector(load_sums(at + i), V);
        if (planes == 2) product += __builtin_convertvector(load_sums(at + plane + i), V) * kShare;
        const V value = product * bound.scale * load(bounds + i);
        const V error =
            load(bounds + kPanel + i) * rest + load(bounds + 2 * kPanel + i) * bound.length;
        store(values + i, value);
        store(errors + i, error);
        store(uppers + i, value + error);
      }
      uint32_t mask = columns & ~below_mask(uppers, state.rows[query + r].threshold);
      if (mask == 0) continue;
      const int64_t excluded = state.excluded(query + r);
      for (; mask != 0; mask &= mask - 1) {
        const int j = __builtin_ctz(mask);
        if (!state.takes(row + j, excluded)) continue;
        const float lower = values[j] - errors[j];  // NaN where nothing is known
        state.keep(query + r, {lower == lower ? lower : -__builtin_inff(), uppers[j],
                               static_cast<uint32_t>(row + j)});
      }
    }
  }
};

struct ScoreEpilogue {
  FilterState& state;

  void begin_group(int64_t, int64_t) {}

  void tile(int64_t, int64_t query, int queries, int64_t row, int64_t count, const float* scores,
            int64_t ld) {
    for (int r = 0; r < queries; ++r) {
      const int64_t excluded = state.excluded(query + r);
      for (int64_t col = 0; col < count; col += kPanel) {
        const float* at = scores + r * ld + col;
        uint32_t mask = state.columns(row + col, count - col) &
                        ~below_mask(at, state.rows[query + r].threshold);
        for (; mask != 0; mask &= mask - 1) {
          const int j = __builtin_ctz(mask);
          if (!state.takes(row + col + j, excluded)) continue;
          const float score = at[j] == at[j] ? at[j] : -__builtin_inff();
          state.keep(query + r, {score, score, static_cast<uint32_t>(row + col + j)});
        }
      }
    }
  }
};

// The k best of one query from what the threads have kept.
SB_INLINE int64_t finish_query(FilterState& state, int64_t query, Interval* kept, int64_t count,
                               Candidate<float>* best) {
  const TopkArgs& a = state.args;
  float threshold = shared_threshold(state.shared + query);
  count = drop_hopeless(kept, count, a.k, &threshold);
  const int64_t scored =
      score_unknown(state.queries, state.query0 + query, a.gallery, kept, count, state.scratch);
  count = keep_best_known(kept, count, a.k, &threshold);
  // Once more for the few that come out: a score that is NaN comes out as NaN.
  const int64_t d = a.gallery.cols, out = state.queries.index[state.query0 + query] * a.k;
  float* line = state.scratch;
  float* panel = line + d;
  float* scores = panel + d * kPanel;
  pack_rows(state.queries.matrix, state.query0 + query, 1, line, state.queries.index);
  for (int64_t i = 0; i < count; i += kPanel) {
    int64_t rows[kPanel];
    const int64_t n = count - i < kPanel ? count - i : kPanel;
    for (int64_t j = 0; j < n; ++j) rows[j] = kept[i + j].row;
    pack_panel(a.gallery, rows, 0, n, panel);
    tile_rows_call<float, 1>(line, panel, d, scores, kPanel);
    for (int64_t j = 0; j < n; ++j) best[i + j] = {scores[j], kept[i + j].row};
  }
  sort_best_first(best, count);
  for (int64_t i = 0; i < a.k; ++i) {
    static_cast<float*>(a.scores)[out + i] = best[i].score;
    a.indices[out + i] = best[i].row;
  }
  return scored;
}

// 0, 1, 2: which way the next chunk goes, one plane, two or float32.
SB_INLINE int next_way(const FilterState& state, int64_t scores, int way) {
  return kKeptCost * state.kept + kScoredCost * state.scored > scores ? way + 1 : way;
}

SB_INLINE void add(int64_t* total, int64_t mine) {
  __atomic_fetch_add(total, mine, __ATOMIC_RELAXED);
}

template <class D>
void filter_typed(const TopkFilteredArgs& f) {
  const TopkArgs& a = f.plain;
  const int64_t n = a.queries.rows, d = a.queries.cols, k = a.k;
  const int64_t last = a.end < 0 ? a.gallery.rows : a.end;
  const int64_t first = a.begin / kPanel * kPanel, g = last - first;
  const int team = team_size(n, g, d / 4 + 1, a.threads);
  const int64_t capacity = topk_interval_capacity(k, a.gallery.rows);
  const int64_t block_max = topk_filtered_rows(n, a.gallery.rows, k, a.threads);
  const int64_t chunks = (g + kFilterChunk - 1) / kFilterChunk;

  // Queries that cannot be coded are left to the plain path.
  int64_t* order = thread_scratch<int64_t>().reserve(n);
  int64_t coded = 0, uncoded = 0;
  {
    char* scratch = thread_row_scratch<char>().reserve(query_scratch(d));
    for (int64_t i = 0; i < n; ++i) {
      if (can_code(a.queries, i, scratch)) {
        order[coded++] = i;
      } else {
        order[n - ++uncoded] = i;
      }
    }
  }
  const int64_t blocks = (coded + block_max - 1) / block_max;
  const Rows queries{a.queries, order}, gallery{a.gallery};
  char* memory = thread_scratch<char>().reserve(code_block_bytes<D>(block_max, d));
  float* packed = nullptr;  // of the float32 way, when a thread takes it
  Interval* workspace = static_cast<Interval*>(a.workspace);
  FilterRow* rows_of_threads = thread_scratch<FilterRow>().reserve(team * block_max);
  uint32_t* shared = thread_scratch<uint32_t>().reserve(block_max);
  uint8_t* left = thread_scratch<uint8_t>().reserve(chunks);
  TopkFilterCounts total;
  total.unfiltered = uncoded;
  Watch watch;

#pragma omp parallel num_threads(team) if (team > 1)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t stream_bytes = code_stream_scratch(d) + query_scratch(d);
    char* scratch = thread_row_scratch<char>().reserve(stream_bytes);
    float* floats =
        thread_row_scratch<float>().reserve(exact_scratch(d) + stream_scratch<float>(d));
    Interval* joined = thread_row_scratch<Interval>().reserve(all > 1 ? all * capacity : 1);
    Candidate<float>* best = thread_row_scratch<Candidate<float>>().reserve(k);
    TopkFilterCounts mine_counts;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t row0 = share_begin(coded, blocks, b);
      const int64_t rows = share_begin(coded, blocks, b + 1) - row0;
      CodeBlock<D> block(memory, rows, d);
      FilterRow* mine = rows_of_threads + me * block_max;
      for (int64_t r = 0; r < rows; ++r) {
        mine[r] = {workspace + (me * block_max + r) * capacity, 0, -__builtin_inff()};
      }
#pragma omp for schedule(static)
      for (int64_t t = 0; t < block.tiles; ++t) pack_code_tile(queries, block, t, row0, scratch);
#pragma omp for schedule(static)
      for (int64_t r = 0; r < rows; ++r) shared[r] = float_to_bits(-__builtin_inff());
      FilterState state{a, queries, row0, k, capacity, mine, shared, floats};
      int way = 0;
      int64_t seen = 0;
#pragma omp for schedule(monotonic : dynamic, 1)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        left[chunk] = way == 2;
        if (way == 2 || watch.stop()) continue;
        const int64_t begin = first + chunk * kFilterChunk;
        const int64_t end = begin + kFilterChunk < last ? begin + kFilterChunk : last;
        CodeEpilogue<D> epilogue{state, block, way + 1};
        stream_codes(block, a.gallery, f.coded, way + 1, begin, end, scratch, epilogue);
        ++mine_counts.chunks[way];
        if (++seen >= kSettled) way = next_way(state, rows * (end - begin), way);
        state.kept = state.scored = 0;
      }
      bool any_left = false;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) any_left = any_left || left[chunk];
      if (any_left) {
#pragma omp single
        packed = thread_scratch<float>().reserve(block_max * d);
        QueryBlock<float> whole(packed, rows, d);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < whole.tiles; ++t) whole.pack(queries, row0, t);
        ScoreEpilogue epilogue{state};
#pragma omp for schedule(monotonic : dynamic, 1)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          if (!left[chunk] || watch.stop()) continue;
          const int64_t begin = first + chunk * kFilterChunk;
          const int64_t end = begin + kFilterChunk < last ? begin + kFilterChunk : last;
          stream_keys(whole, 0, whole.tiles, gallery, begin, end, floats + exact_scratch(d),
                      epilogue);
          ++mine_counts.chunks[2];
        }
      }
#pragma omp for schedule(dynamic, 4)
      for (int64_t r = 0; r < rows; ++r) {
        if (watch.stopped()) continue;
        Interval* kept = rows_of_threads[r].kept;
        int64_t count = rows_of_threads[r].count;
        if (all > 1) {
          count = 0;
          for (int64_t t = 0; t < all; ++t) {
            const FilterRow& row = rows_of_threads[t * block_max + r];
            for (int64_t i = 0; i < row.count; ++i) joined[count++] = row.kept[i];
          }
          kept = joined;
        }
        mine_counts.scored += finish_query(state, r, kept, count, best);
      }
      mine_counts.scored_early += state.scored_in_all;
    }
    add(&total.scored, mine_counts.scored);
    add(&total.scored_early, mine_counts.scored_early);
    for (int i = 0; i < 3; ++i) add(&total.chunks[i], mine_counts.chunks[i]);
  }
  watch.finish();
  if (f.counts != nullptr) *f.counts = total;
  if (uncoded > 0) {
    TopkArgs rest = a;
    rest.select = order + coded;
    rest.selected = uncoded;
    topk_entry(rest);
  }
}

}  // namespace

void topk_filtered_entry(const TopkFilteredArgs& f) {
  const TopkArgs& a = f.plain;
  if (a.queries.rows == 0 || a.k == 0) return;
  require(a.queries.cols == a.gallery.cols && a.gallery.cols > 0,
          "topk_filtered: queries and gallery must have the same width");
  require(a.gallery.cols <= kMaxCodeWidth, "topk_filtered: rows are too wide");
  require(compute_dtype(a.queries.dtype, a.gallery.dtype) == DType::kFloat32,
          "topk_filtered: scores must be float32");
  require(a.gallery.rows < (int64_t{1} << 32), "topk_filtered: gallery must have < 2^32 rows");
  require(a.select == nullptr, "topk_filtered: answers every query");
  const int64_t end = a.end < 0 ? a.gallery.rows : a.end;
  require(a.begin >= 0 && a.begin <= end && end <= a.gallery.rows,
          "topk_filtered: the range must lie in the gallery");
  require(a.k <= end - a.begin - (a.exclude != nullptr ? 1 : 0),
          "topk_filtered: k must not exceed the gallery");
#ifdef SB_HAVE_DOT
  if (active_dot()) return filter_typed<Dot>(f);
#endif
  filter_typed<Multiply>(f);
}

}  // namespace SB_ISA
}  // namespace semobridge
