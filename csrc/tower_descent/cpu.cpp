#include "tower_descent/plan.h"
#include "tower_descent/tower_descent.h"

namespace semobridge {

int64_t tower_descent_workspace(const FrozenTower& tower, int64_t samples, int threads) {
  const DescentPlan plan = plan_descent(tower, samples, threads);
  return layout_block(tower, plan.block).size * plan.blocks_at_once * dtype_size(tower.compute);
}

}  // namespace semobridge
