#include "core/interrupt.h"

#include <omp.h>

#include <atomic>
#include <chrono>

namespace semobridge {
namespace {

constexpr int64_t kPollEvery = 50'000'000;  // ns: far below what a person notices

std::atomic<bool (*)()> g_poll{nullptr};
thread_local bool t_polling = false;

struct Polling {
  Polling() { t_polling = true; }
  ~Polling() { t_polling = false; }
};

int64_t now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

}  // namespace

void set_interrupt_poll(bool (*poll)()) { g_poll = poll; }

bool may_start_kernel() { return !t_polling; }

Watch::Watch() : next_(now() + kPollEvery) {}

bool Watch::stopped() const { return __atomic_load_n(&stopped_, __ATOMIC_RELAXED); }

bool Watch::stop() {
  if (stopped()) return true;
  if (omp_get_thread_num() != 0) return false;
  const int64_t time = now();
  if (time < next_) return false;
  bool (*const poll)() = g_poll;
  if (poll == nullptr) return false;
  const Polling guard;
  if (poll()) __atomic_store_n(&stopped_, true, __ATOMIC_RELAXED);
  next_ = now() + kPollEvery;
  return stopped();
}

void Watch::finish() const {
  if (stopped()) throw Interrupted();
}

}  // namespace semobridge
