// Queries against a stream of coded rows: what core/stream.h is for float32, with whole numbers.
//
// A block of queries is quantised and packed once, in one or two planes: the second holds what the
// first leaves, at 1/254 of its scale, and takes the queries' share out of the bound. Rows come
// from a prepared gallery, or are quantised on the way, a group at a time.
#pragma once
#include "core/code_products.h"
#include "core/quantize.h"
#include "core/scratch.h"
#include "core/stream.h"

namespace semobridge {
namespace SB_ISA {
namespace {

// What the interval of a score needs of its query.
struct QueryBound {
  float scale;    // t
  float rest[2];  // ‖δ‖, with one plane and with two
  float length;   // ‖q‖
};

// The coded queries of one block, shared by the team. Memory: code_block_bytes.
template <class D>
struct CodeBlock {
  using Code = typename D::Code;
  Code* planes[2];
  int32_t* first[2];   // [rows] where the sums begin
  QueryBound* bounds;  // [rows]
  int64_t rows, tiles, width, groups;

  CodeBlock(char* memory, int64_t n, int64_t d)
      : rows(n), tiles((n + D::kRows - 1) / D::kRows), width(d), groups(code_groups(d)) {
    bounds = reinterpret_cast<QueryBound*>(memory);
    first[0] = reinterpret_cast<int32_t*>(bounds + n);
    first[1] = first[0] + n;
    planes[0] = reinterpret_cast<Code*>(first[1] + n);
    planes[1] = planes[0] + n * groups * kCodeGroup;
  }
  int64_t begin(int64_t tile) const { return share_begin(rows, tiles, tile); }
};

template <class D>
SB_INLINE int64_t code_block_bytes(int64_t n, int64_t d) {
  const int64_t codes =
      2 * code_groups(d) * kCodeGroup * static_cast<int64_t>(sizeof(typename D::Code));
  return n * (static_cast<int64_t>(sizeof(QueryBound) + 2 * sizeof(int32_t)) + codes) + 64;
}

// Scratch of one query while it is quantised, in bytes.
SB_INLINE int64_t query_scratch(int64_t d) { return padded_width(d) * 6; }

// Whether a query can be coded: finite, not huge, not so small that every score is a tie.
SB_INLINE bool can_code(const ConstMatrix& x, int64_t row, char* scratch) {
  float* line = reinterpret_cast<float*>(scratch);
  const int64_t d = x.cols;
  widen(static_cast<const char*>(x.data) + row * x.row_stride * dtype_size(x.dtype), x.dtype, d,
        line);
  float most = 0.0f, zero = 0.0f;
  for (int64_t i = 0; i < d; ++i) {
    const float a = line[i] < 0 ? -line[i] : line[i];
    most = a > most ? a : most;
    zero += line[i] * 0.0f;
  }
  return zero == 0.0f && most <= kLargestCoded && most >= kSmallestCoded;
}

// Packs one tile of queries index[row0 ..].
template <class D>
void pack_code_tile(const Rows& queries, CodeBlock<D>& block, int64_t tile, int64_t row0,
                    char* scratch) {
  const int64_t begin = block.begin(tile), rows = block.begin(tile + 1) - begin, d = block.width;
  const int64_t padded = padded_width(d), all = block.groups * kCodeGroup;
  float* line = reinterpret_cast<float*>(scratch);
  int8_t* codes[2] = {reinterpret_cast<int8_t*>(line + padded),
                      reinterpret_cast<int8_t*>(line + padded) + padded};
  const ConstMatrix& x = queries.matrix;
  for (int64_t i = d; i < padded; ++i) line[i] = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = queries.index[row0 + begin + r];
    widen(static_cast<const char*>(x.data) + row * x.row_stride * dtype_size(x.dtype), x.dtype, d,
          line);
    const QuantizedRow coded = quantize_row(line, d, codes[0]);
    int32_t rest_sum = 0;
    const float rest = quantize_rest(line, d, coded, codes[0], codes[1], &rest_sum);
    block.bounds[begin + r] = {coded.scale, {coded.error, rest}, coded.length};
    block.first[0][begin + r] = first_sum<D>(coded.sum);
    block.first[1][begin + r] = first_sum<D>(rest_sum);
    for (int plane = 0; plane < 2; ++plane) {
      typename D::Code* out = block.planes[plane] + begin * all + r * kCodeGroup;
      for (int64_t g = 0; g < block.groups; ++g) {
        for (int i = 0; i < kCodeGroup; ++i) {
          out[g * rows * kCodeGroup + i] = codes[plane][g * kCodeGroup + D::kOrder[i]];
        }
      }
    }
  }
}

// Panels of codes that stay in the second-level cache beside the queries.
SB_INLINE int64_t code_group_panels(int64_t d) {
  const int64_t fit = kGroupBytes / code_panel_bytes(d);
  return fit < kPanelsAtOnce ? kPanelsAtOnce : fit > 64 ? 64 : fit;
}

// Scratch of stream_codes, in bytes.
SB_INLINE int64_t code_stream_scratch(int64_t d) {
  const int64_t panels = code_group_panels(d);
  const int64_t bounds = kBounds * kPanel * static_cast<int64_t>(sizeof(float));
  return panels * (code_panel_bytes(d) + bounds) + quantize_scratch(d);
}

// Products of the whole block with rows [row0, row1) of the gallery; row0 a multiple of kPanel. The
// epilogue gets
//   skip(row, count)                                   true: nobody wants these rows
//   panel(query, queries, row, count, sums, bounds)    sums [planes][queries][kPanel]
template <class D, class Epilogue>
SB_INLINE void stream_codes(const CodeBlock<D>& block, const ConstMatrix& gallery,
                            const CodedRows& coded, int planes, int64_t row0, int64_t row1,
                            char* scratch, Epilogue& epilogue) {
  const int64_t d = block.width, bytes = code_panel_bytes(d), all = block.groups * kCodeGroup;
  const int64_t group = code_group_panels(d) * kPanel;
  float* own_bounds = reinterpret_cast<float*>(scratch);
  uint8_t* own_codes = reinterpret_cast<uint8_t*>(own_bounds + group * kBounds);
  char* rest = reinterpret_cast<char*>(own_codes) + group / kPanel * bytes;
  alignas(64)
      int32_t sums[2 * D::kRows * kPanel > 2 * kPanelsAtOnce * kPanel ? 2 * D::kRows * kPanel
                                                                      : 2 * kPanelsAtOnce * kPanel];
  for (int64_t row = row0; row < row1; row += group) {
    const int64_t end = row1 - row < group ? row1 : row + group;
    const uint8_t* codes = coded.codes + row / kPanel * bytes;
    const float* bounds = coded.bounds + row * kBounds;
    if (coded.codes == nullptr) {
      for (int64_t i = row; i < end; i += kPanel) {
        const int64_t p = (i - row) / kPanel, count = end - i < kPanel ? end - i : kPanel;
        quantize_panel(gallery, i, count, own_codes + p * bytes, own_bounds + p * kBounds * kPanel,
                       rest);
      }
      codes = own_codes;
      bounds = own_bounds;
    }
    for (int64_t t = 0; t < block.tiles; ++t) {
      const int64_t query = block.begin(t);
      const int rows = static_cast<int>(block.begin(t + 1) - query);
      int64_t i = row;
      if (rows == 1) {
        for (; i + kPanelsAtOnce * kPanel <= end; i += kPanelsAtOnce * kPanel) {
          const int64_t p = (i - row) / kPanel;
          for (int plane = 0; plane < planes; ++plane) {
            code_row<D>(block.planes[plane] + query * all, block.first[plane][query],
                        codes + p * bytes, block.groups, sums + plane * kPanelsAtOnce * kPanel);
          }
          for (int64_t j = 0; j < kPanelsAtOnce; ++j) {
            epilogue.panel(query, 1, i + j * kPanel, kPanel, sums + j * kPanel,
                           kPanelsAtOnce * kPanel, bounds + (p + j) * kBounds * kPanel);
          }
        }
      }
      for (; i < end; i += kPanel) {
        const int64_t p = (i - row) / kPanel, count = end - i < kPanel ? end - i : kPanel;
        if (epilogue.skip(i, count)) continue;
        for (int plane = 0; plane < planes; ++plane) {
          code_product<D>(block.planes[plane] + query * all, rows, block.first[plane] + query,
                          codes + p * bytes, block.groups, sums + plane * rows * kPanel);
        }
        epilogue.panel(query, rows, i, count, sums, rows * kPanel, bounds + p * kBounds * kPanel);
      }
    }
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
