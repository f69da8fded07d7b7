// Products with stored bfloat16 weights by the processor's instruction for pairs of them
// (AVX-512-BF16): the left rows are rounded to bfloat16 on the way, sums stay in float32, two
// multiply-adds a lane. For towers that were asked for it (FrozenTower::bf16_products).
//
// The panels are those of stored_product.h. Two rows of a panel are woven into pairs in registers,
// which leaves the columns in another order until they are stored; that costs two instructions for
// all rows of a tile. The instruction is written as assembly, so that the set's other kernels run
// on processors without it.
#pragma once
#include "tower_descent/stored_product.h"

namespace semobridge {
namespace SB_ISA {
namespace {

#if SB_VEC_BYTES == 64 && defined(__AVX512BW__)
#define SB_HAVE_BF16_PRODUCTS 1

// Columns of a panel in the order of woven pairs, and back; 16 and more name the second operand.
SB_INLINE __m512i woven(bool high) {
  const int h = high ? 4 : 0;
  return _mm512_setr_epi32(h, h + 1, h + 2, h + 3, h + 8, h + 9, h + 10, h + 11, h + 16, h + 17,
                           h + 18, h + 19, h + 24, h + 25, h + 26, h + 27);
}
SB_INLINE __m512i plain(bool high) {
  const int h = high ? 8 : 0;
  return _mm512_setr_epi32(h, h + 1, h + 2, h + 3, h + 16, h + 17, h + 18, h + 19, h + 4, h + 5,
                           h + 6, h + 7, h + 20, h + 21, h + 22, h + 23);
}

// R rows packed as [pairs of k][R][2] by one panel [k_size][kPanel]; `add` continues the sums.
template <int R>
void bf16_tile(const uint16_t* __restrict a, const uint16_t* __restrict panel, int64_t k_size,
               float* __restrict c, int64_t ldc, bool add) {
  __m512 low[R], high[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    low[r] = high[r] = _mm512_setzero_ps();
    if (!add) continue;
    const __m512 left = _mm512_loadu_ps(c + r * ldc), right = _mm512_loadu_ps(c + r * ldc + 16);
    low[r] = _mm512_permutex2var_ps(left, woven(false), right);
    high[r] = _mm512_permutex2var_ps(left, woven(true), right);
  }
  for (int64_t k = 0; k < k_size; k += 2) {
    const __m512i first = _mm512_loadu_si512(panel + k * kPanel);
    const __m512i second =
        k + 1 < k_size ? _mm512_loadu_si512(panel + (k + 1) * kPanel) : _mm512_setzero_si512();
    const __m512i pairs_low = _mm512_unpacklo_epi16(first, second);
    const __m512i pairs_high = _mm512_unpackhi_epi16(first, second);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, a + (k / 2 * R + r) * 2, sizeof(pair));
      const __m512i row = _mm512_set1_epi32(pair);
      __asm__("vdpbf16ps %2, %1, %0" : "+v"(low[r]) : "v"(pairs_low), "v"(row));
      __asm__("vdpbf16ps %2, %1, %0" : "+v"(high[r]) : "v"(pairs_high), "v"(row));
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    _mm512_storeu_ps(c + r * ldc, _mm512_permutex2var_ps(low[r], plain(false), high[r]));
    _mm512_storeu_ps(c + r * ldc + 16, _mm512_permutex2var_ps(low[r], plain(true), high[r]));
  }
}

// Rows rounded to bfloat16, as [pairs of k][rows][2]; an odd last one gets a zero beside it.
SB_INLINE void pack_bf16_tile(const float* a, int64_t lda, int rows, int64_t k_size,
                              uint16_t* __restrict packed) {
  constexpr int kStep = 16;
  for (int r = 0; r < rows; ++r) {
    const float* src = a + r * lda;
    for (int64_t k = 0; k < k_size; k += kStep) {
      alignas(64) uint16_t line[kStep] = {};
      const int64_t n = k_size - k < kStep ? k_size - k : kStep;
      if (n == kStep) {
        __m256i rounded;
        __asm__("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(_mm512_loadu_ps(src + k)));
        _mm256_store_si256(reinterpret_cast<__m256i*>(line), rounded);
      } else {
        for (int64_t i = 0; i < n; ++i) line[i] = float_to_bf16(src[k + i]);
      }
      for (int64_t i = 0; i < n; i += 2) {
        __builtin_memcpy(packed + ((k + i) / 2 * rows + r) * 2, line + i, 4);
      }
    }
  }
}

SB_INLINE void bf16_product(const PackedMatrix& w, const float* a, int64_t lda, int64_t rows,
                            float* c, int64_t ldc, int64_t p0, int64_t p1, int64_t k0, int64_t k1) {
  using Fn = void (*)(const uint16_t*, const uint16_t*, int64_t, float*, int64_t, bool);
  static const Fn kTable[] = {bf16_tile<1>,  bf16_tile<2>,  bf16_tile<3>,  bf16_tile<4>,
                              bf16_tile<5>,  bf16_tile<6>,  bf16_tile<7>,  bf16_tile<8>,
                              bf16_tile<9>,  bf16_tile<10>, bf16_tile<11>, bf16_tile<12>,
                              bf16_tile<13>, bf16_tile<14>};
  static_assert(sizeof(kTable) / sizeof(kTable[0]) == kRows, "one entry per row count");
  const uint16_t* data = static_cast<const uint16_t*>(w.data);
  const int64_t pass = rows < kTilesPerPass * kRows ? rows : kTilesPerPass * kRows;
  uint16_t* scratch = thread_scratch<uint16_t>().reserve(pass * (kChunk + 2));
  for (int64_t row0 = 0; row0 < rows; row0 += pass) {
    const int64_t n = rows - row0 < pass ? rows - row0 : pass;
    const int64_t tiles = (n + kRows - 1) / kRows;
    for (int64_t k = k0; k < k1; k += kChunk) {
      const int64_t k_size = k1 - k < kChunk ? k1 - k : kChunk;
      const int64_t packed_k = (k_size + 1) / 2 * 2;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t begin = share_begin(n, tiles, i), end = share_begin(n, tiles, i + 1);
        pack_bf16_tile(a + (row0 + begin) * lda + k, lda, static_cast<int>(end - begin), k_size,
                       scratch + begin * packed_k);
      }
      for (int64_t p = p0; p < p1; ++p) {
        const uint16_t* panel = data + (p * w.rows + k) * kPanel;
        for (int64_t i = 0; i < tiles; ++i) {
          const int64_t begin = share_begin(n, tiles, i), end = share_begin(n, tiles, i + 1);
          kTable[end - begin - 1](scratch + begin * packed_k, panel, k_size,
                                  c + (row0 + begin) * ldc + p * kPanel, ldc, k > k0);
        }
      }
    }
  }
}
#endif

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
