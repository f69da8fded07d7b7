#include "entries.h"

namespace semobridge {
namespace SB_ISA {

const KernelTable kTable = {
    .project = project_entry,
    .pack_matrix = pack_matrix_entry,
    .support_logits = support_logits_entry,
    .topk = topk_entry,
    .rank_counts = rank_counts_entry,
    .invert = invert_entry,
    .pack_stored = pack_stored_entry,
};

}  // namespace SB_ISA
}  // namespace semobridge
