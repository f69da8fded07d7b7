// Activations of a tower, by number as they cross from Python.
#pragma once
#include <cstdint>

namespace semobridge {

enum class Activation : int32_t { kGelu = 0, kGeluTanh = 1, kQuickGelu = 2 };

}  // namespace semobridge
