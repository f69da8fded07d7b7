// Who follows what the threads of a kernel touch: the detector of races, or the count of sectors
// and bank conflicts.
//
// g++ -fsanitize=thread puts a call before every load and store. hooks.cpp holds the functions that
// it calls, in place of ThreadSanitizer's runtime, which knows no fences by themselves and no
// lanes.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

namespace cuda_emulation {

struct Access {
  uintptr_t at;
  size_t size;
  bool write;
  uintptr_t code;  // the return address of the call before it
};

// A slot is a resident thread's place; the threads of a block lie side by side.
class Watcher {
 public:
  virtual ~Watcher() = default;
  virtual void launch(const void* kernel, unsigned threads, size_t slots) = 0;
  virtual void block(size_t first, uint32_t index) = 0;  // its threads are about to start
  virtual void block_ends(size_t first) = 0;
  virtual void shared(size_t first, uintptr_t at, size_t size) = 0;  // a new array of the block
  virtual void barrier(size_t first) = 0;                            // all of the block are here
  virtual void exchange(size_t first, Wait kind) = 0;                // all of the warp are here
  virtual void fence(size_t slot) = 0;
  virtual void atomic(size_t slot, const Access& access) = 0;
  virtual void access(size_t slot, const Access& access) = 0;
};

extern Watcher* watcher;  // none: nobody follows

Watcher* races();
Watcher* traffic();

// What the count found, by instruction: kernel, code (both from the module's start), shared
// memory?, a store?, requests, what they moved, what they need, and the worst request's two. A
// request is one instruction of a warp; global memory moves sectors of 32 bytes, shared memory
// wavefronts.
using Row =
    std::tuple<uintptr_t, uintptr_t, bool, bool, uint64_t, uint64_t, uint64_t, uint32_t, uint32_t>;
std::vector<Row> traffic_rows();
uintptr_t from_start(uintptr_t code);  // of the module

// hooks.cpp: which thread runs, and where its own variables lie.
void launches_from(const void* frame);
void enters(size_t slot, const void* stack, size_t size);
void leaves();

}  // namespace cuda_emulation
