// The scheduler of the emulation: fibers, barriers, warp exchanges, shared memory.
//
// A few blocks are resident at once, as on a multiprocessor, of a cooperative launch all. In
// shuffled order some warps are slow: what one block reads of another without waiting for it is
// then really missing. Memory is sequentially consistent; of fences only their places are checked.
#include <cuda_runtime.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "watch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {

long launches = 0, barriers = 0, exchanges = 0;
cudaError_t last_error = cudaSuccess;
int device = 0;
std::set<int> contexts;
std::set<std::pair<const void*, int>> loaded;
bool capturing = false;
cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
int processors = 0, blocks_each = 1, left_out = -1;

int primary_context_state(int of, unsigned* flags, int* active) {
  *flags = 0;
  *active = static_cast<int>(contexts.count(of));
  return 0;
}

namespace {

constexpr size_t kStack = size_t{256} << 10;
constexpr size_t kResident = 3;  // blocks
constexpr unsigned kSlow = 16;   // a slow warp is passed over that many times for each turn it gets

struct Block;

struct Fiber {
  ucontext_t context;
  jmp_buf place;  // where it stopped
  char* stack = nullptr;
  Block* block = nullptr;
  dim3 thread;
  unsigned rank = 0;
  bool started = false, done = false, naps = false;
  bool released = false, acquired = false;  // fenced before, and after, its block's counter rose
  bool counts = false;                      // raised a counter, and no fence or barrier since
  Wait wait = Wait::kNone;
  int line = 0;
  void* fake_stack = nullptr;
};

struct Warp {
  // Two generations of slots: a lane may leave its next value while others still read the last one.
  alignas(16) unsigned char slots[2][kWarp * kSlot];
  int arrived = 0;
  unsigned generation = 0;
  Wait kind = Wait::kNone;
  int line = 0;
  bool slow = false;
};

struct Block {
  dim3 index;
  uint32_t number = 0;  // of the grid
  Fiber* fibers = nullptr;
  std::vector<Warp> warps;
  std::map<const void*, std::unique_ptr<unsigned char, decltype(&std::free)>> shared;
  bool counted = false;
  unsigned waiting = 0;  // at the barrier of `line`
  int line = 0;
};

std::vector<Fiber> fibers;  // grows only: stacks are reused
ucontext_t scheduler;
jmp_buf scheduler_place;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
Fiber* current = nullptr;
const std::function<void()>* body = nullptr;
unsigned threads = 0;
bool together = false;  // a cooperative launch
std::string failure;
Order order = Order::kAscending;
std::mt19937_64 shuffle_engine;

// Sanitizers follow the change of stacks only if they are told.
void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom,
                   [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#endif
}

void after_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** bottom,
                  [[maybe_unused]] size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#endif
}

// A change of context costs two system calls, a jump none; the sanitizer follows only the former.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kJump = false;
#else
constexpr bool kJump = true;
#endif

void to_scheduler() {
  Fiber* me = current;
  if (kJump) {
    if (_setjmp(me->place) == 0) _longjmp(scheduler_place, 1);
    return;
  }
  before_switch(me->done ? nullptr : &me->fake_stack, scheduler_stack, scheduler_stack_size);
  swapcontext(&me->context, &scheduler);
  after_switch(me->fake_stack, &scheduler_stack, &scheduler_stack_size);
}

size_t slot_of(const Fiber* fiber) { return static_cast<size_t>(fiber - fibers.data()); }

void fiber_main() {
  after_switch(nullptr, &scheduler_stack, &scheduler_stack_size);
  (*body)();
  current->done = true;
  to_scheduler();
}

