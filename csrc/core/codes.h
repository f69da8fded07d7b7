// Rows as 8-bit codes with bounds that hold for certain (docs/methods.md, "Exact search through an
// integer filter").
//
//   x = scale·κ + ε      κ whole numbers in -127..127, scale = max |x| / 127
//
// Per row three float32 numbers are kept, each rounded so that the bound below never fails:
//   scale    of the codes
//   norm     at least ‖scale·κ‖
//   error    at least ‖ε‖ plus γ‖x‖, γ the rounding of a float32 inner product of this width
// For a query q = t·χ + δ then, in exact arithmetic and in the core's float32 scores alike,
//   |⟨q, x⟩ − t·scale·⟨χ, κ⟩| <= ‖δ‖·norm + ‖q‖·error
// A row with a NaN, an infinity or an entry above 1e18 has an infinite error: nothing is known of
// its score.
//
// Codes lie in panels of kPanel rows, as the products read them: [panel][group][kPanel][4], a group
// being four columns; a code is stored as κ + 128, and places past the last row or column as 128.
// The bounds lie beside them: [panel][scale, norm, error][kPanel].
#pragma once
#include "core/view.h"

namespace semobridge {

constexpr int64_t kCodeGroup = 4;           // columns of a 32-bit lane
constexpr int64_t kBounds = 3;              // numbers kept per row
constexpr int64_t kMaxCodeWidth = 1 << 17;  // products of codes stay below 2^31
constexpr float kLargestCoded = 1e18f;      // squares and products of such rows stay finite
constexpr float kSmallestCoded = 1e-30f;    // below it all codes are 0
constexpr int32_t kLargestCode = 127;

constexpr int64_t code_groups(int64_t cols) { return (cols + kCodeGroup - 1) / kCodeGroup; }
constexpr int64_t code_panel_bytes(int64_t cols) { return code_groups(cols) * kPanel * kCodeGroup; }

// The codes of a whole matrix; null pointers: there are none.
struct CodedRows {
  const uint8_t* codes = nullptr;  // [panels_of(rows), code_panel_bytes(cols)]
  const float* bounds = nullptr;   // [panels_of(rows), kBounds, kPanel]
};

}  // namespace semobridge
