// The step's loop over its phases, and the list as the host writes it.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/launch.cuh"
#include "tower_descent/cuda_step.cuh"

namespace semobridge {
namespace {

constexpr char kOp[] = "tower_step";
// Per multiprocessor: 256 on 128 of them are all tiles of a product of 128 rows. More blocks would
// have to spill what a phase keeps in registers, and meet later.
constexpr int kResident = 2;

template <class T>
__global__ void __launch_bounds__(kStepThreads, kResident)
    tower_step_kernel(const StepRecord* phases, int first, int last, const StepEnds<T> ends,
                      unsigned long long* arrived) {
  using Room = StepRoom<T>;
  SB_SHARED(Room, room, 1);
  SB_SHARED(unsigned long long, won, 1);  // heads whose rows this block has completed
  unsigned long long target = 0;
  if (threadIdx.x == 0) *won = 0;
#pragma unroll 1
  for (int i = first; i < last; ++i) {
    // A launch that begins here has counted nothing: its blocks take an attention's tiles in turn.
    run_phase(phases[i], ends, room, won, i != first && phases[i].by_head != 0);
    if (i + 1 == last) return;
    const StepRecord& next = phases[i + 1];
    if (next.by_head != 0) continue;
    if (next.matrix != nullptr) {
      prefetch_rows(next.matrix, next.matrix_rows, next.matrix_bytes, next.matrix_stride);
    }
    grid_barrier(arrived, &target);  // the next phase reads what this one wrote
    if (threadIdx.x == 0) *won = 0;
  }
}

// Calls f with the storage type. Not float32: the two parts of TF32 that its products take leave
// too few registers for the arguments of a phase, and some would spill.
template <class F>
void with_half(DType dtype, F f) {
  if (dtype == DType::kFloat16) return f(Storage<__half>{});
  if (dtype == DType::kBFloat16) return f(Storage<__nv_bfloat16>{});
  throw std::invalid_argument("tower_step: only float16 and bfloat16 go in one launch");
}

// Writes a phase's struct, in the types of its kernel.
template <class T>
class Writer {
 public:
  explicit Writer(StepRecord* record) : record_(record) {}

  void operator()(const LayerNormCudaArgs& a) {
    need(rows(a.x) && rows(a.y) && rows(a.delta) && rows(a.total) && is_aligned(a.weight) &&
         is_aligned(a.bias));
    put(PhaseKind::kNorm, (a.x.rows + kNormWarps - 1) / kNormWarps,
        NormPhase<T>{in(a.x), in(a.delta), out(a.total), a.weight, a.bias, out(a.y), a.mean, a.rstd,
                     a.x.row_stride, a.delta.row_stride, a.total.row_stride, a.y.row_stride,
                     a.x.rows, a.x.cols, static_cast<float>(a.eps)});
  }
  void operator()(const LayerNormGradCudaArgs& a) {
    need(rows(a.x) && rows(a.grad_y) && rows(a.grad_x) && rows(a.residual) && is_aligned(a.weight));
    put(PhaseKind::kNormGrad, (a.x.rows + kNormWarps - 1) / kNormWarps,
        NormGradPhase<T>{in(a.x), in(a.grad_y), a.weight, a.mean, a.rstd, in(a.residual),
                         out(a.grad_x), a.x.row_stride, a.grad_y.row_stride, a.residual.row_stride,
                         a.grad_x.row_stride, a.x.rows, a.x.cols});
  }
  void operator()(const FewRowsCudaArgs& a) {
    check_few_rows(a);
    const FewRowsPlace grid = few_rows_grid<T>(a);
    put(PhaseKind::kProduct, int64_t{grid.tiles} * grid.row_tiles * grid.splits,
        ProductPhase<T>{few_rows_params<T>(a), grid, a.before, a.transposed ? 1 : 0});
    record_->matrix = a.weight.data;
    record_->matrix_rows = static_cast<int32_t>(a.weight.rows);
    record_->matrix_bytes = static_cast<int32_t>(a.weight.cols * sizeof(T));
    record_->matrix_stride = a.weight.row_stride * static_cast<int64_t>(sizeof(T));
  }
  void operator()(const AttentionCudaArgs& a) {
    attention(PhaseKind::kAttention, a, a.o, nullptr, a.o);
  }
  void operator()(const AttentionGradCudaArgs& g) {
    attention(PhaseKind::kAttentionGrad, g.forward, g.grad_o, g.grad_o, g.grad_qkv);
  }
  // Tiles of the ends follow from sizes that come with the launch.
  void operator()(const StepLoss&) { put(PhaseKind::kLoss, 1, 0); }
  void operator()(const StepUpdate&) { put(PhaseKind::kUpdate, 1, 0); }

 private:
  template <class M>
  static const T* in(const M& m) {
    return static_cast<const T*>(m.data);
  }
  static T* out(const Matrix& m) { return static_cast<T*>(m.data); }
  template <class M>
  static bool rows(const M& m) {
    return m.data == nullptr || rows_aligned(m.data, m.dtype, m.cols, m.row_stride);
  }
  static void need(bool aligned) {
    if (!aligned) throw std::invalid_argument("tower_step: rows must be aligned to 16 bytes");
  }
  void attention(PhaseKind kind, const AttentionCudaArgs& a, const void* wide, const void* grad_o,
                 void* to) {
    need(few_attention::is_vectored(a, wide, kind == PhaseKind::kAttention ? nullptr : to));
    few_attention::check_sizes(a);
    put(kind, few_attention::blocks_of(a),
        AttentionPhase<T>{few_attention::params_of<T>(a), static_cast<const T*>(grad_o),
                          static_cast<T*>(to)});
  }
  template <class P>
  void put(PhaseKind kind, int64_t tiles, const P& body) {
    static_assert(sizeof(P) <= StepRecord::kBody, "a phase does not fit its record");
    record_->kind = kind;
    record_->tiles = static_cast<int32_t>(tiles);
    std::memcpy(record_->body, &body, sizeof(P));
  }