void resume(Fiber& fiber) {
  current = &fiber;
  enters(slot_of(&fiber), fiber.stack, kStack);
  threadIdx = fiber.thread;
  blockIdx = fiber.block->index;
  const bool fresh = !fiber.started;
  if (fresh) {
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  if (kJump) {
    if (_setjmp(scheduler_place) != 0) return;
    if (fresh) {
      setcontext(&fiber.context);
    } else {
      _longjmp(fiber.place, 1);
    }
  }
  before_switch(&scheduler_fake_stack, fiber.stack, kStack);
  swapcontext(&scheduler, &fiber.context);
  after_switch(scheduler_fake_stack, nullptr, nullptr);
}

[[noreturn]] void fail(const std::string& what) {
  failure = what;
  for (;;) to_scheduler();
}

std::string place(const Fiber& f) {
  return "thread " + std::to_string(f.rank) +
         (f.done ? " has ended"
                 : std::string(f.wait == Wait::kBlock ? " waits at the barrier of line "
                                                      : " waits for its warp in line ") +
                       std::to_string(f.line));
}

template <class T>
void arrange(std::vector<T>& list) {
  if (order == Order::kDescending) std::reverse(list.begin(), list.end());
  if (order == Order::kShuffled) std::shuffle(list.begin(), list.end(), shuffle_engine);
}

void prepare(Block& block, Fiber* first, dim3 shape) {
  block.fibers = first;
  block.warps.resize(threads / kWarp);
  for (Warp& w : block.warps) {
    w.arrived = 0;
    w.generation = 0;
    w.slow = order == Order::kShuffled && shuffle_engine() % 4 == 0;
  }
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& f = first[i];
    f.block = &block;
    f.thread = dim3(i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y);
    f.rank = i;
    f.started = f.done = f.naps = f.released = f.acquired = false;
    f.wait = Wait::kNone;
    f.fake_stack = nullptr;
  }
  if (watcher != nullptr) watcher->block(slot_of(first), block.number);
}

void run_resident(std::vector<Block>& blocks) {
  std::vector<Fiber*> all;
  for (Block& block : blocks) {
    for (unsigned i = 0; i < threads; ++i) all.push_back(block.fibers + i);
  }
  arrange(all);
  for (bool ready = true; ready;) {
    ready = false;
    bool moves = false;  // somebody did more than look and nap again, or will
    const Fiber* asleep = nullptr;
    for (Fiber* f : all) {
      if (f->done || f->wait != Wait::kNone) continue;
      ready = true;
      if (f->block->warps[f->rank / kWarp].slow && shuffle_engine() % kSlow != 0) {
        moves = true;
        continue;
      }
      f->naps = false;
      resume(*f);
      leaves();
      if (!failure.empty()) throw std::runtime_error("emulation: " + std::exchange(failure, {}));
      if (f->naps) asleep = f;
      moves = moves || !f->naps;
    }
    if (!ready || moves) continue;
    throw std::runtime_error("emulation: blocks wait for ever: thread " +
                             std::to_string(asleep->rank) + " of block " +
                             std::to_string(asleep->block->number) + " naps, and nobody else runs");
  }
  for (Fiber* f : all) {
    if (f->done) continue;
    // Somebody waits for ever; show it beside one of its block that does not wait with it.
    const Fiber* group = f->block->fibers;
    unsigned other = 0;
    while (other + 1 < threads && !group[other].done && group[other].wait == f->wait &&
           group[other].line == f->line) {
      ++other;
    }
    throw std::runtime_error("emulation: divergent synchronisation: " + place(*f) + ", " +
                             place(group[other]));
  }
  if (watcher == nullptr) return;
  for (const Block& block : blocks) watcher->block_ends(slot_of(block.fibers));
}

}  // namespace

void set_order(Order to, uint64_t seed) {
  order = to;
  shuffle_engine.seed(seed);
}

unsigned lane() { return current->rank % kWarp; }

void refuse(const char* what) { fail(what); }

void fence() {
  if (watcher != nullptr) watcher->fence(slot_of(current));
  current->counts = false;
  // Where blocks meet again and again, each fence stands behind one count and before the next.
  if (together || !current->block->counted) current->released = true;
  if (current->block->counted) current->acquired = true;
}

void raises_counter() {
  if (watcher != nullptr) return;  // who follows the memory knows more
  if (current->counts) return;     // counts in a row stand behind the same fences
  Block& block = *current->block;
  for (unsigned i = 0; i < threads; ++i) {
    if (!block.fibers[i].released) fail("a counter rises before all of the block have fenced");
  }
  block.counted = true;
  for (unsigned i = 0; i < threads && together; ++i) {
    block.fibers[i].released = block.fibers[i].acquired = false;
  }
  current->counts = true;
}

