// Attention of a few queries over constant prefix keys and the sample's own keys, one head of one
// sample at a time, and its gradient. Probabilities are kept for the backward pass, in the order of
// the query's list of visible keys: the prefix, then its own slots.
#pragma once
#include "tower_descent/rowwise.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
struct HeadView {
  const T* q;         // slot 0's query of this head; constant for a pooling layer
  int64_t q_stride;   // between slots
  const T* k;         // slot 0's own key; values lie `value` elements further
  T* grad_k;          // the same places in the gradient, or null
  T* grad_q;          // or null
  int64_t stride;     // between slots, of own keys and of gradients
  int64_t value;      // from a key to its value
  const T* prefix_k;  // [P, T] of this head
  const T* prefix_v;
  int64_t prefix_stride;
  int64_t prefix, width, slots;  // P, head width, n
  const int32_t* visible;        // lists of own slots
  const int32_t* visible_begin;
};

template <class T>
SB_INLINE const T* key_of(const HeadView<T>& h, const int32_t* list, int64_t j) {
  return j < h.prefix ? h.prefix_k + j * h.prefix_stride : h.k + list[j - h.prefix] * h.stride;
}

template <class T>
SB_INLINE const T* value_of(const HeadView<T>& h, const int32_t* list, int64_t j) {
  return j < h.prefix ? h.prefix_v + j * h.prefix_stride
                      : h.k + h.value + list[j - h.prefix] * h.stride;
}

// p [queries, ldp] and o (slot stride ldo) are written.
template <class T>
SB_INLINE void head_forward(const HeadView<T>& h, int64_t queries, T* p, int64_t ldp, T* o,
                            int64_t ldo) {
  const T scale = T(1) / static_cast<T>(__builtin_sqrt(static_cast<double>(h.width)));
  for (int64_t i = 0; i < queries; ++i, p += ldp, o += ldo) {
    const int32_t* list = h.visible + h.visible_begin[i];
    const int64_t keys = h.prefix + h.visible_begin[i + 1] - h.visible_begin[i];
    const T* q = h.q + i * h.q_stride;
    T largest = -__builtin_huge_val();
    for (int64_t j = 0; j < keys; ++j) {
      p[j] = dot(q, key_of(h, list, j), h.width) * scale;
      if (p[j] > largest) largest = p[j];
    }
    for (int64_t j = keys; j < ldp; ++j) p[j] = largest;
    for (int64_t j = 0; j < ldp; j += Simd<T>::kLanes) {
      store(p + j, exp_vec(load(p + j) - largest));
    }
    T sum = 0;
    for (int64_t j = 0; j < keys; ++j) sum += p[j];
    const T inverse = T(1) / sum;
    for (int64_t d = 0; d < h.width; ++d) o[d] = 0;
    for (int64_t j = 0; j < keys; ++j) {
      p[j] *= inverse;
      axpy(p[j], value_of(h, list, j), h.width, o);
    }
  }
}

// From grad_o: gradients of the own keys and values (all slots; zeroed first) and of the queries.
// With dp_j = grad_o·v_j:  ds_j = p_j (dp_j − Σ p·dp)/√width. `line` holds one row of p.
template <class T>
SB_INLINE void head_backward(const HeadView<T>& h, int64_t queries, const T* p, int64_t ldp,
                             const T* grad_o, int64_t ldo, T* line) {
  const T scale = T(1) / static_cast<T>(__builtin_sqrt(static_cast<double>(h.width)));
  for (int64_t s = 0; s < h.slots; ++s) {
    for (int64_t d = 0; d < h.width; ++d) {
      h.grad_k[s * h.stride + d] = 0;
      h.grad_k[s * h.stride + h.value + d] = 0;
    }
  }
  for (int64_t i = 0; i < queries; ++i, p += ldp, grad_o += ldo) {
    const int32_t* list = h.visible + h.visible_begin[i];
    const int64_t keys = h.prefix + h.visible_begin[i + 1] - h.visible_begin[i];
    T mean = 0;
    for (int64_t j = 0; j < keys; ++j) {
      line[j] = dot(grad_o, value_of(h, list, j), h.width);
      mean += p[j] * line[j];
    }
    T* grad_q = h.grad_q == nullptr ? nullptr : h.grad_q + i * h.stride;
    for (int64_t d = 0; d < h.width && grad_q != nullptr; ++d) grad_q[d] = 0;
    const T* q = h.q + i * h.q_stride;
    for (int64_t j = 0; j < keys; ++j) {
      const T ds = p[j] * (line[j] - mean) * scale;
      if (grad_q != nullptr) axpy(ds, key_of(h, list, j), h.width, grad_q);
      if (j < h.prefix) continue;
      T* grad_k = h.grad_k + list[j - h.prefix] * h.stride;
      axpy(ds, q, h.width, grad_k);
      axpy(p[j], grad_o, h.width, grad_k + h.value);
    }
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge
