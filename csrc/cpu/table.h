// The kernels of one instruction set. The files of csrc/cpu/kernels are compiled once per set with
// SB_ISA naming the namespace; kernels/table.cpp collects their entry points.
#pragma once
#include <semobridge/invert.h>
#include <semobridge/project.h>
#include <semobridge/rank_counts.h>
#include <semobridge/support_logits.h>
#include <semobridge/topk.h>

namespace semobridge {

struct KernelTable {
  void (*project)(const ProjectArgs&);
  void (*pack_matrix)(const ConstMatrix&, DType, void*);
  void (*support_logits)(const SupportLogitsArgs&);
  void (*topk)(const TopkArgs&);
  void (*rank_counts)(const RankCountsArgs&);
  void (*invert)(const FrozenTower&, const InvertArgs&, void*);
  void (*pack_stored)(const ConstMatrix&, DType, void*);
};

// Of the active instruction set.
const KernelTable& kernels();

// What a caller of the core got wrong; the op files of semobridge_ext/ops have better words for it.
void require(bool ok, const char* what);

}  // namespace semobridge
