#include "core/entries.h"

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
    .blend = blend_entry,
    .count_correct = count_correct_entry,
    .shot_norms = shot_norms_entry,
    .shot_dots = shot_dots_entry,
    .row_loss = row_loss_entry,
    .shot_grads = shot_grads_entry,
    .adamw = adamw_entry,
};

}  // namespace SB_ISA
}  // namespace semobridge
