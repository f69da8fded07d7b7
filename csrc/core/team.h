// How many threads a piece of work is worth.
#pragma once

namespace semobridge {

// As many as leave each `share` of the work, in the caller's unit: with less, waking a thread and
// waiting for it at the end take longer than what it takes off. (static: every instruction set
// compiles its own.)
static inline int worth_threads(double work, double share, int threads) {
  const double useful = work / share;
  return useful < 1 ? 1 : useful < threads ? static_cast<int>(useful) : threads;
}

}  // namespace semobridge
