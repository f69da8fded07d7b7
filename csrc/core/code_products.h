// Products of codes: tiles of a few queries by a panel of kPanel rows, in 32-bit whole numbers.
//
// Dot      one instruction multiplies four codes of each lane and adds them up: AVX-512-VNNI,
//          AVX-VNNI, the dot product of ARMv8.2. Written as assembly, one statement each: the
//          compiler needs no flag of the instruction, so that the set's other kernels still run on
//          processors without it, and g++ 12 keeps the accumulators in registers, which it does not
//          for the intrinsic.
// Multiply the codes of even and of odd columns are multiplied as 16-bit numbers.
//
// Sums wrap at 2^32 inside and are right at the end, since the product itself is below 2^31
// (kMaxCodeWidth).
#pragma once
#include "core/codes.h"
#include "core/tile.h"

namespace semobridge {
namespace SB_ISA {
namespace {

typedef int32_t CodeVec __attribute__((vector_size(SB_VEC_BYTES)));
constexpr int kCodeLanes = SB_VEC_BYTES / 4;

SB_INLINE CodeVec load_codes(const uint8_t* p) {
  CodeVec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

SB_INLINE CodeVec load_sums(const int32_t* p) {
  CodeVec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

SB_INLINE int32_t load_group(const void* p) {
  int32_t group;
  __builtin_memcpy(&group, p, sizeof(group));
  return group;
}

#if SB_VEC_BYTES >= 32 || defined(__aarch64__)
#define SB_HAVE_DOT 1
struct Dot {
  using Code = int8_t;
  static constexpr int kRows = SB_ISA::kRows, kVecs = SB_ISA::kVecs;
  static constexpr int kOrder[kCodeGroup] = {0, 1, 2, 3};
#if defined(__aarch64__)
  static constexpr int32_t kOffset = 0;  // both sides are signed
#else
  static constexpr int32_t kOffset = 128;
#endif
  struct Right {
    CodeVec codes;
  };
  struct Left {
    CodeVec codes;
  };
  SB_INLINE Right right(const uint8_t* p) {
#if defined(__aarch64__)
    return {load_codes(p) ^ static_cast<int32_t>(0x80808080)};
#else
    return {load_codes(p)};
#endif
  }
  SB_INLINE Left left(const Code* q) { return {CodeVec{} + load_group(q)}; }
  SB_INLINE void add(CodeVec& acc, const Right& r, const Left& l) {
#if SB_VEC_BYTES == 64
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(r.codes), "v"(l.codes));
#elif SB_VEC_BYTES == 32
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(r.codes), "x"(l.codes));
#else
    __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b"
            : "+w"(acc)
            : "w"(r.codes), "w"(l.codes));
#endif
  }
};
#endif

struct Multiply {
  using Code = int16_t;
#if SB_VEC_BYTES == 64
  static constexpr int kRows = 12, kVecs = 2;
#elif SB_VEC_BYTES == 32
  static constexpr int kRows = 4, kVecs = 2;
#else
  static constexpr int kRows = 3, kVecs = 2;
#endif
  static constexpr int kOrder[kCodeGroup] = {0, 2, 1, 3};
  static constexpr int32_t kOffset = 128;
  struct Right {
    CodeVec even, odd;  // codes of columns 0 and 2, of 1 and 3, as 16-bit numbers
  };
  struct Left {
    CodeVec even, odd;
  };
  SB_INLINE Right right(const uint8_t* p) {
    typedef uint32_t Bits __attribute__((vector_size(SB_VEC_BYTES)));
    const Bits v = reinterpret_cast<Bits>(load_codes(p));
    return {reinterpret_cast<CodeVec>(v & 0x00ff00ffu),
            reinterpret_cast<CodeVec>((v >> 8) & 0x00ff00ffu)};
  }
  SB_INLINE Left left(const Code* q) {
    return {CodeVec{} + load_group(q), CodeVec{} + load_group(q + 2)};
  }
  // Sum of the products of the two 16-bit numbers of each lane.
  SB_INLINE CodeVec pairs(CodeVec a, CodeVec b) {
#if SB_VEC_BYTES == 64 && defined(__AVX512BW__)
    return reinterpret_cast<CodeVec>(
        _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif SB_VEC_BYTES == 32 && defined(__AVX2__)
    return reinterpret_cast<CodeVec>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
    return reinterpret_cast<CodeVec>(
        _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
  SB_INLINE void add(CodeVec& acc, const Right& r, const Left& l) {
    acc += pairs(r.even, l.even) + pairs(r.odd, l.odd);
  }
};

// Where the sum of a query begins, so that the offset of the stored codes drops out of it.
template <class D>
SB_INLINE int32_t first_sum(int32_t sum_of_codes) {
  return -D::kOffset * sum_of_codes;
}

// R queries, packed [groups][R][4] in D's order, by one panel: out [R][kPanel].
template <class D, int R>
void code_tile(const typename D::Code* q, const int32_t* first, const uint8_t* panel,
               int64_t groups, int32_t* out) {
  constexpr int kStep = D::kVecs * kCodeLanes < kPanel ? D::kVecs * kCodeLanes : kPanel;
  constexpr int kV = kStep / kCodeLanes;
  for (int64_t col = 0; col < kPanel; col += kStep) {
    CodeVec acc[R][kV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) acc[r][v] = CodeVec{} + first[r];
    }
    const uint8_t* b = panel + col * kCodeGroup;
    const typename D::Code* a = q;
    for (int64_t g = 0; g < groups; ++g) {
      typename D::Right right[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) right[v] = D::right(b + v * SB_VEC_BYTES);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const typename D::Left left = D::left(a + r * kCodeGroup);
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) D::add(acc[r][v], right[v], left);
      }
      b += kPanel * kCodeGroup;
      a += R * kCodeGroup;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        __builtin_memcpy(out + r * kPanel + col + v * kCodeLanes, &acc[r][v], SB_VEC_BYTES);
      }
    }
  }
}

constexpr int kPanelsAtOnce = 4;  // of a single query, which has too few chains in one

// One query by kPanelsAtOnce panels: out [kPanelsAtOnce][kPanel].
template <class D>
void code_row(const typename D::Code* q, int32_t first, const uint8_t* panels, int64_t groups,
              int32_t* out) {
  constexpr int kChains = 8;
  constexpr int kPer = kPanel / kCodeLanes < kChains ? kPanel / kCodeLanes : kChains;
  constexpr int kAtOnce = kChains / kPer;
  const int64_t panel_bytes = groups * kPanel * kCodeGroup;
  for (int p = 0; p < kPanelsAtOnce; p += kAtOnce) {
    for (int64_t col = 0; col < kPanel; col += kPer * kCodeLanes) {
      CodeVec acc[kAtOnce][kPer];
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kPer; ++v) acc[i][v] = CodeVec{} + first;
      }
      const uint8_t* b = panels + p * panel_bytes + col * kCodeGroup;
      for (int64_t g = 0; g < groups; ++g) {
        const typename D::Left left = D::left(q + g * kCodeGroup);
#pragma GCC unroll 8
        for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 8
          for (int v = 0; v < kPer; ++v) {
            D::add(acc[i][v], D::right(b + i * panel_bytes + v * SB_VEC_BYTES), left);
          }
        }
        b += kPanel * kCodeGroup;
      }
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kPer; ++v) {
          __builtin_memcpy(out + (p + i) * kPanel + col + v * kCodeLanes, &acc[i][v], SB_VEC_BYTES);
        }
      }
    }
  }
}

