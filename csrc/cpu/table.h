// The kernels of one instruction set. The files of csrc/cpu/kernels are compiled once per set with
// SB_ISA naming the namespace; kernels/table.cpp collects their entry points.
#pragma once
#include <semobridge/blend.h>
#include <semobridge/invert.h>
#include <semobridge/project.h>
#include <semobridge/rank_counts.h>
#include <semobridge/search.h>
#include <semobridge/support_logits.h>
#include <semobridge/topk.h>
#include <semobridge/train.h>

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

// What a caller of the core got wrong; the op files of semobridge_ext/ops have better words for it.
void require(bool ok, const char* what);

}  // namespace semobridge
