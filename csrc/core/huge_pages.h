// 2 MiB pages for memory that is about to be written or read through.
#pragma once
#include <cstdint>

namespace semobridge {

// Asks for them, before the first touch. Does nothing where the system has none, and is harmless
// where the pages exist already or the kernel refuses.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace semobridge