void reads_of_others() {
  if (watcher != nullptr) return;
  if (!current->acquired) fail("what other blocks wrote is read without a fence");
}

void nap() {
  current->naps = true;
  to_scheduler();
}

void run(dim3 grid, dim3 block, const std::function<void()>& thread, const void* kernel,
         bool at_once) {
  ++launches;
  threads = block.x * block.y * block.z;
  together = at_once;
  const size_t resident = at_once ? size_t{grid.x} * grid.y * grid.z : kResident;
  if (threads % kWarp != 0) throw std::runtime_error("emulation: a block must hold whole warps");
  while (fibers.size() < threads * resident) {
    fibers.emplace_back();
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::runtime_error("emulation: no memory for a stack");
    fibers.back().stack = static_cast<char*>(stack);
  }
  body = &thread;
  blockDim = block;
  gridDim = grid;
  launches_from(__builtin_frame_address(0));
  if (watcher != nullptr) watcher->launch(kernel, threads, threads * resident);
  std::vector<dim3> indices;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) indices.emplace_back(x, y, z);
    }
  }
  arrange(indices);
  for (size_t first = 0; first < indices.size(); first += resident) {
    std::vector<Block> blocks(std::min(resident, indices.size() - first));
    for (size_t i = 0; i < blocks.size(); ++i) {
      const dim3 at = blocks[i].index = indices[first + i];
      blocks[i].number = (at.z * grid.y + at.y) * grid.x + at.x;
      prepare(blocks[i], fibers.data() + i * threads, block);
    }
    run_resident(blocks);
  }
}

void* shared_memory(const void* site, size_t bytes) {
  auto& shared = current->block->shared;
  auto found = shared.find(site);
  if (found == shared.end()) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, bytes) != 0) throw std::bad_alloc();
    std::memset(memory, 0xff, bytes);  // NaN in every float type
    found = shared
                .emplace(site, std::unique_ptr<unsigned char, decltype(&std::free)>(
                                   static_cast<unsigned char*>(memory), &std::free))
                .first;
    if (watcher != nullptr) {
      watcher->shared(slot_of(current->block->fibers), reinterpret_cast<uintptr_t>(memory), bytes);
    }
  }
  return found->second.get();
}

void sync_block(int line) {
  Fiber* me = current;
  Block& block = *me->block;
  if (block.waiting > 0 && line != block.line) {
    fail("divergent barrier: lines " + std::to_string(block.line) + " and " + std::to_string(line));
  }
  block.line = line;
  me->counts = false;
  if (++block.waiting < threads) {
    me->wait = Wait::kBlock;
    me->line = line;
    to_scheduler();
    return;
  }
  ++barriers;
  if (watcher != nullptr) watcher->barrier(slot_of(block.fibers));
  block.waiting = 0;
  for (unsigned i = 0; i < threads; ++i) block.fibers[i].wait = Wait::kNone;
  to_scheduler();  // the last to arrive is not the first to go on
}

const unsigned char* exchange(Wait kind, int line, const void* value, size_t bytes, unsigned mask) {
  Fiber* me = current;
  if (mask != 0xffffffffu) fail("a warp operation must name all 32 lanes");
  if (bytes > kSlot) fail("a warp operation exchanges at most 16 bytes");
  Warp& w = me->block->warps[me->rank / kWarp];
  if (w.arrived > 0 && (w.kind != kind || w.line != line)) {
    fail("divergent warp: lines " + std::to_string(w.line) + " and " + std::to_string(line));
  }
  w.kind = kind;
  w.line = line;
  const unsigned parity = w.generation % 2;
  std::memcpy(w.slots[parity] + me->rank % kWarp * kSlot, value, bytes);
  if (++w.arrived < kWarp) {
    me->wait = kind;
    me->line = line;
    to_scheduler();
  } else {
    ++exchanges;
    w.arrived = 0;
    ++w.generation;
    const unsigned first = me->rank / kWarp * kWarp;
    if (watcher != nullptr) watcher->exchange(slot_of(me->block->fibers) + first, kind);
    for (unsigned i = 0; i < kWarp; ++i) me->block->fibers[first + i].wait = Wait::kNone;
    to_scheduler();
  }
  return w.slots[parity];
}

}  // namespace cuda_emulation
