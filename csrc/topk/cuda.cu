// A sorted list of up to 128 entries lives in the registers of a warp: entry i·32 + lane in
// register i of that lane. Inserting is branch-free: an entry that beats the newcomer stays, the
// first one that does not makes room, the rest move up by one. Most scores never get that far: the
// largest of a lane's 16 is compared with the k-th best, and one vote decides for 512 of them.
#include "core/device.cuh"
#include "core/launch.cuh"
#include "topk/cuda.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "topk";
constexpr int kWarpsPerBlock = 4;
constexpr int kMergeWarps = 8;
constexpr int kInFlight = 4;                                // loads of a lane, 16 bytes each
constexpr int kGroup = kInFlight * kWarp * kVector<float>;  // scores that a warp looks at at once
constexpr uint32_t kNoRow = 0xffffffffu;

__device__ __forceinline__ float rankable(float score) {
  return score == score ? score : -INFINITY;
}

// Score descending, equal scores by lower row; NaN ranks with −infinity. No entry ranks last.
__device__ __forceinline__ bool beats(float a, uint32_t row, float b, uint32_t other) {
  const float left = rankable(a), right = rankable(b);
  return left > right || (left == right && row < other);
}

template <int kRegs>
struct BestList {
  float score[kRegs], worst;
  uint32_t row[kRegs], worst_row;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kRegs; ++i) {
      score[i] = -INFINITY;
      row[i] = kNoRow;
    }
    worst = -INFINITY;
    worst_row = kNoRow;
  }

  // All lanes pass the same entry.
  __device__ __forceinline__ void insert(float s, uint32_t r) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = kRegs - 1; i >= 0; --i) {
      float before = __shfl_up_sync(kAllLanes, score[i], 1);
      uint32_t before_row = __shfl_up_sync(kAllLanes, row[i], 1);
      bool first = false;
      if (i > 0) {
        const float last = __shfl_sync(kAllLanes, score[i > 0 ? i - 1 : 0], kWarp - 1);
        const uint32_t last_row = __shfl_sync(kAllLanes, row[i > 0 ? i - 1 : 0], kWarp - 1);
        if (lane == 0) {
          before = last;
          before_row = last_row;
        }
      } else {
        first = lane == 0;
      }
      const bool stays = beats(score[i], row[i], s, r);
      const bool moved = !first && !beats(before, before_row, s, r);
      score[i] = stays ? score[i] : moved ? before : s;
      row[i] = stays ? row[i] : moved ? before_row : r;
    }
  }

  // Brings the k-th entry to every lane. Selected after the shuffles: a choice between registers
  // by a run-time index would put the list into local memory.
  __device__ __forceinline__ void find_worst(int k) {
#pragma unroll
    for (int i = 0; i < kRegs; ++i) {
      const float s = __shfl_sync(kAllLanes, score[i], (k - 1) % kWarp);
      const uint32_t r = __shfl_sync(kAllLanes, row[i], (k - 1) % kWarp);
      if ((k - 1) / kWarp != i) continue;
      worst = s;
      worst_row = r;
    }
  }
};

// Offers one entry per lane; lanes without one pass kNoRow.
template <int kRegs>
__device__ __forceinline__ void offer(BestList<kRegs>& list, int k, float s, uint32_t r) {
  unsigned pass = __ballot_sync(kAllLanes, r != kNoRow && beats(s, r, list.worst, list.worst_row));
  if (pass == 0) return;
  for (; pass != 0; pass &= pass - 1) {
    const int from = __ffs(static_cast<int>(pass)) - 1;
    list.insert(__shfl_sync(kAllLanes, s, from), __shfl_sync(kAllLanes, r, from));
  }
  list.find_worst(k);
}

// The best k of `entries` scores that lie `step` groups of 32 apart.
template <int kRegs>
__device__ __forceinline__ void offer_lists(BestList<kRegs>& list, int k, const float* best,
                                            const uint32_t* rows, int64_t entries, int64_t begin,
                                            int64_t step) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t group = begin; group < entries; group += kInFlight * step) {
    float s[kInFlight];
    uint32_t r[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t at = group + i * step + lane;
      s[i] = at < entries ? best[at] : -INFINITY;
      r[i] = at < entries ? rows[at] : kNoRow;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) offer(list, k, s[i], r[i]);
  }
}

template <int kRegs>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    topk_filter_kernel(const float* __restrict__ scores, int64_t stride, int64_t n, int64_t cols,
                       int64_t first, bool fresh, bool aligned, int k, int64_t splits,
                       const int64_t* __restrict__ exclude, float* best, uint32_t* rows) {
  const int lane = threadIdx.x % kWarp;
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (task >= n * splits) return;
  const int64_t row = task / splits, split = task % splits;
  BestList<kRegs> list;
  list.clear();
#pragma unroll
  for (int i = 0; i < kRegs; ++i) {
    const int at = i * kWarp + lane;
    if (fresh || at >= k) continue;
    list.score[i] = best[task * k + at];
    list.row[i] = rows[task * k + at];
  }
  list.find_worst(k);
  const int64_t excluded = exclude == nullptr ? -1 : exclude[row] - first;
  const float* from = scores + row * stride;
  // Ranges of whole groups, so that a group never belongs to two warps.
  const int64_t groups = (cols + kGroup - 1) / kGroup;
  const int64_t begin = groups * split / splits, end = groups * (split + 1) / splits;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t base = group * kGroup + lane * kVector<float>;
    float value[kInFlight * kVector<float>];
    if (aligned && (group + 1) * kGroup <= cols) {
      Pack<float, kVector<float>> packs[kInFlight];  // on their way together
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        packs[i] = reinterpret_cast<const Pack<float, kVector<float>>*>(
            from + base)[static_cast<int64_t>(i) * kWarp];
      }
#pragma unroll
      for (int i = 0; i < kInFlight * kVector<float>; ++i) {
        value[i] = packs[i / kVector<float>].at[i % kVector<float>];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kInFlight * kVector<float>; ++i) {
        const int64_t col = base + i / kVector<float> * kWarp * kVector<float> + i % kVector<float>;
        value[i] = col < cols ? from[col] : -INFINITY;
      }
    }
    // Later rows lose a tie with what is kept, and no row of the group is lower than its first.
    float largest = -INFINITY;
