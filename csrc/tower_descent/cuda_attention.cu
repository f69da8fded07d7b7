// A launch for each head and a few samples (cuda_attention.cuh).
#include "tower_descent/cuda_attention.cuh"

namespace semobridge {
namespace {

using namespace few_attention;

constexpr char kOp[] = "few_attention";
// Per multiprocessor, by the elements of a lane and of a load: so many that no register spills.
template <int kOwn, int kStep>
constexpr int kBlocks = (kOwn == 8 ? 6 : 4) - (kStep == 1);
template <int kOwn, int kStep>
constexpr int kGradBlocks = kOwn == 8 ? (kStep == 8 ? 5 : 4) : 3 - (kStep == 1);

template <class T, int kOwn, int kStep>
__global__ void __launch_bounds__(kThreads, kBlocks<kOwn, kStep>)
    attention_fwd_kernel(AttentionParams<T> a, T* __restrict__ o) {
  constexpr int kWidest = kOwn * kLanes;
  SB_SHARED(T, keys, kTile * kWidest);
  SB_SHARED(T, values, kTile * kWidest);
  a.block = static_cast<int>(blockIdx.x);
  attention_forward<T, kOwn, kStep>(a, o, keys, values);
}

template <class T, int kOwn, int kStep>
__global__ void __launch_bounds__(kThreads, kGradBlocks<kOwn, kStep>)
    attention_bwd_kernel(AttentionParams<T> a, const T* __restrict__ grad_o,
                         T* __restrict__ grad_qkv) {
  constexpr int kWidest = kOwn * kLanes;
  SB_SHARED(T, keys, kTile * kWidest);
  SB_SHARED(T, values, kTile * kWidest);
  SB_SHARED(float, means, kAttentionSlots);  // Σ p·dp of the block's queries
  a.block = static_cast<int>(blockIdx.x);
  attention_backward<T, kOwn, kStep>(a, grad_o, grad_qkv, keys, values, means);
}

// Calls f with the storage type, the elements of a head that a lane holds, and those of a load.
template <class F>
void with_shape(const AttentionCudaArgs& a, const void* rows, const void* grads, F f) {
  check_sizes(a);
  const bool aligned = is_vectored(a, rows, grads);
  with_storage(kOp, a.dtype, [&](auto storage) {
    constexpr int kStep = kVector<typename decltype(storage)::type>;
    const auto with_own = [&](auto own) {
      if (aligned) return f(storage, own, std::integral_constant<int, kStep>{});
      f(storage, own, std::integral_constant<int, 1>{});
    };
    if (a.width <= 8 * kLanes) return with_own(std::integral_constant<int, 8>{});
    with_own(std::integral_constant<int, 16>{});
  });
}

}  // namespace

void attention_cuda(const AttentionCudaArgs& a, int device, void* stream) {
  if (a.samples * a.heads * a.queries == 0) return;
  with_shape(a, a.o, nullptr, [&](auto storage, auto own, auto step) {
    using T = typename decltype(storage)::type;
    launch(kOp, attention_fwd_kernel<T, decltype(own)::value, decltype(step)::value>, blocks_of(a),
           kThreads, device, stream, params_of<T>(a), static_cast<T*>(a.o));
  });
}

void attention_grad_cuda(const AttentionGradCudaArgs& g, int device, void* stream) {
  const AttentionCudaArgs& a = g.forward;
  if (a.samples * a.heads * a.slots == 0) return;
  with_shape(a, g.grad_o, g.grad_qkv, [&](auto storage, auto own, auto step) {
    using T = typename decltype(storage)::type;
    launch(kOp, attention_bwd_kernel<T, decltype(own)::value, decltype(step)::value>, blocks_of(a),
           kThreads, device, stream, params_of<T>(a), static_cast<const T*>(g.grad_o),
           static_cast<T*>(g.grad_qkv));
  });
}

}  // namespace semobridge
