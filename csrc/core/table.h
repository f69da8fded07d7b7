// The kernels of one instruction set. The files of csrc/cpu/kernels are compiled once per set with
// SB_ISA naming the namespace; kernels/table.cpp collects their entry points.
#pragma once
#include "blend_logits/blend_logits.h"
#include "bridge_training/bridge_training.h"
#include "count_correct/count_correct.h"
#include "project_normalize/project_normalize.h"
#include "rank_counts/rank_counts.h"
#include "support_logits/support_logits.h"
#include "topk/topk.h"
#include "tower_descent/tower_descent.h"

namespace semobridge {

struct KernelTable {
  void (*project)(const ProjectArgs&);
  void (*pack_matrix)(const ConstMatrix&, DType, void*);
  void (*support_logits)(const SupportLogitsArgs&);
  void (*topk)(const TopkArgs&);
  void (*rank_counts)(const RankCountsArgs&);
  void (*invert)(const FrozenTower&, const InvertArgs&, void*);
  void (*pack_stored)(const ConstMatrix&, DType, void*);
  void (*blend)(const BlendArgs&);
  void (*count_correct)(const CountArgs&);
  void (*shot_norms)(const ShotNormsArgs&);
  void (*shot_dots)(const ShotDotsArgs&);
  void (*row_loss)(const RowLossArgs&);
  void (*shot_grads)(const ShotGradsArgs&);
  void (*adamw)(const AdamwArgs&);
};

// Of the active instruction set.
const KernelTable& kernels();

// What a caller of the core got wrong; the op files of semobridge_ext/_ops have better words for
// it.
void require(bool ok, const char* what);

}  // namespace semobridge
