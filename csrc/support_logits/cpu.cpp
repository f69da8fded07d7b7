// Checks what the kernel of support_logits/support_logits.h takes for granted; the sort by class.
#include "core/table.h"
#include "support_logits/support_logits.h"

namespace semobridge {

void support_logits(const SupportLogitsArgs& a) {
  if (a.queries.rows == 0 || a.keys.rows == 0 || a.num_classes == 0) return;
  require(a.queries.cols == a.keys.cols && a.keys.cols > 0,
          "support_logits: queries and keys must have the same width");
  require(a.offsets != nullptr && a.offsets[0] == 0 && a.offsets[a.num_classes] == a.keys.rows,
          "support_logits: offsets must cover the keys");
  require(a.out != nullptr && a.workspace != nullptr, "support_logits: out and workspace needed");
  kernels().support_logits(a);
}

int64_t sort_labels(const int64_t* labels, int64_t s, int64_t num_classes, int64_t* order,
                    int64_t* offsets) {
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
