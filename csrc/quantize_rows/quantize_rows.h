// quantize_rows: rows as 8-bit codes with certain bounds, in panels (core/codes.h).
#pragma once
#include "core/codes.h"

namespace semobridge {

struct QuantizeRowsArgs {
  ConstMatrix rows;          // [G, D], D <= kMaxCodeWidth; not float64
  uint8_t* codes = nullptr;  // [panels_of(G), code_panel_bytes(D)]
  float* bounds = nullptr;   // [panels_of(G), kBounds, kPanel]
  int threads = 1;
};

void quantize_rows(const QuantizeRowsArgs& args);

}  // namespace semobridge
