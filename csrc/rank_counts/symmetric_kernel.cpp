// rank_counts_symmetric for one instruction set: one product for the two rows of a pair.
//
// Rows stand in the order of query_rows. A block of them is packed as queries and meets itself and
// every row behind it as keys; <q, g> and <g, q> are the same chain of multiply-adds, so a score
// has the bits of the one-sided kernel. A tile of scores is counted for its queries row by row, and
// turned in cache and counted for its keys, whose marked scores must be known as well: those of all
// rows are found first.
#include <omp.h>

#include "core/interrupt.h"
#include "core/table.h"
#include "rank_counts/marked.h"

namespace semobridge {
namespace SB_ISA {
namespace {

// Tiles counted for their keys together, so that a key's marked scores are loaded for about a
// hundred scores and not for one tile's few.
constexpr int64_t kRunTiles = 112 / kRows;
constexpr int64_t kRunRows = kRunTiles * kRows;
constexpr int64_t kTurnedRows = (kRunRows + 15) / 16 * 16;  // whole vectors of any type
static_assert(kTurnedRows <= kMaxGroup, "scores of a key are counted as those of a row");

template <class T>
SB_INLINE int64_t symmetric_scratch(int64_t d) {
  const int64_t group = group_panels<T>(d) * kPanel;
  return group * d + kTurnedRows * (group + Simd<T>::kLanes);
}

template <class T>
struct Counting {
  const RankRow<T>* rows;
  uint32_t* counters;  // of this thread
  int64_t queries;     // rows past them have no marked scores

  void add(int64_t row, const T* scores, int64_t count) const {
    count_scores(rows[row], scores, count, counters + rows[row].counts);
  }
};

// Scores [rows, ld] of rows row .. against keys key .., for the keys: each counts the rows before
// it.
template <class T>
SB_INLINE void count_for_keys(const Counting<T>& counting, int64_t row, int64_t rows, int64_t key,
                              int64_t count, const T* scores, int64_t ld, T* turned) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  for (int64_t col = 0; col < count; col += kLanes) {
    if (key + col >= counting.queries) return;
    if (key + col + kLanes <= row + 1) continue;  // no row stands before these keys
    for (int64_t r = 0; r < rows; r += kLanes) {
      V v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) v[i] = load(scores + (r + i) * ld + col);
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(turned + i * kTurnedRows + r, v[i]);
    }
    for (int64_t i = 0; i < kLanes && col + i < count; ++i) {
      const int64_t own = key + col + i;
      const int64_t before = own - row < rows ? own - row : rows;
      if (before > 0 && own < counting.queries) {
        counting.add(own, turned + i * kTurnedRows, before);
      }
    }
  }
}

// Keys key .. key + count of the order against the block whose first row is `base`, which none of
// them stands before.
template <class T>
void count_group(const QueryBlock<T>& block, int64_t base, const Rows& keys, int64_t key,
                 int64_t count, const Counting<T>& counting, T* scratch) {
  const int64_t k = block.k, group = group_panels<T>(k) * kPanel;
  T* panels = scratch;
  T* scores = panels + group * k;
  T* turned = scores + kTurnedRows * group;
  for (int64_t i = 0; i < count; i += kPanel) {
    const int64_t n = count - i < kPanel ? count - i : kPanel;
    pack_panel(keys.matrix, keys.index, key + i, n, panels + i * k);
  }
  for (int64_t tile = 0; tile < block.tiles; tile += kRunTiles) {
    const int64_t row = base + block.begin(tile);
    if (row >= key + count) return;  // the pairs behind the diagonal belong to other groups
    const int64_t last = tile + kRunTiles < block.tiles ? tile + kRunTiles : block.tiles;
    for (int64_t t = tile; t < last; ++t) {
      const int64_t first = base + block.begin(t);
      const int rows = static_cast<int>(block.begin(t + 1) - block.begin(t));
      if (first >= key + count) break;
      const int64_t skip = first > key ? (first - key) / kPanel : 0;  // panels behind it
      T* out = scores + (first - row) * group;
      tile_product(block.data + block.begin(t) * k, rows, panels + skip * kPanel * k,
                   panels_of(count) - skip, k, out + skip * kPanel, group);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t begin = first + r > key ? first + r - key : 0;
        if (begin < count) counting.add(first + r, out + r * group + begin, count - begin);
      }
    }
    count_for_keys(counting, row, base + block.begin(last) - row, key, count, scores, group,
                   turned);
  }
}

