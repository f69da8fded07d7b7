// Entry points of this instruction set, one line per kernel file.
#pragma once
#include "../table.h"

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

}  // namespace SB_ISA
}  // namespace semobridge