  StepRecord* record_;
};

template <class T>
StepEnds<T> ends_of(const TowerStepCudaArgs& s) {
  const CosineLossCudaArgs& a = s.loss;
  const AdamwCudaArgs& u = s.update;
  return {static_cast<const T*>(a.features.data),
          a.features.row_stride,
          static_cast<const float*>(a.targets.data),
          a.targets.row_stride,
          static_cast<float>(a.grad_scale),
          a.step,
          a.step_now,
          a.losses,
          static_cast<T*>(a.grad.data),
          a.grad.row_stride,
          a.unit,
          a.features.rows,
          a.features.cols,
          static_cast<const T*>(u.grad_x.data),
          u.grad_x.row_stride,
          u.source,
          u.slots,
          u.tokens,
          u.exp_avg,
          u.exp_avg_sq,
          u.rates,
          u.corrections,
          u.step_now,
          u.step,
          factors_of(u),
          static_cast<float>(u.grad_factor),
          u.base,
          u.base_samples,
          static_cast<T*>(u.x.data),
          u.x.row_stride,
          u.vectors,
          u.width};
}

constexpr auto dtype_of_phase = [](const auto& a) {
  using Args = std::decay_t<decltype(a)>;
  if constexpr (std::is_same_v<Args, AttentionCudaArgs>) {
    return a.dtype;
  } else if constexpr (std::is_same_v<Args, AttentionGradCudaArgs>) {
    return a.forward.dtype;
  } else if constexpr (std::is_empty_v<Args>) {
    return DType::kBFloat16;  // the ends' records are the same in both
  } else {
    return a.x.dtype;
  }
};

}  // namespace

int64_t step_phase_bytes() { return static_cast<int64_t>(sizeof(StepRecord)); }

void write_step_phase(const StepPhase& phase, void* to) {
  StepRecord record;
  std::memset(static_cast<void*>(&record), 0, sizeof(record));
  with_half(std::visit(dtype_of_phase, phase), [&](auto storage) {
    std::visit(Writer<typename decltype(storage)::type>(&record), phase);
  });
  std::memcpy(to, &record, sizeof(record));
}

int64_t step_tiles(const void* phases, int64_t bytes) {
  const auto* records = static_cast<const char*>(phases);
  int32_t most = 0;
  for (int64_t at = 0; at < bytes; at += step_phase_bytes()) {
    StepRecord record;
    std::memcpy(static_cast<void*>(&record), records + at, sizeof(record));
    most = std::max(most, record.tiles);
  }
  return most;
}

int64_t join_step_heads(void* phases, int64_t bytes, int* done) {
  using Product = ProductPhase<__half>;  // the same in both half types
  using Attention = AttentionPhase<__half>;
  const int64_t size = step_phase_bytes();
  const auto at = [&](int64_t place) { return static_cast<char*>(phases) + place; };
  int64_t joined = 0;
  for (int64_t place = size; place < bytes; place += size) {
    StepRecord before, record;
    std::memcpy(static_cast<void*>(&before), at(place - size), sizeof(before));
    std::memcpy(static_cast<void*>(&record), at(place), sizeof(record));
    const bool grad = record.kind == PhaseKind::kAttentionGrad;
    if (before.kind != PhaseKind::kProduct || (!grad && record.kind != PhaseKind::kAttention)) {
      continue;
    }
    Product product;
    Attention attention;
    std::memcpy(static_cast<void*>(&product), before.body, sizeof(product));
    std::memcpy(static_cast<void*>(&attention), record.body, sizeof(attention));
    const auto& a = attention.params;
    // With more samples one block would take several rounds, which cost more than to meet.
    const bool alone = record.tiles == a.heads && a.heads <= kMostStepHeads;
    const int64_t stride = grad ? a.o_stride : a.qkv_stride;
    const int64_t off = product.params.y - (grad ? attention.grad_o : a.qkv);
    const int64_t columns = static_cast<int64_t>(a.heads) * a.width * (grad ? 1 : 3);
    if (!alone || product.params.cols != columns || product.params.y_stride != stride ||
        off % stride != 0) {
      continue;
    }
    before.heads = {done, a.heads, a.width};
    record.by_head = 1;
    std::memcpy(at(place - size), static_cast<const void*>(&before), sizeof(before));
    std::memcpy(at(place), static_cast<const void*>(&record), sizeof(record));
    ++joined;
  }
  return joined;
}

int64_t tower_step_blocks(DType dtype, int device) {
  int64_t blocks = 0;
  if (dtype == DType::kFloat32) return blocks;
  with_half(dtype, [&](auto storage) {
    const auto kernel = tower_step_kernel<typename decltype(storage)::type>;
    blocks = resident_blocks(kOp, reinterpret_cast<const void*>(kernel), kStepThreads, device);
  });
  return blocks;
}

void tower_step_cuda(const TowerStepCudaArgs& a, int device, void* stream) {
  if (a.first >= a.last) return;
  with_half(a.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    launch_at_once(kOp, tower_step_kernel<T>, static_cast<unsigned>(a.blocks), kStepThreads, device,
                   stream, static_cast<const StepRecord*>(a.phases), a.first, a.last, ends_of<T>(a),
                   reinterpret_cast<unsigned long long*>(a.arrived));
  });
}

}  // namespace semobridge
