// Picks the instruction set, once, and calls its kernels.
#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/interrupt.h"
#include "core/table.h"
#ifdef SB_HAVE_X86
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

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

const KernelTable* table_of(Isa isa) {
  switch (isa) {
#ifdef SB_HAVE_X86
    case Isa::kAvx512:
    case Isa::kAvx512Dot:
      return &avx512::kTable;
    case Isa::kAvx2:
    case Isa::kAvx2Dot:
      return &avx2::kTable;
#endif
#ifdef __aarch64__
    case Isa::kNeonDot:
#endif
    case Isa::kPortable:
      return &portable::kTable;
    default:
      return nullptr;
  }
}

// Those of this kind of processor, or those that run on this one.
std::string names(bool runnable) {
  std::string all;
  for (Isa isa : kIsas) {
    if (runnable ? !isa_runnable(isa) : !isa_compiled(isa)) continue;
    all += (all.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  return all;
}

Isa parse_isa(const char* name) {
  for (Isa isa : kIsas) {
    if (std::strcmp(name, isa_name(isa)) != 0) continue;
    if (isa_runnable(isa)) return isa;
    throw std::invalid_argument(
        std::string(
            "SEMOBRIDGE_ISA: must be an instruction set of this build and processor, got ") +
        name + "; available: " + names(true));
  }
  throw std::invalid_argument("SEMOBRIDGE_ISA: must be one of " + names(false) + ", got " + name +
                              "; available here: " + names(true));
}

Isa initial_isa() {
  const char* wanted = std::getenv("SEMOBRIDGE_ISA");
  if (wanted != nullptr && *wanted != '\0') return parse_isa(wanted);
  Isa best = Isa::kPortable;
  for (Isa isa : kIsas) {
    if (isa_runnable(isa)) best = isa;
  }
  return best;
}

[[noreturn]] void refuse(const char* kernel) {
  throw std::runtime_error(std::string(kernel) +
                           ": called by a signal handler inside of another kernel; let the "
                           "handler set a flag and return, and call it later");
}

std::atomic<int> g_isa{-1};

#ifdef SB_HAVE_X86
// clang 14 knows no name for F16C (leaf 1, ECX, bit 29), g++ 12 none for AVX-VNNI (leaf 7.1, EAX,
// bit 4). The ymm registers that they need are AVX2's.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 29 & 1) != 0;
}

bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}
#endif

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Dot:
      return "avx512dot";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2Dot:
      return "avx2dot";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kNeonDot:
      return "neondot";
    default:
      return "portable";
  }
}

bool isa_compiled(Isa isa) { return table_of(isa) != nullptr; }

bool isa_runnable(Isa isa) {
  if (!isa_compiled(isa)) return false;
#ifdef SB_HAVE_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx512Dot) return avx512 && __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::kAvx512) return avx512;
  if (isa == Isa::kAvx2Dot) return avx2 && has_avx_vnni();
  if (isa == Isa::kAvx2) return avx2;
#elif defined(__aarch64__) && defined(__linux__)
  if (isa == Isa::kNeonDot) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__)
  if (isa == Isa::kNeonDot) return false;
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

bool active_dot() {
  const Isa isa = active_isa();
  return isa == Isa::kNeonDot || isa == Isa::kAvx2Dot || isa == Isa::kAvx512Dot;
}

bool active_bf16() {
#ifdef SB_HAVE_X86
  const Isa isa = active_isa();
  return (isa == Isa::kAvx512 || isa == Isa::kAvx512Dot) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
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
