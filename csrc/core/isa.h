// Instruction sets: every kernel is compiled once per set and chosen at run time.
//
// The sets that end in "dot" run the kernels of the one before them, and multiply 8-bit codes by an
// instruction made for it: AVX-VNNI, AVX-512-VNNI, or the dot product of ARMv8.2 (on aarch64 the
// portable kernels are compiled for NEON).
#pragma once

namespace semobridge {

enum class Isa : int {
  kPortable = 0,
  kNeonDot = 1,
  kAvx2 = 2,
  kAvx2Dot = 3,
  kAvx512 = 4,
  kAvx512Dot = 5
};
constexpr Isa kIsas[] = {Isa::kPortable, Isa::kNeonDot, Isa::kAvx2,
                         Isa::kAvx2Dot,  Isa::kAvx512,  Isa::kAvx512Dot};

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);  // this build holds the kernels
bool isa_runnable(Isa isa);  // ... and this processor can run them
Isa active_isa();            // the best runnable one, or what SEMOBRIDGE_ISA / set_isa asked for
bool active_dot();           // ... and whether it has an instruction for products of codes
bool active_bf16();          // ... and whether it has one for pairs of bfloat16 numbers
// Throws std::invalid_argument when the set is unknown, not compiled or not runnable here.
void set_isa(const char* name);

}  // namespace semobridge
