// Grow-only scratch, one per thread and type, for the life of the thread.
#pragma once
#include <cstdlib>

#include "core/simd.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
struct Scratch {
  T* data = nullptr;
  int64_t size = 0;
  ~Scratch() { free(data); }
  T* reserve(int64_t elements) {
    if (elements > size) {
      free(data);
      const size_t bytes = (static_cast<size_t>(elements) * sizeof(T) + 4095) / 4096 * 4096;
      data = static_cast<T*>(aligned_alloc(4096, bytes));
      if (data == nullptr) abort();  // a few hundred KiB: nothing sensible is left to do
      size = elements;
    }
    return data;
  }
};

template <class T>
SB_INLINE Scratch<T>& thread_scratch() {
  static thread_local Scratch<T> scratch;
  return scratch;
}

// A second one, for the packed rows of a thread that already shares the first with its team.
template <class T>
SB_INLINE Scratch<T>& thread_row_scratch() {
  static thread_local Scratch<T> scratch;
  return scratch;
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
