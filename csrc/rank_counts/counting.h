// Sorted marked scores of a query, and where other scores stand among them.
//
// Scores below the lowest marked one, often most, are dropped by a vector compare. A score of the
// rest finds its gap in one of two ways:
//   tree     up to kTreeSize marked scores lie in a few vector registers in the order of a binary
//            search; sixteen scores go down it at once, without a branch. float32, AVX-512.
//   buckets  a table of equal-width buckets: the bucket number is monotone in the score, so only
//            the marked scores of its own bucket, one or two, need comparing.
#pragma once
#include "core/compare.h"
#include "core/select.h"
#include "core/stream.h"
#include "rank_counts/rank_counts.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr uint32_t kScanAtMost = 8;  // marked scores of a bucket looked at one by one
constexpr int64_t kTreeSize = 127;   // marked scores of a tree of seven levels, eight registers

#if SB_VEC_BYTES == 64 && defined(__AVX512F__)
#define SB_RANK_TREE 1
#endif

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
  int depth;          // of the tree; 0: buckets
  uint32_t* table;    // [rank_buckets + 1] first marked score of each bucket, or the tree [2^depth]
  int64_t counts;     // where its counters begin in a thread's: gaps [size + 1], ties [size + 1]
  bool has_excluded;
  T excluded;
};
static_assert(sizeof(RankRow<double>) <= kRankRowBytes, "rows lie in the workspace");

template <class T>
SB_INLINE T bucket_of(const RankRow<T>& row, T score) {
  const T b = (score - row.low) * row.scale;
  return b < row.top ? b : row.top;
}

// The first marked score from `begin` on, `end` at most, that is not below `score`.
template <class T>
SB_INLINE uint32_t first_not_below(const T* sorted, uint32_t begin, uint32_t end, T score) {
  while (end - begin > kScanAtMost) {
    const uint32_t middle = begin + (end - begin) / 2;
    if (sorted[middle] < score) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  while (begin < end && sorted[begin] < score) ++begin;
  return begin;
}

// Where a score that is not below the lowest marked one is counted.
template <class T>
SB_INLINE int64_t counter_of(const RankRow<T>& row, uint32_t gap, T score) {
  const bool tie = gap < row.size && row.sorted[gap] == score;
  return gap + (tie ? row.size + 1 : 0);
}

template <class T>
SB_INLINE void count_by_buckets(const RankRow<T>& row, const T* scores, int64_t n,
                                uint32_t* counters) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  const bool every = row.low <= -Limits<T>::kMax;  // NaN scores take part as well
  for (int64_t col = 0; col < n; col += kPanel) {
    const T* at = scores + col;
    T rest[kPanel];
    if (n - col < kPanel) {  // the last scores may end where the memory does
      for (int64_t i = 0; i < kPanel; ++i) rest[i] = i < n - col ? at[i] : T(0);
      at = rest;
    }
    uint32_t mask = first_columns(n - col);
    if (!every) mask &= pass_mask<true>(at, row.low);
    if (mask == 0) continue;
    T bucket[kPanel];
    for (int i = 0; i < kPanel; i += kLanes) {
      const V s = load(at + i), most = V{} + Limits<T>::kMax, top = V{} + row.top;
      const V b = ((s < most ? s : most) - row.low) * row.scale;
      store(bucket + i, b < top ? b : top);
    }
    for (; mask != 0; mask &= mask - 1) {
      const int j = __builtin_ctz(mask);
      const T s = ordered(at[j]);
      const int b = static_cast<int>(every ? bucket_of(row, s) : bucket[j]);
      const uint32_t gap = first_not_below(row.sorted, row.table[b], row.table[b + 1], s);
      ++counters[counter_of(row, gap, s)];
    }
  }
}

#ifdef SB_RANK_TREE
// The tree: node h has the children 2h and 2h + 1, as in a heap from 1 on. Level L of it lies at
// 2^L .. 2^(L+1), so the low bits of h choose the lane of that level's registers. (The zeroing forms:
// the plain ones begin with an undefined vector, which g++ 12 warns about.)
constexpr __mmask16 kAll = 0xffff;

