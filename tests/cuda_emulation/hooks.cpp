// What -fsanitize=thread calls, in place of libtsan: passes a kernel's accesses on. Variables of
// the thread itself are registers or local memory on a GPU, and nobody else's.
#include <dlfcn.h>

#include "watch.h"

namespace cuda_emulation {

Watcher* watcher = nullptr;

namespace {

bool inside = false;
size_t slot = 0;
uintptr_t stack = 0;
size_t stack_size = 0;
uintptr_t frame = 0;  // of the launch: its arguments lie behind it

constexpr size_t kFrames = size_t{64} << 10;

bool is_index(uintptr_t at) {
  for (const dim3* d : {&threadIdx, &blockIdx, &blockDim, &gridDim}) {
    if (at - reinterpret_cast<uintptr_t>(d) < sizeof(dim3)) return true;
  }
  return false;
}

bool own(uintptr_t at) {
  return !inside || at - stack < stack_size || at - frame < kFrames || is_index(at);
}

inline void seen(const void* at, size_t size, bool write, void* code) {
  if (watcher == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(at);
  if (own(address)) return;
  watcher->access(slot, {address, size, write, reinterpret_cast<uintptr_t>(code)});
}

inline void seen_atomic(const void* at, size_t size, bool write, void* code) {
  if (watcher == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(at);
  if (own(address)) return;
  watcher->atomic(slot, {address, size, write, reinterpret_cast<uintptr_t>(code)});
}

}  // namespace

void enters(size_t of, const void* bottom, size_t size) {
  inside = true;
  slot = of;
  stack = reinterpret_cast<uintptr_t>(bottom);
  stack_size = size;
}

void launches_from(const void* at) { frame = reinterpret_cast<uintptr_t>(at); }

void leaves() { inside = false; }

void touches_atomically(const void* at, size_t size, void* code) {
  seen_atomic(at, size, true, code);
}

uintptr_t from_start(uintptr_t code) {
  Dl_info info;
  if (code == 0 || dladdr(reinterpret_cast<void*>(code), &info) == 0) return 0;
  return code - reinterpret_cast<uintptr_t>(info.dli_fbase);
}

}  // namespace cuda_emulation

using cuda_emulation::seen;
using cuda_emulation::seen_atomic;

#define HERE __builtin_return_address(0)
#define OF_SIZE(n)                                                                        \
  void __tsan_read##n(void* at) { seen(at, n, false, HERE); }                             \
  void __tsan_write##n(void* at) { seen(at, n, true, HERE); }                             \
  void __tsan_unaligned_read##n(void* at) { seen(at, n, false, HERE); }                   \
  void __tsan_unaligned_write##n(void* at) { seen(at, n, true, HERE); }                   \
  /* A volatile access is one that other threads may wait for: as strong as an atomic. */ \
  void __tsan_volatile_read##n(void* at) { seen_atomic(at, n, false, HERE); }             \
  void __tsan_volatile_write##n(void* at) { seen_atomic(at, n, true, HERE); }

extern "C" {
OF_SIZE(1)
OF_SIZE(2)
OF_SIZE(4)
OF_SIZE(8)
OF_SIZE(16)
void __tsan_read_range(void* at, size_t size) { seen(at, size, false, HERE); }
void __tsan_write_range(void* at, size_t size) { seen(at, size, true, HERE); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// Atomics of the host's code alone, the guards of its static variables: kernels have none of their
// own.
uint8_t __tsan_atomic8_load(const volatile uint8_t* at, int) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
uint32_t __tsan_atomic32_fetch_add(volatile uint32_t* at, uint32_t value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
}
