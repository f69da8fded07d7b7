// Checks what the kernels of tower_descent/tower_descent.h take for granted, then calls the active
// set's.
#include <sys/mman.h>

#include <initializer_list>

#include "core/table.h"
#include "tower_descent/plan.h"
#include "tower_descent/tower_descent.h"

namespace semobridge {
namespace {

void check_linear(const FrozenLinear& linear, int64_t rows, int64_t cols, DType compute) {
  require(linear.forward.rows == rows && linear.forward.cols == cols &&
              linear.backward.rows == cols && linear.backward.cols == rows,
          "invert: a weight and its transpose must fit the layer");
  for (const PackedMatrix* m : {&linear.forward, &linear.backward}) {
    require(m->dtype == compute || (compute == DType::kFloat32 && m->dtype != DType::kFloat64),
            "invert: stored weights must be float64 in a float64 tower, else float32 or 16 bit");
    require(reinterpret_cast<uintptr_t>(m->data) % 64 == 0,
            "invert: packed weights must be 64-byte aligned");
  }
}

void check_tower(const FrozenTower& t) {
  require(t.compute == DType::kFloat32 || t.compute == DType::kFloat64,
          "invert: compute dtype must be float32 or float64");
  require(t.layers > 0 && t.slots > 0 && t.vectors > 0, "invert: tower must not be empty");
  require(t.heads > 0 && t.width % t.heads == 0, "invert: width must be a multiple of heads");
  require(0 <= t.learned_begin && t.learned_begin < t.learned_end && t.learned_end <= t.slots,
          "invert: learned slots must lie in the sequence");
  for (int64_t s = 0; s < t.slots; ++s) {
    require(t.source[s] < t.vectors, "invert: source must name a vector");
    require(t.source[s] < 0 || (t.learned_begin <= s && s < t.learned_end),
            "invert: learned slots must lie in their range");
    require(t.visible_begin[s] < t.visible_begin[s + 1], "invert: a slot must see itself");
  }
  for (int64_t l = 0; l < t.layers; ++l) {
    const FrozenLayer& layer = t.layer[l];
    require(layer.query == nullptr || l == t.layers - 1,
            "invert: a pooling layer must be the last");
    require(t.prefix == 0 || layer.prefix != nullptr, "invert: prefix keys are missing");
    check_linear(layer.qkv, t.width, 3 * t.width, t.compute);
    check_linear(layer.out, t.width, t.width, t.compute);
    check_linear(layer.fc, t.width, layer.fc.forward.cols, t.compute);
    check_linear(layer.proj, layer.fc.forward.cols, t.width, t.compute);
  }
  if (t.projection.forward.data != nullptr) {
    check_linear(t.projection, t.width, t.features, t.compute);
  } else {
    require(t.features == t.width,
            "invert: without a projection features are as wide as the tower");
  }
}

}  // namespace

int64_t invert_workspace(const FrozenTower& tower, int64_t samples, int threads) {
  const InvertPlan plan = plan_invert(tower, samples, threads);
  return layout_block(tower, plan.block).size * plan.blocks_at_once * dtype_size(tower.compute);
}

void invert(const FrozenTower& tower, const InvertArgs& args, void* workspace) {
  check_tower(tower);
  if (args.samples == 0) return;
  require(args.step_begin >= args.step_end || (args.targets != nullptr && args.losses != nullptr),
          "invert: a descent needs targets and losses");
  kernels().invert(tower, args, workspace);
}

void pack_stored(const ConstMatrix& matrix, DType stored, void* out) {
  require(matrix.rows > 0 && matrix.cols > 0, "pack_stored: matrix must not be empty");
  kernels().pack_stored(matrix, stored, out);
}

void prefer_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace semobridge