template <int kDepth>
SB_INLINE __m512 node_of(const __m512* tree, __m512i h, int level) {
  if (level < 5) return _mm512_maskz_permutexvar_ps(kAll, h, tree[level < 4 ? 0 : 1]);
  if constexpr (kDepth > 5) {
    if (level == 5) return _mm512_permutex2var_ps(tree[2], h, tree[3]);
  }
  if constexpr (kDepth > 6) {
    const __mmask16 upper = _mm512_test_epi32_mask(h, _mm512_set1_epi32(32));
    return _mm512_mask_blend_ps(upper, _mm512_permutex2var_ps(tree[4], h, tree[5]),
                                _mm512_permutex2var_ps(tree[6], h, tree[7]));
  }
  return _mm512_setzero_ps();
}

template <int kDepth>
void count_by_tree(const RankRow<float>& row, const float* scores, int64_t n, uint32_t* counters) {
  constexpr int kLanes = 16;
  alignas(64) float kept[kMaxGroup + kLanes];
  alignas(64) int32_t place[kMaxGroup + kLanes];
  const __m512 low = _mm512_set1_ps(row.low);
  int64_t m = 0, i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const __m512 s = _mm512_loadu_ps(scores + i);
    const __mmask16 pass = _mm512_cmp_ps_mask(s, low, _CMP_GE_OQ);
    _mm512_storeu_ps(kept + m, _mm512_maskz_compress_ps(pass, s));
    m += __builtin_popcount(pass);
  }
  if (i < n) {
    const __mmask16 inside = static_cast<__mmask16>((1u << (n - i)) - 1u);
    const __m512 s = _mm512_maskz_loadu_ps(inside, scores + i);
    const __mmask16 pass = _mm512_mask_cmp_ps_mask(inside, s, low, _CMP_GE_OQ);
    _mm512_storeu_ps(kept + m, _mm512_maskz_compress_ps(pass, s));
    m += __builtin_popcount(pass);
  }
  if (m == 0) return;
  constexpr int kRegisters = kDepth < 5 ? 1 : 1 << (kDepth - 4);
  __m512 tree[kRegisters];
  for (int r = 0; r < kRegisters; ++r) tree[r] = _mm512_loadu_ps(row.table + r * kLanes);
  const __m512i ties = _mm512_set1_epi32(static_cast<int>(row.size) + 1);
  for (int64_t at = 0; at < m; at += kLanes) {
    const __m512 most = _mm512_set1_ps(Limits<float>::kMax);
    const __m512 s = _mm512_maskz_min_ps(kAll, _mm512_load_ps(kept + at), most);
    __m512i h = _mm512_set1_epi32(1);
    __m512 above = _mm512_set1_ps(__builtin_nanf(""));  // the lowest marked score not below s
#pragma GCC unroll 8
    for (int level = 0; level < kDepth; ++level) {
      const __m512 node = node_of<kDepth>(tree, h, level);
      const __mmask16 right = _mm512_cmp_ps_mask(node, s, _CMP_LT_OQ);
      above = _mm512_mask_blend_ps(right, node, above);
      h = _mm512_add_epi32(h, h);
      h = _mm512_mask_add_epi32(h, right, h, _mm512_set1_epi32(1));
    }
    const __mmask16 tie = _mm512_cmp_ps_mask(above, s, _CMP_EQ_OQ);
    __m512i gap = _mm512_sub_epi32(h, _mm512_set1_epi32(1 << kDepth));
    gap = _mm512_mask_add_epi32(gap, tie, gap, ties);
    _mm512_store_si512(place + at, gap);
  }
  for (int64_t at = 0; at < m; ++at) ++counters[place[at]];
}
#endif

// Adds n <= kMaxGroup scores to the counters of a row with marked scores.
template <class T>
SB_INLINE void count_scores(const RankRow<T>& row, const T* scores, int64_t n, uint32_t* counters) {
#ifdef SB_RANK_TREE
  if constexpr (sizeof(T) == 4) {
    switch (row.depth) {
      case 1:
      case 2:
        return count_by_tree<2>(row, scores, n, counters);
      case 3:
        return count_by_tree<3>(row, scores, n, counters);
      case 4:
        return count_by_tree<4>(row, scores, n, counters);
      case 5:
        return count_by_tree<5>(row, scores, n, counters);
      case 6:
        return count_by_tree<6>(row, scores, n, counters);
      case 7:
        return count_by_tree<7>(row, scores, n, counters);
      default:
        break;
    }
  }
#endif
  count_by_buckets(row, scores, n, counters);
}