// A tile of `rows` <= D::kRows queries, packed with that same count.
template <class D>
SB_INLINE void code_product(const typename D::Code* q, int rows, const int32_t* first,
                            const uint8_t* panel, int64_t groups, int32_t* out) {
  using Fn = void (*)(const typename D::Code*, const int32_t*, const uint8_t*, int64_t, int32_t*);
  static const Fn kTable[] = {
      code_tile<D, 1>,           code_tile<D, 2>, code_tile<D, 3>,           code_tile < D,
      D::kRows >= 4 ? 4 : 1 >,   code_tile < D,   D::kRows >= 5 ? 5 : 1 >,   code_tile < D,
      D::kRows >= 6 ? 6 : 1 >,   code_tile < D,   D::kRows >= 7 ? 7 : 1 >,   code_tile < D,
      D::kRows >= 8 ? 8 : 1 >,   code_tile < D,   D::kRows >= 9 ? 9 : 1 >,   code_tile < D,
      D::kRows >= 10 ? 10 : 1 >, code_tile < D,   D::kRows >= 11 ? 11 : 1 >, code_tile < D,
      D::kRows >= 12 ? 12 : 1 >, code_tile < D,   D::kRows >= 13 ? 13 : 1 >, code_tile < D,
      D::kRows >= 14 ? 14 : 1 >,
  };
  static_assert(D::kRows <= sizeof(kTable) / sizeof(kTable[0]), "one entry per row count");
  kTable[rows - 1](q, first, panel, groups, out);
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
