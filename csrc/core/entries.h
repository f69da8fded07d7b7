// Entry points of this instruction set, one line per kernel file.
#pragma once
#include "core/table.h"

namespace semobridge {
namespace SB_ISA {

extern const KernelTable kTable;

void project_entry(const ProjectArgs& args);
void pack_matrix_entry(const ConstMatrix& matrix, DType compute, void* out);
void support_logits_entry(const SupportLogitsArgs& args);
void topk_entry(const TopkArgs& args);
void rank_counts_entry(const RankCountsArgs& args);
void invert_entry(const FrozenTower& tower, const InvertArgs& args, void* workspace);
void pack_stored_entry(const ConstMatrix& matrix, DType stored, void* out);
void blend_entry(const BlendArgs& args);
void count_correct_entry(const CountArgs& args);
void shot_norms_entry(const ShotNormsArgs& args);
void shot_dots_entry(const ShotDotsArgs& args);
void row_loss_entry(const RowLossArgs& args);
void shot_grads_entry(const ShotGradsArgs& args);
void adamw_entry(const AdamwArgs& args);

}  // namespace SB_ISA
}  // namespace semobridge
