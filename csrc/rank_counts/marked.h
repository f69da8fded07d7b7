// The scores of the marked rows of a packed block of queries.
#pragma once
#include "rank_counts/counting.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kTilesPerTask = 8;  // packing the marked rows pays from a few tiles on

// Rows [row_begin, row_end) of a block share their marked rows; tiles [tile_begin, tile_end) hold
// some of them.
struct MarkedTask {
  int64_t row_begin, row_end, tile_begin, tile_end;
};

// At most one task for each row and tile.
template <class T>
int64_t plan_tasks(const RankCountsArgs& a, const QueryBlock<T>& block, int64_t base,
                   MarkedTask* tasks) {
  const int64_t* from = a.marked_begin + base;
  const int64_t* to = a.marked_end + base;
  int64_t count = 0, tile = 0;
  for (int64_t begin = 0; begin < block.rows;) {
    int64_t end = begin + 1;
    while (end < block.rows && from[end] == from[begin] && to[end] == to[begin]) ++end;
    while (block.begin(tile + 1) <= begin) ++tile;
    int64_t last = tile + 1;
    while (block.begin(last) < end) ++last;
    if (from[begin] < to[begin]) {
      for (int64_t t = tile; t < last; t += kTilesPerTask) {
        tasks[count++] = {begin, end, t, t + kTilesPerTask < last ? t + kTilesPerTask : last};
      }
    }
    begin = end;
  }
  return count;
}

template <class T>
struct MarkedEpilogue {
  const RankCountsArgs& args;
  RankRow<T>* rows;  // of the block
  int64_t base;      // the block's first query
  int64_t row_begin, row_end;

  void begin_group(int64_t, int64_t) {}

  void tile(int64_t, int64_t row, int count, int64_t key, int64_t keys, const T* scores,
            int64_t ld) {
    for (int r = 0; r < count; ++r) {
      if (row + r < row_begin || row + r >= row_end) continue;
      RankRow<T>& state = rows[row + r];
      const int64_t excluded = args.exclude != nullptr ? args.exclude[base + row + r] : -1;
      for (int64_t i = 0; i < keys; ++i) {
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
SB_INLINE void score_marked(const RankCountsArgs& a, const QueryBlock<T>& block, int64_t base,
                            RankRow<T>* rows, const MarkedTask& task, T* scratch) {
  MarkedEpilogue<T> epilogue{a, rows + base, base, task.row_begin, task.row_end};
  const Rows marked{a.gallery, a.marked};
  stream_keys(block, task.tile_begin, task.tile_end, marked, a.marked_begin[base + task.row_begin],
              a.marked_end[base + task.row_begin], scratch, epilogue);
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