template <class T>
void rank_counts_symmetric_typed(const RankCountsArgs& a) {
  const int64_t n = a.num_queries, g = a.gallery.rows, d = a.gallery.cols;
  const int team = team_size(n, (g + 1) / 2, d, a.threads);
  const int64_t counters_size = counters_of(a);
  const int64_t group = group_panels<T>(d) * kPanel;
  const int64_t widest = n < kRankBlock ? n : kRankBlock;
  const Rows rows{a.gallery, a.query_rows};

  T* packed = thread_scratch<T>().reserve(widest * d);
  RankRow<T>* table;
  uint32_t* counters = lay_out_rows(a, &table);
  MarkedTask* tasks = thread_scratch<MarkedTask>().reserve(2 * widest);
  int64_t task_count = 0, came = 1;
  Watch watch;

#pragma omp parallel num_threads(team) if (team > 1)
  {
    const int64_t me = omp_get_thread_num();
#pragma omp single
    came = omp_get_num_threads();
    const int64_t size = stream_scratch<T>(d), wanted = symmetric_scratch<T>(d);
    T* scratch = thread_row_scratch<T>().reserve(size > wanted ? size : wanted);
    uint32_t* mine = counters + me * counters_size;
    for (int64_t i = 0; i < counters_size; ++i) mine[i] = 0;
    for (int64_t base = 0; base < n; base += kRankBlock) {
      QueryBlock<T> block(packed, n - base < kRankBlock ? n - base : kRankBlock, d);
#pragma omp single
      task_count = plan_tasks(a, block, base, tasks);
#pragma omp for schedule(static)
      for (int64_t t = 0; t < block.tiles; ++t) block.pack(rows, base, t);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < task_count; ++i) {
        if (watch.stop()) continue;
        score_marked(a, block, base, table, tasks[i], scratch);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      if (!watch.stopped()) prepare_row(table[i]);
    }
    const Counting<T> counting{table, mine, n};
    for (int64_t base = 0; base < n; base += kRankBlock) {
      QueryBlock<T> block(packed, n - base < kRankBlock ? n - base : kRankBlock, d);
      const int64_t groups = (g - base + group - 1) / group;
#pragma omp for schedule(static)
      for (int64_t t = 0; t < block.tiles; ++t) block.pack(rows, base, t);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < groups; ++i) {
        if (watch.stop()) continue;
        const int64_t key = base + i * group;
        count_group(block, base, rows, key, g - key < group ? g - key : group, counting, scratch);
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n; ++i) {
      if (watch.stopped()) continue;
      write_counts(a, table[i], counters, counters_size, came, a.offsets[i]);
    }
  }
  watch.finish();
}

}  // namespace

void rank_counts_symmetric_entry(const RankCountsArgs& a) {
  const int64_t n = a.num_queries, g = a.gallery.rows;
  if (n == 0 || g == 0) return;
  require(n <= g && a.gallery.cols > 0, "rank_counts_symmetric: queries must be gallery rows");
  require(a.query_rows != nullptr && a.marked_begin != nullptr && a.marked_end != nullptr &&
              a.offsets != nullptr && a.workspace != nullptr,
          "rank_counts_symmetric: query_rows, ranges, offsets and workspace needed");
  for (int64_t i = 0; i < n; ++i) {
    require(a.offsets[i] < a.offsets[i + 1], "rank_counts_symmetric: a query without marked rows");
  }
  if (compute_dtype(a.gallery.dtype) == DType::kFloat64) {
    rank_counts_symmetric_typed<double>(a);
  } else {
    rank_counts_symmetric_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge
