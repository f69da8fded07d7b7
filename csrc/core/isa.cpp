// Picks the instruction set, once, and calls its kernels.
#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/interrupt.h"
#include "core/table.h"

namespace semobridge {
namespace portable {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace {

constexpr Isa kAll[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512};

const KernelTable* table_of(Isa isa) {
  switch (isa) {
#ifdef SB_HAVE_X86
    case Isa::kAvx512:
      return &avx512::kTable;
    case Isa::kAvx2:
      return &avx2::kTable;
#endif
    case Isa::kPortable:
      return &portable::kTable;
    default:
      return nullptr;
  }
}

std::string runnable_names() {
  std::string names;
  for (Isa isa : kAll) {
    if (isa_runnable(isa)) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  return names;
}

Isa parse_isa(const char* name) {
  for (Isa isa : kAll) {
    if (std::strcmp(name, isa_name(isa)) != 0) continue;
    if (isa_runnable(isa)) return isa;
    throw std::invalid_argument(
        std::string(
            "SEMOBRIDGE_ISA: must be an instruction set of this build and processor, got ") +
        name + "; available: " + runnable_names());
  }
  throw std::invalid_argument(
      std::string("SEMOBRIDGE_ISA: must be one of portable, avx2, avx512, got ") + name +
      "; available here: " + runnable_names());
}

Isa initial_isa() {
  const char* wanted = std::getenv("SEMOBRIDGE_ISA");
  if (wanted != nullptr && *wanted != '\0') return parse_isa(wanted);
  for (Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (isa_runnable(isa)) return isa;
  }
  return Isa::kPortable;
}

[[noreturn]] void refuse(const char* kernel) {
  throw std::runtime_error(std::string(kernel) +
                           ": called by a signal handler inside of another kernel; let the "
                           "handler set a flag and return, and call it later");
}

std::atomic<int> g_isa{-1};

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

bool isa_compiled(Isa isa) { return table_of(isa) != nullptr; }

bool isa_runnable(Isa isa) {
  if (!isa_compiled(isa)) return false;
#ifdef SB_HAVE_X86
  if (isa == Isa::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
  if (isa == Isa::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
#endif
  return true;
}

Isa active_isa() {
  int isa = g_isa.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(initial_isa());
    g_isa.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void set_isa(const char* name) { g_isa.store(static_cast<int>(parse_isa(name))); }

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

// What the ops' headers declare: the kernel of the active set.
#define SB_KERNEL(name, Args)               \
  void name(const Args& args) {             \
    if (!may_start_kernel()) refuse(#name); \
    table_of(active_isa())->name(args);     \
  }
#include "core/kernels.def"

}  // namespace semobridge
