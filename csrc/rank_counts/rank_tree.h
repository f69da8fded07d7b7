// Scores among up to kTreeSize marked ones, which lie in a few vector registers in the order of a
// binary search: sixteen scores go down at once, without a branch. float32, AVX-512.
#pragma once
#include "rank_counts/rank_row.h"

#if SB_VEC_BYTES == 64 && defined(__AVX512F__)
#define SB_RANK_TREE 1
#endif

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kTreeSize = 127;  // seven levels in eight registers

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

// Nodes past the marked scores are infinite: no score is above them.
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

#ifdef SB_RANK_TREE
// Node h has the children 2h and 2h + 1, as in a heap from 1 on. Level L lies at 2^L .. 2^(L + 1),
// so the low bits of h choose the lane of that level's registers. (The zeroing forms: the plain
// ones begin with an undefined vector, which g++ 12 warns about.)
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

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
