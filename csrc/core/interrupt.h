// How a long kernel learns that its caller wants it to end (Ctrl-C), without knowing Python.
//
//   Watch watch;
//   #pragma omp parallel
//     #pragma omp for
//     for (...) {
//       if (watch.stop()) continue;   // every thread, between pieces of work of a few milliseconds
//       ...
//     }
//   watch.finish();                   // outside of the region: throws Interrupted
//
// Only the thread that called the kernel asks, at most every 50 ms; the others see what it was
// told. What was written until then is garbage: the caller drops it.
#pragma once

#include <cstdint>

namespace semobridge {

struct Interrupted {};

// `poll` returns true where the work is to end; it runs on the calling thread. Null: never ends.
void set_interrupt_poll(bool (*poll)());

// False while this thread is inside of `poll`: a kernel started there would overwrite the scratch
// memory of the one that polls.
bool may_start_kernel();

// Nothing is inline: the kernels that include this are compiled for several instruction sets, and
// the linker keeps one copy of an inline function.
class Watch {
 public:
  Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Asks the caller now and then; inside of a parallel region only the first thread does.
  bool stop();
  // Whether it has been told to end: the same for all threads between two barriers between which
  // none of them calls stop().
  bool stopped() const;
  void finish() const;

 private:
  bool stopped_ = false;
  int64_t next_;  // when to ask again, in nanoseconds; the first thread's alone
};

}  // namespace semobridge