// Levels of the tree that holds `size` scores; 0: it takes buckets.
template <class T>
SB_INLINE int tree_depth(int64_t size, T low) {
#ifdef SB_RANK_TREE
  if (sizeof(T) == 4 && size <= kTreeSize && low > -Limits<T>::kMax) {
    int depth = 2;
    while ((int64_t{1} << depth) <= size) ++depth;
    return depth;
  }
#endif
  (void)size, (void)low;
  return 0;
}

template <class T>
void build_tree(RankRow<T>& row) {
  T* tree = reinterpret_cast<T*>(row.table);
  for (int64_t i = 0; i < 16; ++i) tree[i] = T(0);  // read as one register
  for (int level = 0; level < row.depth; ++level) {
    const int64_t nodes = int64_t{1} << level, step = int64_t{1} << (row.depth - 1 - level);
    for (int64_t i = 0; i < nodes; ++i) {
      const int64_t at = (2 * i + 1) * step - 1;
      tree[nodes + i] = at < row.size ? row.sorted[at] : static_cast<T>(__builtin_inff());
    }
  }
}

template <class T>
void build_buckets(RankRow<T>& row) {
  const int64_t buckets = rank_buckets(row.size);
  row.top = static_cast<T>(buckets - 1);
  const T width = row.sorted[row.size - 1] - row.low;
  row.scale = width > T(0) ? static_cast<T>(buckets) / width : T(0);
  if (!(row.scale < Limits<T>::kMax)) row.scale = T(0);  // a denormal width: one bucket holds all
  int64_t at = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    while (at < row.size && bucket_of(row, row.sorted[at]) < static_cast<T>(b)) ++at;
    row.table[b] = static_cast<uint32_t>(at);
  }
  row.table[buckets] = static_cast<uint32_t>(row.size);
}

// Of a row whose marked scores are there.
template <class T>
void prepare_row(RankRow<T>& row) {
  sort_ascending(row.sorted, row.size);
  row.low = row.sorted[0];
  row.depth = tree_depth(row.size, row.low);
  if (row.depth > 0) {
    build_tree(row);
  } else {
    build_buckets(row);
  }
}

// Lays out rows [n] and their tables; returns what follows them, the counters of the threads.
template <class T>
uint32_t* lay_out_rows(const RankCountsArgs& a, RankRow<T>** rows) {
  const int64_t n = a.num_queries;
  *rows = static_cast<RankRow<T>*>(a.workspace);
  uint32_t* at = reinterpret_cast<uint32_t*>(static_cast<char*>(a.workspace) + n * kRankRowBytes);
  for (int64_t i = 0; i < n; ++i) {
    RankRow<T>& row = (*rows)[i];
    row = {};
    row.sorted = static_cast<T*>(a.scores) + a.offsets[i];
    row.size = a.offsets[i + 1] - a.offsets[i];
    row.table = at;
    row.counts = 2 * (a.offsets[i] - a.offsets[0] + i);
    at += rank_buckets(row.size) + 1;
  }
  return at;
}

SB_INLINE int64_t counters_of(const RankCountsArgs& a) {
  return 2 * (a.offsets[a.num_queries] - a.offsets[0] + a.num_queries);
}

// Adds up the counters of the team and writes what they say.
template <class T>
void write_counts(const RankCountsArgs& a, const RankRow<T>& row, uint32_t* counters,
                  int64_t counters_size, int64_t team, int64_t offset) {
  uint32_t* gaps = counters + row.counts;
  uint32_t* ties = gaps + row.size + 1;
  for (int64_t t = 1; t < team; ++t) {
    const uint32_t* other = counters + t * counters_size + row.counts;
    for (int64_t i = 0; i < 2 * (row.size + 1); ++i) gaps[i] += other[i];
  }
  if (row.has_excluded && row.excluded >= row.low) {
    const uint32_t end = static_cast<uint32_t>(row.size);
    const uint32_t gap = first_not_below(row.sorted, 0u, end, row.excluded);
    --gaps[counter_of(row, gap, row.excluded)];
  }
  int64_t above = gaps[row.size];
  for (int64_t end = row.size; end > 0;) {
    int64_t begin = end - 1;
    while (begin > 0 && row.sorted[begin - 1] == row.sorted[end - 1]) --begin;
    for (int64_t i = begin; i < end; ++i) {
      a.greater[offset + i] = above;
      a.equal[offset + i] = ties[begin];
    }
    above += int64_t{ties[begin]} + gaps[begin];
    end = begin;
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
