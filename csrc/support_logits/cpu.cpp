// The sort by class.
#include <cstring>
#include <vector>

#include "support_logits/support_logits.h"

namespace semobridge {

int64_t sort_labels(const int64_t* given, int64_t s, int64_t num_classes, int64_t* order,
                    int64_t* offsets) {
  // Read once: another thread may write the labels between a check and their use as an index.
  std::vector<int64_t> labels(static_cast<size_t>(s));
  if (s > 0) std::memcpy(labels.data(), static_cast<const void*>(given), s * sizeof(int64_t));
  for (int64_t c = 0; c <= num_classes; ++c) offsets[c] = 0;
  for (int64_t i = 0; i < s; ++i) {
    if (labels[i] < 0 || labels[i] >= num_classes) return i;
    ++offsets[labels[i]];
  }
  int64_t begin = 0;
  for (int64_t c = 0; c <= num_classes; ++c) {
    const int64_t count = offsets[c];
    offsets[c] = begin;
    begin += count;
  }
  // offsets[c] walks to the end of class c, which is where class c + 1 begins.
  for (int64_t i = 0; i < s; ++i) order[offsets[labels[i]]++] = i;
  for (int64_t c = num_classes; c > 0; --c) offsets[c] = offsets[c - 1];
  offsets[0] = 0;
  return -1;
}

}  // namespace semobridge
