#include "core/launch.cuh"
#include "tower_descent/cuda_few_rows_tile.cuh"

namespace semobridge {
namespace {

constexpr char kOp[] = "few_rows";
constexpr int kResident = 3;  // per multiprocessor: room for 168 registers, so that none spill

template <class T, Before kBefore, bool kTransposed>
__global__ void __launch_bounds__(kFewThreads, kResident)
    few_rows_fwd_kernel(const FewRowsParams<T> p) {
  using S = Stage<T, kTransposed>;
  SB_SHARED(S, stage, 1);
  const FewRowsPlace at{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y),
                        static_cast<int>(blockIdx.z), static_cast<int>(gridDim.x),
                        static_cast<int>(gridDim.y),  static_cast<int>(gridDim.z)};
  few_rows_tile<T, kBefore>(p, [&] { return p; }, at, stage);
}

template <class T, Before kBefore>
void launch_before(const FewRowsCudaArgs& a, int device, void* stream) {
  const FewRowsPlace all = few_rows_grid<T>(a);
  const dim3 grid(all.tiles, all.row_tiles, all.splits);
  const auto start = [&](auto kernel) {
    launch(kOp, kernel, grid, kFewThreads, device, stream, few_rows_params<T>(a));
  };
  if (a.transposed) return start(few_rows_fwd_kernel<T, kBefore, true>);
  start(few_rows_fwd_kernel<T, kBefore, false>);
}

}  // namespace

int64_t few_rows_tiles(int64_t cols) { return (cols + kFewCols - 1) / kFewCols; }

int64_t few_rows_tickets(int64_t rows, int64_t cols) {
  return row_tiles(rows) * few_rows_tiles(cols);
}

int64_t few_rows_sums(int64_t rows, int64_t k, int64_t cols) {
  return splits_of(k, cols, kFewSmallest) * few_rows_tickets(rows, cols) * kFewRows * kFewCols;
}

void few_rows_cuda(const FewRowsCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.y.cols == 0) return;
  check_few_rows(a);
  with_storage(kOp, a.x.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    switch (a.before) {
      case Before::kPlain:
        return launch_before<T, Before::kPlain>(a, device, stream);
      case Before::kNorm:
        return launch_before<T, Before::kNorm>(a, device, stream);
      case Before::kNormGrad:
        return launch_before<T, Before::kNormGrad>(a, device, stream);
    }
  });
}

}  // namespace semobridge
