// Every kernel of the core from several threads at once, each with a team of its own: inputs and
// packed matrices are shared, outputs are not, and each result has the bits of a serial call.
//
//   threads [--race]      --race: two calls write one output, which ThreadSanitizer must see
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "bridge_training/bridge_training.h"
#include "core/interrupt.h"
#include "core/isa.h"
#include "entries.h"
#include "topk/topk.h"

extern "C" unsigned gomp_threads_widest();

namespace entries {

std::vector<Entry> g_entries;

}  // namespace entries

namespace {

using namespace entries;

std::atomic<bool> g_end{false};
std::atomic<int> g_polls{0};
bool poll() {
  g_polls.fetch_add(1, std::memory_order_relaxed);
  return g_end.load(std::memory_order_relaxed);
}

int g_failures = 0;
void check(bool ok, const char* what, const char* of) {
  if (ok) return;
  ++g_failures;
  std::printf("FAILED %s: %s\n", of, what);
}

// Each thread makes every call, in an order and with a team size of its own. The first entry, which
// packs, has no team.
void run_at_once() {
  constexpr int kCallers = 4;
  const size_t count = g_entries.size();
  std::vector<std::vector<Bytes>> found(kCallers, std::vector<Bytes>(count));
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (size_t i = 0; i < count; ++i) {
        // Two callers begin alike: they meet in the same kernel.
        const size_t entry = (i + static_cast<size_t>(caller / 2) * count / 2) % count;
        found[caller][entry] = g_entries[entry].call(1 + caller % 3);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (size_t i = 0; i < count; ++i) {
    const char* name = g_entries[i].name.c_str();
    const Bytes alone = g_entries[i].call(1);
    gomp_threads_widest();
    check(g_entries[i].call(3) == alone, "not the bits of a serial call", name);
    check((gomp_threads_widest() > 1) == (i > 0), "no team: the sizes are too small", name);
    bool some = false;
    for (unsigned char byte : alone) some |= byte != 0;
    check(some, "nothing was computed", name);
    for (const auto& of_caller : found) {
      check(of_caller[i] == alone, "not the bits of a serial call", name);
    }
  }
}

// Ctrl-C while two threads compute with teams: both end, and no thread waits for one that has left.
void run_interrupted() {
  constexpr int64_t kN = 64, kG = 20'000, kD = 64, kK = 3;
  const Floats x(kN * kD, 95, 1), y(kG * kD, 96, 1);
  std::atomic<int> ended{0};
  g_end = true;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller) {
    callers.emplace_back([&] {
      Floats scores(kN * kK);
      Counts indices(kN * kK);
      Array<char> work(topk_workspace(kN, kG, kK, DType::kFloat32, 3));
      TopkArgs a;
      a.queries = input(x, kN, kD), a.gallery = input(y, kG, kD), a.k = kK;
      a.scores = scores.data, a.indices = indices.data, a.workspace = work.data, a.threads = 3;
      try {
        for (int i = 0; i < 10'000; ++i) topk(a);  // one call asks only after 50 ms
      } catch (const Interrupted&) {
        ++ended;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  g_end = false;
  check(ended == 2 && g_polls > 0, "a call went on after it was told to end", "interrupt");
}

void race() {
  Floats out(1000), gradient(1000, 91, 1), first(1000), second(1000);
  AdamwArgs a;
  a.size = 1000, a.parameter = out.data, a.gradient = gradient.data;
  a.first = first.data, a.second = second.data;
  std::thread other([&] { adamw(a); });
  adamw(a);
  other.join();
}

}  // namespace

int main(int argc, char** argv) {
  set_interrupt_poll(poll);
  if (argc > 1 && std::strcmp(argv[1], "--race") == 0) {
    race();
    return 0;
  }
  add_products();
  add_rankings();
  add_losses();
  add_blends();
  add_cache_grid();
  add_training();
  add_tower();
  run_at_once();
  run_interrupted();
  std::printf("%s: %zu entries, %d failures\n", isa_name(active_isa()), g_entries.size(),
              g_failures);
  return g_failures == 0 ? 0 : 1;
}
