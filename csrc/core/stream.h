// Queries against a stream of keys: the loop that support_logits, topk and rank_counts share, each
// with its own epilogue on the finished tiles. No [N, S] array ever exists.
//
// A block of queries is packed once. Keys come in groups of a few panels, widened and transposed
// while they are packed; a group stays in the second-level cache and serves every micro-tile of the
// block, and the tile that comes out (kRows queries x the group's keys) goes to the epilogue while
// it is in the first-level cache.
//
// A score is one chain of fused multiply-adds over k, whatever block, group or thread computed it:
// equal rows give equal bits, so ties are exact.
#pragma once
#include "core/scratch.h"
#include "core/team.h"
#include "core/tile.h"
#include "core/transpose.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kGroupBytes = 256 * 1024;  // packed keys of a group: a quarter of an L2
constexpr int64_t kMaxGroupPanels = 16;
constexpr int64_t kMaxGroup = kMaxGroupPanels * kPanel;  // keys
constexpr int64_t kWorkPerThread = 1 << 22;  // multiply-adds; waking a thread for less is a loss

// Rows of a matrix in the order of `index`; null: as they lie.
struct Rows {
  ConstMatrix matrix;
  const int64_t* index = nullptr;
};

template <class T>
SB_INLINE int64_t group_panels(int64_t k) {
  const int64_t fit = kGroupBytes / (kPanel * (k > 0 ? k : 1) * static_cast<int64_t>(sizeof(T)));
  return fit < 1 ? 1 : fit > kMaxGroupPanels ? kMaxGroupPanels : fit;
}

// A packed block of queries, shared by the team.
template <class T>
struct QueryBlock {
  T* data;
  int64_t rows, tiles, k;
  QueryBlock(T* memory, int64_t n, int64_t width)
      : data(memory), rows(n), tiles((n + kRows - 1) / kRows), k(width) {}
  int64_t begin(int64_t tile) const { return share_begin(rows, tiles, tile); }
  void pack(const Rows& queries, int64_t row0, int64_t tile) {
    const int64_t first = begin(tile);
    pack_rows(queries.matrix, row0 + first, static_cast<int>(begin(tile + 1) - first),
              data + first * k, queries.index);
  }
};

// Scratch of stream_keys, in elements.
template <class T>
SB_INLINE int64_t stream_scratch(int64_t k) {
  const int64_t group = group_panels<T>(k) * kPanel;
  return group * k + group * kRows;
}

// Scores of tiles [tile0, tile1) of the block against keys [key0, key1). The epilogue gets
//   begin_group(key, count)                          before the first tile of keys key .. key+count
//   tile(index, row, rows, key, count, scores, ld)   scores [rows, ld], columns past count padding
template <class T, class Epilogue>
SB_INLINE void stream_keys(const QueryBlock<T>& block, int64_t tile0, int64_t tile1,
                           const Rows& keys, int64_t key0, int64_t key1, T* scratch,
                           Epilogue& epilogue) {
  const int64_t k = block.k;
  const int64_t group = group_panels<T>(k) * kPanel;
  T* panels = scratch;
  T* scores = scratch + group * k;
  for (int64_t key = key0; key < key1; key += group) {
    const int64_t count = key1 - key < group ? key1 - key : group;
    for (int64_t i = 0; i < count; i += kPanel) {
      const int64_t n = count - i < kPanel ? count - i : kPanel;
      pack_panel(keys.matrix, keys.index, key + i, n, panels + i * k);
    }
    epilogue.begin_group(key, count);
    for (int64_t t = tile0; t < tile1; ++t) {
      const int64_t row = block.begin(t);
      const int rows = static_cast<int>(block.begin(t + 1) - row);
      tile_product(block.data + row * k, rows, panels, panels_of(count), k, scores, group);
      epilogue.tile(t, row, rows, key, count, scores, group);
    }
  }
}

// Threads worth starting for n x s scores of width k.
SB_INLINE int team_size(int64_t n, int64_t s, int64_t k, int threads) {
  return worth_threads(static_cast<double>(n) * s * k, kWorkPerThread, threads);
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