#pragma unroll
    for (float v : value) largest = fmaxf(largest, v);
    const uint32_t lowest = static_cast<uint32_t>(first + group * kGroup);
    if (__ballot_sync(kAllLanes, beats(largest, lowest, list.worst, list.worst_row)) == 0) continue;
    // The values move up instead of an index: registers have none.
#pragma unroll 1
    for (int at = 0; at < kInFlight * kVector<float>; ++at) {
      const int64_t col = base + at / kVector<float> * kWarp * kVector<float> + at % kVector<float>;
      const bool valid = col < cols && col != excluded;
      offer(list, k, value[0], valid ? static_cast<uint32_t>(first + col) : kNoRow);
#pragma unroll
      for (int i = 1; i < kInFlight * kVector<float>; ++i) value[i - 1] = value[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kRegs; ++i) {
    const int at = i * kWarp + lane;
    if (at >= k) continue;
    best[task * k + at] = list.score[i];
    rows[task * k + at] = list.row[i];
  }
}

template <int kRegs>
__global__ void __launch_bounds__(kWarp* kMergeWarps)
    topk_merge_kernel(const float* __restrict__ best, const uint32_t* __restrict__ rows, int k,
                      int64_t splits, float* __restrict__ scores, int64_t* __restrict__ indices) {
  SB_SHARED(float, kept, kMergeWarps * kRegs * kWarp);
  SB_SHARED(uint32_t, kept_rows, kMergeWarps * kRegs * kWarp);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t row = blockIdx.x, entries = splits * k;
  BestList<kRegs> list;
  list.clear();
  offer_lists(list, k, best + row * entries, rows + row * entries, entries,
              static_cast<int64_t>(warp) * kWarp, static_cast<int64_t>(kMergeWarps) * kWarp);
  // Half of the warps give their list to the other half, until one is left.
  for (int half = kMergeWarps / 2; half > 0; half /= 2) {
    if (warp >= half && warp < 2 * half) {
#pragma unroll
      for (int i = 0; i < kRegs; ++i) {
        kept[(warp * kRegs + i) * kWarp + lane] = list.score[i];
        kept_rows[(warp * kRegs + i) * kWarp + lane] = list.row[i];
      }
    }
    __syncthreads();
    if (warp < half) {
      const int other = (warp + half) * kRegs * kWarp;
      offer_lists(list, k, kept + other, kept_rows + other, kRegs * kWarp, 0, kWarp);
    }
  }
  if (warp > 0) return;
#pragma unroll
  for (int i = 0; i < kRegs; ++i) {
    const int at = i * kWarp + lane;
    if (at >= k) continue;
    scores[row * k + at] = list.score[i];
    indices[row * k + at] = list.row[i];
  }
}

// Calls f with the registers per lane that a list of k needs.
template <class F>
void with_registers(int64_t k, F f) {
  if (k < 1 || k > kTopkCudaMax) throw std::invalid_argument("topk: k must lie in 1..128 on CUDA");
  if (k <= kWarp) return f(std::integral_constant<int, 1>{});
  if (k <= 2 * kWarp) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 4>{});
}

}  // namespace

void topk_filter_cuda(const TopkFilterCudaArgs& a, int device, void* stream) {
  if (a.scores.rows == 0) return;
  if (a.scores.dtype != DType::kFloat32)
    throw std::invalid_argument("topk: scores must be float32");
  const bool aligned = is_aligned(a.scores.data) && a.scores.row_stride % kVector<float> == 0;
  with_registers(a.k, [&](auto regs) {
    launch(kOp, topk_filter_kernel<decltype(regs)::value>,
           blocks_for(kOp, a.scores.rows * a.splits, kWarpsPerBlock), kWarp * kWarpsPerBlock,
           device, stream, static_cast<const float*>(a.scores.data), a.scores.row_stride,
           a.scores.rows, a.scores.cols, a.first, a.fresh, aligned, static_cast<int>(a.k), a.splits,
           a.exclude, a.best, a.rows);
  });
}

void topk_merge_cuda(const TopkMergeCudaArgs& a, int device, void* stream) {
  if (a.n == 0) return;
  with_registers(a.k, [&](auto regs) {
    launch(kOp, topk_merge_kernel<decltype(regs)::value>, blocks_for(kOp, a.n, 1),
           kWarp * kMergeWarps, device, stream, a.best, a.rows, static_cast<int>(a.k), a.splits,
           a.scores, a.indices);
  });
}

}  // namespace semobridge
